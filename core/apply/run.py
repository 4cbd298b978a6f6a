"""All or nothing: a list of operations is done whole, or taken back whole."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from core.apply import journal
from core.apply.engine import EngineError
from core.apply.entries import Entry
from core.apply.execute import execute
from core.apply.execute.docker import is_connected, network_named
from core.apply.execute.namespaces import DIRECTORY
from core.apply.kernel import Kernel
from core.apply.state import Busy, StateError, state_directory, unusable, writing
from core.netlink.netns import NamespaceGone
from core.operations import (
    CreateBridge,
    CreateNamespace,
    CreateVeth,
    DockerConnect,
    DockerCreateNetwork,
    JoinNamespace,
    Operation,
    SetLink,
    is_final,
    undo_of,
)

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


def _taken_back(record: journal.Writer, made: tuple[Operation, ...], reason: str, kernel: Kernel) -> Outcome:
    commands: list[str] = []
    with suppress(OSError):  # without that line it is known all the same that there is no end
        record.undoing(len(made))
    undo = _Undo(record, kernel, lambda operation: commands.append(operation.command()))
    return replace(undo.run(made, reason), undone_commands=tuple(commands))


def undo(entry: Entry, wait: bool = False, progress: Callable[[Operation], None] = lambda _: None) -> Outcome:
    """Take back an earlier change, whether it was completed, cut off or taken back in part. `progress` hears
    of each operation before it is done. An undo that was cut off itself goes on where it was.

    Raises Busy (not with `wait`: then another writer is waited for), also where a change that looked as if
    it was cut off is done by now, and StateError.
    """
    with writing(wait), Kernel() as kernel:
        now = _as_it_is(entry)
        if now.end == "undone":
            return Outcome(now.entry_id, "undone")
        made = _made(now, kernel)
        record = journal.reopened(now)
        try:
            try:
                record.undoing(len(made))
            except OSError as error:
                raise StateError(unusable(state_directory(), error)) from error
            return _Undo(record, kernel, progress, now.undone, now.in_flight).run(made)
        finally:
            record.close()


def _as_it_is(entry: Entry) -> Entry:
    """The entry as it is under the lock. Raises Busy and StateError."""
    now = journal.find(entry.entry_id)
    if now is None:
        raise Busy(f"can't take back {entry.entry_id}: it is in the journal no longer. Try: vnet-tui history")
    if now.end == "done" and entry.end != "done":
        raise Busy(
            f"can't take back {entry.entry_id} as one that was cut off: it has finished meanwhile. "
            f"Try: vnet-tui undo {entry.entry_id}"
        )
    journal.require_readable(now)
    return now


def _made(entry: Entry, kernel: Kernel) -> tuple[Operation, ...]:
    """The steps that are to be taken back."""
    if entry.undoing is not None:
        return entry.steps[: entry.undoing]
    begun = entry.steps[: entry.begun]
    return begun if entry.was_done else without_doubt(begun, kernel)


@dataclass(frozen=True, slots=True)
class _Undo:
    """Takes steps back, last one first, going on after errors; all but the operations `done` already."""

    record: journal.Writer
    kernel: Kernel
    progress: Callable[[Operation], None]
    done: frozenset[int] = frozenset()
    in_flight: frozenset[int] = frozenset()

    def run(self, steps: tuple[Operation, ...], reason: str = "") -> Outcome:
        """Take them back; the errors in words, after the `reason` for it."""
        errors = []
        for number, operation in enumerate(undo_of(steps)):
            if number not in self.done and (error := self._one(number, operation)):
                errors.append(error)
        errors += [f"this has no undo: {step.describe()}" for step in steps if is_final((step,))]
        end, found = "failed" if errors else "undone", ((reason,) if reason else ()) + tuple(errors)
        try:
            self.record.end(end, found)
        except OSError as error:  # without an end it is offered for undo again, which does no harm
            end, found = "failed", (*found, f"the journal: {error}")
        return Outcome(self.record.entry_id, end, found)

    def _one(self, number: int, operation: Operation) -> str:
        self.progress(operation)
        with suppress(OSError):  # then it would be done twice, which does no harm
            self.record.undo(number)
        try:
            execute(left_of(operation, self.kernel, number in self.in_flight), self.kernel)
        except Exception as error:
            if not _already_so(error):
                with suppress(OSError):
                    self.record.not_undone(number)
                return _sentence(operation, error)
        return ""


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


# Seconds that a request which was cut off may take until Docker has done it.
_IN_FLIGHT = 1.0


def in_the_way(step: Operation, kernel: Kernel) -> None:
    """Raise FileExistsError, before the step is begun, where what it would make is there already.

    Afterwards it could not always be told whose it is: a link gets its tag a moment after it is made.
    """
    there = False
    match step:
        case CreateNamespace() | JoinNamespace():
            there = Path(DIRECTORY, step.name).exists()
        case CreateBridge() | CreateVeth():
            there = _alias(step, kernel) is not None
        case DockerCreateNetwork():
            there = network_named(step.name, kernel) is not None
        case DockerConnect():
            there = is_connected(step, kernel)
    if there:
        raise FileExistsError(errno.EEXIST, "it is there already")


def without_doubt(steps: tuple[Operation, ...], kernel: Kernel) -> tuple[Operation, ...]:
    """The steps that were begun, without the last one where that was cut off before it made anything: what
    is there then is somebody else's."""
    return steps[:-1] if steps and not _may_be_ours(steps[-1], kernel) else steps


def left_of(step: Operation, kernel: Kernel, was_cut_off: bool) -> Operation:
    """What is left to do of a step of an undo, after what a kill before may have left: a name without its
    namespace, or, where this very step `was_cut_off`, a link without its tag."""
    match step:
        case CreateNamespace() | JoinNamespace():
            _drop_empty_name(Path(DIRECTORY, step.name))
        case CreateBridge() | CreateVeth() if was_cut_off and _alias(step, kernel) == "":
            return SetLink(step.name, "alias", step.alias, "", step.place)
    return step


def _drop_empty_name(path: Path) -> None:
    """Remove the file of a name on which no namespace is mounted."""
    with suppress(FileNotFoundError):
        if path.stat().st_dev == path.parent.stat().st_dev:
            path.unlink()


def _may_be_ours(last: Operation, kernel: Kernel) -> bool:
    match last:
        case CreateBridge() | CreateVeth() if last.alias:
            return _alias(last, kernel) in ("", last.alias)
        case DockerCreateNetwork():
            try:
                return _awaited(last, kernel)
            except EngineError:
                return True
        case _:
            return True


def _alias(step: CreateBridge | CreateVeth, kernel: Kernel) -> str | None:
    """The alias of the link that has the step's name, None where there is no such link."""
    try:
        return kernel.alias(step.place, step.name)
    except (LookupError, NamespaceGone):
        return None


def _awaited(step: DockerCreateNetwork, kernel: Kernel) -> bool:
    """Whether Docker has the network and it carries its labels, now or once a request in flight has ended."""
    deadline = time.monotonic() + _IN_FLIGHT
    while (found := network_named(step.name, kernel)) is None and time.monotonic() < deadline:
        time.sleep(_IN_FLIGHT / 20)
    return found is not None and dict(step.labels).items() <= (found.get("Labels") or {}).items()
