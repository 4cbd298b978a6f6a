"""The changes that are made from the dashboard: the commands' own path, and a log of what was run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from core.apply import guard, journal
from core.apply.entries import Entry
from core.apply.run import Outcome
from core.operations import Operation, undo_of
from core.plan import Plan, Refused
from core.plan.requests import Request
from core.state import planning, writing
from core.topology import Topology
from tui.change import perform
from tui.change.console import in_words, require_rights
from tui.change.history import needs_guard, refuse_under_later, standing_on, take_back
from tui.changer import Earlier, Ended, Logged, Parts, Progress, Waiting
from tui.command import CommandError

_PARTS = {
    "light": perform.RULED,
    "publishing": perform.PUBLISHING,
    "tuning": perform.TRACKED,
    "whole": perform.WHOLE,
}
_MOST_EARLIER = 200


class Session:
    """A tui.changer.Changer for this host."""

    def __init__(self) -> None:
        self.log: list[Logged] = []

    def lacking(self) -> str:
        try:
            require_rights()
        except CommandError as error:
            return str(error)
        return ""

    def look(self, parts: Parts) -> Topology:
        return perform.look(_PARTS[parts], deep=True)

    def plan(self, requests: Sequence[Request], topology: Topology) -> Plan | Refused:
        return perform.planned(requests, topology)

    def change(self, requests: Sequence[Request], parts: Parts, agreed: Plan, progress: Progress) -> Ended:
        def apply(plan: Plan) -> Outcome:
            return self._logged(plan.title, progress, lambda heard: perform.run_plan(plan, heard))

        with in_words():
            plan, outcome = perform.attempt(
                lambda topology: self.plan(requests, topology),
                _PARTS[parts],
                lambda plan: perform.same(plan, agreed),
                apply,
                deep=True,
            )
        if outcome is None:
            return Ended(plan)
        seconds = guard.SECONDS if outcome.done and isinstance(plan, Plan) and plan.guarded else 0.0
        return replace(_ended(plan, outcome), seconds=seconds)

    def earlier(self) -> tuple[Earlier, ...]:
        with in_words():
            entries = journal.latest(_MOST_EARLIER)
        return tuple(_earlier(entry, entries[:place]) for place, entry in enumerate(entries))

    def take_back(self, earlier: Earlier, progress: Progress) -> Ended:
        with in_words(), planning():
            entry = journal.find(earlier.entry_id)
            if entry is None or entry.end != earlier.end:
                raise CommandError("nothing was done: that change has come to another end meanwhile")
            if entry.is_final:
                raise CommandError("nothing was done: that change has no undo")
            journal.require_readable(entry)
            refuse_under_later(entry)
            plan = Plan(f"take back: {earlier.title}", undo_of(entry.steps[: entry.begun]))
            guarded = needs_guard(entry)
            outcome = self._logged(plan.title, progress, lambda heard: take_back(entry, guarded, heard))
        if not guarded:
            return _ended(plan, outcome)
        seconds = guard.SECONDS if outcome.done else 0.0
        end = {"done": "undone", "undone": "kept"}.get(outcome.end, outcome.end)
        return replace(_ended(plan, outcome), end=end, seconds=seconds)

    def forget(self, earlier: Earlier) -> None:
        with in_words(), writing():
            entry = journal.find(earlier.entry_id)
            if entry is not None and entry.is_open:
                journal.mark(entry, "undone", ("left as it was",))

    def waiting(self) -> tuple[Waiting, ...]:
        with in_words():
            return tuple(
                Waiting(one.entry_id, one.title, one.seconds_left)
                for one in guard.pending_guards()
                if one.alive and one.seconds_left is not None
            )

    def keep(self, entry_id: str) -> bool:
        with in_words():
            return guard.confirm(entry_id)

    def _logged(self, title: str, progress: Progress, do: Callable[[Progress], Outcome]) -> Outcome:
        """Do it, and keep in the log what was run and how it ended."""
        logged = Logged(title, time.time())
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


def _earlier(entry: Entry, later: list[Entry]) -> Earlier:
    begun = entry.steps[: entry.begun]
    under = standing_on(entry, later) if entry.end != "undone" else ()
    return Earlier(entry.entry_id, entry.title, entry.at, entry.end, begun, tuple(under), entry.errors)


def _ended(plan: Plan | Refused, outcome: Outcome) -> Ended:
    return Ended(plan, outcome.end, outcome.errors, outcome.entry_id)
