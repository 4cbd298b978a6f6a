"""The time line of a recording: where the person is, what time it was then, and where something changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.strip import Strip

from tui.keepsake import span_of
from tui.present.fit_text import width_of
from tui.widgets.bars import Bar, clickable
from tui.widgets.lines import Span, strip_of

if TYPE_CHECKING:
    from tui.replay import Position

_LEAST_LINE = 10  # cells of the line itself, before words beside it give way


class TimeBar(Bar):
    """One line; a click on it goes to that time."""

    position: Position | None = None
    marks: Sequence[float] = ()

    def show(self, position: Position, marks: Sequence[float]) -> None:
        """Show that position; `marks` are parts of the line, 0 to 1, where something changed."""
        self.position, self.marks = position, marks
        self.repaint()

    def paint(self, width: int, height: int) -> list[Strip]:
        at = self.position
        if at is None:
            return []
        mark, tone = ("▶", "ok") if at.playing else ("■", "warn")
        left: list[Span] = [
            (f" {mark} ", clickable(self.style_of(tone), "play")),
            (f"{_time_of_day(at)} ", self.style_of("title")),
        ]
        for words in self._wordings(at):
            room = width - sum(width_of(text) for text, _ in left) - width_of(words)
            if room >= _LEAST_LINE:
                break
        return [strip_of([*left, *self._line(at, max(1, room)), (words, self.style_of("dim"))], width)]

    def _wordings(self, at: Position) -> list[str]:
        """What stands at the right, the longest first."""
        place, speed = f" {at.place + 1}/{at.count}", f" {at.speed:g}x"
        seconds = f" {span_of(at.seconds)} of {span_of(at.length)}"
        clock = f" clock set by {at.stepped:+.0f} s" if at.stepped else ""
        return [f"{clock}{seconds} {place} {speed} ", f"{clock}{place}{speed} ", f"{place}{speed} ", place]

    def _line(self, at: Position, width: int) -> list[Span]:
        """The line: what is past, the moment shown, what is to come; on it the changes."""
        here = _cell(at.seconds / at.length if at.length else 0.0, width)
        changed = {_cell(mark, width) for mark in self.marks}
        spans: list[Span] = []
        for cell in range(width):
            text, tone = ("━", "accent") if cell < here else ("─", "faint")
            if cell in changed:
                text, tone = "◆", "warn"
            if cell == here:
                text, tone = "●", "title"
            part = cell / (width - 1) if width > 1 else 0.0
            spans.append((text, clickable(self.style_of(tone), f"seek({part:.4f})")))
        return spans


def _cell(part: float, width: int) -> int:
    return min(width - 1, int(part * (width - 1) + 0.5))


def _time_of_day(at: Position) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at.wall)) + f".{int(at.wall * 10) % 10}"
