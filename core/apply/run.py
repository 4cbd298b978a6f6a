"""Execute a list of operations completely, or undo what was executed."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace

from core.apply import journal
from core.apply.entries import Entry
from core.netlink.netns import NamespaceGone
from core.operations import Operation, is_final, undo_of
from core.operations.executor import EngineError, Executor
from core.operations.values import NetnsTarget
from core.state import Busy, StateError, state_directory, unusable, writers_lock

# The errors of an undo whose step was never executed, or was undone by others.
_GONE_ERRNOS = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL, errno.EINVAL}
_EXISTS_ERRNOS = {errno.EEXIST}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Hold the outcome of a change.

    `end` is "done", "undone", "failed", or "kept" of an undo that didn't begin. `errors` are sentences, the
    first one the reason. `undone_commands` are the commands that undid the steps executed before, including
    those that failed. `notes` are sentences about what was left undone although nothing failed.
    """

    entry_id: str
    end: str
    errors: tuple[str, ...] = ()
    undone_commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Return whether the change is complete."""
        return self.end == "done"


def apply(
    title: str,
    steps: tuple[Operation, ...],
    progress: Callable[[Operation], None] = lambda _: None,
    ready: Callable[[str], None] = lambda _: None,
    wait: bool = False,
    undoes: str = "",
) -> Outcome:
    """Execute the steps in order; after a failure undo the executed ones.

    The undo starts with the last step. The journal has the intent on disk before the first step. `ready` gets
    the id of the change after that; an exception from it ends the change before its first step. `progress`
    gets each operation before it is executed. Steps that undo an earlier change (`undoes` is its id) may
    be undone already. Raises Busy and StateError before anything is changed; with `wait` it waits for another
    writer instead.
    """
    with writers_lock(wait):
        record = journal.NewEntryWriter(title, steps, undoes)
        try:
            try:
                ready(record.entry_id)
            except BaseException as error:
                record.end("undone", (str(error),))
                raise
            with Executor() as executor:
                return replace(_apply(record, steps, progress, executor), notes=tuple(executor.notes))
        finally:
            record.close()


def _apply(
    record: journal.NewEntryWriter,
    steps: tuple[Operation, ...],
    progress: Callable[[Operation], None],
    executor: Executor,
) -> Outcome:
    done, begun = 0, False
    try:
        for step in steps:
            _require_absent(step, executor)
            record.begin(done)
            begun = True
            progress(step)
            _execute(step, executor, lenient=bool(record.undoes))
            done, begun = done + 1, False
        if not record.undoes:
            executor.require_namespaces()
        record.end("done")
    except BaseException as error:
        # The kernel refuses a step completely; after an interrupt, or without an answer from Docker, it may
        # have been executed.
        refused = isinstance(error, Exception) and not getattr(error, "uncertain", False)
        if begun and refused:
            with suppress(OSError):
                record.refused(done)
        made = _owned(steps[: done + 1], executor) if begun and not refused else steps[:done]
        reason = _sentence(steps[done], error) if done < len(steps) else _end_error(error)
        if isinstance(error, (OSError, LookupError)):
            reason += _gone_text(steps[done:], executor)
        outcome = _undo_after_failure(record, made, reason, executor)
        if not isinstance(error, Exception):
            raise
        return outcome
    return Outcome(record.entry_id, "done")


def execute(step: Operation, executor: Executor) -> None:
    """Execute one operation.

    Raises OSError, LookupError, NamespaceGone, EngineError and StateError.
    """
    step.execute(executor)


def _execute(step: Operation, executor: Executor, lenient: bool) -> None:
    try:
        execute(step, executor)
    except Exception as error:
        if not (lenient and _is_already_done(error)):
            raise


def _undo_after_failure(
    record: journal.Writer, made: tuple[Operation, ...], reason: str, executor: Executor
) -> Outcome:
    commands: list[str] = []
    with suppress(OSError):  # the missing end of the change says the same
        record.undoing(len(made))
    undo = _Undo(record, executor, lambda operation: commands.append(operation.command()))
    return replace(undo.run(made, reason), undone_commands=tuple(commands))


def undo(entry: Entry, wait: bool = False, progress: Callable[[Operation], None] = lambda _: None) -> Outcome:
    """Undo an earlier change, whether it was completed, interrupted or undone in part.

    An interrupted undo is continued. `progress` gets each operation before it is executed. Raises StateError,
    and Busy if an interrupted change has finished meanwhile or, without `wait`, for another writer.
    """
    with writers_lock(wait), Executor() as executor:
        now = _current(entry)
        if now.end == "undone":
            return Outcome(now.entry_id, "undone")
        made = _steps_to_undo(now, executor)
        if now.was_done and now.undoing is None and (obstacles := _obstacles(made)):
            return Outcome(now.entry_id, "kept", obstacles)
        record = journal.reopen(now)
        try:
            try:
                record.undoing(len(made))
            except OSError as error:
                raise StateError(unusable(state_directory(), error)) from error
            outcome = _Undo(record, executor, progress, now.undone, now.in_flight).run(made)
            return replace(outcome, notes=tuple(executor.notes))
        finally:
            record.close()


def _obstacles(steps: tuple[Operation, ...]) -> tuple[str, ...]:
    """Return why the undo of these steps can't begin, as sentences."""
    found = []
    for operation in undo_of(steps):
        try:
            reason = operation.obstacle()
        except OSError as error:
            reason = _reason(error)
        found += [f"can't {operation.describe()}: {reason}"] if reason else []
    return tuple(found)


