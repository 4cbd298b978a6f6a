"""Where the dashboard's data comes from: live from the kernel, or out of a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from core.flows.merge import FlowTable
from core.model import Change, Snapshot
from core.rates import Rates


class Update(Protocol):
    """One new picture: the whole snapshot, the rates (None where nothing counts), and what changed since
    the update before; the flows, None where none are measured."""

    @property
    def snapshot(self) -> Snapshot: ...

    @property
    def rates(self) -> Rates | None: ...

    @property
    def changes(self) -> tuple[Change, ...]: ...

    @property
    def flows(self) -> FlowTable | None: ...


class Source(Protocol):
    """Gives updates from threads of its own, the first one as soon as anything is known."""

    @property
    def live(self) -> bool:
        """Whether what it shows can change: False for a file."""
        ...

    @property
    def title(self) -> str:
        """What the header says of it: a file's name; "" for the host itself."""
        ...

    def start(self, on_update: Callable[[Update], None]) -> None:
        """Begin; returns at once. `on_update` may be called from any thread."""
        ...

    def stop(self) -> None:
        """End; no update comes after this, or it is ignored."""
        ...

    def refresh(self) -> None:
        """Read everything again."""
        ...

    def show(self, view: str) -> None:
        """Say which view is in sight, so that costly parts are read only while something shows them."""
        ...

    def read_all(self, on: bool) -> None:
        """Have every part read often, in sight or not, as long as somebody records; or no longer."""
        ...
