"""Show the answer to "can A reach B?" over the dashboard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from textual.binding import Binding

from core.model.fix import Fix
from core.reach import Answer
from core.text import safe
from tui.screens.dialogs import Line, Overlay
from tui.views.answers import answer_lines

_WIDTH = 110


class AnswerOverlay(Overlay):
    """The hops of a packet; `F` opens the repair of what stops it."""

    BINDINGS = [Binding("F", "fix", "Fix", show=False), Binding("w", "dismiss", show=False)]

    def __init__(self, answer: Answer, repair: Callable[[Fix], None]) -> None:
        question = answer.question
        title = f" {safe(question.source.name)} → {safe(question.target.name)}{question.service} "
        super().__init__(title, partial(_lines, answer), _WIDTH)
        self._fix = answer.cause.fix if answer.cause else None
        self._repair = repair

    def on_mount(self) -> None:
        super().on_mount()
        if self._fix is not None and self._fix.steps:
            self.query_one("Vertical").border_subtitle = "F: fix  Esc: close"

    def action_fix(self) -> None:
        """Close, and open the preview of the repair."""
        if self._fix is not None and self._fix.steps:
            self.dismiss()
            self._repair(self._fix)


def _lines(answer: Answer, width: int) -> list[Line]:
    return list(answer_lines(answer, width))
