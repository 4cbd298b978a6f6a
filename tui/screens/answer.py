"""Show the answer to "can A reach B?" over the dashboard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from textual.binding import Binding

from core.model.fix import Fix
from core.reach import Answer
from core.text import safe
from tui.screens.dialogs import Line, Overlay, TextPane
from tui.views.answers import answer_lines
from tui.views.formatting import wrapped

if TYPE_CHECKING:
    from tui.screens.change import ChangeController

_WIDTH = 110
# Asks the question of an answer again, after a repair.
type AskAgain = Callable[[Answer], Awaitable[Answer]]
# Sends the probe of an answer; returns the lines for a width.
type Probe = Callable[[Answer, int], Awaitable[Sequence[Line]]]


class AnswerOverlay(Overlay):
    """The hops of a packet; `F` opens the repair of what stops it, `t` sends a probe.

    After a repair, the question is asked again.
    """

    BINDINGS = [
        Binding("F", "fix", "Fix", show=False),
        Binding("t", "probe", "Probe", show=False),
        Binding("W", "write", "Write", show=False),
        Binding("w", "dismiss", show=False),
    ]

    def __init__(self, answer: Answer, changes: ChangeController, probe: Probe, ask_again: AskAgain) -> None:
        question = answer.question
        title = f" {safe(question.source.name)} → {safe(question.target.name)}{question.service} "
        self._answer, self._probe = answer, probe
        self._proof: list[Line] = []
        self._changes, self._ask_again = changes, ask_again
        super().__init__(title, self._all_lines, _WIDTH)

    @property
    def _fix(self) -> Fix | None:
        """The repair of what stops the packet, None without one."""
        fix = self._answer.cause.fix if self._answer.cause else None
        return fix if fix is not None and fix.steps else None

    def _all_lines(self, width: int) -> list[Line]:
        return [*self._proof, *answer_lines(self._answer, width)]

    def on_mount(self) -> None:
        super().on_mount()
        self._show_keys()

    def _show_keys(self) -> None:
        keys = ["F: fix"] if self._fix is not None else []
        box = self.query_one("Vertical")
        box.border_subtitle = "  ".join([*keys, "t: probe", "Esc: close"])

    def action_fix(self) -> None:
        """Open the preview of the repair, or say why changes aren't allowed."""
        if self._fix is None:
            words = "can't repair this: vnet-tui has no repair for it"
            self._say(words if self._answer.cause else "can't repair this: nothing stops the packets")
        elif refusal := self._changes.refusal:
            self._say(refusal)
        else:
            self._changes.repair(self._fix, self._start_check)

    def action_write(self) -> None:
        """Allow or forbid changes, without leaving the answer."""
        refusal = self._changes.toggle_writing()
        allowed = f"Changes are allowed{': F previews the repair' if self._fix else ''}"
        self._say(refusal or (allowed if self._changes.writing else "Changes are no longer allowed"))

    def _say(self, text: str) -> None:
        width = max(20, self.query_one(TextPane).size.width - 2)
        self._show_proof([[(part, "warn")] for part in wrapped(safe(text), width)])

    def _start_check(self) -> None:
        self.run_worker(self._check())

    async def _check(self) -> None:
        """Ask again after a repair."""
        self._say("Repaired: asking again…")
        self._answer = await self._ask_again(self._answer)
        self._show_keys()
        self._say("Repaired, and asked again. t sends a probe; Esc, then u, undoes the repair.")

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
