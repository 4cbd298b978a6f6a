"""Figures in words: rates, counts, sizes, durations and ages, short enough for a cell."""

from __future__ import annotations

from collections.abc import Sequence

from tui.present.fit_text import SPARKS

_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def _scaled(value: float) -> tuple[str, str]:
    """The value in at most three digits and a point, and its decimal prefix."""
    size, prefix = abs(value), 0
    while prefix < len(_PREFIXES) - 1 and size >= 999.5:
        size, prefix = size / 1000, prefix + 1
    whole = prefix == 0 or size >= 99.95
    return f"{'-' if value < 0 else ''}{size:.{0 if whole else 1}f}", _PREFIXES[prefix]


def bits(per_second: float) -> str:
    """A rate from bits a second: "12.4 Mbit/s"."""
    figure, prefix = _scaled(per_second)
    return f"{figure} {prefix}bit/s"


def packets(per_second: float) -> str:
    """A rate from packets a second: "1.2k p/s"."""
    figure, prefix = _scaled(per_second)
    return f"{figure}{prefix} p/s"


def each_second(number: float) -> str:
    """Events a second, rare ones too: "0.05/s", "3.2/s", "1.2k/s"."""
    if 0 < number < 9.95:
        return f"{number:.{1 if number >= 0.995 else 2}f}/s"
    return f"{''.join(_scaled(number))}/s"


def count(number: float) -> str:
    """A whole number: "950", "1.2k", "3.4M"."""
    return "".join(_scaled(number))


def several(number: int, thing: str) -> str:
    """A number of things: "1 packet", "1.2k packets"."""
    return f"{count(number)} {thing}{'s' * (number != 1)}"


def size(octets: float) -> str:
    """An amount of data from bytes: "1.4 MB"."""
    figure, prefix = _scaled(octets)
    return f"{figure} {prefix}B"


def duration(seconds: float) -> str:
    """A length of time in its two largest units: "25s", "4m 05s", "2h 03m", "5d 07h"."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def age(since: float, now: float) -> str:
    """How long ago `since` was (both Unix time): "12s ago", "just now"."""
    passed = now - since
    return "just now" if passed < 1 else f"{duration(passed)} ago"


def sparkline(history: Sequence[float], width: int = 8) -> str:
    """The last `width` values as bars against the largest of them; "" where there is none."""
    values = [max(0.0, value) for value in history[-width:]]
    top = max(values, default=0.0)
    steps = len(SPARKS) - 1
    return "".join(SPARKS[round(value / top * steps) if top else 0] for value in values)


def curve(values: Sequence[float], newest: int, width: int) -> str:
    """Values, one a slot, as at most `width` bars, each the highest of its slots against the highest of all;
    a blank where none is known. `newest` is the last slot's number: a bar keeps its slots as time goes on."""
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
