"""Name the ends of packets: container, process, and NAT entry of their connection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from core.capture.packets import TCP, UDP, PacketTuple
from core.flows import ConntrackEntry, FlowColumns, entry_of, flow_of, translators
from core.flows.columns import (
    Column,
    KeyPositions,
    original_keys,
    reply_keys,
    translated_keys,
    tuple_keys,
)
from core.flows.describe import address_text
from core.model import Conntrack, Sockets
from core.topology import Topology
from core.topology.index import names_in

_TUPLE = np.dtype(
    [
        ("l4_proto", "u1"), ("src", "u1", (16,)), ("sport", "u2"), ("dst", "u1", (16,)), ("dport", "u2"),
    ]
)  # fmt: skip
_ANY = {bytes(16), bytes(10) + b"\xff\xff" + bytes(4)}
_BACK = ("orig_dst", "orig_dport", "orig_src", "orig_sport")


def reversed_tuple(ends: PacketTuple) -> PacketTuple:
    """Return the tuple of the other direction."""
    return PacketTuple(ends.l4_proto, ends.dst, ends.dport, ends.src, ends.sport)


@dataclass(frozen=True, slots=True)
class _TrackedTable:
    """A conntrack table with the rows of each tuple that its packets may have."""

    table: Conntrack
    positions: tuple[KeyPositions, ...]

    @classmethod
    def of(cls, table: Conntrack) -> _TrackedTable:
        entries = table.entries
        keys = (
            original_keys(entries), reply_keys(entries), translated_keys(entries),
            tuple_keys(entries, *_BACK),
        )  # fmt: skip
        return cls(table, tuple(map(KeyPositions, keys)))

    def find(self, key: Column) -> Conntrack | None:
        """Return the entry of a tuple as a table of one row, None if there is none."""
        for positions in self.positions:
            row = int(positions.of(key)[0])
            if row >= 0:
                return replace(self.table, entries=self.table.entries[row : row + 1])
        return None


class Annotator:
    """Comment packets from a topology, and from conntrack tables and sockets.

    `feed` replaces tables and sockets; it may be called as often as they are read."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._names: dict[int, Mapping[bytes, str]] = {}
        self._tables: dict[int, _TrackedTable] = {}
        self._sockets: Mapping[int, Sockets] = {}
        self._entries = np.zeros(0)
        self._positions: KeyPositions | None = None
        self._commands: dict[int, str] = {}

    def feed(self, tables: Mapping[int, Conntrack], sockets: Mapping[int, Sockets]) -> None:
        """Take newer conntrack tables and sockets."""
        self._tables = {ns: _TrackedTable.of(table) for ns, table in tables.items() if len(table.entries)}
        filled = [one for one in sockets.values() if len(one.entries)]
        self._sockets, self._positions = sockets, None
        self._commands = {pid: name for one in filled for pid, name in one.commands.items()}
        if filled:
            self._entries = np.concatenate([one.entries for one in filled])
            self._positions = KeyPositions(tuple_keys(self._entries, "local", "lport", "remote", "rport"))

    def names(self, ns: int) -> Mapping[bytes, str]:
        """Return the owners' names of the addresses known in a namespace."""
        if ns not in self._names:
            self._names[ns] = names_in(self.topology, ns)
        return self._names[ns]

    def name_of(self, ns: int, address: bytes) -> str:
        """Return the owner's name of an address as seen from a namespace, "" if unknown."""
        return self.names(ns).get(address, "") or self.names(self.topology.host).get(address, "")

    def comment(self, ns: int, ends: PacketTuple) -> tuple[str, bool]:
        """Return the comment of a packet, and whether later readings can't add to it.

        For example `web1 (curl[812]) to 192.0.2.9:443; SNAT 192.0.2.1:41822 (masquerade shop)`. Names are
        untrusted text, verbatim."""
        tracked = self._tracked(ns, ends)
        entry = entry_of(tracked.entries[0]) if tracked else None
        source, destination = self._ends(ns, ends, entry)
        words = [f"{source} to {destination}"] if source or destination else []
        if not (source and destination):
            words = [f"from {source}" if source else f"to {destination}"] if words else []
        words += [self._translation(tracked)] if tracked else []
        lacks_process = ends.l4_proto in (TCP, UDP) and any(
            one and "[" not in one for one in (source, destination)
        )
        is_final = entry is not None and not lacks_process
        return "; ".join(word for word in words if word), is_final

    def _ends(self, ns: int, ends: PacketTuple, entry: ConntrackEntry | None) -> tuple[str, str]:
        """Return both ends of a packet, with names and processes if they are known."""
        found = []
        for one in _socket_tuples(ends, entry):
            name = self.name_of(ns, one.src)
            process = self._process(ns, one)
            found.append(f"{name} ({process})" if name and process else name or process)
        return found[0], found[1]

    def _tracked(self, ns: int, ends: PacketTuple) -> Conntrack | None:
        """Return the connection of a packet, of its own namespace or else of the host.

        A translation in the host is preferred: that is what the packet meets on its way."""
        key = _key(ends)
        found = [
            one
            for each in dict.fromkeys((ns, self.topology.host))
            if each in self._tables and (one := self._tables[each].find(key)) is not None
        ]
        translated = (one for one in found if FlowColumns((one,)).translation.any())
        return next(translated, found[0] if found else None)

    def _translation(self, table: Conntrack) -> str:
        """Return the translation of a connection and the NAT entries that made it."""
        text = flow_of(entry_of(table.entries[0])).translation
        firewall = self.topology.snapshot.firewalls.get(table.ns)
        if not text or firewall is None:
            return text
        entries = (one for one in self.topology.nat if one.ns == table.ns)
        names = dict.fromkeys(one.name for one in translators(FlowColumns((table,)), entries, firewall.rules))
        return f"{text} ({', '.join([*names][:3])})" if names else text

    def _process(self, ns: int, ends: PacketTuple) -> str:
        """Return the process that holds the socket of a packet's source, "" if unknown."""
        if self._positions is not None:
            row = int(self._positions.of(_key(ends))[0])
            if row >= 0 and (pid := int(self._entries[row]["pid"])):
                return f"{self._commands.get(pid, '')}[{pid}]"
        return self._unconnected(ns, ends) if ends.l4_proto == UDP else ""

    def _unconnected(self, ns: int, ends: PacketTuple) -> str:
        """Return the process of a UDP socket without a peer."""
        owner = self.topology.container_at(ns, address_text(ends.src))
        for each in dict.fromkeys((owner.netns if owner else None, ns)):
            sockets = self._sockets.get(each or 0)
            for row in _bound(sockets.entries, ends.sport) if sockets else ():
                if row["pid"] and bytes(row["local"]) in (ends.src, *_ANY):
                    return f"{self._commands.get(int(row['pid']), '')}[{int(row['pid'])}]"
        return ""


