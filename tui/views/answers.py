"""Format the answer to "can A reach B?" as lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from core.reach import Answer, Endpoint, Hop
from core.text import safe
from tui.views.formatting import fit, width_of, wrapped
from tui.views.rows import Tone

if TYPE_CHECKING:
    from core.probe.verify import Verification

# One line as (text, tone) pieces.
AnswerLine = Sequence[tuple[str, str]]

_MARKS: dict[str, tuple[str, Tone]] = {
    "pass": ("✓", "ok"), "warn": ("!", "warn"), "stop": ("✗", "bad"), "unknown": ("?", "warn"),
}  # fmt: skip
_PLACE, _KIND = 12, 11
_LEAST = 20


def answer_lines(answer: Answer, width: int) -> Iterator[AnswerLine]:
    """Yield the lines of an answer: the conclusion, then the hops there and back."""
    yield from conclusion_lines(answer, width)
    places = max([_PLACE, *(width_of(safe(hop.place)) for hop in (*answer.there, *answer.back))])
    places = min(places, max(_PLACE, width // 4))
    question = answer.question
    ends = [_end(question.source, answer), _end(question.target, answer)]
    for title, hops, names in (("there", answer.there, ends), ("back", answer.back, ends[::-1])):
        if hops:
            yield []
            yield [(f"{title}: from {names[0]} to {names[1]}", "heading")]
        for hop in hops:
            yield from hop_lines(hop, width, places)
    if answer.mtu and answer.verdict != "stop":
        yield []
        yield [(f"largest packet that fits all links: {answer.mtu} bytes", "dim")]


def _end(end: Endpoint, answer: Answer) -> str:
    """Name an end; "outside" stands for an address that is only an example."""
    example = f" ({answer.example}, an example address)" if end.is_outside and answer.example else ""
    return safe(end.name) + example


def conclusion_lines(answer: Answer, width: int) -> Iterator[AnswerLine]:
    """Yield the conclusion and what to try."""
    tone = _MARKS[answer.verdict][1]
    for part in wrapped(safe(answer.sentence), width):
        yield [(part, tone)]
    cause = answer.cause
    if cause is not None and cause.fix is not None:
        for part in wrapped(safe(f"Try: {cause.fix.sentence}"), width):
            yield [(part, "accent")]
        if cause.fix.command:
            yield [("  " + safe(cause.fix.command), "accent")]


def hop_lines(hop: Hop, width: int, places: int) -> Iterator[AnswerLine]:
    """Yield the lines of one hop: mark, namespace, kind, text, then the evidence."""
    symbol, tone = _MARKS[hop.verdict]
    room = max(_LEAST, width - 2 - places - 2 - _KIND - 2)
    indent = " " * (2 + places + 2 + _KIND + 2)
    for number, part in enumerate(wrapped(safe(hop.text), room)):
        if number:
            yield [(indent + part, tone if hop.verdict != "pass" else "")]
            continue
        yield [
            (f"{symbol} ", tone),
            (fit(safe(hop.place), places) + "  ", ""),
            (fit(hop.kind, _KIND) + "  ", "dim"),
            (part, tone if hop.verdict != "pass" else ""),
        ]
    for text in hop.evidence:
        for part in wrapped(safe(text), room):
            yield [(indent + part, "dim")]


def verification_lines(found: Verification, width: int) -> Iterator[AnswerLine]:
    """Yield what a probe found, beside the static answer."""
    tone = "warn" if found.agrees is False else "ok" if found.result.outcome == "answered" else "accent"
    for part in wrapped(safe(found.sentence), width):
        yield [(part, tone)]
    for note in found.notes:
        for number, part in enumerate(wrapped(safe(note), width - 2)):
            yield [("  " if number else "- ", "dim"), (part, "")]
