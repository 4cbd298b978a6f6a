"""Interpret many conntrack entries at once, as columns over several tables."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from core.flows.describe import ICMP, ICMPV6, TCP, WITH_PORTS, state_code
from core.model.conntrack import IPS_ASSURED, IPS_SEEN_REPLY, Conntrack, empty_entries

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


def row_keys(*parts: Column) -> Column:
    """Hash several integer columns to one key per row; the columns' order matters."""
    key = np.zeros(len(parts[0]), np.uint64)
    for part in parts:
        key ^= part if part.dtype == np.uint64 else part.astype(np.uint64)
        key *= _FACTOR
        key ^= key >> _SHIFT
    return key


def address_halves(addresses: Column) -> tuple[Column, Column]:
    """Split addresses of 16 bytes, shape (n, 16), into two columns for comparison."""
    halves = np.ascontiguousarray(addresses).view(np.uint64)
    return halves[:, 0], halves[:, 1]


def tuple_keys(rows: Column, src: str, sport: str, dst: str, dport: str) -> Column:
    """Return the key of one direction's tuple; the names are fields of `rows`."""
    ends = (*address_halves(rows[src]), *address_halves(rows[dst]), rows[sport], rows[dport])
    return row_keys(*ends, rows["l4_proto"])


def original_keys(entries: Column) -> Column:
    """Return the keys of the original direction's tuples, before translation."""
    return tuple_keys(entries, "orig_src", "orig_sport", "orig_dst", "orig_dport")


def translated_keys(entries: Column) -> Column:
    """Return the keys of the original direction's tuples, after translation."""
    return tuple_keys(entries, "reply_dst", "reply_dport", "reply_src", "reply_sport")


def reply_keys(entries: Column) -> Column:
    """Return the keys of the reply direction's tuples, before translation."""
    return tuple_keys(entries, "reply_src", "reply_sport", "reply_dst", "reply_dport")


def entry_keys(ns: int, entries: Column) -> Column:
    """Return keys that are unique among all namespaces and over time."""
    namespace = np.full(len(entries), ns, np.uint64)
    return row_keys(original_keys(entries), entries["id"], entries["zone"], entries["start"], namespace)


def any_of(rows: Column) -> Column:
    """Return a mask of rows with a value that isn't 0.

    numpy's any(axis=1) takes several times as long on short rows."""
    found = rows[:, 0] != 0
    for column in range(1, rows.shape[1]):
        found |= rows[:, column] != 0
    return np.asarray(found)


class KeyPositions:
    """Finds the rows of keys in a column."""

    def __init__(self, keys: Column) -> None:
        self.keys = keys
        self._order = np.argsort(keys)
        self._sorted = keys[self._order]

    def of(self, wanted: Column) -> Column:
        """Return the row of each wanted key, -1 if there is none."""
        if not len(self.keys):
            return np.full(len(wanted), -1, np.intp)
        found = np.minimum(np.searchsorted(self._sorted, wanted), len(self.keys) - 1)
        return np.where(self._sorted[found] == wanted, self._order[found], -1)


Column = np.ndarray[Any, Any]

_PORT_OF = {
    "orig_src": "orig_sport",
    "orig_dst": "orig_dport",
    "reply_src": "reply_sport",
    "reply_dst": "reply_dport",
}
_HAS_PORTS = np.isin(np.arange(256), sorted(WITH_PORTS))
_IS_ICMP = np.isin(np.arange(256), (ICMP, ICMPV6))
_STATE_BITS = IPS_SEEN_REPLY | IPS_ASSURED
# The index in STATES for protocols other than TCP, by the two status bits.
_OTHER_STATES = np.array([state_code(0, 0, status) for status in range(_STATE_BITS + 1)], np.uint8)
_TCP_STATES = np.array([state_code(TCP, state, 0) for state in range(256)], np.uint8)


