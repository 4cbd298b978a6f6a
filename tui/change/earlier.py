"""Changes that were made earlier: listed, taken back, and those cut off offered for it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from itertools import takewhile

from core.apply import journal, run
from core.apply.journal import Entry
from core.ops import Want, undo_of
from core.ops.touched import touched
from core.plan import Plan
from core.text import safe
from tui.change import keep, report
from tui.change.ask import agreed, is_person
from tui.change.rights import in_words, require_rights
from tui.change.takeback import needs_guard, take_back
from tui.errors import CommandError
from tui.fastpath import leftover

_ENDS = {"done": "done", "undone": "taken back", "failed": "taken back in part", "": "cut off"}
_MOST_LINES = 50


def undo(options: argparse.Namespace) -> int:
    """Take back the change that is named, or the last one that holds."""
    with in_words():
        entry = _chosen(options.entry)
        if options.dry_run:
            report.print_dry_run(_as_plan(entry), options.json)
            return 0
        require_rights(undo_of(entry.steps[: entry.begun]))
        refuse_under_later(entry)
        return _take_back((entry,), options.json)


def recover(options: argparse.Namespace) -> int:
    """Take back the change that is named, or all that were cut off."""
    with in_words():
        entries = tuple(entry for entry in journal.open_intents() if options.entry in ("", entry.entry_id))
        if options.entry and not entries:
            raise CommandError(f"{safe(options.entry)} was not cut off")
        if options.dry_run:
            for entry in entries:
                report.print_dry_run(_as_plan(entry), options.json)
            if not options.entry and leftover.is_there():
                print(f"vnet-tui: note: {leftover.WOULD_PUT_RIGHT}", file=sys.stderr)
            return 0
        require_rights(undo for entry in entries for undo in undo_of(entry.steps[: entry.begun]))
        repaired = "" if options.entry else leftover.put_right()
        if repaired and not options.json:
            print(repaired)
        elif not entries and not options.json:
            print("nothing to do: no change was cut off")
        if options.forget:
            for entry in entries:
                journal.mark(entry, "undone", ("left as it was",))
            return 0
        return _take_back(entries, options.json, repaired)


def offer_recovery(options: argparse.Namespace) -> None:
    """Have changes that were cut off taken back before the next one, which would stand on what is half there.
    Raises CommandError where they are not."""
    entries = journal.open_intents()
    if not entries:
        return
    names = ", ".join(f'{entry.entry_id} ("{safe(entry.title)}")' for entry in entries)
    wanted = options.auto_undo
    if not wanted and is_person() and not options.json:
        print(f"An earlier change was cut off: {names}.")
        wanted = agreed("Take it back first?")
    if not wanted:
        raise CommandError(
            f"nothing was changed: an earlier change was cut off, {names}; take it back first: "
            "vnet-tui recover, or --auto-undo (vnet-tui recover --forget leaves what is there)"
        )
    if any(report.ended(run.undo(entry)) for entry in entries):
        raise CommandError("nothing else was changed")


def history(options: argparse.Namespace) -> int:
    """List the changes, the last one first."""
    with in_words():
        entries = journal.history()
        if options.json:
            report.print_json({"changes": [_document(entry) for entry in entries]})
            return 0
        lines = [_line(entry) for entry, _ in zip(entries, range(_MOST_LINES), strict=False)]
    nothing = "no change was made yet" if os.geteuid() == 0 else "you made no change yet"
    print("\n".join(lines) if lines else nothing)
    return 0


def _line(entry: Entry) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at))
    return f"{entry.entry_id}  {when}  {_ENDS.get(entry.end, entry.end):10}  {safe(entry.title)}"


def _document(entry: Entry) -> dict[str, object]:
    return {
        "id": entry.entry_id,
        "title": entry.title,
        "at": entry.at,
        "end": entry.end or "cut off",
        "errors": list(entry.errors),
        "steps": report.steps_document(entry.steps),
    }


def _chosen(entry_id: str) -> Entry:
    """The change of that id, else the last one that holds or was cut off. Raises CommandError."""
    if not entry_id:
        found = next((entry for entry in journal.history() if entry.end != "undone"), None)
        if found is None:
            raise CommandError("there is no change to take back")
        return _not_final(found)
    chosen = journal.find(entry_id) if "/" not in entry_id else None
    if chosen is None:
        raise CommandError(f"there is no change {safe(entry_id)}: vnet-tui history lists them")
    if chosen.end == "undone":
        raise CommandError(f"{chosen.entry_id} was taken back already")
    return _not_final(chosen)


def _not_final(entry: Entry) -> Entry:
    """The entry. Raises CommandError where it has no undo."""
    if entry.is_final:
        words = "cannot be taken back; vnet-tui history lists earlier ones, to be named"
        raise CommandError(f'{entry.entry_id} ("{safe(entry.title)}") {words}')
    return entry


def refuse_under_later(entry: Entry) -> None:
    """Raises CommandError where later changes stand on what this one changed."""
    later = takewhile(lambda one: one.entry_id != entry.entry_id, journal.history())
    if standing := standing_on(entry, later):
        raise CommandError(f"later changes stand on it, take these back first: {', '.join(standing)}")


def standing_on(entry: Entry, later: Iterable[Entry]) -> list[str]:
    """The ids of those of the later changes that stand on what this one changed."""
    mine = touched(entry.steps)
    return [
        one.entry_id
        for one in later
        if one.end != "undone" and mine & touched(one.steps) and not _made_again(entry, one)
    ]


def _made_again(entry: Entry, later: Entry) -> bool:
    """Whether the later change is the agent's, which made an attachment of the earlier one again: who takes
    that back takes both."""
    wants = {(step.container, step.network) for step in entry.steps if isinstance(step, Want)}
    match later.steps:
        case (*steps, Want() as want):
            return tuple(steps) == want.steps and (want.container, want.network) in wants
    return False


def _take_back(entries: Iterable[Entry], as_json: bool, put_right: str = "") -> int:
    """Take the changes back; returns the exit code. `put_right` says what else was repaired."""
    outcomes, waiting = [], []
    for entry in entries:
        guarded = needs_guard(entry)
        outcome = take_back(entry, guarded)
        outcomes.append(outcome)
        waiting += [outcome] if guarded and outcome.done else []
        if not as_json:
            report.ended(outcome)
        if not as_json and not outcome.errors:
            print(f"taken back: {safe(entry.title)}")
    if as_json:
        more = {"fast_path": put_right} if put_right else {}
        report.print_json({"changes": [report.outcome_document(outcome) for outcome in outcomes], **more})
    asked = [keep.ask(outcome, as_json) for outcome in waiting]
    return 1 if any(asked) or any(outcome.errors for outcome in outcomes) else 0


def _as_plan(entry: Entry) -> Plan:
    return Plan(f"take back: {entry.title}", undo_of(entry.steps[: entry.begun]))
