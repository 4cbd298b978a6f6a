"""Compute rates of links and firewall rules from successive counter readings."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from core.model import Firewall, LinkKey, LinkStats

MAX_SERIES = 4096  # series of one kind; then a new one replaces the least recently fed
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
class WindowValues:
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

    def __init__(self, columns: int, most: int = MAX_SERIES) -> None:
        self.columns, self.most = columns, most
        self.dropped = 0
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

        `values` has shape (keys, columns); a row with a NaN is ignored. `dropped` becomes the number of keys
        for which there was no room."""
        if until <= since or not len(keys):
            return
        with self._lock:
            rows = self._rows_of(keys, until)
            self._fed[rows[rows >= 0]] = until
            valid = (rows >= 0) & ~np.isnan(values).any(axis=1)
            self.dropped = int((rows < 0).sum())
            for ring in self._rings.values():
                ring.add(rows[valid], values[valid], since, until, len(self._keys))

    def _rows_of(self, keys: Sequence[Hashable], now: float) -> np.ndarray:
        """Return the row of each key, -1 without room; cached for the same keys object."""
        if self._known[0] is keys and not self.dropped:
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

    def of(self, keys: Iterable[Hashable], window: Window, now: float) -> WindowValues | None:
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
        return WindowValues(window, newest, sums)


HISTORY = 60
_AVERAGED = 5  # samples; sorting by a single one would make rows jump
# No link is that fast: a counter that rose by more was overwritten, it didn't count.
_IMPOSSIBLE = 1e13  # bits or packets a second


@dataclass(frozen=True, slots=True)
class LinkRate:
    """The rates of one link in bits and packets a second, averaged over a few samples.

    `history` holds rx+tx bits a second of up to HISTORY samples, oldest first."""

    rx_bps: float
    tx_bps: float
    rx_pps: float
    tx_pps: float
    history: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Histories:
    """The last hour of all rates, per second.

    `links` by LinkKey (rx and tx bits, rx and tx packets); `rules` by (namespace, rule id) (packets and
    bits); `translated`, the connections that a rule translated, by the same (packets and bits); `group`, a
    bridge's broadcast or multicast frames, by (LinkKey, "broadcast" or "multicast") (frames)."""

    links: History = field(default_factory=lambda: History(4))
    rules: History = field(default_factory=lambda: History(2))
    translated: History = field(default_factory=lambda: History(2))
    group: History = field(default_factory=lambda: History(1))


@dataclass(frozen=True, slots=True, eq=False)
class Rates:
    """The rates of many links; `places` maps a LinkKey to its row.

    `speeds` has shape (links, samples, 4): rx and tx bits, rx and tx packets a second, newest last, NaN if a
    link didn't exist yet; `counters` are the newest readings. `histories` keeps growing, so it must only be
    read up to the counters' time."""

    places: Mapping[LinkKey, int] = field(default_factory=dict)
    speeds: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 4), "f4"))
    counters: LinkStats | None = None
    histories: Histories | None = None

    def of(self, key: LinkKey) -> LinkRate | None:
        """Return a link's rate, None before its second sample."""
        place = self.places.get(key)
        if place is None or not self.speeds.shape[1]:
            return None
        samples = self.speeds[place]
        seen = samples[~np.isnan(samples[:, 0])]
        if not len(seen):
            return None
        rx_bps, tx_bps, rx_pps, tx_pps = seen[-_AVERAGED:].mean(axis=0).tolist()
        return LinkRate(rx_bps, tx_bps, rx_pps, tx_pps, tuple(seen[:, :2].sum(axis=1).tolist()))

    def history(self, what: str, keys: Iterable[Hashable], window: Window) -> WindowValues | None:
        """Return the sum of series of Histories.`what` in a window, None without any.

        The window ends when these rates were read."""
        if self.histories is None or self.counters is None:
            return None
        history: History = getattr(self.histories, what)
        return history.of(keys, window, self.counters.taken_at)

    def counters_of(self, key: LinkKey) -> np.void | None:
        """Return a link's counters, a row of STATS_DTYPE."""
        place = self.places.get(key)
        return None if place is None or self.counters is None else self.counters.rows[place]


class RateMeter:
    """Computes links' rates from successive readings of their counters."""

    def __init__(self) -> None:
        self.histories = Histories()
        self.rates = Rates()
        self._keys: list[LinkKey] = []

    def feed(self, stats: LinkStats) -> Rates:
        """Add a reading. A counter that decreased (a recreated link) gives no sample."""
        before = self.rates
        keys = [LinkKey(*key) for key in stats.rows[["ns", "ifindex"]].tolist()]
        places: Mapping[LinkKey, int] = {key: place for place, key in enumerate(keys)}
        if places == before.places:  # reuse the objects, so that History uses its cached rows
            keys, places = self._keys, before.places
        self._keys = keys
        old = np.array([before.places.get(key, -1) for key in keys], dtype=int)
        newest = _link_speeds(before.counters, stats, old)
        samples = before.speeds.shape[1]
        earlier = np.full((len(keys), samples, 4), np.nan, "f4")
        earlier[old >= 0] = before.speeds[old[old >= 0]]
        speeds = np.concatenate([earlier, newest[:, None, :]], axis=1)[:, -HISTORY:]
        if before.counters is not None:
            self.histories.links.feed(keys, newest, before.counters.taken_at, stats.taken_at)
        self.rates = Rates(places, speeds, stats, self.histories)
        return self.rates


def _link_speeds(before: LinkStats | None, now: LinkStats, old: np.ndarray) -> np.ndarray:
    speeds = np.full((len(now.rows), 4), np.nan, "f4")
    if before is None or now.taken_at <= before.taken_at:
        return speeds
    seconds = now.taken_at - before.taken_at
    known = np.flatnonzero(old >= 0)
    for column, name, unit in (
        (0, "rx_bytes", 8), (1, "tx_bytes", 8), (2, "rx_packets", 1), (3, "tx_packets", 1),
    ):  # fmt: skip
        increase = now.rows[name][known].astype("i8") - before.rows[name][old[known]].astype("i8")
        speed = increase * unit / seconds
        speeds[known, column] = np.where((increase >= 0) & (speed < _IMPOSSIBLE), speed, np.nan)
    speeds[np.isnan(speeds).any(axis=1)] = np.nan
    return speeds


class RuleMeter:
    """Adds rules' rates to a history from successive readings of their counters."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._before: dict[tuple[int, str], tuple[float, int, int]] = {}
        self._last = 0.0

    def feed(self, firewalls: Iterable[Firewall], at: float) -> None:
        """Add the rules read at `at` (monotonic seconds).

        A rule without an earlier reading, or with a decreased counter, gives no sample."""
        now = {
            (firewall.ns, rule.rule_id): (at, rule.packets, rule.bytes or 0)
            for firewall in firewalls
            for rule in firewall.rules
            if rule.packets is not None
        }
        speeds = np.array([_rule_speed(self._before.get(key), value) for key, value in now.items()])
        if self._last:
            self._history.feed([*now], speeds.reshape(-1, 2), self._last, at)
        self._before, self._last = now, at


def _rule_speed(before: tuple[float, int, int] | None, now: tuple[float, int, int]) -> tuple[float, float]:
    """Return packets and bits a second."""
    seconds = now[0] - before[0] if before else 0.0
    if before is None or seconds <= 0 or now[1] < before[1] or now[2] < before[2]:
        return np.nan, np.nan
    return (now[1] - before[1]) / seconds, (now[2] - before[2]) * 8 / seconds
