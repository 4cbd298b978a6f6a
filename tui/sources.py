"""Provide updates: live from the kernel, from a dump, or from a recording."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, Protocol

from core.model import Change, Demand, FastFlows, Problem, Snapshot
from core.rates import RateMeter, Rates
from core.update import TrackedConnections, Update
from tui.view_model import read_at

if TYPE_CHECKING:
    from core.recording import Recording
    from core.watch import Watcher
    from core.watch.drops import OpenDrops
    from core.watch.rates import ReadGuards


Mode = Literal["live", "paused", "offline", "replay"]


class Source(Protocol):
    """Provide updates from own threads, the first as soon as anything is known."""

    @property
    def live(self) -> bool:
        """Whether the data can change: False for a file."""
        ...

    @property
    def title(self) -> str:
        """The title in the header: a file's name, "" for this host."""
        ...

    def start(self, on_update: Callable[[Update], None]) -> None:
        """Begin; return at once.

        `on_update` may be called from any thread.
        """
        ...

    def stop(self) -> None:
        """End; later updates are ignored."""
        ...

    def refresh(self) -> None:
        """Read everything again."""
        ...

    def set_demand(self, demand: Set[Demand]) -> None:
        """Set the readings that are needed often; the others are made only now and then."""
        ...


class LiveSource:
    """Start a watcher, and pass the dashboard's requests on to it."""

    live = True
    title = ""

    def __init__(
        self,
        fast_flows: Callable[[], FastFlows] | None = None,
        open_drops: OpenDrops | None = None,
        read_guards: ReadGuards | None = None,
    ) -> None:
        """`fast_flows` reads the fast path's counters, None if there is none.

        `open_drops` begins to count dropped packets, `read_guards` reads the counters of storm guards.
        """
        self.fast_flows, self.open_drops, self.read_guards = fast_flows, open_drops, read_guards
        self._lock = threading.Lock()
        self._watcher: Watcher | None = None
        self._demand: Set[Demand] = frozenset()
        self._stopped = False

    def start(self, on_update: Callable[[Update], None]) -> None:
        """Start a watcher in a thread: importing the collectors takes time."""
        threading.Thread(
            target=self._create_watcher, args=(on_update,), name="begin-watching", daemon=True
        ).start()

    def _create_watcher(self, on_update: Callable[[Update], None]) -> None:
        from core.watch import Watcher

        watcher = Watcher(
            on_update, fast_flows=self.fast_flows, open_drops=self.open_drops, read_guards=self.read_guards
        )
        with self._lock:
            if self._stopped:
                return
            self._watcher = watcher
            watcher.start()
            watcher.set_demand(self._demand)

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

    def set_demand(self, demand: Set[Demand]) -> None:
        """Set the readings that are needed often, also before the watcher exists."""
        with self._lock:
            self._demand = demand
            if self._watcher:
                self._watcher.set_demand(demand)


class FileSource:
    """Provide the snapshot of a file, again at each refresh."""

    live = False

    def __init__(self, snapshot: Snapshot, name: str = "", fast: FastFlows | None = None) -> None:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.taken_at))
        self.title = f"{name} of {moment}".strip()
        self._update = Update(snapshot, fast=fast)
        self._on_update: Callable[[Update], None] | None = None

    def start(self, on_update: Callable[[Update], None]) -> None:
        """Give the picture at once."""
        self._on_update = on_update
        on_update(self._update)

    def stop(self) -> None:
        """Do nothing: no thread runs."""
        self._on_update = None

    def refresh(self) -> None:
        """Give the picture again."""
        if self._on_update:
            self._on_update(self._update)

    def set_demand(self, demand: Set[Demand]) -> None:
        """Do nothing: a file is read whole."""


SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_MIN_INTERVAL = 0.05  # seconds between two updates while it plays
_HISTORY_MOMENTS = 300  # moments before the shown one that rates and history are worked out from
_CLOCK_STEP = 1.0  # seconds of difference between wall and monotonic time if the clock was set
_MAX_LOOKBACK = 15  # moments before it in which to look for an earlier reading of the connections
_LOOP_PAUSE = 2.0  # seconds on the last moment before a loop starts again


