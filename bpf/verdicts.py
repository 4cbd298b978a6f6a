"""List the verdicts by number with name and text, from bpf/verdicts.h."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r'^VERDICT\((\w+), "(.*)"\)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Describe a verdict: number in the counters, name, and text for users."""

    number: int
    name: str
    words: str


def _read() -> tuple[Verdict, ...]:
    text = (Path(__file__).parent / "verdicts.h").read_text()
    return tuple(Verdict(number, *found) for number, found in enumerate(_LINE.findall(text)))


VERDICTS = _read()
FAST = VERDICTS[0]
