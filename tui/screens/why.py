"""Answer "can A reach B?" in the dashboard, and repair or mute findings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.diagnose import Finding, findings_of
from core.model import Ref
from core.model.fix import Fix
from core.text import safe
from core.topology import Topology
from tui.presenter import Presenter
from tui.screens.change import ChangeController
from tui.screens.layout import Layout
from tui.screens.navigation import NavigationController
from tui.view_model import subject_of
from tui.views.doctor import finding_of
from tui.views.flows_detail import question_of

if TYPE_CHECKING:
    from core.reach import Answer, Endpoint, Question
    from tui.screens.dialogs import Line


_SEEN_WITHIN, _POLL = 8.0, 0.2  # seconds


class WhyController:
    """Ask about the selected item, and repair or mute its findings.

    core.reach is imported when first needed.
    """

    def __init__(
        self,
        screen: Layout,
        presenter: Presenter,
        navigation: NavigationController,
        changes: ChangeController,
    ) -> None:
        self._screen, self._presenter = screen, presenter
        self._navigation, self._changes = navigation, changes
        self._source: Endpoint | None = None

    @property
    def _topology(self) -> Topology:
        return self._presenter.context.topology

    # ---- ask

    def open_prompt(self) -> None:
        """Open the prompt for the target; the selected item is the source.

        A flow has both ends already.
        """
        from core.reach import Endpoint
        from core.reach.question import endpoint_of

        ref = self._navigation.ref
        if refusal := self._navigation.refusal("ask"):
            self._say(refusal)
            return
        if ref is not None and (question := question_of(self._presenter.context, ref)) is not None:
            self._screen.run_worker(self._show(question))
            return
        ends = (endpoint_of(self._topology, one) for one in self._subjects(ref))
        self._source = next(filter(None, ends), None) or Endpoint("host", self._topology.host)
        self._screen.prompt.open("w", "", self._complete, f"w {safe(self._source.name)} → ")

    def _subjects(self, ref: Ref | None) -> tuple[Ref, ...]:
        """Return the selected item, or what the selected finding concerns."""
        ref = (subject_of(self._presenter.context, ref) or ref) if ref is not None else None
        finding = finding_of(self._topology, ref) if ref is not None and ref.kind == "finding" else None
        if finding is None:
            return (ref,) if ref is not None else ()
        return tuple(sorted((finding.ref, *finding.related), key=lambda one: one.kind != "container"))

    def _complete(self, text: str) -> str:
        """Complete the name of a target, if only one begins so."""
        names = {one.name for one in self._topology.containers.values()} | {"host", "outside"}
        found = sorted(name for name in names if text and name.startswith(text) and safe(name) == name)
        return found[0] if len(found) == 1 else text

    async def answer(self, text: str) -> bool:
        """Show the answer for "TARGET [PORT/PROTO]", without a target for the outside.

        False if the text has a mistake, which a notice names.
        """
        from core.reach import Endpoint, Question, UnknownEndpoint
        from core.reach.question import check, port_of, resolve

        topology, words = self._topology, text.split()
        try:
            target = resolve(topology, words[0] if words else "outside")
            l4_proto, port = port_of(words[1]) if len(words) > 1 else ("icmp", 0)
            source = self._source or Endpoint("host", topology.host)
            question = check(Question(source, target, l4_proto, port))
        except UnknownEndpoint as error:
            self._screen.notify(str(error), severity="warning", markup=False)
            return False
        await self._show(question)
        return True

    async def _show(self, question: Question) -> None:
        from core.reach import why

        found = await asyncio.to_thread(why, self._topology, question)
        # Imported late: it imports operations, which are not needed before the first paint.
        from tui.screens.answer import AnswerOverlay

        overlay = AnswerOverlay(found, self._changes, self._probe, self._ask_again)
        self._screen.app.push_screen(overlay)

    async def _ask_again(self, before: Answer) -> Answer:
        """Ask again after a repair; wait some seconds until the snapshot shows it."""
        from core.reach import why

        asked: Topology | None = None
        found, until = before, time.monotonic() + _SEEN_WITHIN
        while time.monotonic() < until:
            if (topology := self._topology) is not asked:
                found, asked = await asyncio.to_thread(why, topology, before.question), topology
                if found.cause != before.cause:
                    break
            await asyncio.sleep(_POLL)
        return found

    async def _probe(self, answer: Answer, width: int) -> Sequence[Line]:
        """Send the probe of an answer, and return its lines."""
        return await asyncio.to_thread(self._presenter.probe_lines, self._topology, answer, width)

    # ---- repair and mute

    def repair(self, fix: Fix) -> None:
        """Open the preview of a repair."""
        self._changes.repair(fix)

    def _selected(self) -> Finding | None:
        """Return the finding that is selected, or the first one about the selected item."""
        ref = self._navigation.ref
        if ref is None:
            return None
        if ref.kind == "finding":
            return finding_of(self._topology, ref)
        about = findings_of(self._topology, subject_of(self._presenter.context, ref) or ref)
        return next((one for one in about if one.fix is not None and one.fix.steps), next(iter(about), None))

    def fix_selected(self) -> None:
        """Open the preview of the repair of the selected finding."""
        if refusal := self._navigation.refusal("repair"):
            self._say(refusal)
            return
        finding = self._selected()
        if finding is None:
            self._say("can't repair this: nothing is wrong with the selected item. Try: :doctor")
        elif refusal := self.repair_of(finding):
            self._say(refusal)

    def repair_of(self, finding: Finding) -> str:
        """Open the preview of a finding's repair; return why that can't be, or ""."""
        if finding.fix is None or not finding.fix.steps:
            remedy = f" Try: {finding.advice}" if finding.advice else ""
            return f"can't repair this: vnet-tui has no repair for it.{remedy}"
        if not self._changes.refusal:
            self.repair(finding.fix)
        return self._changes.refusal

    def mute_selected(self) -> None:
        """Mute the selected finding, or show it again."""
        ref = self._navigation.ref
        if refusal := self._navigation.refusal("mute"):
            self._say(refusal)
            return
        if ref is None or ref.kind != "finding":
            self._say("can't mute this: no finding is selected. Try: :doctor")
            return
        name = str(ref.key[0])
        is_muted, finding = name in self._presenter.context.muted, finding_of(self._topology, ref)
        if wrong := self._presenter.toggle_muted(name):
            self._say(wrong)
            return
        words = safe(finding.short if finding else name)
        if is_muted:
            self._navigation.select_again(ref)
            self._screen.notify(f"Shown again: {words}", markup=False)
        else:
            self._navigation.select_again(self._screen.table.neighbour() or ref)
            self._screen.notify(f"Muted: {words}. It is listed last; I on it shows it again.", markup=False)

    def _say(self, text: str) -> None:
        self._screen.notify(safe(text), severity="warning", markup=False)
