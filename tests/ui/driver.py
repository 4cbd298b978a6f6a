"""Drive the dashboard in tests: feed its source, press keys, read the screen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Set
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

from textual import events
from textual.app import App
from textual.pilot import Pilot

import tui.app
from core.model import Change, Demand, Drops, Snapshot
from core.rates import Rates
from core.update import Update
from tests.support.snapshots import small_host
from tests.support.waiting import PATIENCE
from tui.app import VnetApp
from tui.screens import navigation
from tui.screens.dashboard import Dashboard
from tui.services import NO_SERVICES, Services

_NAMES = {
    ":": "colon", "/": "slash", "⏎": "enter", " ": "space", "!": "exclamation_mark", "-": "minus",
    "_": "underscore", "*": "asterisk", "[": "left_square_bracket", "]": "right_square_bracket",
}  # fmt: skip
_CHARACTERS = {name: key for key, name in _NAMES.items()}
_QUIET = 3
KEY_TIMEOUT = 30.0  # seconds that a key may wait in tests


@dataclass
class FedSource:
    """A source that publishes what the test feeds it, and records requests."""

    first: Snapshot | None = None
    live: bool = True
    title: str = ""
    demands: list[Set[Demand]] = field(default_factory=list)
    refreshes: int = 0
    stopped: bool = False
    _listener: Callable[[Update], None] | None = None

    def start(self, on_update: Callable[[Update], None]) -> None:
        self._listener = on_update
        if self.first is not None:
            self.feed(self.first)

    def stop(self) -> None:
        self.stopped = True

    def refresh(self) -> None:
        self.refreshes += 1

    def set_demand(self, demand: Set[Demand]) -> None:
        self.demands.append(demand)

    @property
    def started(self) -> bool:
        """Return whether the dashboard listens."""
        return self._listener is not None

    def feed(
        self, snapshot: Snapshot, rates: Rates | None = None, changes: tuple[Change, ...] = (),
        drops: Drops | None = None,
    ) -> Update:  # fmt: skip
        assert self._listener is not None
        update = Update(snapshot, rates, changes, drops=drops)
        self._listener(update)
        return update


@dataclass
class Person:
    """A user of the dashboard: presses keys and reads the screen."""

    app: VnetApp
    pilot: Pilot[None]
    source: FedSource

    @property
    def dashboard(self) -> Dashboard:
        screen = self.app.screen_stack[0]
        assert isinstance(screen, Dashboard)
        return screen

    async def press(self, *keys: str) -> None:
        """Press keys, all at once, like pasted text."""
        for key in keys:
            name = _NAMES.get(key, key)
            self.app.post_message(events.Key(name, key if len(key) == 1 else _CHARACTERS.get(key)))
        handled = asyncio.Event()
        self.app.call_later(handled.set)
        await handled.wait()
        await self.settle()

    async def type(self, text: str) -> None:
        """Type characters; "⏎" is Enter."""
        await self.press(*text)

    async def settle(self) -> None:
        """Wait until everything that was requested is on the screen."""
        until = time.monotonic() + PATIENCE
        quiet = 0
        while time.monotonic() < until:
            await self.pilot.pause(0.002)
            quiet = quiet + 1 if self.dashboard.up_to_date else 0
            # New rows make the screen request more, such as details: wait for several pauses.
            if quiet == _QUIET:
                return
        raise AssertionError("the dashboard did not come to rest")

    async def eventually(self, text: str) -> None:
        """Wait until the screen shows the text."""
        await self.until(lambda: text in self.text, f"{text!r} on the screen")

    async def until(self, holds: Callable[[], object], what: str = "it") -> None:
        """Wait until the condition holds."""
        until = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < until, f"{what} did not come about in\n{self.text}"
            await self.pilot.pause(0.01)

    async def feed(self, snapshot: Snapshot, **more: object) -> None:
        """Publish an update, and wait until it is shown, unless the dashboard is paused."""
        update = self.source.feed(snapshot, **more)  # type: ignore[arg-type]
        presenter = self.dashboard.presenter
        await self.until(lambda: presenter.paused or presenter.current_update is update, "the update")
        await self.settle()

    @property
    def lines(self) -> list[str]:
        return screen_lines(self.app)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def row(self) -> str:
        """Return the first cell of the row under the cursor."""
        row = self.dashboard.table.selected_row()
        return row.cells[0].text if row else ""


def screen_lines(app: App[None]) -> list[str]:
    """Return the lines that the terminal shows."""
    strips = app.screen._compositor.render_strips()
    return ["".join(segment.text for segment in strip) for strip in strips]


@asynccontextmanager
async def dashboard(
    snapshot: Snapshot | None = None,
    size: tuple[int, int] = (130, 40),
    source: FedSource | None = None,
    ascii_only: bool = False,
    services: Services = NO_SERVICES,
    write: bool = False,
) -> AsyncIterator[Person]:
    """Run the dashboard on a snapshot, by default of a small host."""
    source = source or FedSource(snapshot or small_host())
    app = VnetApp(source, ascii_only, services, write)
    with patient_keys():
        async with app.run_test(size=size, notifications=True) as pilot:
            person = Person(app, pilot, source)
            await person.until(lambda: source.started, "the start of the source")
            if source.first is not None:
                await person.until(
                    lambda: person.dashboard.presenter.current_update is not None, "the first update"
                )
                await person.settle()
            yield person


@contextmanager
def patient_keys() -> Iterator[None]:
    """Raise the time limits of keys, so that a busy machine drops none."""
    with patch.object(navigation, "_KEY_TIMEOUT", PATIENCE), patch.object(tui.app, "_LATE", KEY_TIMEOUT):
        yield
