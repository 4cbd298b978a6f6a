"""Print plans and outcomes as text or JSON; check rights; ask for confirmation."""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from core.apply import guard, journal, run
from core.apply.guard import GuardError
from core.apply.run import Outcome
from core.collect.host import missing_capabilities
from core.operations import Operation, is_final
from core.operations.executor import EngineError
from core.plan import Plan, Refused
from core.state import Busy, StateError
from core.text import safe, split_commands
from tui.command import CommandError

# Longer lists of steps are cut: --dry-run and history print them whole.
_MOST_STEPS = 30


def print_dry_run(plan: Plan, as_json: bool) -> None:
    """Print the commands to standard output, and the warnings to standard error."""
    if as_json:
        print_json(document(plan, dry_run=True))
        return
    print_notes(plan)
    if not plan.steps:
        print("vnet-tui: nothing to do", file=sys.stderr)
    for step in plan.steps:
        print(printable(step.command()))


def print_plan(plan: Plan) -> None:
    """Print the plan for a person to agree to."""
    print(f"{safe(plan.title)}:")
    print_steps(plan.steps)
    print_notes(plan)


def print_steps(steps: tuple[Operation, ...]) -> None:
    """Print a line for each step; a long list is cut."""
    for step in steps[:_MOST_STEPS]:
        print(f"  {safe(step.describe())}")
    if len(steps) > _MOST_STEPS:
        print(f"  ... and {len(steps) - _MOST_STEPS} more steps")


def print_notes(plan: Plan) -> None:
    """Print warnings, and what else is removed, to standard error."""
    sys.stdout.flush()
    for hit in plan.side_effects:
        print(f"vnet-tui: note: {safe(hit)}", file=sys.stderr)
    for warning in plan.warnings:
        sentence, commands = split_commands(safe(warning))
        print("\n    ".join([f"vnet-tui: warning: {sentence}", *commands]), file=sys.stderr)


def print_outcome(plan: Plan, outcome: Outcome | None, as_json: bool) -> int:
    """Print how a change ended; return the exit code."""
    if as_json:
        print_json(document(plan, outcome))
    elif outcome is None:
        print("nothing to do")
    elif outcome.done and is_final(plan.steps):
        print("done; this can't be undone")
    elif outcome.done:
        print(f"done; to undo: vnet-tui undo {outcome.entry_id}")
    return ended(outcome) if outcome else 0


def ended(outcome: Outcome) -> int:
    """Print errors to standard error; returns the exit code."""
    sys.stdout.flush()
    for note in outcome.notes:
        print(f"vnet-tui: note: {safe(note)}", file=sys.stderr)
    for error in outcome.errors:
        print(f"vnet-tui: {safe(error)}", file=sys.stderr)
    if outcome.end == "failed":
        print(
            f"vnet-tui: can't undo {outcome.entry_id} completely: see the errors above. "
            f"Try: vnet-tui recover {outcome.entry_id}",
            file=sys.stderr,
        )
    elif outcome.errors:
        print("vnet-tui: everything is as it was before", file=sys.stderr)
    return 1 if outcome.errors else 0


def print_refused(refused: Refused, as_json: bool) -> int:
    """Print why there is no plan; return the exit code."""
    if as_json:
        print_json({"refused": list(refused.reasons)})
    for reason in refused.reasons:
        print(f"vnet-tui: {safe(reason)}", file=sys.stderr)
    return 1


