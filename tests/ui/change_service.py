"""A fake change service: plans on a snapshot, records its calls."""

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
from tui.services import (
    ChangeResult,
    LoggedChange,
    PastChange,
    PlanScope,
    Progress,
    Services,
    UnconfirmedChange,
)


def past_change(title: str, end: str = "done") -> PastChange:
    """Return a change of the journal that created one bridge."""
    return PastChange(title, title, time.time(), end, (CreateBridge("br-old"),))


@dataclass
class FakeChangeService:
    """Implement tui.services.ChangeService without a kernel."""

    snapshot: Snapshot = field(default_factory=small_host)
    journal: tuple[PastChange, ...] = ()
    waiting: tuple[UnconfirmedChange, ...] = ()
    done: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
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
        self.undone.append(past.title)
        return ChangeResult(Plan(past.title, past.begun), "undone", entry_id=past.entry_id)

    def forget(self, past: PastChange) -> None:
        raise AssertionError("nothing is forgotten here")

    def unconfirmed(self) -> tuple[UnconfirmedChange, ...]:
        return self.waiting

    def confirm(self, entry_id: str) -> bool:
        return True


@asynccontextmanager
async def change_dashboard(
    size: tuple[int, int] = (130, 40), **more: Any
) -> AsyncIterator[tuple[Person, FakeChangeService]]:
    """Run the dashboard with a fake change service, changes allowed."""
    service = FakeChangeService(**more)
    async with dashboard(service.snapshot, size, services=Services(change=lambda: service)) as person:
        await person.press("W")
        yield person, service
