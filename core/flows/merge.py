"""All flows of all namespaces at one moment: conntrack and the fast path merged, in columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from core.flows.columns import FlowColumns, KeyPositions, any_of, back, before, one_way
from core.flows.describe import address_bytes
from core.model import CONNTRACK_DTYPE, Conntrack, FastFlows, Sockets
from core.model.conntrack import IPS_ASSURED, IPS_CONFIRMED, IPS_SEEN_REPLY

# What carries a connection's packets now: the kernel, the fast path, the kernel again after the fast path has
# handed it back, or the fast path a part of them only.
PATHS = ("kernel", "fast", "kernel again", "part fast")
KERNEL, FAST, AGAIN, PART = range(4)
_FEW = 4  # packets that the kernel may carry all the same, for those that a connection is learned by
_SLIGHT = 0.05  # the part of all packets below which a direction says nothing


@dataclass(frozen=True, slots=True, eq=False)
class FastPathColumns:
    """What the fast path adds: `counters` has shape (n, 4), packets of both directions, then bytes, one row
    for each conntrack entry and after them one for each of `loose`; `path` an index into PATHS for each,
    `since` when the first packet of them was seen, Unix time in seconds, infinite where none was. `loose` are
    connections that conntrack does not know, as a table. None where the fast path has nothing."""

    counters: Column | None = None
    path: Column | None = None
    since: Column | None = None
    loose: Conntrack | None = None


NO_PATHS = FastPathColumns()


def ways_of(table: Conntrack) -> tuple[Column, Column]:
    """The keys of what comes in by the two directions of each entry."""
    return before(table.entries), back(table.entries)


def joined(
    tables: Sequence[Conntrack],
    fast: FastFlows,
    ways: Callable[[Conntrack], tuple[Column, Column]] = ways_of,
) -> FastPathColumns:
    """Find for each direction that the fast path counted the conntrack entry it belongs to."""
    flows = fast.entries
    count = sum(len(table.entries) for table in tables)
    counters, path = np.zeros((count, 4), np.uint64), np.zeros(count, np.uint8)
    live, since = np.zeros((count, 2), bool), np.full(count, np.inf)
    began = _began(flows["first_seen"])
    places = KeyPositions(one_way(flows, "src", "sport", "dst", "dport"))
    used = np.zeros(len(flows), bool)
    start = 0
    for table in tables:
        end = start + len(table.entries)
        if table.ns == fast.ns:
            for way, key in enumerate(ways(table)):
                found = places.of(key)
                rows = np.flatnonzero(found >= 0)
                _add(counters[start:end], path[start:end], rows, flows[found[rows]], way)
                live[start + rows, way] = flows["live"][found[rows]]
                since[start + rows] = np.minimum(since[start + rows], began[found[rows]])
                used[found[rows]] = True
            packets = table.entries["packets"]
            _part(path[start:end], counters[start:end, :2], live[start:end], packets)
        start = end
    loose = _loose(flows[~used], fast) if not used.all() else None
    if loose is None:
        return FastPathColumns(counters, path, since)
    table, extra, its_path = loose
    counters, path = np.concatenate((counters, extra)), np.concatenate((path, its_path))
    return FastPathColumns(counters, path, np.concatenate((since, _began(table.entries["start"]))), table)


def _began(nanoseconds: Column) -> Column:
    return np.where(nanoseconds > 0, nanoseconds / 1e9, np.inf)


def _add(counters: Column, path: Column, rows: Column, flows: Column, way: int) -> None:
    counters[rows, way] += flows["packets"]
    counters[rows, way + 2] += flows["bytes"]
    path[rows] = np.where(flows["live"], FAST, np.where(path[rows] == FAST, FAST, AGAIN))


def _part(path: Column, fast: Column, live: Column, kernel: Column) -> None:
    """Say so where a direction that carries packets is not on the fast path; all but the path have shape
    (n, 2). What the kernel carried before a direction was learned says nothing of now."""
    rows = np.flatnonzero(path == FAST)
    total = (fast[rows] + kernel[rows]).astype(float)
    path[rows[any_of(_matters(total) & ~live[rows])]] = PART


def _matters(packets: Column) -> Column:
    return np.asarray(packets > _SLIGHT * (packets[:, :1] + packets[:, 1:]))


def is_part(total: Column, fast: Column) -> Column:
    """Where some direction that carries packets is not nearly all on the fast path; both have shape (n, 2):
    packets of late."""
    total, fast = total.astype(float), fast.astype(float)
    carried = (fast > 0) & (total - fast <= _FEW + total / 10)
    return any_of(_matters(total) & ~carried)


def _loose(flows: Column, fast: FastFlows) -> tuple[Conntrack, Column, Column]:
    """Flows without a conntrack entry as entries of their own: a direction and the one that answers it are
    one."""
    own = one_way(flows, "src", "sport", "dst", "dport")
    answer = one_way(flows, "new_dst", "new_dport", "new_src", "new_sport")
    partner = KeyPositions(own).of(answer)
    place = np.arange(len(flows))
    began = flows["first_seen"]
    other = began[np.maximum(partner, 0)]
    later = (partner >= 0) & ((began > other) | ((began == other) & (partner < place)))
    first, mate = flows[~later], partner[~later]
    entries = np.zeros(len(first), CONNTRACK_DTYPE)
    for name in ("family", "l4_proto"):
        entries[name] = first[name]
    _copy(entries, first)
    entries["id"] = own[~later].astype(np.uint32)
    entries["counted"] = True
    entries["start"] = first["first_seen"]
    entries["status"] = IPS_CONFIRMED | np.where(mate >= 0, IPS_SEEN_REPLY | IPS_ASSURED, 0).astype(np.uint32)
    counters, path = np.zeros((len(first), 4), np.uint64), np.zeros(len(first), np.uint8)
    _add(counters, path, place[: len(first)], first, 0)
    answered = np.flatnonzero(mate >= 0)
    _add(counters, path, answered, flows[mate[answered]], 1)
    live = np.stack((first["live"], (mate >= 0) & flows["live"][mate]), axis=1)
    _part(path, counters[:, :2], live, np.zeros((len(first), 2), np.uint64))
    entries.flags.writeable = False
    return Conntrack(fast.ns, entries, accounting=True, taken_at=fast.taken_at), counters, path


def _copy(entries: Column, flows: Column) -> None:
    """The tuples of both directions, from what the fast path makes of the packets of the first."""
    pairs = (
        ("orig_src", "src"), ("orig_dst", "dst"), ("orig_sport", "sport"), ("orig_dport", "dport"),
        ("reply_src", "new_dst"), ("reply_dst", "new_src"), ("reply_sport", "new_dport"),
        ("reply_dport", "new_sport"),
    )  # fmt: skip
    for ours, theirs in pairs:
        entries[ours] = flows[theirs]


Column = np.ndarray[Any, Any]

# Numbers for sets of rows, each used once.
GENERATIONS = count(1)

UNKNOWN = np.float32("nan")


@dataclass(frozen=True, eq=False)
class FlowTable:
    """One row for each connection of each namespace, in the order of `tables`, row after row.

    `speeds` has shape (n, 4): bits a second of the original and the reply direction, then packets a second,
    averaged over the last seconds, NaN where not known. `packets` and `octets` have shape (n, 2), both paths
    together; `counted` tells where either counts. `path` is an index into core.flows.merge.PATHS. `born` is
    Unix time in seconds, NaN where not known. `taken_at` is monotonic, `at` Unix time, both in seconds.
    `generation` rises whenever the rows are others; between, only what was measured differs. `loose` tells
    how many rows at the end only the fast path knows. `sockets` are those of the namespaces, where they were
    read; `names` those of addresses that are nobody's here, by their 16 bytes.
    """

    tables: tuple[Conntrack, ...] = ()
    generation: int = 0
    taken_at: float = 0.0
    at: float = 0.0
    speeds: Column = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    packets: Column = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    octets: Column = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    counted: Column = field(default_factory=lambda: np.zeros(0, bool))
    path: Column = field(default_factory=lambda: np.zeros(0, np.uint8))
    fast_bytes: Column = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    born: Column = field(default_factory=lambda: np.zeros(0))
    loose: int = 0
    measured: bool = False
    sockets: Mapping[int, Sockets] = field(default_factory=dict)
    names: Mapping[bytes, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.counted)

    @cached_property
    def columns(self) -> FlowColumns:
        """The entries as columns, without names."""
        return FlowColumns(self.tables)

    @cached_property
    def bits(self) -> Column:
        """Bits a second, both directions together; NaN where not known."""
        return np.asarray(self.speeds[:, 0] + self.speeds[:, 1])

    def name_of(self, address: str) -> str:
        """What a foreign address is called, "" where that is not known."""
        return self.names.get(address_bytes(address), "")

    @cached_property
    def age(self) -> Column:
        """Seconds since it began, NaN where not known."""
        return np.maximum(self.at - self.born, 0)

    @cached_property
    def uncounted(self) -> tuple[int, ...]:
        """The namespaces whose kernel does not count, though they have connections."""
        return tuple(table.ns for table in self.tables if not table.accounting)


def counters_of(tables: Sequence[Conntrack]) -> Column:
    """What conntrack counted: shape (n, 4), packets of both directions, then bytes."""
    parts = [np.concatenate((one.entries["packets"], one.entries["bytes"]), axis=1) for one in tables]
    return np.concatenate(parts) if parts else np.zeros((0, 4), np.uint64)


def whole(name: str, tables: Sequence[Conntrack], default: Any) -> Column:
    """One field of all tables' entries."""
    parts = [one.entries[name] for one in tables]
    return np.concatenate(parts) if parts else np.zeros(0, default)