def _current(entry: Entry) -> Entry:
    """Return the entry as it is under the lock. Raises Busy and StateError."""
    now = journal.find(entry.entry_id)
    if now is None:
        raise Busy(f"can't undo {entry.entry_id}: it is no longer in the journal. Try: vnet-tui history")
    if now.end == "done" and entry.end != "done":
        raise Busy(
            f"can't undo {entry.entry_id} as an interrupted change: it has finished meanwhile. "
            f"Try: vnet-tui undo {entry.entry_id}"
        )
    journal.require_readable(now)
    return now


def _steps_to_undo(entry: Entry, executor: Executor) -> tuple[Operation, ...]:
    """Return the steps that must be undone."""
    if entry.undoing is not None:
        return entry.steps[: entry.undoing]
    begun = entry.steps[: entry.begun]
    return begun if entry.was_done else _owned(begun, executor)


@dataclass(frozen=True, slots=True)
class _Undo:
    """Undo steps, last one first, and continue after errors.

    The operations `done` are undone already.
    """

    record: journal.Writer
    executor: Executor
    progress: Callable[[Operation], None]
    done: frozenset[int] = frozenset()
    in_flight: frozenset[int] = frozenset()

    def run(self, steps: tuple[Operation, ...], reason: str = "") -> Outcome:
        """Undo the steps; the errors of the outcome begin with `reason`."""
        errors = []
        for number, operation in enumerate(undo_of(steps)):
            if number not in self.done and (error := self._undo_step(number, operation)):
                errors.append(error)
        errors += [f'can\'t undo "{step.describe()}": it has no undo' for step in steps if is_final((step,))]
        end, found = "failed" if errors else "undone", ((reason,) if reason else ()) + tuple(errors)
        try:
            self.record.end(end, found)
        except OSError as error:  # without an end it is offered for undo again, which is harmless
            end, found = "failed", (*found, _journal_failure(error))
        return Outcome(self.record.entry_id, end, found)

    def _undo_step(self, number: int, operation: Operation) -> str:
        self.progress(operation)
        with suppress(OSError):  # then it may be executed twice, which is harmless
            self.record.undo(number)
        try:
            execute(operation.remaining(self.executor, number in self.in_flight), self.executor)
        except Exception as error:
            if not _is_already_done(error):
                with suppress(OSError):
                    self.record.not_undone(number)
                return _sentence(operation, error)
        return ""


def _is_already_done(error: Exception) -> bool:
    """Return whether an undo failed because its result exists already."""
    if isinstance(error, EngineError):
        return error.already
    if isinstance(error, (NamespaceGone, LookupError)):
        return True
    return isinstance(error, OSError) and error.errno in _GONE_ERRNOS | _EXISTS_ERRNOS


def _end_error(error: BaseException) -> str:
    if isinstance(error, NamespaceGone):
        return f"can't complete the change: {error}"
    return _journal_failure(error)


def _gone_text(steps: tuple[Operation, ...], executor: Executor) -> str:
    """Return which target of these steps is gone, "" if none: it may be the cause."""
    values = (getattr(step, field.name) for step in steps for field in fields(step))  # type: ignore[arg-type]
    try:
        executor.require_namespaces(one for one in values if isinstance(one, NetnsTarget) and one.inode)
    except NamespaceGone as error:
        return f"; {error}"
    return ""


def _journal_failure(error: BaseException) -> str:
    return f"can't write the journal: {_reason(error)}"


def _sentence(operation: Operation, error: BaseException) -> str:
    return f"can't {operation.describe()}: {_reason(error)}"


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _require_absent(step: Operation, executor: Executor) -> None:
    """Raise FileExistsError if what a step would create exists already."""
    if step.target_exists(executor):
        raise FileExistsError(errno.EEXIST, "it exists already")


def _owned(steps: tuple[Operation, ...], executor: Executor) -> tuple[Operation, ...]:
    """Return the steps without the last one if that created nothing.

    It created nothing if it was interrupted before: what exists under its name then belongs to another
    program, and an undo must not delete it.
    """
    return steps[:-1] if steps and not steps[-1].may_be_done(executor) else steps
