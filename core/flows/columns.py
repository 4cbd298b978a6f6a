"""Many conntrack entries understood at once: the columns of several tables, made when first asked for."""

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


def folded(*parts: Column) -> Column:
    """One key for each row of several columns of whole numbers; the order of the columns matters."""
    key = np.zeros(len(parts[0]), np.uint64)
    for part in parts:
        key ^= part if part.dtype == np.uint64 else part.astype(np.uint64)
        key *= _FACTOR
        key ^= key >> _SHIFT
    return key


def halves_of(addresses: Column) -> tuple[Column, Column]:
    """Addresses of 16 bytes each (shape (n, 16)) as two columns of numbers, good for comparing alone."""
    pairs = np.ascontiguousarray(addresses).view(np.uint64)
    return pairs[:, 0], pairs[:, 1]


def one_way(rows: Column, src: str, sport: str, dst: str, dport: str) -> Column:
    """The key of what packets carry one way; `rows` are structured, the names those of their fields."""
    return folded(*halves_of(rows[src]), *halves_of(rows[dst]), rows[sport], rows[dport], rows["l4_proto"])


def before(entries: Column) -> Column:
    """The packets of who opened it, as they came in."""
    return one_way(entries, "orig_src", "orig_sport", "orig_dst", "orig_dport")


def after(entries: Column) -> Column:
    """The same packets as they went on, translated."""
    return one_way(entries, "reply_dst", "reply_dport", "reply_src", "reply_sport")


def back(entries: Column) -> Column:
    """The packets back, as they came in."""
    return one_way(entries, "reply_src", "reply_sport", "reply_dst", "reply_dport")


def identity(ns: int, entries: Column) -> Column:
    """What makes an entry this one and no other, among all namespaces and over time."""
    whose = np.full(len(entries), ns, np.uint64)
    return folded(before(entries), entries["id"], entries["zone"], entries["start"], whose)


def any_of(rows: Column) -> Column:
    """Where any of a row's values is not 0 (or true); column by column, for numpy's any(axis=1) takes several
    times as long on short rows."""
    found = rows[:, 0] != 0
    for column in range(1, rows.shape[1]):
        found |= rows[:, column] != 0
    return np.asarray(found)


class KeyPositions:
    """Where each key of a column stands."""

    def __init__(self, keys: Column) -> None:
        self.keys = keys
        self._order = np.argsort(keys)
        self._sorted = keys[self._order]

    def of(self, wanted: Column) -> Column:
        """The place of each wanted key, -1 where it is not there."""
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
# The index in STATES of every protocol but TCP, by the two status bits that decide it.
_OTHER_STATES = np.array([state_code(0, 0, status) for status in range(_STATE_BITS + 1)], np.uint8)
_TCP_STATES = np.array([state_code(TCP, state, 0) for state in range(256)], np.uint8)


