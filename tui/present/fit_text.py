"""Text in cells of the terminal: measured, cut, padded and wrapped."""

from __future__ import annotations

import re

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
    """The text with every drawing character replaced, cell for cell; what is left that is not ASCII is a
    letter of somebody's name and stays."""
    return text if text.isascii() else text.translate(ASCII)


_GLUE = "\N{NO-BREAK SPACE}"
_BEFORE_A_UNIT = re.compile(r"(?<=\d) (?=[kMGTPE]?(?:bit/s|B|p/s|packets?)\b)")


def width_of(text: str) -> int:
    """The terminal cells that the text takes."""
    return len(text) if text.isascii() else cell_len(text)


def cut(text: str, width: int) -> str:
    """The text in at most `width` cells, an ellipsis at its end where it does not fit."""
    if width_of(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + ELLIPSIS if width > 0 else ""


def cut_end(text: str, width: int) -> str:
    """An end of a connection, "web1 10.0.0.2:80" or "[fd00::2]:80", in at most `width` cells: without its
    address where it has a name, or with a shorter one; its port stays."""
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
    """The text in exactly `width` cells: padded, or cut."""
    short = cut(text, width)
    padding = " " * (width - width_of(short))
    return padding + short if right else short + padding


def wrapped(text: str, width: int) -> list[str]:
    """The text in pieces of at most `width` cells, broken between words where that is possible, and not
    between a number and its unit."""
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
