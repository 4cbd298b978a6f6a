"""The verdicts by number: names and words, read from bpf/verdicts.h, the one list of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r'^VERDICT\((\w+), "(.*)"\)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a packet: its number in the counters, its name, and the words for people."""

    number: int
    name: str
    words: str


def _read() -> tuple[Verdict, ...]:
    text = (Path(__file__).parent / "verdicts.h").read_text()
    return tuple(Verdict(number, *found) for number, found in enumerate(_LINE.findall(text)))


VERDICTS = _read()
FAST = VERDICTS[0]
