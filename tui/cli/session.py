"""Implement the dashboard's ChangeService by the functions of the commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from core.apply import guard, journal
from core.apply.entries import Entry
from core.apply.run import Outcome
from core.operations import Operation, undo_of, undo_title
from core.plan import Plan, Refused
from core.plan.requests import Request
from core.state import planning_lock, writers_lock
from core.topology import Topology
from tui.cli import perform
from tui.cli.console import command_errors, require_rights
from tui.cli.history import dependent_changes, needs_guard, require_no_dependents, undo_entry
from tui.command import CommandError
from tui.services import ChangeResult, LoggedChange, PastChange, PlanScope, Progress, UnconfirmedChange

_PARTS = {
    "light": perform.RULED,
    "network": perform.with_frr(perform.RULED),
    "publishing": perform.PUBLISHING,
    "tuning": perform.TRACKED,
    "whole": perform.with_frr(perform.WHOLE),
    "repair": perform.REPAIR,
}
_MOST_EARLIER = 200


class ChangeSession:
    """Implement tui.services.ChangeService on this host."""

    def __init__(self) -> None:
        self.log: list[LoggedChange] = []

    def missing_rights(self) -> str:
        try:
            require_rights()
        except CommandError as error:
            return str(error)
        return ""

    def read_topology(self, parts: PlanScope) -> Topology:
        return perform.read_topology(_PARTS[parts], deep=True)

    def plan(self, requests: Sequence[Request], topology: Topology) -> Plan | Refused:
        return perform.plan_requests(requests, topology)

    def change(
        self, requests: Sequence[Request], parts: PlanScope, agreed: Plan, progress: Progress
    ) -> ChangeResult:
        def apply(plan: Plan) -> Outcome:
            return self._logged(plan.title, progress, lambda heard: perform.run_plan(plan, heard))

        with command_errors():
            plan, outcome = perform.attempt(
                lambda topology: self.plan(requests, topology),
                _PARTS[parts],
                lambda plan: perform.same_steps(plan, agreed),
                apply,
                deep=True,
            )
        if outcome is None:
            return ChangeResult(plan)
        seconds = guard.SECONDS if outcome.done and isinstance(plan, Plan) and plan.guarded else 0.0
        return replace(_ended(plan, outcome), seconds=seconds)

    def history(self) -> tuple[PastChange, ...]:
        with command_errors():
            entries = journal.latest(_MOST_EARLIER)
        return tuple(_past(entry, entries[:place]) for place, entry in enumerate(entries))

    def undo(self, past: PastChange, progress: Progress) -> ChangeResult:
        with command_errors(), planning_lock():
            entry = journal.find(past.entry_id)
            if entry is None or entry.end != past.end:
                raise CommandError(f"can't undo {past.entry_id}: it has changed meanwhile")
            if entry.is_final:
                raise CommandError(f"can't undo {past.entry_id}: it has no undo")
            journal.require_readable(entry)
            require_no_dependents(entry)
            plan = Plan(undo_title(past.title), undo_of(entry.steps[: entry.begun]))
            guarded = needs_guard(entry)
            outcome = self._logged(plan.title, progress, lambda heard: undo_entry(entry, guarded, heard))
        if not guarded:
            return _ended(plan, outcome)
        seconds = guard.SECONDS if outcome.done else 0.0
        end = {"done": "undone", "undone": "kept"}.get(outcome.end, outcome.end)
        return replace(_ended(plan, outcome), end=end, seconds=seconds)

    def forget(self, past: PastChange) -> None:
        with command_errors(), writers_lock():
            entry = journal.find(past.entry_id)
            if entry is not None and entry.is_open:
                journal.mark(entry, "undone", ("left as it was",))

    def unconfirmed(self) -> tuple[UnconfirmedChange, ...]:
        with command_errors():
            return tuple(
                UnconfirmedChange(one.entry_id, one.title, one.seconds_left)
                for one in guard.pending_guards()
                if one.alive and one.seconds_left is not None
            )

    def confirm(self, entry_id: str) -> bool:
        with command_errors():
            return guard.confirm(entry_id)

    def _logged(self, title: str, progress: Progress, do: Callable[[Progress], Outcome]) -> Outcome:
        """Execute, and log the commands and the end."""
        logged = LoggedChange(title, time.time())
        self.log.append(logged)

        def heard(operation: Operation) -> None:
            logged.commands.append(operation.command())
            progress(operation)

        try:
            outcome = do(heard)
        except Exception as error:
            logged.end, logged.errors = "", (str(error),)
            raise
        logged.end, logged.errors, logged.undone = outcome.end, outcome.errors, outcome.undone_commands
        return outcome


def _past(entry: Entry, later: list[Entry]) -> PastChange:
    begun = entry.steps[: entry.begun]
    dependents = dependent_changes(entry, later) if entry.end != "undone" else ()
    return PastChange(
        entry.entry_id, entry.title, entry.at, entry.end, begun, tuple(dependents), entry.errors
    )


def _ended(plan: Plan | Refused, outcome: Outcome) -> ChangeResult:
    return ChangeResult(plan, outcome.end, outcome.errors, outcome.entry_id)
