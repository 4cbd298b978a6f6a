"""Merge conntrack and fast-path flows of all namespaces into one table of columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from core.flows.columns import FlowColumns, KeyPositions, any_of, original_keys, reply_keys, tuple_keys
from core.flows.describe import address_bytes
from core.model import CONNTRACK_DTYPE, Conntrack, FastFlows, Sockets
from core.model.conntrack import IPS_ASSURED, IPS_CONFIRMED, IPS_SEEN_REPLY

# What forwards a connection's packets now: the kernel, the fast path, the kernel again after the fast path
# handed the flow back, or the fast path only a part of them.
PATHS = ("kernel", "fast", "kernel again", "part fast")
KERNEL, FAST, AGAIN, PART = range(4)
_LEARNING_PACKETS = 4  # of a fast flow that the kernel may forward, until the fast path has learned it
_INSIGNIFICANT = 0.05  # the fraction of all packets below which a direction is ignored


@dataclass(frozen=True, slots=True, eq=False)
class FastPathColumns:
    """The fast path's part of a FlowTable; None without any fast flows.

    `counters` has shape (n, 4), packets of both directions, then bytes: one row per conntrack entry, then one
    per row of `fast_only`. `path` is an index into PATHS, `since` the time of the first packet, Unix time in
    seconds, infinite without any. `fast_only` are connections that conntrack doesn't know, as a table."""

    counters: Column | None = None
    path: Column | None = None
    since: Column | None = None
    fast_only: Conntrack | None = None


NO_PATHS = FastPathColumns()


def direction_keys(table: Conntrack) -> tuple[Column, Column]:
    """Return the keys of both directions of each entry."""
    return original_keys(table.entries), reply_keys(table.entries)


def merge_fast_path(
    tables: Sequence[Conntrack],
    fast: FastFlows,
    keys_of: Callable[[Conntrack], tuple[Column, Column]] = direction_keys,
) -> FastPathColumns:
    """Match each direction that the fast path counted with its conntrack entry."""
    flows = fast.entries
    count = sum(len(table.entries) for table in tables)
    counters, path = np.zeros((count, 4), np.uint64), np.zeros(count, np.uint8)
    live, since = np.zeros((count, 2), bool), np.full(count, np.inf)
    first_seen = _first_seen(flows["first_seen"])
    positions = KeyPositions(tuple_keys(flows, "src", "sport", "dst", "dport"))
    used = np.zeros(len(flows), bool)
    start = 0
    for table in tables:
        end = start + len(table.entries)
        if table.ns == fast.ns:
            for direction, keys in enumerate(keys_of(table)):
                found = positions.of(keys)
                rows = np.flatnonzero(found >= 0)
                _add_counters(counters[start:end], path[start:end], rows, flows[found[rows]], direction)
                live[start + rows, direction] = flows["live"][found[rows]]
                since[start + rows] = np.minimum(since[start + rows], first_seen[found[rows]])
                used[found[rows]] = True
            packets = table.entries["packets"]
            _mark_part_fast(path[start:end], counters[start:end, :2], live[start:end], packets)
        start = end
    fast_only = _fast_only_entries(flows[~used], fast) if not used.all() else None
    if fast_only is None:
        return FastPathColumns(counters, path, since)
    table, fast_only_counters, fast_only_path = fast_only
    counters, path = np.concatenate((counters, fast_only_counters)), np.concatenate((path, fast_only_path))
    since = np.concatenate((since, _first_seen(table.entries["start"])))
    return FastPathColumns(counters, path, since, table)


def _first_seen(nanoseconds: Column) -> Column:
    return np.where(nanoseconds > 0, nanoseconds / 1e9, np.inf)


def _add_counters(counters: Column, path: Column, rows: Column, flows: Column, direction: int) -> None:
    counters[rows, direction] += flows["packets"]
    counters[rows, direction + 2] += flows["bytes"]
    path[rows] = np.where(flows["live"], FAST, np.where(path[rows] == FAST, FAST, AGAIN))


def _mark_part_fast(path: Column, fast: Column, live: Column, kernel: Column) -> None:
    """Set PART where a direction with packets isn't on the fast path.

    All but the path have shape (n, 2). Packets that the kernel forwarded before a direction was learned don't
    count."""
    rows = np.flatnonzero(path == FAST)
    total = (fast[rows] + kernel[rows]).astype(float)
    path[rows[any_of(_is_significant(total) & ~live[rows])]] = PART


def _is_significant(packets: Column) -> Column:
    return np.asarray(packets > _INSIGNIFICANT * (packets[:, :1] + packets[:, 1:]))


def is_part_fast(total: Column, fast: Column) -> Column:
    """Return a mask of rows with a direction that isn't nearly all on the fast path.

    Both have shape (n, 2): recent packets."""
    total, fast = total.astype(float), fast.astype(float)
    is_fast = (fast > 0) & (total - fast <= _LEARNING_PACKETS + total / 10)
    return any_of(_is_significant(total) & ~is_fast)