class FlowColumns:
    """The entries of several tables, one after the other, as lazily computed columns.

    Addresses are columns of two unsigned 64-bit numbers, the upper and lower half. `names_in` returns the
    owners' names of the addresses known in a namespace, by the address's 16 bytes.
    """

    def __init__(
        self, tables: Sequence[Conntrack], names_in: Callable[[int], Mapping[bytes, str]] = lambda ns: {}
    ) -> None:
        self.tables = tuple(table for table in tables if len(table.entries))
        self.starts = [0, *accumulate(len(table.entries) for table in self.tables)]
        self._names_in = names_in
        self._names: dict[int, Mapping[bytes, str]] = {}
        self._columns: dict[str, Column] = {}

    def __len__(self) -> int:
        return self.starts[-1]

    def place(self, row: int) -> tuple[Conntrack, int]:
        """Return the table of a row, and the entry's index in it."""
        table = bisect_right(self.starts, row) - 1
        return self.tables[table], row - self.starts[table]

    def names(self, ns: int) -> Mapping[bytes, str]:
        """Return the owners' names of the addresses known in a namespace."""
        if ns not in self._names:
            self._names[ns] = self._names_in(ns)
        return self._names[ns]

    def renamed(self, names_in: Callable[[int], Mapping[bytes, str]]) -> FlowColumns:
        """Return the same entries with other names; computed columns are shared."""
        renamed = FlowColumns(self.tables, names_in)
        renamed._columns = self._columns
        return renamed

    def column(self, name: str) -> Column:
        """Return a field of CONNTRACK_DTYPE, contiguous; addresses as two numbers each."""
        if name not in self._columns:
            parts = [np.ascontiguousarray(table.entries[name]) for table in self.tables]
            parts = parts or [empty_entries()[name]]
            column = parts[0] if len(parts) == 1 else np.concatenate(parts)
            if column.dtype == np.uint8 and column.ndim == 2:
                column = column.view(">u8").astype(np.uint64)
            self._columns[name] = column
        return self._columns[name]

    def raw(self, name: str, rows: Column) -> Column:
        """Return the addresses of some rows as 16 bytes each."""
        return self.column(name)[rows].astype(">u8").view(np.uint8).reshape(-1, 16)

    def by_table(self, values: Column) -> Column:
        """Repeat one value per table for each of its rows."""
        return np.repeat(values, [len(table.entries) for table in self.tables])

    @cached_property
    def has_ports(self) -> Column:
        """Mask of rows with real ports (see ConntrackEntry.has_ports)."""
        tracked = (self.column("orig_sport") | self.column("orig_dport")) != 0
        return np.asarray(_HAS_PORTS[self.column("l4_proto")] & tracked)

    @cached_property
    def source_translated(self) -> Column:
        """Mask of rows whose source is translated."""
        icmp = _IS_ICMP[self.column("l4_proto")]
        found = addresses_differ(self.column("orig_src"), self.column("reply_dst"))
        found |= self.has_ports & (self.column("reply_dport") != self.column("orig_sport"))
        found |= icmp & (self.column("reply_sport") != self.column("orig_sport"))
        return np.asarray(found)

    @cached_property
    def destination_translated(self) -> Column:
        """Mask of rows whose destination is translated."""
        found = addresses_differ(self.column("reply_src"), self.column("orig_dst"))
        found |= self.has_ports & (self.column("reply_sport") != self.column("orig_dport"))
        return np.asarray(found)

    @cached_property
    def translation(self) -> Column:
        """The index in TRANSLATIONS."""
        return self.source_translated.astype(np.uint8) | self.destination_translated.astype(np.uint8) << 1

    @cached_property
    def state(self) -> Column:
        """The index in STATES."""
        is_tcp = self.column("l4_proto") == TCP
        others = _OTHER_STATES[self.column("status") & _STATE_BITS]
        return np.where(is_tcp, _TCP_STATES[self.column("tcp_state")], others)

    @cached_property
    def _answers_inside(self) -> Column:
        """Mask of rows whose inside is the responder (see Flow.inside)."""
        origin, responder = (self.owned(self.column(name)) for name in ("orig_src", "reply_src"))
        return self.destination_translated | (~self.source_translated & responder & ~origin)

    def owned(self, addresses: Column, is_wanted: Callable[[str], bool] = bool) -> Column:
        """Return a mask of addresses (one per entry) whose owner's name is wanted."""
        found = np.zeros(len(self), bool)
        for table, start, end in zip(self.tables, self.starts, self.starts[1:], strict=False):
            wanted = [raw for raw, owner in self.names(table.ns).items() if is_wanted(owner)]
            found[start:end] = is_among(addresses[start:end], wanted)
        return found

    def inside(self) -> tuple[Column, Column]:
        """Return address and port (0 if none) of the end on this host's side."""
        return self._either(self._answers_inside, "reply_src", "orig_src")

    def peer(self) -> tuple[Column, Column]:
        """Return address and port of the other end."""
        return self._either(~self._answers_inside, "reply_src", "orig_src")

    def outside(self) -> tuple[Column, Column]:
        """Return the translated address and port, 0 if there is no translation."""
        address, port = self._either(self.destination_translated, "orig_dst", "reply_dst")
        is_translated = self.translation != 0
        return address * is_translated[:, None], port * is_translated

    def _either(self, choice: Column, chosen: str, other: str) -> tuple[Column, Column]:
        """Return address and port of one column or the other, by a mask."""
        address = np.where(choice[:, None], self.column(chosen), self.column(other))
        port = np.where(choice, self.column(_PORT_OF[chosen]), self.column(_PORT_OF[other]))
        return address, port * self.has_ports

    @cached_property
    def ranks(self) -> Column:
        """The rank of each entry when sorted by inside, peer and id."""
        keys = [self.column("id")]
        for addresses, ports in (self.peer(), self.inside()):
            keys += [ports, addresses[:, 1], addresses[:, 0]]
        ranks = np.empty(len(self), np.int64)
        ranks[np.lexsort(keys)] = np.arange(len(self))
        return ranks

    def port_of(self, end: str) -> Column:
        """Return the port column of an address column ("orig_src", ...)."""
        return self.column(_PORT_OF[end])

    def total(self, counter: str) -> Column:
        """Return "packets" or "bytes", the sum of both directions."""
        return np.asarray(self.column(counter).sum(axis=1))


