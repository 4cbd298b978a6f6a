"""Change persistent attachments.

The agent makes these again when a container restarts. The operations change a file in the state directory,
not the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

from core.operations.base import Operation
from core.operations.executor import Executor
from core.operations.values import NetnsTarget, from_record, recorded, to_record
from core.state import StateError, read_state, state_path, write_state
from core.text import safe

_FILE = "wanted.json"


@recorded("Want")
@dataclass(frozen=True, slots=True)
class PersistAttachment(Operation):
    """Keep a container ("docker:ID") attached to `network` across its restarts.

    `steps` are the operations that attached it; a target with a pid in them is the container's namespace,
    whose pid changes.
    """

    survives_reboot: ClassVar[bool] = True

    container: str
    network: str
    steps: tuple[Operation, ...]

    def command(self) -> str:
        return f"# {' '.join(self.describe().split())}"

    def inverse(self) -> tuple[ForgetAttachment, ...]:
        return (ForgetAttachment(self),)

    def describe(self) -> str:
        return f"have vnet-tui agent attach {self.container} to {self.network} again when it restarts"

    def steps_at(self, place: NetnsTarget) -> tuple[Operation, ...]:
        """Return the steps for the process that the container has now."""
        moved: tuple[Operation, ...] = _at(self.steps, place)
        return moved

    def affects(self) -> tuple[str, ...]:
        return (f"{self.container} on {self.network}",)

    def execute(self, executor: Executor) -> None:
        save_attachment(self)


@recorded("Unwant")
@dataclass(frozen=True, slots=True)
class ForgetAttachment(Operation):
    """Stop keeping an attachment; `want` is its undo."""

    survives_reboot: ClassVar[bool] = True

    want: PersistAttachment

    def command(self) -> str:
        return f"# {' '.join(self.describe().split())}"

    def inverse(self) -> tuple[PersistAttachment, ...]:
        return (self.want,)

    def describe(self) -> str:
        return f"stop vnet-tui agent from attaching {self.want.container} to {self.want.network} again"

    def affects(self) -> tuple[str, ...]:
        return self.want.affects()

    def execute(self, executor: Executor) -> None:
        remove_attachment(self.want)


def save_attachment(want: PersistAttachment) -> None:
    """Add a persistent attachment, or replace that of this container and network.

    Raises StateError.
    """
    _write([*_without(want), want])


def remove_attachment(want: PersistAttachment) -> None:
    """Remove a persistent attachment, if it exists. Raises StateError."""
    _write(_without(want))


def read_attachments() -> tuple[PersistAttachment, ...]:
    """Return the persistent attachments. Raises StateError for an unreadable file."""
    try:
        found = from_record(read_state(_FILE))
        if not isinstance(found, tuple) or not all(map(_is_whole, found)):
            raise ValueError("it doesn't contain attachments")
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        why = safe((getattr(error, "strerror", None) or str(error))[:200])
        path = state_path(_FILE)
        raise StateError(f"can't read {path}: {why}. Try: move it away and attach again") from error
    return found


def _is_whole(want: Any) -> bool:
    return (
        isinstance(want, PersistAttachment)
        and isinstance(want.container, str)
        and isinstance(want.network, str)
        and isinstance(want.steps, tuple)
    )


def _without(want: PersistAttachment) -> list[PersistAttachment]:
    key = (want.container, want.network)
    return [one for one in read_attachments() if (one.container, one.network) != key]


def _write(attachments: list[PersistAttachment]) -> None:
    write_state(_FILE, [to_record(one) for one in attachments], durable=True)


def _at(value: Any, place: NetnsTarget) -> Any:
    """Replace every target with a pid in a value."""
    if isinstance(value, NetnsTarget):
        return place if value.pid is not None else value
    if isinstance(value, tuple):
        return tuple(_at(item, place) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{field.name: _at(getattr(value, field.name), place) for field in fields(value)}
        )
    return value