def _fast_only_entries(flows: Column, fast: FastFlows) -> tuple[Conntrack, Column, Column]:
    """Make an entry of each flow without one in conntrack, both directions together."""
    keys = tuple_keys(flows, "src", "sport", "dst", "dport")
    reply_keys = tuple_keys(flows, "new_dst", "new_dport", "new_src", "new_sport")
    reply_row = KeyPositions(keys).of(reply_keys)
    row = np.arange(len(flows))
    first_seen = flows["first_seen"]
    other = first_seen[np.maximum(reply_row, 0)]
    is_reply = (reply_row >= 0) & ((first_seen > other) | ((first_seen == other) & (reply_row < row)))
    first, reply = flows[~is_reply], reply_row[~is_reply]
    entries = np.zeros(len(first), CONNTRACK_DTYPE)
    for name in ("family", "l4_proto"):
        entries[name] = first[name]
    _copy_tuples(entries, first)
    entries["id"] = keys[~is_reply].astype(np.uint32)
    entries["counted"] = True
    entries["start"] = first["first_seen"]
    entries["status"] = IPS_CONFIRMED | np.where(reply >= 0, IPS_SEEN_REPLY | IPS_ASSURED, 0).astype(
        np.uint32
    )
    counters, path = np.zeros((len(first), 4), np.uint64), np.zeros(len(first), np.uint8)
    _add_counters(counters, path, row[: len(first)], first, 0)
    replied = np.flatnonzero(reply >= 0)
    _add_counters(counters, path, replied, flows[reply[replied]], 1)
    live = np.stack((first["live"], (reply >= 0) & flows["live"][reply]), axis=1)
    _mark_part_fast(path, counters[:, :2], live, np.zeros((len(first), 2), np.uint64))
    entries.flags.writeable = False
    return Conntrack(fast.ns, entries, accounting=True, taken_at=fast.taken_at), counters, path


def _copy_tuples(entries: Column, flows: Column) -> None:
    """Fill the tuples of both directions from the fast path's translation."""
    pairs = (
        ("orig_src", "src"), ("orig_dst", "dst"), ("orig_sport", "sport"), ("orig_dport", "dport"),
        ("reply_src", "new_dst"), ("reply_dst", "new_src"), ("reply_sport", "new_dport"),
        ("reply_dport", "new_sport"),
    )  # fmt: skip
    for target, source in pairs:
        entries[target] = flows[source]


Column = np.ndarray[Any, Any]

# Numbers for FlowTable.generation.
GENERATIONS = count(1)

UNKNOWN = np.float32("nan")


@dataclass(frozen=True, eq=False)
class FlowTable:
    """One row per connection of each namespace, in the order of `tables`.

    `speeds` has shape (n, 4): bits a second of the original and the reply direction, then packets a second,
    averaged over the last seconds, NaN if unknown. `packets` and `octets` have shape (n, 2), the sum of both
    paths; `counted` is a mask of rows with counters. `path` is an index into PATHS. `began` is Unix time in
    seconds, NaN if unknown. `taken_at` is monotonic, `at` Unix time, both in seconds. `generation` increases
    when rows change, not when only measurements do. `fast_only` is the number of rows at the end that only
    the fast path knows. `sockets` are those of the namespaces, if read; `names` are the names of foreign
    addresses by their 16 bytes.
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
    began: Column = field(default_factory=lambda: np.zeros(0))
    fast_only: int = 0
    measured: bool = False
    sockets: Mapping[int, Sockets] = field(default_factory=dict)
    names: Mapping[bytes, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.counted)

    @cached_property
    def columns(self) -> FlowColumns:
        """The entries as columns, without owners' names."""
        return FlowColumns(self.tables)

    @cached_property
    def bits(self) -> Column:
        """Bits a second, the sum of both directions; NaN if unknown."""
        return np.asarray(self.speeds[:, 0] + self.speeds[:, 1])

    def name_of(self, address: str) -> str:
        """Return the name of a foreign address, "" if unknown."""
        return self.names.get(address_bytes(address), "")

    @cached_property
    def age(self) -> Column:
        """Seconds since the connection began, NaN if unknown."""
        return np.maximum(self.at - self.began, 0)

    @cached_property
    def uncounted(self) -> tuple[int, ...]:
        """The namespaces with connections that conntrack doesn't count."""
        return tuple(table.ns for table in self.tables if not table.accounting)


def counters_of(tables: Sequence[Conntrack]) -> Column:
    """Return conntrack's packets, then bytes, of both directions: shape (n, 4)."""
    parts = [np.concatenate((one.entries["packets"], one.entries["bytes"]), axis=1) for one in tables]
    return np.concatenate(parts) if parts else np.zeros((0, 4), np.uint64)


def concatenate_field(name: str, tables: Sequence[Conntrack], default: Any) -> Column:
    """Concatenate one field of all tables' entries."""
    parts = [one.entries[name] for one in tables]
    return np.concatenate(parts) if parts else np.zeros(0, default)


