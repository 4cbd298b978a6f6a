"""Speeds of flows: what counters, read again and again, say about the last seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from core.flows.columns import KeyPositions, any_of, identity
from core.flows.merge import (
    FAST,
    GENERATIONS,
    NO_PATHS,
    PART,
    UNKNOWN,
    FastPathColumns,
    FlowTable,
    began,
    counters_of,
    is_part,
    joined,
    ways_of,
    whole,
)
from core.model import Conntrack, FastFlows
from core.model.conntrack import empty_entries

Column = np.ndarray[Any, Any]

# Speeds are averages over one to two of these; a single tick would make rows jump.
HALF_WINDOW = 2.0
_SHORTEST = 0.2  # seconds; a difference over less says too little
_ACTIVE_FOR = 10.0
_SOON = 1.0  # seconds within which a flow of the fast path has carried something
_LASTING = ("status", "mark")


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One namespace's table, and when its dump began and ended (monotonic seconds)."""

    table: Conntrack
    began: float
    ended: float


@dataclass(slots=True, eq=False)
class _EarlierReadings:
    """What is known of each row, row after row: its key, the counters of two earlier looks and when these
    were, what the fast path counted at last and in earlier lives, its speeds, when it last moved, when it
    was born, and its packets of late. Times and counts that say nothing are NaN."""

    keys: Column
    counts: Column  # (n, 2, 4): the older look, then the newer
    times: Column  # (n, 2)
    fast: Column  # (n, 2, 4): the last count, then the sum of those that began anew
    speeds: Column
    moved: Column
    born: Column
    late: Column  # (n, 2, 4): at the last look, and of late; all packets of both directions, then fast ones

    @classmethod
    def of(cls, count: int) -> _EarlierReadings:
        """Room for so many rows."""
        return cls(
            np.zeros(count, np.uint64), np.zeros((count, 2, 4), np.uint64), np.zeros((count, 2)),
            np.zeros((count, 2, 4), np.uint64), np.full((count, 4), UNKNOWN), np.full(count, -np.inf),
            np.full(count, np.nan), np.zeros((count, 2, 4)),
        )  # fmt: skip

    def taken(self, rows: Column) -> _EarlierReadings:
        """Some of the rows, in that order."""
        return _EarlierReadings(
            self.keys[rows], self.counts[rows], self.times[rows], self.fast[rows], self.speeds[rows],
            self.moved[rows], self.born[rows], self.late[rows],
        )  # fmt: skip

    def extended(self, more: _EarlierReadings) -> _EarlierReadings:
        """These rows and then the others."""
        pairs = ((getattr(self, name), getattr(more, name)) for name in self.__slots__)
        return _EarlierReadings(*(np.concatenate(pair) for pair in pairs))