def table_of(tables: Mapping[int, Conntrack], fast: FastFlows | None = None, at: float = 0.0) -> FlowTable:
    """The flows of one single look, which knows no speeds."""
    kept = tuple(table for table in tables.values() if len(table.entries))
    paths = joined(kept, fast) if fast is not None and len(fast.entries) else NO_PATHS
    kept = (*kept, paths.loose) if paths.loose is not None else kept
    counters = counters_of(kept)
    size = len(counters)
    fast_bytes, path = np.zeros((size, 2), np.uint64), np.zeros(size, np.uint8)
    if paths.counters is not None and paths.path is not None:
        counters += paths.counters
        path, fast_bytes = paths.path, paths.counters[:, 2:]
    return FlowTable(
        kept,
        next(GENERATIONS),
        at=at,
        speeds=np.full((size, 4), UNKNOWN),
        packets=counters[:, :2],
        octets=counters[:, 2:],
        counted=whole("counted", kept, bool) | (path > 0),
        path=path,
        fast_bytes=fast_bytes,
        born=began(kept),
        loose=len(paths.loose.entries) if paths.loose is not None else 0,
    )


def began(tables: Sequence[Conntrack]) -> Column:
    """When each began by the kernel's own time stamp: Unix time in seconds, NaN where it keeps none."""
    start = whole("start", tables, np.uint64)
    return np.where(start > 0, start / 1e9, np.nan)


