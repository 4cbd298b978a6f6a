"""Writes a recording: a thread that takes in updates and puts them into a bounded file, frame after frame."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from core.files import WriteError, create_new
from core.model import Change
from core.recording import frames
from core.recording.delta import NOTHING, difference
from core.recording.frames import END, KEY, STEP, Moment
from core.update import Update

_PACE = 0.5  # seconds between two frames, at least
_SHARE = 0.1  # of a core, at most
_PATIENCE = 5.0  # seconds in which a first picture that is whole is waited for
_SYNC_EVERY = 5.0  # seconds after which the disk must have what was written
_MOST_CHANGES = 10_000  # in one frame
# A whole moment comes after so many frames, or so many bytes of JSON or tables, that only tell differences.
_STEPS = 120
_STEP_JSON = 1 << 25
_STEP_TABLES = 1 << 28
_ROOM_FOR_THE_END = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """What a recording may become: `seconds` long, `size` bytes large."""

    seconds: float = 600.0
    size: int = 64_000_000


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a recording is: `seconds` since it began, `size` in bytes, `moments` written. `ended` says why
    it is over, "" while it goes on; `failed` whether that was an error."""

    seconds: float = 0.0
    size: int = 0
    moments: int = 0
    ended: str = ""
    failed: bool = False


class Recorder(threading.Thread):
    """Records what `put` is given into a new file at `path`, until `stop` or a limit. All that is written
    stays readable, however this process ends. `clock` gives wall (Unix) and monotonic time in seconds; `pace`
    is how many seconds lie between two frames at least; `ended` is called once, from this thread."""

    def __init__(
        self,
        path: Path,
        limits: Limits,
        ended: Callable[[], None] = lambda: None,
        clock: Callable[[], tuple[float, float]] = lambda: (time.time(), time.monotonic()),
        pace: float = _PACE,
    ) -> None:
        super().__init__(name="recorder", daemon=True)
        self.path, self.limits = path, limits
        self._ended, self._clock, self._pace = ended, clock, pace
        self._wake = threading.Condition()
        self._newest: tuple[Update, float, float] | None = None
        self._changes: list[Change] = []
        self._why = ""
        self._began = time.monotonic()
        self._progress = Progress()
        self._descriptor = -1
        self._last, self._last_at = Moment(), 0.0
        self._steps = self._step_json = self._step_tables = 0
        self._synced = 0.0

    def put(self, update: Update) -> None:
        """Take in an update, from any thread; of a burst the last is kept, and all changes."""
        with self._wake:
            self._newest = (update, *self._clock())
            self._changes = [*self._changes, *update.changes][-_MOST_CHANGES:]
            self._wake.notify()

    def stop(self, why: str = "it was stopped") -> None:
        """End the recording soon: what was put until now is still written."""
        with self._wake:
            self._why = self._why or why
            self._wake.notify()

    @property
    def progress(self) -> Progress:
        """How far it is."""
        made = self._progress
        return made if made.ended else replace(made, seconds=time.monotonic() - self._began)

    def run(self) -> None:
        """The thread's life."""
        why, failed = "", False
        try:
            self._descriptor = create_new(self.path)
            self._append(frames.start())
            why = self._record()
            self._append(self._frame(END, frames.body(frames.text_of(why))))
            os.fsync(self._descriptor)
        except WriteError as error:
            why, failed = f"{error.strerror}. Try: {error.try_}", True
        except OSError as error:
            why, failed = f"{error.strerror or error}", True
            self._cut_off_the_half_frame()
        except Exception as error:
            why, failed = f"{type(error).__name__}: {error}", True
            self._cut_off_the_half_frame()
        finally:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._progress = replace(
                self.progress,
                seconds=time.monotonic() - self._began,
                ended=why,
                failed=failed,
            )
            self._ended()

    def _record(self) -> str:
        """Write frames until the end; returns why it came."""
        end = time.monotonic() + self.limits.seconds
        while True:
            with self._wake:
                self._wake.wait_for(self._due, max(0.0, end - time.monotonic()))
                newest, why = self._newest, self._why
                changes, self._changes = tuple(self._changes), []
                self._newest = None
            over = time.monotonic() >= end
            started = time.thread_time()
            if newest is not None and (full := self._write(*newest, changes)):
                return full
            if why or over:
                return why or f"it reached its time of {self.limits.seconds:g} s"
            self._rest(max(self._pace, (time.thread_time() - started) * (1 / _SHARE - 1)), end)

    def _due(self) -> bool:
        """Whether there is something to do; a picture that has just begun to be read may become whole yet."""
        if self._why or self._newest is None:
            return bool(self._why)
        young = not self._progress.moments and time.monotonic() < self._began + _PATIENCE
        return not (young and self._newest[0].snapshot.pending)

    def _rest(self, seconds: float, end: float) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._why, min(seconds, max(0.0, end - time.monotonic())))

    def _write(self, update: Update, wall: float, mono: float, changes: tuple[Change, ...]) -> str:
        """Write one frame; returns why the recording ends, where there is no room for it."""
        rates = update.rates
        moment = Moment(update.snapshot, rates.counters if rates else None, update.fast, changes)
        key = not self._progress.moments or self._far_from_a_key()
        tables: list[bytes] = []

        def keep(table: bytes) -> int:
            tables.append(table)
            return len(tables)

        found = difference(Moment, NOTHING if key else replace(self._last, changes=()), moment, keep)
        if found is None:
            return ""
        text = frames.text_of(found)
        if frames.too_large(text, tables):
            return "a moment was too large to be recorded"
        self._count(key, len(text), tables)
        frame = self._frame(KEY if key else STEP, frames.body(text, tables), wall, mono, len(changes))
        if self._progress.size + len(frame) + _ROOM_FOR_THE_END > self.limits.size:
            return f"it reached its size of {self.limits.size} bytes"
        self._append(frame)
        self._last = moment
        self._progress = replace(self._progress, moments=self._progress.moments + 1)
        if key or time.monotonic() > self._synced + _SYNC_EVERY:
            os.fdatasync(self._descriptor)
            self._synced = time.monotonic()
        return ""

    def _far_from_a_key(self) -> bool:
        return self._steps >= _STEPS or self._step_json > _STEP_JSON or self._step_tables > _STEP_TABLES

    def _count(self, key: bool, json_length: int, tables: list[bytes]) -> None:
        if key:
            self._steps = self._step_json = self._step_tables = 0
        self._steps += 1
        self._step_json += json_length
        self._step_tables += sum(map(len, tables))

    def _frame(self, kind: int, body: bytes, wall: float = 0.0, mono: float = 0.0, changes: int = 0) -> bytes:
        """A frame, never earlier than the one before it; the end stands at the time of the last moment."""
        self._last_at = max(self._last_at, mono)
        return frames.frame(self._progress.moments, kind, max(0.0, wall), self._last_at, changes, body)

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._descriptor, left) :]
        self._progress = replace(self._progress, size=self._progress.size + len(data))

    def _cut_off_the_half_frame(self) -> None:
        if self._descriptor >= 0:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._progress.size)
