"""A change service that plans on a snapshot and remembers its calls, without a kernel below it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from core.model import Snapshot
from core.operations import CreateBridge
from core.plan import Plan, Refused, plan_all
from core.plan.requests import Request
from core.topology import Topology
from tests.support.snapshots import small_host
from tests.ui.driver import Person, dashboard
from tui.services import ChangeResult, LoggedChange, PastChange, PlanScope, Progress, UnconfirmedChange


def made_earlier(title: str, end: str = "done") -> PastChange:
    """A change of the journal that made one bridge."""
    return PastChange(title, title, time.time(), end, (CreateBridge("br-old"),))


@dataclass
class Planner:
    """A tui.services.ChangeService."""

    snapshot: Snapshot = field(default_factory=small_host)
    journal: tuple[PastChange, ...] = ()
    held: tuple[UnconfirmedChange, ...] = ()
    done: list[str] = field(default_factory=list)
    taken_back: list[str] = field(default_factory=list)
    log: list[LoggedChange] = field(default_factory=list)

    def missing_rights(self) -> str:
        return ""

    def read_topology(self, parts: PlanScope) -> Topology:
        return Topology(self.snapshot)

    def plan(self, requests: Sequence[Request], topology: Topology) -> Plan | Refused:
        return plan_all(requests, topology)

    def change(
        self, requests: Sequence[Request], parts: PlanScope, agreed: Plan, progress: Progress
    ) -> ChangeResult:
        self.done.append(agreed.title)
        return ChangeResult(agreed, "done", entry_id="1")

    def history(self) -> tuple[PastChange, ...]:
        return self.journal

    def undo(self, past: PastChange, progress: Progress) -> ChangeResult:
        self.taken_back.append(past.title)
        return ChangeResult(Plan(past.title, past.begun), "undone", entry_id=past.entry_id)

    def forget(self, past: PastChange) -> None:
        raise AssertionError("nothing is forgotten here")

    def unconfirmed(self) -> tuple[UnconfirmedChange, ...]:
        return self.held

    def confirm(self, entry_id: str) -> bool:
        return True


@asynccontextmanager
async def planning(size: tuple[int, int] = (130, 40), **more: Any) -> AsyncIterator[tuple[Person, Planner]]:
    """The dashboard with such a service, changes allowed."""
    planner = Planner(**more)
    async with dashboard(planner.snapshot, size, make_change_service=lambda: planner) as person:
        await person.press("W")
        yield person, planner
