"""All or nothing: a list of operations is done whole, or taken back whole."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from core.apply import journal
from core.apply.doubt import in_the_way, without_doubt
from core.apply.engine import EngineError
from core.apply.execute import execute
from core.apply.kernel import Kernel
from core.apply.lock import writing
from core.collect.netns import NamespaceGone
from core.ops import Operation, is_final, undo_of

# What an undo finds where its step was never done, or where somebody was quicker.
_GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL, errno.EINVAL}
_THERE = {errno.EEXIST}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a change ended: `end` is "done", "undone" or "failed"; `errors` tell, in words, what went wrong
    with which step, the first one being the reason; `undone_commands` are those by which the steps that were
    done until then were taken back, whether each of them succeeded or not."""

    entry_id: str
    end: str
    errors: tuple[str, ...] = ()
    undone_commands: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether what was wanted is there."""
        return self.end == "done"


def apply(
    title: str,
    steps: tuple[Operation, ...],
    progress: Callable[[Operation], None] = lambda _: None,
    ready: Callable[[str], None] = lambda _: None,
    wait: bool = False,
    takes_back: str = "",
) -> Outcome:
    """Do all the steps in order; on any failure take back those done, last one first.

    The intent is on disk before the first change. Raises Busy and StateError before anything is changed; with
    `wait` another writer is waited for. `ready` hears the change's id once the intent is on disk; what it
    raises ends the change before it is begun. `progress` hears of each operation before it is done. Steps
    that take an earlier change back (`takes_back` its id) may find theirs done already.
    """
    with writing(wait):
        record = journal.Record(title, steps, takes_back)
        try:
            try:
                ready(record.entry_id)
            except BaseException as error:
                record.end("undone", (str(error),))
                raise
            with Kernel() as kernel:
                return _apply(record, steps, progress, kernel)
        finally:
            record.close()


def _apply(
    record: journal.Record,
    steps: tuple[Operation, ...],
    progress: Callable[[Operation], None],
    kernel: Kernel,
) -> Outcome:
    done, begun = 0, False
    try:
        for step in steps:
            in_the_way(step, kernel)
            record.begin(done)
            begun = True
            progress(step)
            _do(step, kernel, lenient=bool(record.takes_back))
            done, begun = done + 1, False
        if not record.takes_back:
            kernel.require_places()
        record.end("done")
    except BaseException as error:
        # The kernel refuses a step whole; an interrupt or an engine gone silent leaves it in doubt.
        refused = isinstance(error, Exception) and not getattr(error, "doubtful", False)
        if begun and refused:
            with suppress(OSError):
                record.refused(done)
        made = without_doubt(steps[: done + 1], kernel) if begun and not refused else steps[:done]
        reason = _sentence(steps[done], error) if done < len(steps) else _at_the_end(error)
        outcome = _taken_back(record, made, reason, kernel)
        if not isinstance(error, Exception):
            raise
        return outcome
    return Outcome(record.entry_id, "done")


def _do(step: Operation, kernel: Kernel, lenient: bool) -> None:
    try:
        execute(step, kernel)
    except Exception as error:
        if not (lenient and _already_so(error)):
            raise


def _taken_back(record: journal.Record, made: tuple[Operation, ...], reason: str, kernel: Kernel) -> Outcome:
    commands: list[str] = []
    errors = (reason, *_take_back(made, kernel, lambda undo: commands.append(undo.command())))
    end = "undone" if len(errors) == 1 else "failed"
    with suppress(OSError):  # an entry without an end is offered for undo again, which does no harm
        record.end(end, errors)
    return Outcome(record.entry_id, end, errors, tuple(commands))


def undo(
    entry: journal.Entry, wait: bool = False, progress: Callable[[Operation], None] = lambda _: None
) -> Outcome:
    """Take back an earlier change, whether it was completed, cut off or taken back in part. `progress` hears
    of each operation before it is done.

    Raises Busy (not with `wait`: then another writer is waited for) and StateError.
    """
    with writing(wait), Kernel() as kernel:
        now = journal.find(entry.entry_id) or entry  # it may have ended while it was looked at
        begun = now.steps[: now.begun]
        errors = _take_back(begun if now.end == "done" else without_doubt(begun, kernel), kernel, progress)
        end = "failed" if errors else "undone"
        journal.mark(now, end, errors)
        return Outcome(now.entry_id, end, errors)


def _take_back(
    steps: tuple[Operation, ...], kernel: Kernel, progress: Callable[[Operation], None] = lambda _: None
) -> tuple[str, ...]:
    """Undo steps, last one first, going on after errors; returns these in words."""
    errors = []
    for operation in undo_of(steps):
        progress(operation)
        try:
            execute(operation, kernel)
        except Exception as error:
            if not _already_so(error):
                errors.append(_sentence(operation, error))
    final = (step for step in steps if is_final((step,)))
    return (*errors, *(f"this has no undo: {step.describe()}" for step in final))


def _already_so(error: Exception) -> bool:
    """Whether an undo failed because what it would bring about is so already."""
    if isinstance(error, EngineError):
        return error.already
    if isinstance(error, (NamespaceGone, LookupError)):
        return True
    return isinstance(error, OSError) and error.errno in _GONE | _THERE


def _at_the_end(error: BaseException) -> str:
    return str(error) if isinstance(error, NamespaceGone) else f"the journal: {error}"


def _sentence(operation: Operation, error: BaseException) -> str:
    told = getattr(error, "strerror", None)
    return f"could not {operation.describe()}: {told or str(error) or type(error).__name__}"
