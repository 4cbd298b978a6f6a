"""Write a recording: a thread that appends updates to a file of limited size."""

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
from core.recording.delta import NOTHING, encode_delta
from core.recording.frames import END, KEY, STEP, Moment
from core.update import Update

_MIN_INTERVAL = 0.5  # seconds between two frames
_MAX_CPU = 0.1  # of a core
_COMPLETE_TIMEOUT = 5.0  # seconds to wait for a first snapshot that is complete
_SYNC_INTERVAL = 5.0  # seconds
_MAX_CHANGES = 10_000  # in one frame
# A key frame follows after this many step frames, or bytes of JSON or tables in them.
_MAX_STEPS = 120
_MAX_STEP_JSON = 1 << 25
_MAX_STEP_TABLES = 1 << 28
_END_FRAME_SIZE = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a recording: duration in seconds, size in bytes."""

    seconds: float = 600.0
    size: int = 64_000_000


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a recording: `seconds`, `size` in bytes, `moments` written.

    `ended` is why it ended, "" while it runs; `failed` whether that was an error."""

    seconds: float = 0.0
    size: int = 0
    moments: int = 0
    ended: str = ""
    failed: bool = False


class Recorder(threading.Thread):
    """Records the updates given to `put` to a new file, until `stop` or a limit.

    Complete frames stay readable even if this process is killed. `clock` returns wall (Unix) and monotonic
    time in seconds; `pace` is the minimum of seconds between two frames; `ended` is called once, from this
    thread."""

    def __init__(
        self,
        path: Path,
        limits: Limits,
        ended: Callable[[], None] = lambda: None,
        clock: Callable[[], tuple[float, float]] = lambda: (time.time(), time.monotonic()),
        pace: float = _MIN_INTERVAL,
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
        """Add an update, from any thread; of a burst only the last, with all changes."""
        with self._wake:
            self._newest = (update, *self._clock())
            self._changes = [*self._changes, *update.changes][-_MAX_CHANGES:]
            self._wake.notify()

    def stop(self, why: str = "it was stopped") -> None:
        """End the recording; updates so far are still written."""
        with self._wake:
            self._why = self._why or why
            self._wake.notify()

    @property
    def progress(self) -> Progress:
        """The progress so far."""
        progress = self._progress
        return progress if progress.ended else replace(progress, seconds=time.monotonic() - self._began)

    def run(self) -> None:
        """Write the file; the thread's main function."""
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
            self._truncate_partial_frame()
        except Exception as error:
            why, failed = f"{type(error).__name__}: {error}", True
            self._truncate_partial_frame()
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
        """Write frames until the end; return why it ended."""
        end = time.monotonic() + self.limits.seconds
        while True:
            with self._wake:
                self._wake.wait_for(self._due, max(0.0, end - time.monotonic()))
                newest, why = self._newest, self._why
                changes, self._changes = tuple(self._changes), []
                self._newest = None
            is_over = time.monotonic() >= end
            started = time.thread_time()
            if newest is not None and (full := self._write(*newest, changes)):
                return full
            if why or is_over:
                return why or f"it reached its time limit of {self.limits.seconds:g} s"
            self._pause(max(self._pace, (time.thread_time() - started) * (1 / _MAX_CPU - 1)), end)

    def _due(self) -> bool:
        """Return whether there is something to do; wait for a complete first snapshot."""
        if self._why or self._newest is None:
            return bool(self._why)
        is_first = not self._progress.moments and time.monotonic() < self._began + _COMPLETE_TIMEOUT
        return not (is_first and self._newest[0].snapshot.pending)

    def _pause(self, seconds: float, end: float) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._why, min(seconds, max(0.0, end - time.monotonic())))

    def _write(self, update: Update, wall: float, mono: float, changes: tuple[Change, ...]) -> str:
        """Write one frame; return why the recording ends if it doesn't fit, else ""."""
        rates = update.rates
        moment = Moment(update.snapshot, rates.counters if rates else None, update.fast, changes)
        key = not self._progress.moments or self._needs_key_frame()
        tables: list[bytes] = []

        def keep(table: bytes) -> int:
            tables.append(table)
            return len(tables)

        delta = encode_delta(Moment, NOTHING if key else replace(self._last, changes=()), moment, keep)
        if delta is None:
            return ""
        text = frames.text_of(delta)
        if frames.too_large(text, tables):
            return "a moment was too large to record"
        self._count(key, len(text), tables)
        frame = self._frame(KEY if key else STEP, frames.body(text, tables), wall, mono, len(changes))
        if self._progress.size + len(frame) + _END_FRAME_SIZE > self.limits.size:
            return f"it reached its size limit of {self.limits.size} bytes"
        self._append(frame)
        self._last = moment
        self._progress = replace(self._progress, moments=self._progress.moments + 1)
        if key or time.monotonic() > self._synced + _SYNC_INTERVAL:
            os.fdatasync(self._descriptor)
            self._synced = time.monotonic()
        return ""

    def _needs_key_frame(self) -> bool:
        return (
            self._steps >= _MAX_STEPS
            or self._step_json > _MAX_STEP_JSON
            or self._step_tables > _MAX_STEP_TABLES
        )

    def _count(self, key: bool, json_length: int, tables: list[bytes]) -> None:
        if key:
            self._steps = self._step_json = self._step_tables = 0
        self._steps += 1
        self._step_json += json_length
        self._step_tables += sum(map(len, tables))

    def _frame(self, kind: int, body: bytes, wall: float = 0.0, mono: float = 0.0, changes: int = 0) -> bytes:
        """Encode a frame; its time is never before the previous one's."""
        self._last_at = max(self._last_at, mono)
        return frames.frame(self._progress.moments, kind, max(0.0, wall), self._last_at, changes, body)

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._descriptor, left) :]
        self._progress = replace(self._progress, size=self._progress.size + len(data))

    def _truncate_partial_frame(self) -> None:
        if self._descriptor >= 0:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._progress.size)
