"""Show the answer to "can A reach B?" over the dashboard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from textual.binding import Binding

from core.model.fix import Fix
from core.reach import Answer
from core.text import safe
from tui.screens.dialogs import Line, Overlay, TextPane
from tui.views.answers import answer_lines

_WIDTH = 110
# Sends the probe of an answer; returns the lines for a width.
type Probe = Callable[[Answer, int], Awaitable[Sequence[Line]]]


class AnswerOverlay(Overlay):
    """The hops of a packet; `F` opens the repair of what stops it, `t` sends a probe."""

    BINDINGS = [
        Binding("F", "fix", "Fix", show=False),
        Binding("t", "probe", "Probe", show=False),
        Binding("w", "dismiss", show=False),
    ]

    def __init__(self, answer: Answer, repair: Callable[[Fix], None], probe: Probe) -> None:
        question = answer.question
        title = f" {safe(question.source.name)} → {safe(question.target.name)}{question.service} "
        self._answer, self._probe = answer, probe
        self._proof: list[Line] = []
        super().__init__(title, self._all_lines, _WIDTH)
        self._fix = answer.cause.fix if answer.cause else None
        self._repair = repair

    def _all_lines(self, width: int) -> list[Line]:
        return [*self._proof, *answer_lines(self._answer, width)]

    def on_mount(self) -> None:
        super().on_mount()
        keys = ["F: fix"] if self._fix is not None and self._fix.steps else []
        box = self.query_one("Vertical")
        box.border_subtitle = "  ".join([*keys, "t: probe", "Esc: close"])

    def action_fix(self) -> None:
        """Close, and open the preview of the repair."""
        if self._fix is not None and self._fix.steps:
            self.dismiss()
            self._repair(self._fix)

    async def action_probe(self) -> None:
        """Send one packet, and show what the kernel did above the static answer."""
        self._show_proof([[("sending a probe…", "dim")]])
        width = max(20, self.query_one(TextPane).size.width - 2)
        self._show_proof(await self._probe(self._answer, width))

    def _show_proof(self, lines: Sequence[Line]) -> None:
        self._proof = [*lines, []]
        pane = self.query_one(TextPane)
        pane.on_resize()
        pane.top = 0
        self._fit()
        pane.repaint()
