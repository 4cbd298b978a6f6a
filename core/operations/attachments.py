"""What the agent attaches again when a container restarts; it changes the state directory, not the kernel."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from core.operations.base import Operation
from core.operations.target import NetnsTarget


@dataclass(frozen=True, slots=True)
class PersistAttachment:
    """Want a container ("docker:ID") to stay attached to `network` across its restarts. `steps` are the
    operations that attached it; a place with a pid in them is the container's, whichever process it has."""

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
        """The steps again, for the process that the container has now."""
        moved: tuple[Operation, ...] = _at(self.steps, place)
        return moved


@dataclass(frozen=True, slots=True)
class ForgetAttachment:
    """Want that no longer; `want` wants it anew."""

    want: PersistAttachment

    def command(self) -> str:
        return f"# {' '.join(self.describe().split())}"

    def inverse(self) -> tuple[PersistAttachment, ...]:
        return (self.want,)

    def describe(self) -> str:
        return f"let vnet-tui agent forget that {self.want.container} is attached to {self.want.network}"


def _at(value: Any, place: NetnsTarget) -> Any:
    """A value with every place of a process in it replaced."""
    if isinstance(value, NetnsTarget):
        return place if value.pid is not None else value
    if isinstance(value, tuple):
        return tuple(_at(item, place) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{field.name: _at(getattr(value, field.name), place) for field in fields(value)}
        )
    return value