def table_of(tables: Mapping[int, Conntrack], fast: FastFlows | None = None, at: float = 0.0) -> FlowTable:
    """Merge the flows of a single reading, without speeds."""
    filled = tuple(table for table in tables.values() if len(table.entries))
    paths = merge_fast_path(filled, fast) if fast is not None and len(fast.entries) else NO_PATHS
    filled = (*filled, paths.fast_only) if paths.fast_only is not None else filled
    counters = counters_of(filled)
    size = len(counters)
    fast_bytes, path = np.zeros((size, 2), np.uint64), np.zeros(size, np.uint8)
    if paths.counters is not None and paths.path is not None:
        counters += paths.counters
        path, fast_bytes = paths.path, paths.counters[:, 2:]
    return FlowTable(
        filled,
        next(GENERATIONS),
        at=at,
        speeds=np.full((size, 4), UNKNOWN),
        packets=counters[:, :2],
        octets=counters[:, 2:],
        counted=concatenate_field("counted", filled, bool) | (path > 0),
        path=path,
        fast_bytes=fast_bytes,
        began=start_times(filled),
        fast_only=len(paths.fast_only.entries) if paths.fast_only is not None else 0,
    )


def start_times(tables: Sequence[Conntrack]) -> Column:
    """Return the kernel's start time stamps: Unix time in seconds, NaN without one."""
    start = concatenate_field("start", tables, np.uint64)
    return np.where(start > 0, start / 1e9, np.nan)


@dataclass(frozen=True, slots=True, eq=False)
class GroupSums:
    """Group codes, numbers of flows, and sums of shape (groups, values)."""

    codes: Column
    flows: Column
    sums: Column


def sum_by_group(codes: Sequence[Column], values: Column) -> GroupSums:
    """Sum `values` of shape (flows, values) by group code.

    A flow may be in several groups, one per column of codes, but counts once in each. A code below 0 means
    no group."""
    rows, groups = [], []
    for number, column in enumerate(codes):
        is_new = column >= 0
        for earlier in codes[:number]:
            is_new &= column != earlier
        found = np.flatnonzero(is_new)
        rows.append(found)
        groups.append(column[found])
    flow_rows, flow_groups = np.concatenate(rows), np.concatenate(groups)
    unique, index = np.unique(flow_groups, return_inverse=True)
    flows = np.bincount(index, minlength=len(unique))
    parts = [np.bincount(index, values[flow_rows, one], len(unique)) for one in range(values.shape[1])]
    sums = np.stack(parts, axis=1) if parts else np.zeros((len(unique), 0))
    return GroupSums(unique, flows, sums)


def sum_matrix(senders: Column, receivers: Column, size: int, values: Column) -> Column:
    """Sum values by sender and receiver, shape (size, size); ignore codes below 0."""
    known = (senders >= 0) & (receivers >= 0)
    cell = senders[known].astype(np.int64) * size + receivers[known]
    return np.bincount(cell, values[known], size * size).reshape(size, size)


_MAX_COMPARED = 8  # entries with the same tuple


def label_connections(first: Column, last: Column, namespace: Column, neighbours: Column) -> Column:
    """Return a number per row that is the same for the hops of one connection.

    `first` and `last` are the keys of the tuple before and after translation, `namespace` the number of the
    row's namespace, `neighbours` a symmetric matrix of connected namespaces: only their entries can be hops
    of one connection, since unrelated namespaces may have the same tuple.
    """
    one, other = _hop_pairs(first, last, namespace, neighbours)
    labels = np.arange(len(first))
    while True:
        least = np.minimum(labels[one], labels[other])
        previous = labels.copy()
        np.minimum.at(labels, one, least)
        np.minimum.at(labels, other, least)
        labels = labels[labels]
        if np.array_equal(labels, previous):
            return labels


def _hop_pairs(first: Column, last: Column, namespace: Column, neighbours: Column) -> tuple[Column, Column]:
    """Return pairs of rows with a common tuple in connected namespaces."""
    rows = np.arange(len(first))
    changed = np.flatnonzero(first != last)
    keys, owners = np.concatenate((first, last[changed])), np.concatenate((rows, changed))
    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    ones, others = [], []
    for step in range(1, _MAX_COMPARED):
        same = np.flatnonzero(keys[step:] == keys[:-step])
        if not same.size:
            break
        one, other = owners[same], owners[same + step]
        connected = neighbours[namespace[one], namespace[other]] & (namespace[one] != namespace[other])
        ones.append(one[connected])
        others.append(other[connected])
    none = np.zeros(0, np.intp)
    return np.concatenate([none, *ones]), np.concatenate([none, *others])


def edge_mask(labels: Column, rank: Column) -> Column:
    """Return a mask of one row per connection: the hop with the highest rank."""
    order = np.lexsort((-rank, labels))
    chosen = np.ones(len(labels), bool)
    chosen[1:] = labels[order][1:] != labels[order][:-1]
    result = np.zeros(len(labels), bool)
    result[order[chosen]] = True
    return result
