"""Run `vnet-tui undo`, `recover` and `history`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from itertools import takewhile

from core.apply import guard, journal, run
from core.apply.entries import Entry
from core.apply.run import Outcome
from core.collect.processes import remote_session
from core.collect.snapshot import read_snapshot
from core.model import Part
from core.operations import Operation, PersistAttachment, affected, undo_of, undo_title
from core.plan import Plan
from core.plan.connectivity import changes_critical_link
from core.state import planning_lock
from core.text import safe
from core.topology import Topology
from tui.cli.console import (
    OR_DRY_RUN,
    answers_yes,
    ask_to_confirm,
    command_errors,
    ended,
    is_interactive,
    outcome_document,
    print_dry_run,
    print_json,
    require_rights,
    steps_document,
)
from tui.command import CommandError

_ENDS = {"done": "done", "undone": "undone", "failed": "partly undone", "": "interrupted"}
_MOST_LINES, _ALL = 50, sys.maxsize


def undo(options: argparse.Namespace) -> int:
    """Undo the change that is named, or the last one that is not undone."""
    with command_errors():
        options.entry = journal.id_of(options.entry)
        entry = _chosen(options.entry)
        if options.dry_run:
            print_dry_run(_as_plan(entry), options.json)
            return 0
        require_rights(undo_of(entry.steps[: entry.begun]), or_try=OR_DRY_RUN)
        with planning_lock():
            _require_same(entry, _chosen(options.entry))
            require_no_dependents(entry)
            undone = _undo_entries((entry,), options.json)
        return _print_outcomes(undone, options.json)


def recover(options: argparse.Namespace) -> int:
    """Undo the interrupted change that is named, or all of them."""
    with command_errors():
        options.entry = journal.id_of(options.entry)
        if not options.dry_run:
            steps = (undo for entry in _interrupted(options.entry) for undo in _as_plan(entry).steps)
            require_rights(steps, or_try=OR_DRY_RUN)
        with planning_lock():  # a change that is under way by now isn't interrupted
            return _recover(options, _interrupted(options.entry))


def _recover(options: argparse.Namespace, entries: tuple[Entry, ...]) -> int:
    from tui.cli import fastpath_agent  # changes import this module and don't need the fast path

    if options.entry and not entries:
        raise CommandError(_not_interrupted(options.entry))
    if options.dry_run:
        for entry in entries:
            print_dry_run(_as_plan(entry), options.json)
        if not options.entry and fastpath_agent.needs_recovery():
            print(f"vnet-tui: note: {fastpath_agent.RECOVERY}", file=sys.stderr)
        return 0
    repaired = "" if options.entry else fastpath_agent.recover_settings()
    if repaired and not options.json:
        print(repaired)
    elif not entries and not options.json:
        print("nothing to do: no change was interrupted")
    if options.forget:
        for entry in entries:
            journal.mark(entry, "undone", ("left as it was",))
        return 0
    return _print_outcomes(_undo_entries(entries, options.json), options.json, repaired)


def _interrupted(entry_id: str = "") -> tuple[Entry, ...]:
    return tuple(entry for entry in journal.open_entries() if entry_id in ("", entry.entry_id))


def _not_interrupted(entry_id: str) -> str:
    entry = journal.find(entry_id)
    if entry is None:
        return f"can't recover {safe(entry_id)}: there is no such change. Try: vnet-tui history"
    remedy = f". Try: vnet-tui undo {entry_id}" if entry.end == "done" else ""
    return f"can't recover {entry_id}: it wasn't interrupted{remedy}"


def offer_recovery(options: argparse.Namespace) -> None:
    """Offer to undo interrupted changes: the next one would depend on them.

    Raises CommandError if they are not undone.
    """
    if not journal.open_entries():
        return
    with planning_lock():  # wait for one that is under way
        entries = journal.open_entries()
    if not entries:
        return
    wanted = options.auto_undo
    if not wanted and is_interactive() and not options.json:
        print(f"An earlier change was interrupted: {_names(entries)}.")
        wanted = answers_yes("Undo it first?")
    if not wanted:
        require_none_interrupted(entries)
    asked = {entry.entry_id for entry in entries}
    with planning_lock():
        still = [entry for entry in journal.open_entries() if entry.entry_id in asked]
        if any(ended(run.undo(entry)) for entry in still):
            raise CommandError(
                "can't change networks: the interrupted change couldn't be undone. Try: vnet-tui recover"
            )


def require_none_interrupted(entries: Iterable[Entry]) -> None:
    """Raise CommandError or StateError if changes were interrupted.

    The next one would depend on what they left.
    """
    if found := tuple(entries):
        for entry in found:
            journal.require_readable(entry)
        raise CommandError(
            f"can't change networks: an earlier change was interrupted: {_names(found)}. Try: vnet-tui "
            "recover (--forget leaves what is there), --auto-undo, or u in the dashboard"
        )


def _names(entries: Iterable[Entry]) -> str:
    return ", ".join(f'{entry.entry_id} ("{safe(entry.title)}")' for entry in entries)


def history(options: argparse.Namespace) -> int:
    """List the changes, the last one first."""
    with command_errors():
        if options.json:
            print_json({"changes": [_document(entry) for entry in journal.latest(_ALL)]})
            return 0
        lines = [_line(entry) for entry in journal.latest(_MOST_LINES)]
    nothing = "no changes yet" if os.geteuid() == 0 else "you have made no changes yet"
    print("\n".join(lines) if lines else nothing)
    return 0


def _line(entry: Entry) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at))
    return f"{entry.entry_id}  {when}  {_end_text(entry):16}  {safe(entry.title)}"


def _end_text(entry: Entry) -> str:
    """Return how a change ended, as text."""
    if entry.is_open and entry.problem:
        return "unreadable"
    if not entry.end and entry.undoing is not None:
        return "undo interrupted"
    return _ENDS.get(entry.end, entry.end)


def _document(entry: Entry) -> dict[str, object]:
    return {
        "id": entry.entry_id,
        "title": entry.title,
        "at": entry.at,
        "end": entry.end or "cut off",
        "undo_begun": not entry.end and entry.undoing is not None,
        "errors": [*entry.errors, *([entry.problem] if entry.problem else [])],
        "steps": steps_document(entry.steps),
    }


def _chosen(entry_id: str) -> Entry:
    """Return the change of that id, else the last one not undone.

    Raises CommandError.
    """
    found = journal.latest(_ALL)
    if not entry_id:
        last = next((entry for entry in found if entry.end != "undone"), None)
        if last is None:
            raise CommandError("can't undo the last change: there is no change to undo")
        return _require_undoable(last)
    chosen = next((entry for entry in found if entry.entry_id == entry_id), None)
    if chosen is None:
        raise CommandError(f"can't undo {safe(entry_id)}: there is no such change. Try: vnet-tui history")
    if chosen.end == "undone":
        raise CommandError(f"can't undo {chosen.entry_id}: it is undone already")
    return _require_undoable(chosen)


def _require_undoable(entry: Entry) -> Entry:
    """Return the entry if it can be undone.

    Raises CommandError if it can't be undone (yet), and StateError.
    """
    which = f'{entry.entry_id} ("{safe(entry.title)}")'
    if entry.is_final:
        raise CommandError(
            f"can't undo {which}: it has no undo. Try: vnet-tui undo ID, with the id of an earlier change"
        )
    if entry.end == journal.UNDER_WAY:
        raise CommandError(f"can't undo {which}: it is under way. Try: again in a moment")
    journal.require_readable(entry)
    return entry


def _require_same(shown: Entry, now: Entry) -> None:
    """Raise CommandError if the chosen entry has changed, or isn't the last any more."""
    if (now.entry_id, now.end) != (shown.entry_id, shown.end):
        raise CommandError(
            f"can't undo {shown.entry_id}: another change was made or undone meanwhile. Try: vnet-tui history"
        )


