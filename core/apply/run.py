"""All or nothing: a list of operations is done whole, or taken back whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from core.apply import journal
from core.apply.execute import execute
from core.apply.kernel import Kernel
from core.apply.lock import writing
from core.collect.netns import NamespaceGone
from core.ops import CreateBridge, CreateVeth, Operation, undo_of

# What an undo finds where its step was never done, or where somebody was quicker.
_GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL, errno.EINVAL}
_THERE = {errno.EEXIST}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a change ended: `end` is "done", "undone" or "failed"; `errors` tell, in words, what went wrong
    with which step, the first one being the reason."""

    entry_id: str
    end: str
    errors: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether what was wanted is there."""
        return self.end == "done"


def apply(
    title: str, steps: tuple[Operation, ...], progress: Callable[[Operation], None] = lambda _: None
) -> Outcome:
    """Do all the steps in order; on any failure take back those done, last one first.

    The intent is on disk before the first change. Raises Busy and StateError before anything is changed.
    `progress` hears of each operation before it is done.
    """
    with writing():
        record = journal.Record(title, steps)
        begun = 0
        with Kernel() as kernel:
            try:
                for step in steps:
                    record.begin(begun)
                    begun += 1
                    progress(step)
                    execute(step, kernel)
            except BaseException as error:
                # The kernel refuses a step whole; only an interrupt leaves in doubt whether it was done.
                refused = isinstance(error, Exception)
                made = steps[: begun - 1] if refused else _without_doubt(steps[:begun], kernel)
                errors = (_sentence(steps[begun - 1], error), *_take_back(made, kernel))
                end = "undone" if len(errors) == 1 else "failed"
                record.end(end, errors)
                if not refused:
                    raise
                return Outcome(record.entry_id, end, errors)
        record.end("done")
        return Outcome(record.entry_id, "done")


def undo(entry: journal.Entry) -> Outcome:
    """Take back an earlier change, whether it was completed or cut off. Raises Busy and StateError."""
    with writing(), Kernel() as kernel:
        begun = entry.steps[: entry.begun]
        errors = _take_back(begun if entry.end else _without_doubt(begun, kernel), kernel)
        end = "failed" if errors else "undone"
        journal.mark(entry, end, errors)
        return Outcome(entry.entry_id, end, errors)


def _without_doubt(steps: tuple[Operation, ...], kernel: Kernel) -> tuple[Operation, ...]:
    """The steps without the last one where that was cut off before it made its link: a link of that name
    which does not carry our tag is somebody else's."""
    last = steps[-1] if steps else None
    if isinstance(last, (CreateBridge, CreateVeth)) and last.alias:
        try:
            ours = kernel.alias(last.place, last.name) == last.alias
        except (LookupError, NamespaceGone):
            ours = False
        return steps if ours else steps[:-1]
    return steps


def _take_back(steps: tuple[Operation, ...], kernel: Kernel) -> tuple[str, ...]:
    """Undo steps, last one first, going on after errors; returns these in words."""
    errors = []
    for operation in undo_of(steps):
        try:
            execute(operation, kernel)
        except Exception as error:
            if not _already_so(error):
                errors.append(_sentence(operation, error))
    return tuple(errors)


def _already_so(error: Exception) -> bool:
    """Whether an undo failed because what it would bring about is so already."""
    if isinstance(error, (NamespaceGone, LookupError)):
        return True
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    return code in _GONE | _THERE


def _sentence(operation: Operation, error: BaseException) -> str:
    code = getattr(error, "code", None)  # pyroute2's errors carry the kernel's errno
    told = os.strerror(code) if isinstance(code, int) and code else getattr(error, "strerror", None)
    return f"could not {operation.describe()}: {told or str(error) or type(error).__name__}"
