"""Measure the speeds of flows from successive readings of their counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from core.flows.columns import KeyPositions, any_of, entry_keys
from core.flows.merge import (
    FAST,
    GENERATIONS,
    NO_PATHS,
    PART,
    UNKNOWN,
    FastPathColumns,
    FlowTable,
    concatenate_field,
    counters_of,
    direction_keys,
    is_part_fast,
    merge_fast_path,
    start_times,
)
from core.model import Conntrack, FastFlows
from core.model.conntrack import empty_entries

Column = np.ndarray[Any, Any]

# Speeds are averages over one to two of these; a single interval would make rows jump.
HALF_WINDOW = 2.0
_MIN_INTERVAL = 0.2  # seconds; differences over less are inaccurate
_ACTIVE_FOR = 10.0
_TOLERANCE = 1.0  # seconds by which a fast flow may be older than the previous reading
_STATIC_FIELDS = ("status", "mark")


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A namespace's table, and when its dump began and ended (monotonic seconds)."""

    table: Conntrack
    began: float
    ended: float


@dataclass(slots=True, eq=False)
class _EarlierReadings:
    """Earlier readings, one row per flow; unknown times and counts are NaN.

    The key, the counters of two earlier readings and their times, the fast path's counters, the speeds, when
    counters last changed, when the flow began, and its recent packets."""

    keys: Column
    counts: Column  # (n, 2, 4): the older reading, then the newer
    times: Column  # (n, 2)
    fast: Column  # (n, 2, 4): the last count, then the sum of the counts before each restart
    speeds: Column
    changed_at: Column
    began: Column
    # (n, 2, 4): at the last reading, and recent; all packets of both directions, then fast ones
    recent: Column

    @classmethod
    def of(cls, count: int) -> _EarlierReadings:
        """Create `count` empty rows."""
        return cls(
            np.zeros(count, np.uint64), np.zeros((count, 2, 4), np.uint64), np.zeros((count, 2)),
            np.zeros((count, 2, 4), np.uint64), np.full((count, 4), UNKNOWN), np.full(count, -np.inf),
            np.full(count, np.nan), np.zeros((count, 2, 4)),
        )  # fmt: skip

    def selected(self, rows: Column) -> _EarlierReadings:
        """Return some of the rows, in that order."""
        return _EarlierReadings(
            self.keys[rows], self.counts[rows], self.times[rows], self.fast[rows], self.speeds[rows],
            self.changed_at[rows], self.began[rows], self.recent[rows],
        )  # fmt: skip

    def extended(self, more: _EarlierReadings) -> _EarlierReadings:
        """Append other rows."""
        pairs = ((getattr(self, name), getattr(more, name)) for name in self.__slots__)
        return _EarlierReadings(*(np.concatenate(pair) for pair in pairs))