def document(plan: Plan, outcome: Outcome | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Return a plan and its outcome as JSON.

    "change" is null if nothing was changed.
    """
    return {
        "title": plan.title,
        "dry_run": dry_run,
        "guarded": plan.guarded,
        "warnings": list(plan.warnings),
        "hits": list(plan.side_effects),
        "steps": steps_document(plan.steps),
        "change": outcome_document(outcome) if outcome else None,
    }


def steps_document(steps: Iterable[Operation]) -> list[dict[str, str]]:
    """Return each step as a sentence and as a command."""
    return [{"what": step.describe(), "command": step.command()} for step in steps]


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """Return how a change ended, as JSON."""
    return {"id": outcome.entry_id, "end": outcome.end, "errors": list(outcome.errors)}


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells in columns, the first row as their heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def printable(command: str) -> str:
    """Make a command harmless to a terminal; tabs and line breaks stay."""
    return "\n".join("\t".join(map(safe, line.split("\t"))) for line in command.split("\n"))


@contextmanager
def command_errors() -> Iterator[None]:
    """Turn errors that prevent a change into CommandError."""
    try:
        yield
    except (Busy, StateError, GuardError) as error:
        raise CommandError(str(error)) from error
    except EngineError as error:
        raise CommandError(f"can't change Docker's networks: {error}") from error


OR_DRY_RUN = ", or add --dry-run to see the commands"


def require_rights(
    steps: Iterable[Operation] | None = None, to: str = "change networks", or_try: str = ""
) -> None:
    """Raise CommandError if this process lacks rights for changes, or for `steps`.

    Steps that Docker executes need only access to its socket (capabilities(7) has the others). The error says
    what can't be done (`to`), and what else to try.
    """
    if steps is not None and all(step.by_docker for step in steps):
        return
    lacking = [name for name in missing_capabilities() if name != "CAP_SYS_PTRACE"]
    if lacking:
        needs = " and ".join(lacking)
        remedy = "run it with sudo" if os.geteuid() else "docker run --privileged"  # root in a container
        raise CommandError(f"can't {to}: this process lacks {needs}. Try: {remedy}{or_try}")


def is_interactive() -> bool:
    """Return whether a user can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def answers_yes(question: str, seconds: float | None = None) -> bool:
    """Return whether the answer is yes; a time-out and the end of input mean no."""
    print(f"{question} [y/N] ", end="", flush=True)
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    answer = sys.stdin.readline() if ready else ""
    if not answer.endswith("\n"):
        print()
    return answer.strip().casefold() in ("y", "yes")


def approve(plan: Plan, question: str) -> bool:
    """Print a plan and return whether the answer is yes. Raises CommandError."""
    print_plan(plan)
    return agrees(question)


def agrees(question: str) -> bool:
    """Return whether the answer is yes. Raises CommandError without a terminal."""
    sys.stdout.flush()
    if not is_interactive():
        raise CommandError("can't ask for confirmation: there is no terminal. Try: --yes")
    return answers_yes(question)


def ask_to_confirm(outcome: run.Outcome, as_json: bool) -> int:
    """Ask whether to confirm a guarded change, or print how; returns the exit code."""
    seconds = guard.SECONDS
    how = f"vnet-tui confirm {outcome.entry_id}"
    if as_json or not is_interactive():
        print(f"vnet-tui: it is undone in {seconds:.0f} s unless confirmed: {how}", file=sys.stderr)
        return 0
    if answers_yes(f"Keep the change? It is undone in {seconds:.0f} s unless you answer y.", seconds - 1):
        return _confirm(outcome.entry_id, as_json=False)
    entry = journal.find(outcome.entry_id)
    print("undoing it")
    return ended(run.undo(entry, wait=True)) if entry else 0


def confirm(options: argparse.Namespace) -> int:
    """Keep the guarded change that is named, or the one that waits."""
    waiting = [one.entry_id for one in guard.pending_guards() if one.alive]
    entry = journal.id_of(options.entry) or (waiting[0] if len(waiting) == 1 else "")
    if not entry:
        several = f"several wait: {', '.join(waiting)}. Try: vnet-tui confirm ID"
        reason = several if waiting else "no change is waiting for confirmation"
        raise CommandError(f"can't confirm a change: {reason}")
    return _confirm(entry, options.json)


def _confirm(entry_id: str, as_json: bool) -> int:
    if not guard.confirm(entry_id):
        raise CommandError(
            f"can't confirm {safe(entry_id)}: it doesn't wait to be confirmed. Try: vnet-tui history"
        )
    if as_json:
        print_json({"id": entry_id, "kept": True})
    else:
        print("kept")
    return 0
