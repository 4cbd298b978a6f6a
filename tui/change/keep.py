"""Guarded changes: whoever made one says in time that it shall stay, or it is taken back."""

from __future__ import annotations

import argparse
import sys

from core.apply import guard, journal, run
from core.text import safe
from tui.change import report
from tui.change.ask import agreed, is_person
from tui.errors import CommandError


def ask(outcome: run.Outcome, as_json: bool) -> int:
    """Ask whether a guarded change shall stay, or tell how to say so; returns the exit code."""
    seconds = guard.SECONDS
    how = f"vnet-tui confirm {outcome.entry_id}"
    if as_json or not is_person():
        print(f"vnet-tui: it is taken back in {seconds:.0f} s unless confirmed: {how}", file=sys.stderr)
        return 0
    if agreed(f"Is all well? It is taken back in {seconds:.0f} s unless you say yes.", seconds - 1):
        return _confirm(outcome.entry_id, as_json=False)
    entry = journal.find(outcome.entry_id)
    print("taking it back")
    return report.ended(run.undo(entry, wait=True)) if entry else 0


def confirm(options: argparse.Namespace) -> int:
    """Keep the guarded change that is named, or the one that waits."""
    waiting = [one.entry_id for one in guard.pending_guards() if one.alive]
    entry = journal.id_of(options.entry) or (waiting[0] if len(waiting) == 1 else "")
    if not entry:
        told = f"several changes wait: {', '.join(waiting)}" if waiting else "no change waits to be confirmed"
        raise CommandError(told)
    return _confirm(entry, options.json)


def _confirm(entry_id: str, as_json: bool) -> int:
    if not guard.confirm(entry_id):
        raise CommandError(
            f"{safe(entry_id)} does not wait to be confirmed (vnet-tui history tells how it ended)"
        )
    if as_json:
        report.print_json({"id": entry_id, "kept": True})
    else:
        print("kept")
    return 0