@dataclass(frozen=True, slots=True)
class Position:
    """Position on the time line.

    Moment `place` of `count`, its Unix time, seconds since the first of `length`; `stepped` is by how many
    seconds the clock was set just before it.
    """

    place: int
    count: int
    wall: float
    seconds: float
    length: float
    playing: bool
    speed: float
    stepped: float


class ReplaySource:
    """Play a recording.

    Call all methods from the screen's thread; moments are read in an own thread.
    """

    live = False

    def __init__(self, recording: Recording, name: str = "") -> None:
        self.title, self.notice = name, recording.notice
        self.banner = ("", "")  # a name and a sentence that stay on the screen
        self._recording, self._frames = recording, recording.frames
        self._times = [frame.mono - self._frames[0].mono for frame in self._frames]
        self._wake = threading.Condition()
        self._wanted, self._shown = 0, -1
        self._playing, self._loops, self._speed = False, False, SPEEDS.index(1.0)
        self._base, self._since = 0.0, 0.0  # time in the recording, and when that was, in monotonic seconds
        self._stopped = False
        self._meter, self._metered_index = RateMeter(), -1
        self._change_counts: list[int] = []  # number of changes until each moment
        self._changes: list[Change] = []
        self._last: Snapshot = Snapshot()
        self.first: Snapshot | None = None  # the first moment that was shown: that of the start

    def loop_with_banner(self, name: str, words: str) -> None:
        """Play repeatedly under a banner with a name and a sentence; call before `start`."""
        self.banner = (name, words)
        self._playing = self._loops = True

    # ---- a source

    def start(self, on_update: Callable[[Update], None]) -> None:
        """Show the first moment."""
        threading.Thread(target=self._run, args=(on_update,), name="replay", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        with self._wake:
            self._stopped = True
            self._wake.notify()

    def refresh(self) -> None:
        """Give the moment again."""
        with self._wake:
            self._shown = -1
            self._wake.notify()

    def set_demand(self, demand: Set[Demand]) -> None:
        """Do nothing: each moment is read whole."""

    # ---- the time line

    @property
    def marks(self) -> list[float]:
        """Where on the time line, from 0 to 1, something changed."""
        length = self._times[-1] or 1.0
        pairs = zip(self._frames, self._times, strict=True)
        return [at / length for frame, at in pairs if frame.changes]

    @property
    def position(self) -> Position:
        """Where the person is."""
        with self._wake:
            place, playing, speed = self._wanted, self._playing, SPEEDS[self._speed]
        frame = self._frames[place]
        before = self._frames[max(0, place - 1)]
        parted = (frame.wall - before.wall) - (frame.mono - before.mono)
        stepped = parted if abs(parted) > _CLOCK_STEP else 0.0
        length = self._times[-1]
        return Position(
            place, len(self._frames), frame.wall, self._times[place], length, playing, speed, stepped
        )

    def toggle(self) -> None:
        """Play, from the start where it is at its end; or pause."""
        with self._wake:
            self._playing = not self._playing
            if self._playing and self._wanted == len(self._frames) - 1:
                self._wanted = 0
            self._rebase()

    def step(self, count: int) -> None:
        """Go that many moments forwards, or backwards."""
        with self._wake:
            self._playing = False
            self._seek_index(self._wanted + count)

    def seek(self, part: float) -> None:
        """Go to a part of the time line, 0 to 1; at 1 a loop pauses."""
        with self._wake:
            self._playing &= part < 1
            at = self._times[-1] * part
            self._seek_index(bisect_right(self._times, at) - 1)

    def seek_change(self, direction: int) -> bool:
        """Go to the next moment (1) with a change, or the one before (-1).

        If there is none, go to that end and return False.
        """
        with self._wake:
            places = range(self._wanted + direction, len(self._frames) if direction > 0 else -1, direction)
            found = next((place for place in places if self._frames[place].changes), None)
            self._playing = False
            self._seek_index(found if found is not None else (len(self._frames) - 1 if direction > 0 else 0))
        return found is not None

    def faster(self, steps: int) -> None:
        """Play that many steps faster, or slower."""
        with self._wake:
            self._speed = max(0, min(len(SPEEDS) - 1, self._speed + steps))
            self._rebase()

    def _seek_index(self, place: int) -> None:
        self._wanted = max(0, min(len(self._frames) - 1, place))
        self._rebase()

    def _rebase(self) -> None:
        """Restart the clock at the current moment."""
        self._base, self._since = self._times[self._wanted], time.monotonic()
        self._wake.notify()

    # ---- on the thread

    def _run(self, on_update: Callable[[Update], None]) -> None:
        self._learn_changes()
        with self._wake:
            self._rebase()
        while True:
            with self._wake:
                if not self._stopped and self._shown == self._wanted:
                    self._wake.wait(self._time_left())
                if self._stopped:
                    break
                self._advance()
                wanted, fresh = self._wanted, self._shown != self._wanted
                self._shown = wanted
            if fresh:
                on_update(self._update(wanted))
                time.sleep(_MIN_INTERVAL if self._playing else 0)
        self._recording.close()

    def _time_left(self) -> float | None:
        """Return the seconds until the next moment is due while it plays.

        Call it with the lock held.
        """
        if not self._playing:
            return None
        last = self._wanted == len(self._times) - 1
        due = (self._times[-1] + _LOOP_PAUSE if last else self._times[self._wanted + 1]) - self._base
        return max(0.0, self._since + due / SPEEDS[self._speed] - time.monotonic())

    def _advance(self) -> None:
        if self._playing:
            now = self._base + (time.monotonic() - self._since) * SPEEDS[self._speed]
            if self._loops and now >= self._times[-1] + _LOOP_PAUSE:
                self._seek_index(0)
                return
            self._wanted = max(self._wanted, bisect_right(self._times, now) - 1)
            self._playing = self._loops or self._wanted < len(self._frames) - 1

    def _update(self, place: int) -> Update:
        """Return the moment, or the one before it and why it can't be shown."""
        from core.serialize import CorruptFile

        try:
            moment = self._recording.moment(place)
            rates = self._rates(place)
        except (CorruptFile, OSError) as error:
            with self._wake:
                self._playing = False
            problem = Problem("recording", "can't read this moment of the recording", str(error))
            problems = {**self._last.part_problems, "recording": (problem,)}
            return Update(replace(self._last, part_problems=problems), replaces_log=True)
        self._last = moment.snapshot
        self.first = self.first or moment.snapshot
        until = self._change_counts[place]
        changes = tuple(self._changes[:until])
        return Update(
            moment.snapshot,
            rates,
            changes,
            fast=moment.fast,
            replaces_log=True,
            previous=self._previous(place),
        )

    def _previous(self, place: int) -> TrackedConnections | None:
        """Return the connections of the reading shortly before, None without one."""
        tables = self._recording.moment(place).snapshot.conntracks
        for earlier in range(place - 1, max(-1, place - 1 - _MAX_LOOKBACK), -1):
            moment = self._recording.moment(earlier)
            if read_at(moment.snapshot.conntracks) < read_at(tables):
                return TrackedConnections(moment.snapshot.conntracks, moment.fast)
        return None

    def _rates(self, place: int) -> Rates | None:
        """Return the rates at a moment; after a jump, read the counters before it."""
        if not self._metered_index <= place <= self._metered_index + _HISTORY_MOMENTS:
            self._meter, self._metered_index = RateMeter(), max(-1, place - _HISTORY_MOMENTS)
        for stats in self._recording.stats(self._metered_index + 1, place + 1):
            self._meter.feed(stats)
        self._metered_index = place
        return self._meter.rates if self._meter.rates.counters is not None else None

    def _learn_changes(self) -> None:
        """Read the changes of all moments; damaged ones have none."""
        from core.serialize import CorruptFile

        changes: list[tuple[Change, ...]] = []
        try:
            changes.extend(self._recording.changes())
        except (CorruptFile, OSError):
            changes.extend([()] * (len(self._frames) - len(changes)))
        self._changes = [change for each in changes for change in each]
        self._change_counts = list(accumulate(map(len, changes)))