def require_no_dependents(entry: Entry) -> None:
    """Raise CommandError if later changes depend on this one."""
    later = takewhile(lambda one: one.entry_id != entry.entry_id, journal.history())
    if dependents := dependent_changes(entry, later):
        first = ", then ".join(dependents)
        raise CommandError(
            f"can't undo {entry.entry_id}: later changes depend on it. Try: vnet-tui undo {first}"
        )


def dependent_changes(entry: Entry, later: Iterable[Entry]) -> list[str]:
    """Return the ids of later changes that depend on this one."""
    mine = affected(entry.steps)
    return [
        one.entry_id
        for one in later
        if one.end != "undone" and mine & affected(one.steps) and not _restores_attachment(entry, one)
    ]


def _restores_attachment(entry: Entry, later: Entry) -> bool:
    """Return whether the later change is the agent's and restores an attachment.

    The attachment is one of this change.

    Undoing the attachment undoes both.
    """
    wants = {(step.container, step.network) for step in entry.steps if isinstance(step, PersistAttachment)}
    match later.steps:
        case (*steps, PersistAttachment() as want):
            return tuple(steps) == want.steps and (want.container, want.network) in wants
    return False


def _undo_entries(entries: Iterable[Entry], as_json: bool) -> list[tuple[Outcome, bool]]:
    """Undo changes; returns each outcome, and whether it waits to be confirmed.

    Raises StateError for an unreadable entry, after all others.
    """
    found = sorted(entries, key=lambda entry: bool(entry.problem))
    undone = []
    for entry in found:
        guarded = needs_guard(entry)
        outcome = undo_entry(entry, guarded)
        undone.append((outcome, guarded and outcome.done))
        if not as_json:
            ended(outcome)
        if not as_json and not outcome.errors:
            print(f"undone: {safe(entry.title)}")
    return undone


def _print_outcomes(undone: list[tuple[Outcome, bool]], as_json: bool, repaired: str = "") -> int:
    """Print outcomes, and ask to confirm; returns the exit code.

    `repaired` describes what else was repaired.
    """
    if as_json:
        more = {"fast_path": repaired} if repaired else {}
        print_json({"changes": [outcome_document(outcome) for outcome, _ in undone], **more})
    asked = [ask_to_confirm(outcome, as_json) for outcome, waits in undone if waits]
    return 1 if any(asked) or any(outcome.errors for outcome, _ in undone) else 0


def _as_plan(entry: Entry) -> Plan:
    return Plan(undo_title(entry.title), undo_of(entry.steps[: entry.begun]))


def undo_entry(
    entry: Entry, guarded: bool, progress: Callable[[Operation], None] = lambda _: None
) -> Outcome:
    """Undo a change.

    A guarded undo is a change of its own, which is reverted unless confirmed. Raises Busy, StateError and
    GuardError.
    """
    return (guard.guarded_undo if guarded else run.undo)(entry, progress=progress)


def needs_guard(entry: Entry) -> bool:
    """Return whether the undo changes the default route's or this session's link.

    Unconfirmed changes need no guard, as their undo happens by itself, nor do interrupted ones.
    """
    if entry.end != "done" or any(one.entry_id == entry.entry_id for one in guard.pending_guards()):
        return False
    steps = undo_of(entry.steps[: entry.begun])
    return changes_critical_link(steps, Topology(read_snapshot((Part.LINKS,))), remote_session())
