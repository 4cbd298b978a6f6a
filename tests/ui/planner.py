"""A changer that plans on a snapshot and remembers what it was told to do, without a kernel below it."""

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
from tui.changer import Earlier, Ended, Logged, Parts, Progress, Waiting


def made_earlier(title: str, end: str = "done") -> Earlier:
    """A change of the journal that made one bridge."""
    return Earlier(title, title, time.time(), end, (CreateBridge("br-old"),))


@dataclass
class Planner:
    """A tui.changer.Changer."""

    snapshot: Snapshot = field(default_factory=small_host)
    journal: tuple[Earlier, ...] = ()
    held: tuple[Waiting, ...] = ()
    done: list[str] = field(default_factory=list)
    taken_back: list[str] = field(default_factory=list)
    log: list[Logged] = field(default_factory=list)

    def lacking(self) -> str:
        return ""

    def look(self, parts: Parts) -> Topology:
        return Topology(self.snapshot)

    def plan(self, requests: Sequence[Request], topology: Topology) -> Plan | Refused:
        return plan_all(requests, topology)

    def change(self, requests: Sequence[Request], parts: Parts, agreed: Plan, progress: Progress) -> Ended:
        self.done.append(agreed.title)
        return Ended(agreed, "done", entry_id="1")

    def earlier(self) -> tuple[Earlier, ...]:
        return self.journal

    def take_back(self, earlier: Earlier, progress: Progress) -> Ended:
        self.taken_back.append(earlier.title)
        return Ended(Plan(earlier.title, earlier.begun), "undone", entry_id=earlier.entry_id)

    def forget(self, earlier: Earlier) -> None:
        raise AssertionError("nothing is forgotten here")

    def waiting(self) -> tuple[Waiting, ...]:
        return self.held

    def keep(self, entry_id: str) -> bool:
        return True


@asynccontextmanager
async def planning(size: tuple[int, int] = (130, 40), **more: Any) -> AsyncIterator[tuple[Person, Planner]]:
    """The dashboard with such a changer, changes allowed."""
    planner = Planner(**more)
    async with dashboard(planner.snapshot, size, make_changer=lambda: planner) as person:
        await person.press("W")
        yield person, planner
