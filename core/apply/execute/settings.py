"""Our own nftables tables, kernel settings, and the attachments that the agent keeps."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from core.apply import wanted
from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel, inside
from core.apply.state import StateError
from core.ops import HOST, SetRules, SetSysctl, Unwant, Want


@execute.register
def _(operation: SetRules, kernel: Kernel) -> None:
    at_host = operation.place == HOST
    earlier = wanted.rules() if at_host else ""
    if at_host:
        wanted.note_rules(operation.text)
    try:
        kernel.load_rules(operation.place, operation.text)
    except BaseException:
        if at_host:
            with suppress(StateError):
                wanted.note_rules(earlier)
        raise


@execute.register
def _(operation: SetSysctl, kernel: Kernel) -> None:
    # sysctl(8): dots part the key, and a slash stands for a dot within a part.
    parts = (part.replace("/", ".") for part in operation.key.split("."))
    with inside(operation.place):
        Path("/proc/sys", *parts).write_text(operation.value)


@execute.register
def _(operation: Want, kernel: Kernel) -> None:
    wanted.add(operation)


@execute.register
def _(operation: Unwant, kernel: Kernel) -> None:
    wanted.remove(operation.want)
