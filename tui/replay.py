"""A recording as the dashboard's source: its moments one after another, forwards, backwards, at any speed."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from core.model import Change, FastFlows, Problem, Snapshot
from core.rates import RateMeter, Rates
from tui.source import Update
from tui.stage import Tracked, read_at

if TYPE_CHECKING:
    from core.recording import Recording

SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_SHORTEST = 0.05  # seconds between two pictures while it plays
_METERED = 300  # moments before the one shown from which rates and their history are worked out
_STEP_OF_THE_CLOCK = 1.0  # seconds by which wall and monotonic time part where the clock was set
_TRACKED = 15  # moments before it in which to look for an earlier reading of the connections
_MOST_CHANGES = 1000  # of a moment's past that are told
_BETWEEN_ROUNDS = 2.0  # seconds on the last moment before what plays over and over begins again


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One moment; `changes` are all that happened until then, `before` the connections when they were last
    read before it, from which their speeds follow."""

    snapshot: Snapshot
    rates: Rates | None
    changes: tuple[Change, ...]
    fast: FastFlows | None = None
    retold: bool = True
    flows: None = None
    before: Tracked | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """Where on the time line the person is: the moment's `place` of `count`, its time of day (Unix), seconds
    since the first of `length` in all; `stepped` is by how many seconds the clock was set just before it."""

    place: int
    count: int
    wall: float
    seconds: float
    length: float
    playing: bool
    speed: float
    stepped: float


class ReplaySource:
    """Plays a recording. Every method is for the screen's thread; moments are read on a thread of its own."""

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
        self._meter, self._metered = RateMeter(), -1
        self._ends: list[int] = []  # for each moment how many changes there were until then
        self._changes: list[Change] = []
        self._last: Snapshot = Snapshot()

    def present(self, name: str, words: str) -> None:
        """Play by itself, over and over, under a banner with that name and sentence; before `start`."""
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

    def show(self, view: str) -> None:
        """Every part is there already."""

    def read_all(self, on: bool) -> None:
        """There is nothing more to be read."""

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
        stepped = parted if abs(parted) > _STEP_OF_THE_CLOCK else 0.0
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
        """So many moments forwards, or backwards."""
        with self._wake:
            self._playing = False
            self._go(self._wanted + count)

    def seek(self, part: float) -> None:
        """Go to that part of the time line, 0 its start and 1 its end, where a replay that loops pauses."""
        with self._wake:
            self._playing &= part < 1
            at = self._times[-1] * part
            self._go(bisect_right(self._times, at) - 1)

    def seek_change(self, direction: int) -> bool:
        """To the next moment (1) at which something changed, or the one before (-1); else to that end, and
        False."""
        with self._wake:
            places = range(self._wanted + direction, len(self._frames) if direction > 0 else -1, direction)
            found = next((place for place in places if self._frames[place].changes), None)
            self._playing = False
            self._go(found if found is not None else (len(self._frames) - 1 if direction > 0 else 0))
        return found is not None

    def faster(self, steps: int) -> None:
        """So many steps faster, or slower."""
        with self._wake:
            self._speed = max(0, min(len(SPEEDS) - 1, self._speed + steps))
            self._rebase()

    def _go(self, place: int) -> None:
        self._wanted = max(0, min(len(self._frames) - 1, place))
        self._rebase()

    def _rebase(self) -> None:
        """From here on time runs anew."""
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
                    self._wake.wait(self._rest())
                if self._stopped:
                    break
                self._advance()
                wanted, fresh = self._wanted, self._shown != self._wanted
                self._shown = wanted
            if fresh:
                on_update(self._picture(wanted))
                time.sleep(_SHORTEST if self._playing else 0)
        self._recording.close()

    def _rest(self) -> float | None:
        """Seconds until the next moment is due while it plays; call with the lock held."""
        if not self._playing:
            return None
        last = self._wanted == len(self._times) - 1
        due = (self._times[-1] + _BETWEEN_ROUNDS if last else self._times[self._wanted + 1]) - self._base
        return max(0.0, self._since + due / SPEEDS[self._speed] - time.monotonic())

    def _advance(self) -> None:
        if self._playing:
            now = self._base + (time.monotonic() - self._since) * SPEEDS[self._speed]
            if self._loops and now >= self._times[-1] + _BETWEEN_ROUNDS:
                self._go(0)
                return
            self._wanted = max(self._wanted, bisect_right(self._times, now) - 1)
            self._playing = self._loops or self._wanted < len(self._frames) - 1

    def _picture(self, place: int) -> Picture:
        """The moment, or the one before it with the reason why it cannot be shown."""
        from core.serialize import CorruptFile

        try:
            moment = self._recording.moment(place)
            rates = self._rates(place)
        except (CorruptFile, OSError) as error:
            with self._wake:
                self._playing = False
            problem = Problem("recording", "this moment of the recording cannot be read", str(error))
            problems = {**self._last.part_problems, "recording": (problem,)}
            return Picture(replace(self._last, part_problems=problems), None, ())
        self._last = moment.snapshot
        until = self._ends[place]
        told = tuple(self._changes[:until])
        return Picture(moment.snapshot, rates, told, moment.fast, before=self._tracked_before(place))

    def _tracked_before(self, place: int) -> Tracked | None:
        """The connections as they were read last before the moment, None where none were shortly before."""
        tables = self._recording.moment(place).snapshot.conntracks
        for earlier in range(place - 1, max(-1, place - 1 - _TRACKED), -1):
            moment = self._recording.moment(earlier)
            if read_at(moment.snapshot.conntracks) < read_at(tables):
                return moment.snapshot.conntracks, moment.fast
        return None

    def _rates(self, place: int) -> Rates | None:
        """What the counters until then say; those before it are read where the person jumped."""
        if not self._metered <= place <= self._metered + _METERED:
            self._meter, self._metered = RateMeter(), max(-1, place - _METERED)
        for stats in self._recording.stats(self._metered + 1, place + 1):
            self._meter.feed(stats)
        self._metered = place
        return self._meter.rates if self._meter.rates.counters is not None else None

    def _learn_changes(self) -> None:
        """Read what every moment tells to have changed; a damaged one tells nothing."""
        from core.serialize import CorruptFile

        told: list[tuple[Change, ...]] = []
        try:
            told.extend(self._recording.changes())
        except (CorruptFile, OSError):
            told.extend([()] * (len(self._frames) - len(told)))
        self._changes = [change for each in told for change in each]
        self._ends = list(accumulate(map(len, told)))
