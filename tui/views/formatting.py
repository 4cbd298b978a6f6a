"""Format figures as short text; measure, cut, pad and wrap text in cells."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len, chop_cells, set_cell_size

SPARKS = "▁▂▃▄▅▆▇█"
ELLIPSIS = "…"
ARROW = "→"
BOTH_WAYS = "↔"
NOT_EQUAL = "≠"
PIN = "◆"

_ASCII = {
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┣┫┯┷┑┍╤╧╪╞╡╥╨┠┨✓", "+"),
    **dict.fromkeys("━═╾╼╺╸▅⇄", "="),
    **dict.fromkeys("─╌┄╶╴▄↔–—", "-"),
    **dict.fromkeys("│┃║╵╷▏▎▍▌▐▕", "|"),
    **dict.fromkeys("█▓▒■", "#"),
    **dict.fromkeys("▸▶→›", ">"),
    **dict.fromkeys("◀←‹", "<"),
    **dict.fromkeys("▲↑", "^"),
    **dict.fromkeys("▾▼↓", "v"),
    **dict.fromkeys("●▪•▇◆◇", "*"),
    **dict.fromkeys("○□", "o"),
    **dict.fromkeys("×✗", "x"),
    **dict.fromkeys("≠⚠", "!"),
    **dict.fromkeys("░▂·", "."),
    **dict.fromkeys("┆▃", ":"),
    "▁": "_", "▆": "+", "◐": "%", "…": "~",
}  # fmt: skip

ASCII = str.maketrans(_ASCII)


def ascii_only(text: str) -> str:
    """Replace drawing characters, cell by cell; letters of names stay."""
    return text if text.isascii() else text.translate(ASCII)


_GLUE = "\N{NO-BREAK SPACE}"
_BEFORE_A_UNIT = re.compile(r"(?<=\d) (?=[kMGTPE]?(?:bit/s|B|p/s|packets?)\b)")


def width_of(text: str) -> int:
    """Return the number of terminal cells of the text."""
    return len(text) if text.isascii() else cell_len(text)


def cut(text: str, width: int) -> str:
    """Cut the text to `width` cells, with an ellipsis if it doesn't fit."""
    if width_of(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + ELLIPSIS if width > 0 else ""


def cut_end(text: str, width: int) -> str:
    """Shorten an end of a connection to at most `width` cells; the port stays.

    "web1 10.0.0.2:80" loses its address, "[fd00::2]:80" a part of it.
    """
    if width_of(text) <= width:
        return text
    name, _, address = text.rpartition(" ")
    whose, colon, port = address.rpartition(":")
    if not port.isdecimal() or (":" in whose.removesuffix("]") and not whose.startswith("[")):
        return cut(name or text, width)
    bracket = "" if name else "]" * whose.endswith("]")
    tail = f"{bracket}{colon}{port}"
    return cut(name or whose.removesuffix("]"), width - len(tail)) + tail


def fit(text: str, width: int, right: bool = False) -> str:
    """Pad or cut the text to exactly `width` cells."""
    short = cut(text, width)
    padding = " " * (width - width_of(short))
    return padding + short if right else short + padding


def wrapped(text: str, width: int) -> list[str]:
    """Wrap text to pieces of at most `width` cells.

    It is broken between words if possible, and not between a number and its unit.
    """
    lines = [""]
    for word in _BEFORE_A_UNIT.sub(_GLUE, text).split(" "):
        pieces = [word] if width_of(word) <= width else chop_cells(word, width)
        for number, piece in enumerate(pieces):
            gap = " " if lines[-1] and not number else ""
            if not number and width_of(lines[-1] + gap + piece) <= width:
                lines[-1] += gap + piece
            else:
                lines.append(piece)
    return [line.replace(_GLUE, " ") for line in lines[not lines[0] :]] or [""]


_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def _scaled(value: float) -> tuple[str, str]:
    """Return the value in at most three digits and a point, and its SI prefix."""
    size, prefix = abs(value), 0
    while prefix < len(_PREFIXES) - 1 and size >= 999.5:
        size, prefix = size / 1000, prefix + 1
    whole = prefix == 0 or size >= 99.95
    return f"{'-' if value < 0 else ''}{size:.{0 if whole else 1}f}", _PREFIXES[prefix]


def bits(per_second: float) -> str:
    """Format a rate in bits per second: "12.4 Mbit/s"."""
    figure, prefix = _scaled(per_second)
    return f"{figure} {prefix}bit/s"


def packets(per_second: float) -> str:
    """Format a rate in packets per second: "1.2k p/s"."""
    figure, prefix = _scaled(per_second)
    return f"{figure}{prefix} p/s"


def frequency(number: float) -> str:
    """Format events per second, rare ones too: "0.05/s", "3.2/s", "1.2k/s"."""
    if 0 < number < 9.95:
        return f"{number:.{1 if number >= 0.995 else 2}f}/s"
    return f"{''.join(_scaled(number))}/s"


def count(number: float) -> str:
    """Format a whole number: "950", "1.2k", "3.4M"."""
    return "".join(_scaled(number))


def several(number: int, thing: str) -> str:
    """Format a number of things: "1 packet", "1.2k packets"."""
    return f"{count(number)} {thing}{'s' * (number != 1)}"


def size(octets: float) -> str:
    """Format an amount of data in bytes: "1.4 MB"."""
    figure, prefix = _scaled(octets)
    return f"{figure} {prefix}B"


def duration(seconds: float) -> str:
    """Format a duration in its two largest units: "25s", "4m 05s", "5d 07h"."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def age(since: float, now: float) -> str:
    """Format how long ago `since` was (both Unix time): "12s ago", "just now"."""
    passed = now - since
    return "just now" if passed < 1 else f"{duration(passed)} ago"


def sparkline(history: Sequence[float], width: int = 8) -> str:
    """Return the last `width` values as bars relative to their maximum.

    "" without any values.
    """
    values = [max(0.0, value) for value in history[-width:]]
    top = max(values, default=0.0)
    steps = len(SPARKS) - 1
    return "".join(SPARKS[round(value / top * steps) if top else 0] for value in values)


def curve(values: Sequence[float], newest: int, width: int) -> str:
    """Return the values as at most `width` bars relative to the maximum.

    Each bar is the maximum of its slots, blank if none is known. `newest` is the last slot's number: a bar
    keeps its slots as time passes.
    """
    each = -(-len(values) // width)
    first = newest - len(values) + 1
    bars: dict[int, float] = {}
    for slot, value in enumerate(values, first):
        if value == value:
            bars[slot // each] = max(value, bars.get(slot // each, 0.0))
    top, steps = max(bars.values(), default=0.0), len(SPARKS) - 1
    last = newest // each
    numbers = range(last - min(width, len(values)) + 1, last + 1)
    return "".join(
        SPARKS[round(bars[number] / top * steps) if top else 0] if number in bars else " "
        for number in numbers
    )
