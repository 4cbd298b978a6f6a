"""The past of many figures in bounded memory: rings of time slots, fine and coarse."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

MOST = 4096  # series of one kind; the one least recently fed gives way to the next
_FORGOTTEN = 3600.0  # seconds after which nothing of a series is left to be seen


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the past: `slots` slots of `step` seconds each, up to now."""

    title: str
    step: int
    slots: int


MINUTE = Window("1 min", 1, 60)
MINUTES = Window("5 min", 1, 300)
HOUR = Window("1 h", 10, 360)
WINDOWS = (MINUTE, MINUTES, HOUR)


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What was in a window: `values` has shape (slots, columns), the mean of each slot, oldest first, NaN
    where it is not known; `newest` is the number of the newest slot, counted from the clock's beginning."""

    window: Window
    newest: int
    values: np.ndarray


class _Ring:
    """Slots of `step` seconds for MOST series: for each the sums of figure x seconds, and the seconds."""

    def __init__(self, step: int, slots: int, columns: int, most: int) -> None:
        self._step, self._slots = step, slots
        # Memory that nothing was written to yet is not taken: rows count from the moment they are used.
        self._sums = np.zeros((most, slots, columns + 1), "f4")
        self._last = 0

    @property
    def bytes_of_one(self) -> int:
        """Memory of one series."""
        return int(self._sums[0].nbytes)

    def clear(self, row: int) -> None:
        """Make room for another series."""
        self._sums[row] = 0

    def add(self, rows: np.ndarray, figures: np.ndarray, since: float, until: float, used: int) -> None:
        """Figures that held from `since` to `until`; longer than the ring, only their end."""
        first, last = int(since // self._step), int(until // self._step)
        for slot in range(max(self._last, last - self._slots) + 1, last + 1):
            self._sums[:used, slot % self._slots] = 0
        self._last = last
        for slot in range(max(first, last - self._slots + 1), last + 1):
            seconds = min(until, (slot + 1) * self._step) - max(since, slot * self._step)
            place = slot % self._slots
            self._sums[rows, place, :-1] += figures * np.float32(seconds)
            self._sums[rows, place, -1] += seconds

    def read(self, row: int, newest: int, slots: int) -> np.ndarray:
        """The means of the slots up to `newest`, shape (slots, columns)."""
        numbers = np.arange(newest - slots + 1, newest + 1)
        found = self._sums[row, numbers % self._slots]
        found[(numbers > self._last) | (numbers <= self._last - self._slots)] = 0
        with np.errstate(invalid="ignore", divide="ignore"):
            means: np.ndarray = found[:, :-1] / found[:, -1:]
        means[found[:, -1] <= 0] = np.nan
        return means


class History:
    """The past of up to `most` series of `columns` figures each. Every method may be called from any thread.

    Time is monotonic and given by who feeds, so that a step of the wall clock leaves no trace.
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

    def feed(self, keys: Sequence[Hashable], figures: np.ndarray, since: float, until: float) -> None:
        """Take in what held from `since` to `until` (seconds): `figures` has shape (keys, columns), a row
        with a NaN says nothing. `left_out` is how many of the keys there was no room for."""
        if until <= since or not len(keys):
            return
        with self._lock:
            rows = self._rows_of(keys, until)
            self._fed[rows[rows >= 0]] = until
            told = (rows >= 0) & ~np.isnan(figures).any(axis=1)
            self.left_out = int((rows < 0).sum())
            for ring in self._rings.values():
                ring.add(rows[told], figures[told], since, until, len(self._keys))

    def _rows_of(self, keys: Sequence[Hashable], now: float) -> np.ndarray:
        """The row of each key, -1 where there is no room; the same object is not looked through twice."""
        if self._known[0] is keys and not self.left_out:
            return self._known[1]
        known = [self._rows[key] for key in keys if key in self._rows]
        self._fed[known] = now
        rows = np.array([self._rows.get(key, -1) for key in keys], int)
        for place in np.flatnonzero(rows < 0).tolist():
            rows[place] = self._room(keys[place], now)
        self._known = (keys, rows)
        return rows

    def _room(self, key: Hashable, now: float) -> int:
        """A row for a new series: one that nothing is left of, a fresh one, or the one least recently fed."""
        row, used = -1, len(self._keys)
        if used:
            oldest = int(self._fed[:used].argmin())
            if self._fed[oldest] < (now if used == self.most else now - _FORGOTTEN):
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
        """What these series add up to in the window that ends `now`; None where none of them is known. Where
        only some are known, they are the sum."""
        newest = int(now // window.step)
        with self._lock:
            rows = [self._rows[key] for key in keys if key in self._rows]
            parts = [self._rings[window.step].read(row, newest, window.slots) for row in rows]
        if not parts:
            return None
        whole = np.array(parts)
        sums = np.nansum(whole, axis=0)
        sums[np.isnan(whole).all(axis=0)] = np.nan
        return Past(window, newest, sums)
