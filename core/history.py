"""Keep the history of many time series in bounded memory: rings of time slots."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

MOST = 4096  # series of one kind; then a new one replaces the least recently fed
_EXPIRY = 3600.0  # seconds after which no window shows a series any more


@dataclass(frozen=True, slots=True)
class Window:
    """A period up to now: `slots` slots of `step` seconds each."""

    title: str
    step: int
    slots: int


MINUTE = Window("1 min", 1, 60)
MINUTES = Window("5 min", 1, 300)
HOUR = Window("1 h", 10, 360)
WINDOWS = (MINUTE, MINUTES, HOUR)


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """The values in a window.

    `values` has shape (slots, columns): the mean of each slot, oldest first, NaN if unknown. `newest` is the
    number of the newest slot, counted from time 0 of the clock."""

    window: Window
    newest: int
    values: np.ndarray


class _Ring:
    """Slots of `step` seconds per series: sums of value x seconds, and the seconds."""

    def __init__(self, step: int, slots: int, columns: int, most: int) -> None:
        self._step, self._slots = step, slots
        # Untouched pages of zeros take no memory, so unused rows are free.
        self._sums = np.zeros((most, slots, columns + 1), "f4")
        self._last = 0

    @property
    def bytes_of_one(self) -> int:
        """Memory of one series."""
        return int(self._sums[0].nbytes)

    def clear(self, row: int) -> None:
        """Clear a row for another series."""
        self._sums[row] = 0

    def add(self, rows: np.ndarray, values: np.ndarray, since: float, until: float, used: int) -> None:
        """Add values that held from `since` to `until`, at most the ring's length."""
        first, last = int(since // self._step), int(until // self._step)
        for slot in range(max(self._last, last - self._slots) + 1, last + 1):
            self._sums[:used, slot % self._slots] = 0
        self._last = last
        for slot in range(max(first, last - self._slots + 1), last + 1):
            seconds = min(until, (slot + 1) * self._step) - max(since, slot * self._step)
            position = slot % self._slots
            self._sums[rows, position, :-1] += values * np.float32(seconds)
            self._sums[rows, position, -1] += seconds

    def read(self, row: int, newest: int, slots: int) -> np.ndarray:
        """Return the means of the slots up to `newest`, shape (slots, columns)."""
        numbers = np.arange(newest - slots + 1, newest + 1)
        found = self._sums[row, numbers % self._slots]
        found[(numbers > self._last) | (numbers <= self._last - self._slots)] = 0
        with np.errstate(invalid="ignore", divide="ignore"):
            means: np.ndarray = found[:, :-1] / found[:, -1:]
        means[found[:, -1] <= 0] = np.nan
        return means


class History:
    """The history of up to `most` series with `columns` values each; thread-safe.

    Times are monotonic and given by the caller, so that a step of the wall clock has no effect.
    """

    def __init__(self, columns: int, most: int = MOST) -> None:
        self.columns, self.most = columns, most
        self.left_out = 0
        self._lock = threading.Lock()
        self._rings = {
            step: _Ring(step, max(w.slots for w in WINDOWS if w.step == step), columns, most)
            for step in {window.step for window in WINDOWS}
        }
        self._rows: dict[Hashable, int] = {}
        self._keys: list[Hashable] = []  # of each row
        self._fed = np.zeros(most)
        self._known: tuple[object, np.ndarray] = (None, np.zeros(0, int))

    @property
    def bytes_of_one(self) -> int:
        """Memory of one series."""
        return sum(ring.bytes_of_one for ring in self._rings.values())

    def __len__(self) -> int:
        return len(self._keys)

    def feed(self, keys: Sequence[Hashable], values: np.ndarray, since: float, until: float) -> None:
        """Add values that held from `since` to `until` (seconds).

        `values` has shape (keys, columns); a row with a NaN is ignored. `left_out` becomes the number of keys
        for which there was no room."""
        if until <= since or not len(keys):
            return
        with self._lock:
            rows = self._rows_of(keys, until)
            self._fed[rows[rows >= 0]] = until
            valid = (rows >= 0) & ~np.isnan(values).any(axis=1)
            self.left_out = int((rows < 0).sum())
            for ring in self._rings.values():
                ring.add(rows[valid], values[valid], since, until, len(self._keys))

    def _rows_of(self, keys: Sequence[Hashable], now: float) -> np.ndarray:
        """Return the row of each key, -1 without room; cached for the same keys object."""
        if self._known[0] is keys and not self.left_out:
            return self._known[1]
        known = [self._rows[key] for key in keys if key in self._rows]
        self._fed[known] = now
        rows = np.array([self._rows.get(key, -1) for key in keys], int)
        for index in np.flatnonzero(rows < 0).tolist():
            rows[index] = self._new_row(keys[index], now)
        self._known = (keys, rows)
        return rows

    def _new_row(self, key: Hashable, now: float) -> int:
        """Return a row for a new series: an expired, an unused or the least recently fed."""
        row, used = -1, len(self._keys)
        if used:
            oldest = int(self._fed[:used].argmin())
            if self._fed[oldest] < (now if used == self.most else now - _EXPIRY):
                row = oldest
        if row >= 0:
            del self._rows[self._keys[row]]
            self._keys[row] = key
            for ring in self._rings.values():
                ring.clear(row)
        elif used < self.most:
            row = used
            self._keys.append(key)
        else:
            return -1
        self._rows[key], self._fed[row] = row, now
        return row

    def of(self, keys: Iterable[Hashable], window: Window, now: float) -> Past | None:
        """Return the sum of the known series in the window up to `now`, None if none is."""
        newest = int(now // window.step)
        with self._lock:
            rows = [self._rows[key] for key in keys if key in self._rows]
            parts = [self._rings[window.step].read(row, newest, window.slots) for row in rows]
        if not parts:
            return None
        stacked = np.array(parts)
        sums = np.nansum(stacked, axis=0)
        sums[np.isnan(stacked).all(axis=0)] = np.nan
        return Past(window, newest, sums)
