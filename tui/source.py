"""Where the dashboard's data comes from: live from the kernel, or out of a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from core.flows.merge import FlowTable
from core.model import Change, FastFlows, Snapshot
from core.rates import Rates

if TYPE_CHECKING:
    from core.watch import Watcher


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


class LiveSource:
    """Starts a watcher and passes on what the dashboard asks of it."""

    live = True
    title = ""

    def __init__(self, fast_flows: Callable[[], FastFlows] | None = None) -> None:
        """`fast_flows` reads what the fast path counted, None where there is none."""
        self.fast_flows = fast_flows
        self._lock = threading.Lock()
        self._watcher: Watcher | None = None
        self._view, self._all = "", False
        self._stopped = False

    def start(self, on_update: Callable[[Update], None]) -> None:
        """Begin to watch, on a thread: importing the collectors must not hold up the first paint."""
        threading.Thread(target=self._begin, args=(on_update,), name="begin-watching", daemon=True).start()

    def _begin(self, on_update: Callable[[Update], None]) -> None:
        from core.watch import Watcher

        watcher = Watcher(on_update, fast_flows=self.fast_flows)
        with self._lock:
            if self._stopped:
                return
            self._watcher = watcher
            watcher.start()
            watcher.show(self._view)
            watcher.read_all(self._all)

    def stop(self) -> None:
        """End the watching."""
        with self._lock:
            self._stopped = True
            if self._watcher:
                self._watcher.stop()

    def refresh(self) -> None:
        """Read everything again."""
        with self._lock:
            if self._watcher:
                self._watcher.refresh()

    def show(self, view: str) -> None:
        """Say which view is in sight, also before the watcher is there."""
        with self._lock:
            self._view = view
            if self._watcher:
                self._watcher.show(view)

    def read_all(self, on: bool) -> None:
        """Have every part read often, also before the watcher is there."""
        with self._lock:
            self._all = on
            if self._watcher:
                self._watcher.read_all(on)


@dataclass(frozen=True, slots=True)
class Picture:
    """The only update that a file gives."""

    snapshot: Snapshot
    fast: FastFlows | None = None
    rates: None = None
    changes: tuple[Change, ...] = ()
    flows: None = None


class FileSource:
    """Gives the snapshot of a file, again at each refresh."""

    live = False

    def __init__(self, snapshot: Snapshot, name: str = "", fast: FastFlows | None = None) -> None:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.taken_at))
        self.title = f"{name} of {moment}".strip()
        self._picture = Picture(snapshot, fast)
        self._on_update: Callable[[Update], None] | None = None

    def start(self, on_update: Callable[[Update], None]) -> None:
        """Give the picture at once."""
        self._on_update = on_update
        on_update(self._picture)

    def stop(self) -> None:
        """Nothing runs."""
        self._on_update = None

    def refresh(self) -> None:
        """Give the picture again."""
        if self._on_update:
            self._on_update(self._picture)

    def show(self, view: str) -> None:
        """Every part is there already."""

    def read_all(self, on: bool) -> None:
        """There is nothing more to be read."""