@dataclass(slots=True, eq=False)
class FlowMeter:
    """Takes one reading after another. All times are monotonic, so that a step of the clock does no harm;
    counters that go backwards begin anew; what a dump leaves out once is remembered until the next."""

    _memory: _EarlierReadings = field(default_factory=lambda: _EarlierReadings.of(0))
    _missed: _EarlierReadings = field(default_factory=lambda: _EarlierReadings.of(0))
    _places: KeyPositions = field(default_factory=lambda: KeyPositions(np.zeros(0, np.uint64)))
    _seen: dict[int, float] = field(default_factory=dict)
    _told: tuple[Column, ...] = ()  # what the generation of the newest table stands for
    _is_fast: bool = False  # whether the fast path ever counted anything
    _ways: tuple[Column, tuple[Column, Column]] | None = None
    _kernel: Column = field(default_factory=lambda: np.zeros((0, 4), np.uint64))
    table: FlowTable = field(default_factory=FlowTable)

    def feed(
        self, readings: Sequence[Reading], fast: FastFlows | None = None, now: float | None = None, at: float
        = 0.0,
    ) -> FlowTable:  # fmt: skip
        """Take whole tables; `now` is monotonic, `at` Unix time, of this look."""
        kept = [one for one in readings if len(one.table.entries)]
        now = max((one.ended for one in readings), default=0.0) if now is None else now
        measured = bool(self._seen)
        tables = tuple(one.table for one in kept)
        paths = joined(tables, fast, self._ways_of) if fast is not None and len(fast.entries) else NO_PATHS
        if paths.loose is not None:
            tables = (*tables, paths.loose)
            kept.append(Reading(paths.loose, now, now))
        times = _times(kept)
        if paths.path is not None and fast is not None:  # it is read after all tables
            times[(paths.path == FAST) | (paths.path == PART)] = now - (at - fast.taken_at)
        self._recall(tables, times, now, at)
        self._kernel = counters_of(tables)
        if paths.counters is not None and paths.since is not None:
            self._find_again(paths.counters, at - paths.since, now)
        counters = self._merged(self._kernel, paths.counters)
        self._advance(slice(None), counters, times)
        self._look_at_paths(counters)
        self._seen = {one.table.ns: one.ended for one in readings}
        if fast is not None:
            self._seen.setdefault(fast.ns, now)
        self.table = self._published(tables, counters, paths, now, at, measured)
        return self.table

    def rest(self) -> None:
        """Nobody looks for a while: when the next look comes, these say nothing about the last seconds."""
        for memory in (self._memory, self._missed):
            memory.times[:] = memory.late[:, 0] = np.nan
            memory.speeds[:], memory.moved[:], memory.late[:, 1] = UNKNOWN, -np.inf, 0
        self._seen = {}

    def touch(
        self, parts: Mapping[int, Column], wanted: Column, fast: FastFlows | None = None, now: float = 0.0,
        at: float = 0.0,
    ) -> FlowTable:  # fmt: skip
        """Take some entries of some namespaces, read again, out of those that were `wanted` (rows of the
        table)."""
        old, rows, entries = self.table, np.zeros(0, np.intp), empty_entries()
        for ns, some in parts.items():
            found = self._places.of(identity(ns, some))
            rows = np.concatenate((rows, found[found >= 0]))
            entries = np.concatenate((entries, some[found >= 0]))
        self._kernel[rows] = np.concatenate((entries["packets"], entries["bytes"]), axis=1)
        newest, path = self._fast_again(fast, now, at)
        counters = self._merged(self._kernel, newest)
        changed = rows if newest is None else np.union1d(rows, np.flatnonzero(any_of(newest)))
        self._advance(changed, counters[changed], np.full(len(changed), now))
        self._memory.speeds[np.setdiff1d(wanted, changed)] = 0
        self.table = replace(
            old, tables=_with_entries(old.tables, rows, entries), taken_at=now, at=at,
            path=self._in_part(path), packets=counters[:, :2],
            speeds=np.where(old.counted[:, None], self._memory.speeds, UNKNOWN), octets=counters[:, 2:],
            fast_bytes=self._fast_bytes(), born=self._memory.born + (at - now),
        )  # fmt: skip
        return self.table

    def _ways_of(self, table: Conntrack) -> tuple[Column, Column]:
        """The keys of the entries' directions, worked out anew where they are other entries."""
        ids = table.entries["id"]
        if self._ways is None or not np.array_equal(self._ways[0], ids):
            self._ways = ids.copy(), ways_of(table)
        return self._ways[1]

    def _find_again(self, counters: Column, age: Column, now: float) -> None:
        """Where the fast path carried something before the last look already, which did not see it, begin
        anew: how much has come since is not known."""
        memory, passed = self._memory, now - self.table.taken_at
        rows = np.flatnonzero((age > passed + _SOON) & any_of(counters))
        rows = rows[~any_of(memory.fast[rows, 0])]
        memory.times[rows] = memory.late[rows, 0] = np.nan
        memory.speeds[rows], memory.fast[rows, 1] = UNKNOWN, 0

    def _fast_again(self, fast: FastFlows | None, now: float, at: float) -> tuple[Column | None, Column]:
        """The fast path's counters, None where there are none, and the path, for the rows that there are."""
        path = self.table.path
        if fast is None or not len(fast.entries):
            return None, np.zeros_like(path)
        newest = self._memory.fast[:, 0].copy()
        count = len(newest) - self.table.loose
        paths = joined(self.table.tables[: -1 if self.table.loose else None], fast, self._ways_of)
        assert paths.counters is not None and paths.path is not None
        path = path.copy()
        if paths.since is not None:
            self._find_again(paths.counters[:count], at - paths.since[:count], now)
        newest[:count], path[:count] = paths.counters[:count], paths.path[:count]
        if paths.loose is not None:
            place = self._places.of(identity(fast.ns, paths.loose.entries))
            found = place >= count
            newest[place[found]] = paths.counters[count:][found]
            path[place[found]] = paths.path[count:][found]
        return newest, path

    def active(self, now: float, most: int) -> Column:
        """The rows whose counters moved in the last seconds, the fastest first, `most` at most."""
        rows = np.flatnonzero(self._memory.moved >= now - _ACTIVE_FOR)
        speeds = np.nan_to_num(self._memory.speeds[rows, :2].sum(axis=1))
        return rows[np.argsort(-speeds, kind="stable")[:most]]

    def ends(self, most: int) -> list[bytes]:
        """The addresses at both ends of the fastest flows, 16 bytes each."""
        speeds = np.nan_to_num(self._memory.speeds[:, :2].sum(axis=1))
        count = min(most, len(speeds))
        rows = np.argpartition(-speeds, count - 1)[:count].tolist() if count else []
        columns = self.table.columns
        entries = ((table.entries[at]) for table, at in (columns.place(row) for row in rows))
        return [bytes(one[name]) for one in entries for name in ("orig_src", "reply_src")]

    def _recall(self, tables: Sequence[Conntrack], times: Column, now: float, at: float) -> None:
        """Bring what is known into the order of the new tables; new rows begin here."""
        new = [identity(table.ns, table.entries) for table in tables]
        wanted = np.concatenate(new) if new else np.zeros(0, np.uint64)
        old = self._memory
        if len(wanted) == len(old.keys) and np.array_equal(wanted, old.keys):
            self._missed = _EarlierReadings.of(0)
            return
        known = old.extended(self._missed) if len(self._missed.keys) else old
        place = KeyPositions(known.keys).of(wanted)
        found = place >= 0
        left = np.ones(len(known.keys), bool)
        left[place[found]] = False
        self._missed = old.taken(np.flatnonzero(left[: len(old.keys)]))
        self._memory = (
            known.taken(np.maximum(place, 0)) if len(known.keys) else _EarlierReadings.of(len(wanted))
        )
        self._memory.keys = wanted
        self._begin(np.flatnonzero(~found), tables, times, at - now)
        self._places = KeyPositions(wanted)

    def _begin(self, rows: Column, tables: Sequence[Conntrack], times: Column, offset: float) -> None:
        """Rows seen for the first time: where their namespace was looked at before, they began since then,
        unless the kernel's time stamp says otherwise. `offset` is Unix time minus monotonic time."""
        looks = [np.full(len(table.entries), self._seen.get(table.ns, np.nan)) for table in tables]
        seen = np.concatenate(looks)[rows] if looks else np.zeros(0)
        stamps = began(tables)[rows] - offset
        seen[stamps < seen - 1] = np.nan
        memory = self._memory
        memory.counts[rows] = memory.fast[rows] = memory.late[rows] = 0
        memory.times[rows] = seen[:, None]
        memory.late[rows[np.isnan(seen)], 0] = np.nan
        memory.speeds[rows], memory.moved[rows] = UNKNOWN, -np.inf
        memory.born[rows] = np.where(np.isnan(stamps), (seen + times[rows]) / 2, stamps)

    def _merged(self, kernel: Column, newest: Column | None) -> Column:
        """Both paths together; what the fast path had counted before it began anew stays in the sum."""
        fast = self._memory.fast
        if newest is None:
            if not self._is_fast:
                return kernel.copy()
            newest = np.zeros_like(kernel)
        self._is_fast = True
        anew = any_of(newest < fast[:, 0])
        fast[anew, 1] += fast[anew, 0]
        fast[:, 0] = newest
        return np.asarray(kernel + fast[:, 0] + fast[:, 1])

    def _fast_bytes(self) -> Column:
        """What the fast path carried of each row, in bytes."""
        fast = self._memory.fast
        return fast[:, 0, 2:] + fast[:, 1, 2:] if self._is_fast else np.zeros((len(fast), 2), np.uint64)

    def _look_at_paths(self, counters: Column) -> None:
        """Take what both paths carried since the last look; older looks count half as much each time."""
        late, fast = self._memory.late, self._memory.fast
        newest = np.concatenate((counters[:, :2], fast[:, 0, :2] + fast[:, 1, :2]), axis=1).astype(float)
        risen = np.nan_to_num(np.maximum(newest - late[:, 0], 0))
        moved = any_of(risen)
        late[moved, 1] = late[moved, 1] / 2 + risen[moved]
        late[:, 0] = newest

    def _in_part(self, path: Column) -> Column:
        """The path, told apart by what the fast path carried of late, where that is known."""
        path = path.copy()
        rows = np.flatnonzero((path == FAST) | (path == PART))
        late = self._memory.late[rows, 1]
        known = any_of(late[:, :2])
        path[rows[known]] = np.where(is_part(late[known, :2], late[known, 2:]), PART, FAST)
        return path

    def _advance(self, rows: Column | slice, counts: Column, times: Column) -> None:
        """Take the newest counters of some rows: work out their speeds, move their window on."""
        memory = self._memory
        old, at = memory.counts[rows], memory.times[rows]
        unknown = np.isnan(at[:, 0])
        backwards = any_of(counts < old[:, 1])
        passed = times - at[:, 0]
        usable = ~unknown & ~backwards & (passed >= _SHORTEST)
        speeds = memory.speeds[rows]
        risen = (counts[usable] - old[usable, 0]) / passed[usable, None]
        speeds[usable] = risen[:, [2, 3, 0, 1]] * (8, 8, 1, 1)
        memory.speeds[rows] = speeds
        moved = memory.moved[rows]
        moved[~unknown & any_of(counts != old[:, 1])] = times.max(initial=0.0)
        memory.moved[rows] = moved
        turn = ~unknown & ~backwards & (times - at[:, 1] >= HALF_WINDOW)
        old[turn, 0], at[turn, 0] = old[turn, 1], at[turn, 1]
        old[turn, 1], at[turn, 1] = counts[turn], times[turn]
        anew = unknown | backwards
        old[anew], at[anew] = counts[anew, None], times[anew, None]
        memory.counts[rows], memory.times[rows] = old, at

    def _published(
        self, tables: tuple[Conntrack, ...], counters: Column, paths: FastPathColumns, now: float, at: float,
        measured: bool,
    ) -> FlowTable:  # fmt: skip
        path = paths.path if paths.path is not None else np.zeros(len(counters), np.uint8)
        counted = whole("counted", tables, bool) | (path > 0)
        speeds = self._memory.speeds.copy()
        speeds[~counted] = UNKNOWN
        return FlowTable(
            tables, self._generation(tables, counted), now, at, speeds, counters[:, :2], counters[:, 2:],
            counted, self._in_part(path), self._fast_bytes(), self._memory.born + (at - now),
            0 if paths.loose is None else len(paths.loose.entries), measured,
        )  # fmt: skip

    def _generation(self, tables: tuple[Conntrack, ...], counted: Column) -> int:
        """That of the table before, where the rows are the same and all that is told of them but measures."""
        spaces = np.array([(one.ns, one.accounting) for one in tables])
        told = (spaces, self._memory.keys, counted, *(whole(name, tables, np.uint32) for name in _LASTING))
        before, self._told = self._told, told
        same = len(before) == len(told) and all(map(np.array_equal, before, told))
        return self.table.generation if same else next(GENERATIONS)


def _times(readings: Sequence[Reading]) -> Column:
    """When each row was read: the rows of a dump one after the other between its begin and its end."""
    parts = [np.linspace(one.began, one.ended, len(one.table.entries)) for one in readings]
    return np.concatenate(parts) if parts else np.zeros(0)


def _with_entries(tables: tuple[Conntrack, ...], rows: Column, entries: Column) -> tuple[Conntrack, ...]:
    """The tables with some rows replaced; those without any stay the same objects."""
    result, start = [], 0
    for table in tables:
        end = start + len(table.entries)
        here = (rows >= start) & (rows < end)
        if here.any():
            fresh = table.entries.copy()
            fresh[rows[here] - start] = entries[here]
            fresh.flags.writeable = False
            table = replace(table, entries=fresh)
        result.append(table)
        start = end
    return tuple(result)
