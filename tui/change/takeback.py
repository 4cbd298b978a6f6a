"""Takes an earlier change back: under a guard where that can cut off the person, as for any change."""

from __future__ import annotations

from collections.abc import Callable

from core.apply import guard, run
from core.apply.entries import Entry
from core.apply.run import Outcome
from core.collect.processes import remote_session
from core.collect.snapshot import read_snapshot
from core.ops import Operation, undo_of
from core.plan.connectivity import reach_lifeline
from core.topology import Topology


def take_back(entry: Entry, guarded: bool, progress: Callable[[Operation], None] = lambda _: None) -> Outcome:
    """Take it back. The outcome of a guarded one is that of a change of its own, which is taken back in turn
    unless it is confirmed. Raises Busy, StateError and GuardError."""
    return (guard.guarded_undo if guarded else run.undo)(entry, progress=progress)


def needs_guard(entry: Entry) -> bool:
    """Whether its undo touches the link of the default route or of the person's session. What waits to be
    confirmed needs none: its undo is what happens by itself; nor does what was cut off."""
    if entry.end != "done" or any(one.entry_id == entry.entry_id for one in guard.pending_guards()):
        return False
    steps = undo_of(entry.steps[: entry.begun])
    return reach_lifeline(steps, Topology(read_snapshot(("links",))), remote_session())