def addresses_differ(one: Column, other: Column) -> Column:
    """Return a mask of rows whose addresses differ."""
    return np.asarray((one[:, 0] != other[:, 0]) | (one[:, 1] != other[:, 1]))


def halves(raw: Collection[bytes]) -> Column:
    """Convert addresses of 16 bytes to a column of shape (n, 2)."""
    return np.frombuffer(b"".join(raw), ">u8").astype(np.uint64).reshape(-1, 2)


def is_among(addresses: Column, wanted: Collection[bytes]) -> Column:
    """Return a mask of addresses that are among the wanted ones."""
    if not wanted or not len(addresses):
        return np.zeros(len(addresses), bool)
    table = halves(wanted)
    uppers, upper_of = np.unique(table[:, 0], return_inverse=True)
    lowers, lower_of = np.unique(table[:, 1], return_inverse=True)
    is_wanted = np.zeros((len(uppers), len(lowers)), bool)
    is_wanted[upper_of, lower_of] = True
    upper, is_upper = _found(uppers, addresses[:, 0])
    lower, is_lower = _found(lowers, addresses[:, 1])
    return np.asarray(is_wanted[upper, lower] & is_upper & is_lower)


def _found(ordered: Column, values: Column) -> tuple[Column, Column]:
    """Return the position of each value in a sorted array, and whether it is in it."""
    position = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return position, ordered[position] == values