@dataclass(slots=True, eq=False)
class FlowMeter:
    """Measures flows' speeds from successive readings.

    All times are monotonic, so that a step of the clock has no effect. A counter that decreases has been
    reset; a row that one dump lacks is remembered until the next."""

    _earlier: _EarlierReadings = field(default_factory=lambda: _EarlierReadings.of(0))
    _missed: _EarlierReadings = field(default_factory=lambda: _EarlierReadings.of(0))
    _positions: KeyPositions = field(default_factory=lambda: KeyPositions(np.zeros(0, np.uint64)))
    _read_at: dict[int, float] = field(default_factory=dict)
    _static: tuple[Column, ...] = ()  # the columns that the newest table's generation depends on
    _is_fast: bool = False  # whether the fast path ever counted anything
    _keys: tuple[Column, tuple[Column, Column]] | None = None  # entries' ids, keys of their directions
    _kernel_counters: Column = field(default_factory=lambda: np.zeros((0, 4), np.uint64))
    table: FlowTable = field(default_factory=FlowTable)

    def feed(
        self, readings: Sequence[Reading], fast: FastFlows | None = None, now: float | None = None, at: float
        = 0.0,
    ) -> FlowTable:  # fmt: skip
        """Add whole tables, read at `now` (monotonic) and `at` (Unix time)."""
        filled = [one for one in readings if len(one.table.entries)]
        now = max((one.ended for one in readings), default=0.0) if now is None else now
        measured = bool(self._read_at)
        tables = tuple(one.table for one in filled)
        paths = NO_PATHS
        if fast is not None and len(fast.entries):
            paths = merge_fast_path(tables, fast, self._keys_of)
        if paths.fast_only is not None:
            tables = (*tables, paths.fast_only)
            filled.append(Reading(paths.fast_only, now, now))
        times = _times(filled)
        if paths.path is not None and fast is not None:  # it is read after all tables
            times[(paths.path == FAST) | (paths.path == PART)] = now - (at - fast.taken_at)
        self._carry_over(tables, times, now, at)
        self._kernel_counters = counters_of(tables)
        if paths.counters is not None and paths.since is not None:
            self._reset_older(paths.counters, at - paths.since, now)
        counters = self._sum_paths(self._kernel_counters, paths.counters)
        self._advance(slice(None), counters, times)
        self._count_recent(counters)
        self._read_at = {one.table.ns: one.ended for one in readings}
        if fast is not None:
            self._read_at.setdefault(fast.ns, now)
        self.table = self._build_table(tables, counters, paths, now, at, measured)
        return self.table

    def discard_times(self) -> None:
        """Discard the times of readings before a pause: they don't show current speeds."""
        for earlier in (self._earlier, self._missed):
            earlier.times[:] = earlier.recent[:, 0] = np.nan
            earlier.speeds[:], earlier.changed_at[:], earlier.recent[:, 1] = UNKNOWN, -np.inf, 0
        self._read_at = {}

    def feed_some(
        self, parts: Mapping[int, Column], wanted: Column, fast: FastFlows | None = None, now: float = 0.0,
        at: float = 0.0,
    ) -> FlowTable:  # fmt: skip
        """Add a reading of some entries by namespace; `wanted` are the requested rows."""
        old, rows, entries = self.table, np.zeros(0, np.intp), empty_entries()
        for ns, part in parts.items():
            found = self._positions.of(entry_keys(ns, part))
            rows = np.concatenate((rows, found[found >= 0]))
            entries = np.concatenate((entries, part[found >= 0]))
        self._kernel_counters[rows] = np.concatenate((entries["packets"], entries["bytes"]), axis=1)
        newest, path = self._fast_counters(fast, now, at)
        counters = self._sum_paths(self._kernel_counters, newest)
        changed = rows if newest is None else np.union1d(rows, np.flatnonzero(any_of(newest)))
        self._advance(changed, counters[changed], np.full(len(changed), now))
        self._earlier.speeds[np.setdiff1d(wanted, changed)] = 0
        self.table = replace(
            old, tables=_with_entries(old.tables, rows, entries), taken_at=now, at=at,
            path=self._recent_path(path), packets=counters[:, :2],
            speeds=np.where(old.counted[:, None], self._earlier.speeds, UNKNOWN), octets=counters[:, 2:],
            fast_bytes=self._fast_bytes(), began=self._earlier.began + (at - now),
        )  # fmt: skip
        return self.table

    def _keys_of(self, table: Conntrack) -> tuple[Column, Column]:
        """Return the keys of the entries' directions; cached for the same entries."""
        ids = table.entries["id"]
        if self._keys is None or not np.array_equal(self._keys[0], ids):
            self._keys = ids.copy(), direction_keys(table)
        return self._keys[1]

    def _reset_older(self, counters: Column, age: Column, now: float) -> None:
        """Reset rows whose fast flow is older than the last reading, which missed it.

        How many of its packets came since then isn't known."""
        earlier, passed = self._earlier, now - self.table.taken_at
        rows = np.flatnonzero((age > passed + _TOLERANCE) & any_of(counters))
        rows = rows[~any_of(earlier.fast[rows, 0])]
        earlier.times[rows] = earlier.recent[rows, 0] = np.nan
        earlier.speeds[rows], earlier.fast[rows, 1] = UNKNOWN, 0

    def _fast_counters(self, fast: FastFlows | None, now: float, at: float) -> tuple[Column | None, Column]:
        """Return the fast path's counters (None without any) and the path of known rows."""
        path = self.table.path
        if fast is None or not len(fast.entries):
            return None, np.zeros_like(path)
        newest = self._earlier.fast[:, 0].copy()
        count = len(newest) - self.table.fast_only
        paths = merge_fast_path(
            self.table.tables[: -1 if self.table.fast_only else None], fast, self._keys_of
        )
        assert paths.counters is not None and paths.path is not None
        path = path.copy()
        if paths.since is not None:
            self._reset_older(paths.counters[:count], at - paths.since[:count], now)
        newest[:count], path[:count] = paths.counters[:count], paths.path[:count]
        if paths.fast_only is not None:
            rows = self._positions.of(entry_keys(fast.ns, paths.fast_only.entries))
            found = rows >= count
            newest[rows[found]] = paths.counters[count:][found]
            path[rows[found]] = paths.path[count:][found]
        return newest, path

    def active_rows(self, now: float, most: int) -> Column:
        """Return up to `most` rows whose counters changed lately, the fastest first."""
        rows = np.flatnonzero(self._earlier.changed_at >= now - _ACTIVE_FOR)
        speeds = np.nan_to_num(self._earlier.speeds[rows, :2].sum(axis=1))
        return rows[np.argsort(-speeds, kind="stable")[:most]]

    def busiest_addresses(self, most: int) -> list[bytes]:
        """Return the addresses (16 bytes) at both ends of the fastest flows."""
        speeds = np.nan_to_num(self._earlier.speeds[:, :2].sum(axis=1))
        count = min(most, len(speeds))
        rows = np.argpartition(-speeds, count - 1)[:count].tolist() if count else []
        columns = self.table.columns
        entries = ((table.entries[at]) for table, at in (columns.place(row) for row in rows))
        return [bytes(one[name]) for one in entries for name in ("orig_src", "reply_src")]

    def _carry_over(self, tables: Sequence[Conntrack], times: Column, now: float, at: float) -> None:
        """Reorder earlier readings to the rows of the new tables, and add new rows."""
        new = [entry_keys(table.ns, table.entries) for table in tables]
        wanted = np.concatenate(new) if new else np.zeros(0, np.uint64)
        old = self._earlier
        if len(wanted) == len(old.keys) and np.array_equal(wanted, old.keys):
            self._missed = _EarlierReadings.of(0)
            return
        known = old.extended(self._missed) if len(self._missed.keys) else old
        rows = KeyPositions(known.keys).of(wanted)
        found = rows >= 0
        is_missing = np.ones(len(known.keys), bool)
        is_missing[rows[found]] = False
        self._missed = old.selected(np.flatnonzero(is_missing[: len(old.keys)]))
        self._earlier = (
            known.selected(np.maximum(rows, 0)) if len(known.keys) else _EarlierReadings.of(len(wanted))
        )
        self._earlier.keys = wanted
        self._init_rows(np.flatnonzero(~found), tables, times, at - now)
        self._positions = KeyPositions(wanted)

    def _init_rows(self, rows: Column, tables: Sequence[Conntrack], times: Column, offset: float) -> None:
        """Initialize new rows: they began after their namespace's previous reading.

        The kernel's time stamp takes precedence. `offset` is Unix time minus monotonic time."""
        previous = [np.full(len(table.entries), self._read_at.get(table.ns, np.nan)) for table in tables]
        seen = np.concatenate(previous)[rows] if previous else np.zeros(0)
        stamps = start_times(tables)[rows] - offset
        seen[stamps < seen - 1] = np.nan
        earlier = self._earlier
        earlier.counts[rows] = earlier.fast[rows] = earlier.recent[rows] = 0
        earlier.times[rows] = seen[:, None]
        earlier.recent[rows[np.isnan(seen)], 0] = np.nan
        earlier.speeds[rows], earlier.changed_at[rows] = UNKNOWN, -np.inf
        earlier.began[rows] = np.where(np.isnan(stamps), (seen + times[rows]) / 2, stamps)

    def _sum_paths(self, kernel: Column, newest: Column | None) -> Column:
        """Sum both paths, including the fast path's counts before its counters restarted."""
        fast = self._earlier.fast
        if newest is None:
            if not self._is_fast:
                return kernel.copy()
            newest = np.zeros_like(kernel)
        self._is_fast = True
        restarted = any_of(newest < fast[:, 0])
        fast[restarted, 1] += fast[restarted, 0]
        fast[:, 0] = newest
        return np.asarray(kernel + fast[:, 0] + fast[:, 1])

    def _fast_bytes(self) -> Column:
        """Return the bytes of each row that the fast path forwarded."""
        fast = self._earlier.fast
        return fast[:, 0, 2:] + fast[:, 1, 2:] if self._is_fast else np.zeros((len(fast), 2), np.uint64)

    def _count_recent(self, counters: Column) -> None:
        """Add both paths' packets since the last reading; halve earlier ones."""
        recent, fast = self._earlier.recent, self._earlier.fast
        newest = np.concatenate((counters[:, :2], fast[:, 0, :2] + fast[:, 1, :2]), axis=1).astype(float)
        increase = np.nan_to_num(np.maximum(newest - recent[:, 0], 0))
        changed = any_of(increase)
        recent[changed, 1] = recent[changed, 1] / 2 + increase[changed]
        recent[:, 0] = newest

    def _recent_path(self, path: Column) -> Column:
        """Set FAST or PART by recent packets, if known."""
        path = path.copy()
        rows = np.flatnonzero((path == FAST) | (path == PART))
        recent = self._earlier.recent[rows, 1]
        known = any_of(recent[:, :2])
        path[rows[known]] = np.where(is_part_fast(recent[known, :2], recent[known, 2:]), PART, FAST)
        return path

    def _advance(self, rows: Column | slice, counts: Column, times: Column) -> None:
        """Add the newest counters of some rows: compute speeds, advance the window."""
        earlier = self._earlier
        old, at = earlier.counts[rows], earlier.times[rows]
        unknown = np.isnan(at[:, 0])
        decreased = any_of(counts < old[:, 1])
        passed = times - at[:, 0]
        usable = ~unknown & ~decreased & (passed >= _MIN_INTERVAL)
        speeds = earlier.speeds[rows]
        rates = (counts[usable] - old[usable, 0]) / passed[usable, None]
        speeds[usable] = rates[:, [2, 3, 0, 1]] * (8, 8, 1, 1)
        earlier.speeds[rows] = speeds
        changed_at = earlier.changed_at[rows]
        changed_at[~unknown & any_of(counts != old[:, 1])] = times.max(initial=0.0)
        earlier.changed_at[rows] = changed_at
        turn = ~unknown & ~decreased & (times - at[:, 1] >= HALF_WINDOW)
        old[turn, 0], at[turn, 0] = old[turn, 1], at[turn, 1]
        old[turn, 1], at[turn, 1] = counts[turn], times[turn]
        restart = unknown | decreased
        old[restart], at[restart] = counts[restart, None], times[restart, None]
        earlier.counts[rows], earlier.times[rows] = old, at

    def _build_table(
        self, tables: tuple[Conntrack, ...], counters: Column, paths: FastPathColumns, now: float, at: float,
        measured: bool,
    ) -> FlowTable:  # fmt: skip
        path = paths.path if paths.path is not None else np.zeros(len(counters), np.uint8)
        counted = concatenate_field("counted", tables, bool) | (path > 0)
        speeds = self._earlier.speeds.copy()
        speeds[~counted] = UNKNOWN
        return FlowTable(
            tables, self._generation(tables, counted), now, at, speeds, counters[:, :2], counters[:, 2:],
            counted, self._recent_path(path), self._fast_bytes(), self._earlier.began + (at - now),
            0 if paths.fast_only is None else len(paths.fast_only.entries), measured,
        )  # fmt: skip

    def _generation(self, tables: tuple[Conntrack, ...], counted: Column) -> int:
        """Return the previous generation if only measurements differ, or a new one."""
        namespaces = np.array([(one.ns, one.accounting) for one in tables])
        fields = (concatenate_field(name, tables, np.uint32) for name in _STATIC_FIELDS)
        static = (namespaces, self._earlier.keys, counted, *fields)
        before, self._static = self._static, static
        same = len(before) == len(static) and all(map(np.array_equal, before, static))
        return self.table.generation if same else next(GENERATIONS)


def _times(readings: Sequence[Reading]) -> Column:
    """Return when each row was read: a dump's rows evenly between its begin and end."""
    parts = [np.linspace(one.began, one.ended, len(one.table.entries)) for one in readings]
    return np.concatenate(parts) if parts else np.zeros(0)


def _with_entries(tables: tuple[Conntrack, ...], rows: Column, entries: Column) -> tuple[Conntrack, ...]:
    """Replace some rows of the tables; tables without any stay the same objects."""
    result, start = [], 0
    for table in tables:
        end = start + len(table.entries)
        inside = (rows >= start) & (rows < end)
        if inside.any():
            updated = table.entries.copy()
            updated[rows[inside] - start] = entries[inside]
            updated.flags.writeable = False
            table = replace(table, entries=updated)
        result.append(table)
        start = end
    return tuple(result)