@dataclass(frozen=True, slots=True, eq=False)
class GroupSums:
    """What was added up, one row a group: `codes` says which, `flows` how many flows, `sums` has shape
    (groups, values)."""

    codes: Column
    flows: Column
    sums: Column


def added(codes: Sequence[Column], values: Column) -> GroupSums:
    """Add `values` (shape (flows, values)) up by code; a flow may belong to several groups, one for each
    column of codes, but counts once in each. A code below 0 means none."""
    rows, group = [], []
    for number, column in enumerate(codes):
        mine = column >= 0
        for earlier in codes[:number]:
            mine &= column != earlier
        found = np.flatnonzero(mine)
        rows.append(found)
        group.append(column[found])
    every, of = np.concatenate(rows), np.concatenate(group)
    unique, place = np.unique(of, return_inverse=True)
    flows = np.bincount(place, minlength=len(unique))
    parts = [np.bincount(place, values[every, one], len(unique)) for one in range(values.shape[1])]
    sums = np.stack(parts, axis=1) if parts else np.zeros((len(unique), 0))
    return GroupSums(unique, flows, sums)


def crossed(senders: Column, receivers: Column, size: int, values: Column) -> Column:
    """A matrix of sums, shape (size, size): what each sent to each; a code below 0 is left out."""
    known = (senders >= 0) & (receivers >= 0)
    cell = senders[known].astype(np.int64) * size + receivers[known]
    return np.bincount(cell, values[known], size * size).reshape(size, size)


_LONGEST = 8  # entries of one tuple that are compared with one another


def connections(first: Column, last: Column, place: Column, neighbours: Column) -> Column:
    """A number for each row, the same for the hops of one connection.

    `first` and `last` are the keys of the tuple as it comes in and as it goes on, `place` the number of the
    row's namespace, `neighbours` a symmetric matrix that tells which namespaces hang together: only their
    entries can be hops of one connection, for the same tuple may well live in strangers' namespaces.
    """
    one, other = _links(first, last, place, neighbours)
    labels = np.arange(len(first))
    while True:
        least = np.minimum(labels[one], labels[other])
        before = labels.copy()
        np.minimum.at(labels, one, least)
        np.minimum.at(labels, other, least)
        labels = labels[labels]
        if np.array_equal(labels, before):
            return labels


def _links(first: Column, last: Column, place: Column, neighbours: Column) -> tuple[Column, Column]:
    """Pairs of rows that share a tuple and stand in namespaces that hang together."""
    rows = np.arange(len(first))
    changed = np.flatnonzero(first != last)
    keys, owners = np.concatenate((first, last[changed])), np.concatenate((rows, changed))
    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    ones, others = [], []
    for step in range(1, _LONGEST):
        same = np.flatnonzero(keys[step:] == keys[:-step])
        if not same.size:
            break
        one, other = owners[same], owners[same + step]
        near = neighbours[place[one], place[other]] & (place[one] != place[other])
        ones.append(one[near])
        others.append(other[near])
    none = np.zeros(0, np.intp)
    return np.concatenate([none, *ones]), np.concatenate([none, *others])


def edges(labels: Column, rank: Column) -> Column:
    """Where a row stands for its connection: of its hops the one of the highest rank."""
    order = np.lexsort((-rank, labels))
    chosen = np.ones(len(labels), bool)
    chosen[1:] = labels[order][1:] != labels[order][:-1]
    result = np.zeros(len(labels), bool)
    result[order[chosen]] = True
    return result