def _bound(entries: Column, port: int) -> Iterator[Any]:
    """Yield the UDP sockets without a peer on a port."""
    chosen = (entries["l4_proto"] == UDP) & (entries["rport"] == 0) & (entries["lport"] == port)
    yield from entries[chosen]


def _socket_tuples(ends: PacketTuple, entry: ConntrackEntry | None) -> tuple[PacketTuple, PacketTuple]:
    """Return the tuples of the sockets at a packet's real source and destination.

    Each begins with the socket's own address; its peer is what that end sees, after translation."""
    if entry is None:
        return ends, reversed_tuple(ends)
    origin = PacketTuple(ends.l4_proto, entry.orig_src, entry.orig_sport, entry.orig_dst, entry.orig_dport)
    responder = PacketTuple(
        ends.l4_proto, entry.reply_src, entry.reply_sport, entry.reply_dst, entry.reply_dport
    )
    is_from_origin = (ends.src, ends.sport) in ((origin.src, origin.sport), (responder.dst, responder.dport))
    return (origin, responder) if is_from_origin else (responder, origin)


def _key(ends: PacketTuple) -> Column:
    row = np.zeros(1, _TUPLE)
    row["l4_proto"], row["sport"], row["dport"] = ends.l4_proto, ends.sport, ends.dport
    row["src"], row["dst"] = np.frombuffer(ends.src, np.uint8), np.frombuffer(ends.dst, np.uint8)
    return tuple_keys(row, "src", "sport", "dst", "dport")