class FlowColumns:
    """The entries of several tables as if they stood in one, table after table.

    Addresses are columns of two unsigned 64-bit numbers, the upper and lower half. `names_in` gives, for a
    namespace, the names of those whose addresses are known there, by the address's 16 bytes.
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
        """The table that holds a row, and the entry's index there."""
        table = bisect_right(self.starts, row) - 1
        return self.tables[table], row - self.starts[table]

    def names(self, ns: int) -> Mapping[bytes, str]:
        """Whose addresses are known in a namespace."""
        if ns not in self._names:
            self._names[ns] = self._names_in(ns)
        return self._names[ns]

    def renamed(self, names_in: Callable[[int], Mapping[bytes, str]]) -> FlowColumns:
        """The same entries with other names; what was copied out of them already is shared."""
        made = FlowColumns(self.tables, names_in)
        made._columns = self._columns
        return made

    def column(self, name: str) -> Column:
        """One field of CONNTRACK_DTYPE of all entries, contiguous; addresses as two numbers each."""
        if name not in self._columns:
            parts = [np.ascontiguousarray(table.entries[name]) for table in self.tables]
            parts = parts or [empty_entries()[name]]
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            if whole.dtype == np.uint8 and whole.ndim == 2:
                whole = whole.view(">u8").astype(np.uint64)
            self._columns[name] = whole
        return self._columns[name]

    def raw(self, name: str, rows: Column) -> Column:
        """The addresses of some rows as 16 bytes each."""
        return self.column(name)[rows].astype(">u8").view(np.uint8).reshape(-1, 16)

    def by_table(self, values: Column) -> Column:
        """A column that holds one value for each whole table."""
        return np.repeat(values, [len(table.entries) for table in self.tables])

    @cached_property
    def has_ports(self) -> Column:
        """Where the ports are ports; the rule is Entry's."""
        tracked = (self.column("orig_sport") | self.column("orig_dport")) != 0
        return np.asarray(_HAS_PORTS[self.column("l4_proto")] & tracked)

    @cached_property
    def source_translated(self) -> Column:
        """Where the responder sees another source than the real one."""
        icmp = _IS_ICMP[self.column("l4_proto")]
        found = differ(self.column("orig_src"), self.column("reply_dst"))
        found |= self.has_ports & (self.column("reply_dport") != self.column("orig_sport"))
        found |= icmp & (self.column("reply_sport") != self.column("orig_sport"))
        return np.asarray(found)

    @cached_property
    def destination_translated(self) -> Column:
        """Where another destination answers than the one addressed."""
        found = differ(self.column("reply_src"), self.column("orig_dst"))
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
        """Where the inside is the end that answers; the rule is Flow's."""
        origin, responder = (self.owned(self.column(name)) for name in ("orig_src", "reply_src"))
        return self.destination_translated | (~self.source_translated & responder & ~origin)

    def owned(self, addresses: Column, is_wanted: Callable[[str], bool] = bool) -> Column:
        """Where an address (one for each entry) is somebody's whose name is wanted."""
        found = np.zeros(len(self), bool)
        for table, start, end in zip(self.tables, self.starts, self.starts[1:], strict=False):
            wanted = [raw for raw, owner in self.names(table.ns).items() if is_wanted(owner)]
            found[start:end] = among(addresses[start:end], wanted)
        return found

    def inside(self) -> tuple[Column, Column]:
        """Address and port (0 where there is none) of the end on this host's side."""
        return self._either(self._answers_inside, "reply_src", "orig_src")

    def peer(self) -> tuple[Column, Column]:
        """Address and port of the other end."""
        return self._either(~self._answers_inside, "reply_src", "orig_src")

    def outside(self) -> tuple[Column, Column]:
        """Address and port of what a translation shows instead, 0 where there is no translation."""
        address, port = self._either(self.destination_translated, "orig_dst", "reply_dst")
        is_there = self.translation != 0
        return address * is_there[:, None], port * is_there

    def _either(self, choice: Column, chosen: str, other: str) -> tuple[Column, Column]:
        """Address and port from one column or another."""
        address = np.where(choice[:, None], self.column(chosen), self.column(other))
        port = np.where(choice, self.column(_PORT_OF[chosen]), self.column(_PORT_OF[other]))
        return address, port * self.has_ports

    @cached_property
    def ranks(self) -> Column:
        """The place of each entry in the order of its inside, its peer and its id."""
        keys = [self.column("id")]
        for addresses, ports in (self.peer(), self.inside()):
            keys += [ports, addresses[:, 1], addresses[:, 0]]
        ranks = np.empty(len(self), np.int64)
        ranks[np.lexsort(keys)] = np.arange(len(self))
        return ranks

    def port_of(self, end: str) -> Column:
        """The port that belongs to an address ("orig_src", ...)."""
        return self.column(_PORT_OF[end])

    def total(self, counter: str) -> Column:
        """ "packets" or "bytes" of both directions together."""
        return np.asarray(self.column(counter).sum(axis=1))


def differ(one: Column, other: Column) -> Column:
    """Where two columns of addresses differ."""
    return np.asarray((one[:, 0] != other[:, 0]) | (one[:, 1] != other[:, 1]))


def halves(raw: Collection[bytes]) -> Column:
    """Addresses of 16 bytes as columns hold them: shape (n, 2)."""
    return np.frombuffer(b"".join(raw), ">u8").astype(np.uint64).reshape(-1, 2)


def among(addresses: Column, wanted: Collection[bytes]) -> Column:
    """Where an address is one of those wanted."""
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
    """The place of each value in `ordered`, and whether it is there at all."""
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return place, ordered[place] == values
