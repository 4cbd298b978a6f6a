"""Derive columns of flows: owners of both ends, kinds of clients, hops, processes."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from core.flows import FlowColumns, address_text
from core.flows import columns as keys
from core.flows.columns import KeyPositions, address_halves, halves, row_keys, tuple_keys
from core.flows.describe import UDP
from core.flows.merge import FlowTable, edge_mask, label_connections
from core.model import Container, Network, Sockets
from core.model.conntrack import OOO_INFO, RETRANS_INFO, no_sockets
from core.topology.index import names_in

if TYPE_CHECKING:
    from core.topology.index import Topology


Column = np.ndarray[Any, Any]

# Who opened a connection to a container: not applicable, the host, a container on a common network, a
# container on other networks, another host, the container itself.
CLIENTS = ("", "host", "beside", "other network", "outside", "itself")
NO_CLIENT, HOST, SAME_NETWORK, OTHER_NETWORK, OUTSIDE, ITSELF = range(len(CLIENTS))


@dataclass(frozen=True, slots=True)
class Owner:
    """Owner of an address: the host, a container, or a namespace without one."""

    name: str
    ns: int
    uid: str = ""
    networks: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Names:
    """Names by namespace, of the current topology.

    Separate from the index, so that index and columns have no reference cycle: it would keep large tables
    until the garbage collector runs."""

    topology: Topology

    def __call__(self, ns: int) -> Mapping[bytes, str]:
        return names_in(self.topology, ns)


class FlowIndex:
    """Columns derived from a FlowTable and a topology, each computed at first use.

    Rows are those of the table."""

    def __init__(self, topology: Topology, table: FlowTable, before: FlowIndex | None = None) -> None:
        """Index the rows; `before` is an index of the same rows for another topology."""
        self._names = _Names(topology)
        self.generation = table.generation
        self._ends: tuple[Mapping[int, Sockets], SocketEnds] | None = None
        if before is None:
            self.columns = FlowColumns(table.tables, self._names)
        else:
            self.columns = before.columns.renamed(self._names)
            self._inherit(before)

    @property
    def topology(self) -> Topology:
        """The current topology."""
        return self._names.topology

    def _inherit(self, before: FlowIndex) -> None:
        """Reuse columns that took long to compute and are the same in this topology."""
        reusable = ["tie_breakers", "socket_keys"]
        if before.topology.host == self.topology.host and before.connected == self.connected:
            reusable += ["connection", "edge"]
        self.__dict__.update({name: before.__dict__[name] for name in reusable if name in before.__dict__})

    def switch_topology(self, topology: Topology) -> bool:
        """Switch to another topology if it has the same owners; return whether it has."""
        if not _has_same_owners(self.topology, topology):
            return False
        self._names.topology = topology
        return True

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def tie_breakers(self) -> Column:
        """A number per row that stays the same over time, to order equal rows."""
        parts = [keys.entry_keys(table.ns, table.entries) for table in self.columns.tables]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint64)

    # ---- owners

    @cached_property
    def owners(self) -> tuple[Owner, ...]:
        """The owners of addresses in namespaces with a table; the host comes first."""
        return self._address_owners[0]

    @cached_property
    def _address_owners(self) -> tuple[tuple[Owner, ...], dict[int, tuple[KeyPositions, Column, Column]]]:
        """The owners, and for each namespace its known addresses with owner and network."""
        topology = self.topology
        codes: dict[Owner, int] = {Owner("host", topology.host): 0}
        by_namespace: dict[int, tuple[KeyPositions, Column, Column]] = {}
        for ns in dict.fromkeys(table.ns for table in self.columns.tables):
            names = self.columns.names(ns)
            raws = [raw for raw in names if raw]
            found = [self._owner(ns, raw, names[raw]) for raw in raws]
            owner = np.array([codes.setdefault(one, len(codes)) for one in found], np.int32)
            network = np.array(
                [self._network(one, raw) for one, raw in zip(found, raws, strict=True)], np.int32
            )
            by_namespace[ns] = KeyPositions(_address_keys(halves(raws))), owner, network
        return tuple(codes), by_namespace

    def _owner(self, ns: int, raw: bytes, name: str) -> Owner:
        topology = self.topology
        container = topology.container_at(ns, address_text(raw))
        if container is None and name == topology.label(ns) and ns != topology.host:
            container = topology.container_of(ns)
        if container is None:
            return Owner("host", topology.host) if ns == topology.host else Owner(name, ns)
        if container.netns == topology.host:
            return Owner("host", topology.host)
        networks = frozenset(network.id for network in topology.networks_of(container))
        return Owner(container.name, container.netns or 0, container.uid, networks)

    @cached_property
    def networks(self) -> tuple[Network, ...]:
        """The networks that have subnets."""
        return tuple(network for network in self.topology.networks if network.subnets)

    @cached_property
    def _subnets(self) -> list[tuple[int, ipaddress.IPv4Network | ipaddress.IPv6Network, str]]:
        found = []
        for number, network in enumerate(self.networks):
            for text in network.subnets:
                try:
                    found.append((number, ipaddress.ip_network(text, strict=False), network.id))
                except ValueError:
                    continue
        return found

    def _network(self, owner: Owner, raw: bytes) -> int:
        """Return the index of the network with an owner's address, -1 if there is none."""
        address = ipaddress.ip_address(address_text(raw))
        found = (number for number, net, key in self._subnets if key in owner.networks and address in net)
        return next(found, -1)

    def _lookup(self, name: str, network: bool) -> Column:
        """Return the owner, or the network, of each row's address ("orig_src", ...)."""
        address_keys = _address_keys(self.columns.column(name))
        result = np.full(len(self), -1, np.int32)
        for table, start, end in zip(
            self.columns.tables, self.columns.starts, self.columns.starts[1:], strict=False
        ):
            positions, owners, networks = self._address_owners[1][table.ns]
            found, values = positions.of(address_keys[start:end]), networks if network else owners
            if len(values):
                result[start:end] = np.where(found >= 0, values[np.maximum(found, 0)], -1)
        return result

    @cached_property
    def origin(self) -> Column:
        """The owner of the end that opened the connection, -1 if unknown."""
        return self._lookup("orig_src", False)

    @cached_property
    def responder(self) -> Column:
        """The owner of the end that answers, -1 if unknown."""
        return self._lookup("reply_src", False)

    @cached_property
    def origin_network(self) -> Column:
        """The network (an index in `networks`) of the origin's address, -1 if none."""
        return self._lookup("orig_src", True)

    @cached_property
    def responder_network(self) -> Column:
        """The network (an index in `networks`) of the responder's address, -1 if none."""
        return self._lookup("reply_src", True)

    # ---- clients

    @cached_property
    def client(self) -> Column:
        """The kind of client of each connection: an index in CLIENTS."""
        return np.asarray(self._client_kinds[self.origin + 1, self.responder + 1])

    @cached_property
    def _client_kinds(self) -> Column:
        """The kind of client by the two ends' owners + 1."""
        owners = self.owners
        kinds = np.zeros((len(owners) + 1, len(owners) + 1), np.uint8)
        for column, server in enumerate(owners[1:], start=2):
            if server.ns == self.topology.host:
                continue
            kinds[0, column], kinds[1, column] = OUTSIDE, HOST
            for row, client in enumerate(owners[1:], start=2):
                has_common = bool(client.networks & server.networks)
                kinds[row, column] = SAME_NETWORK if has_common else OTHER_NETWORK
            kinds[column, column] = ITSELF
        return kinds

    # ---- hops

    @cached_property
    def connected(self) -> Mapping[int, set[int]]:
        """The namespaces connected to each namespace."""
        return neighbours(self.topology)

    @cached_property
    def connection(self) -> Column:
        """A number per row, the same for all hops of one connection."""
        tables = self.columns.tables
        namespaces = list(dict.fromkeys(table.ns for table in tables))
        if len(namespaces) < 2:
            return np.arange(len(self))
        numbers = self.columns.by_table(np.array([namespaces.index(table.ns) for table in tables]))
        first = np.concatenate([keys.original_keys(table.entries) for table in tables])
        last = np.concatenate([keys.translated_keys(table.entries) for table in tables])
        connected = self.connected
        matrix = np.array(
            [[one == other or other in connected.get(one, ()) for other in namespaces] for one in namespaces]
        )
        return label_connections(first, last, numbers, matrix)

    @cached_property
    def edge(self) -> Column:
        """Mask of one row per connection: the host's entry, else one with counters."""
        at_host = self.columns.by_table(
            np.array([table.ns == self.topology.host for table in self.columns.tables], bool)
        )
        rank = at_host.astype(np.int8) + 2 * self.columns.column("counted").astype(np.int8)
        return edge_mask(self.connection, rank)

    def hops(self, row: int) -> list[int]:
        """Return the rows of a row's connection, in the order in which packets pass them."""
        rows = np.flatnonzero(self.connection == self.connection[row]).tolist()
        return self._ordered(rows)

    def _ordered(self, rows: list[int]) -> list[int]:
        """Sort hops so that each one's translated tuple is the next one's original tuple.

        Hops without translation are placed next to the end whose namespace they are in."""
        entries = [self.columns.place(row) for row in rows]
        first = [int(keys.original_keys(table.entries[at : at + 1])[0]) for table, at in entries]
        last = [int(keys.translated_keys(table.entries[at : at + 1])[0]) for table, at in entries]
        namespaces = [table.ns for table, _ in entries]
        origin, responder = self._namespace(self.origin, rows), self._namespace(self.responder, rows)
        order: list[int] = []
        left = set(range(len(rows)))
        while left:
            starts = [one for one in left if not any(last[o] == first[one] != first[o] for o in left - {one})]
            best = min(starts or left, key=lambda one: _distance(namespaces[one], origin, responder))
            order.append(rows[best])
            left.remove(best)
        return order

    def _namespace(self, ends: Column, rows: list[int]) -> int:
        """Return the namespace of an end, if any hop knows it, else 0."""
        known = (int(ends[row]) for row in rows)
        return next((self.owners[code].ns for code in known if code >= 0), 0)

    # ---- sockets

    def process_columns(self, sockets: Mapping[int, Sockets]) -> SocketEnds:
        """Return the columns from sockets; cached for the same sockets object."""
        if self._ends is None or self._ends[0] is not sockets:
            self._ends = sockets, socket_ends(self, sockets)
        return self._ends[1]

    @cached_property
    def socket_keys(self) -> tuple[Column, Column]:
        """The keys of the tuples that the origin's and the responder's sockets send."""
        tables = self.columns.tables
        first = [keys.original_keys(table.entries) for table in tables]
        back = [keys.reply_keys(table.entries) for table in tables]
        return np.concatenate(first), np.concatenate(back)

    def container(self, code: int) -> Container | None:
        """Return the container of an owner's code, None if it isn't one."""
        return self.topology.containers.get(self.owners[code].uid) if code >= 0 else None


def _has_same_owners(one: Topology, other: Topology) -> bool:
    """Return whether addresses have the same owners in both topologies.

    That depends on namespaces, links and containers; unchanged parts of snapshots are the same objects."""
    first, second = one.snapshot, other.snapshot
    return (
        first.nets is second.nets
        and first.engines is second.engines
        and first.namespaces is second.namespaces
        and first.ovs is second.ovs
        and one.host == other.host
    )


def neighbours(topology: Topology) -> dict[int, set[int]]:
    """Map each namespace to those connected to it by a veth, or over a bridge."""
    connected: dict[int, set[int]] = {}
    on_bridge: dict[tuple[int, int], set[int]] = {}
    for key, peer in topology.peers.items():
        connected.setdefault(key.ns, set()).add(peer.ns)
        connected.setdefault(peer.ns, set()).add(key.ns)
        link = topology.snapshot.link(key)
        master = topology.master_of(link) if link else None
        if master is not None:
            on_bridge.setdefault(master.key, {master.ns}).add(peer.ns)
    for members in on_bridge.values():
        for ns in members:
            connected.setdefault(ns, set()).update(members)
    return connected


def _address_keys(addresses: Column) -> Column:
    return keys.row_keys(addresses[:, 0], addresses[:, 1])


def _distance(ns: int, origin: int, responder: int) -> int:
    return 0 if ns == origin else 2 if ns == responder else 1


_ANY_IPV4 = np.frombuffer(bytes(10) + b"\xff\xff" + bytes(4), np.uint8)  # 0.0.0.0
_ANY = np.zeros(16, np.uint8)  # ::, which also accepts IPv4


# Names of segments that TCP counts, with the bytes of tcp_info that a kernel with the count sends.
SEGMENTS = {"retrans": RETRANS_INFO, "lost": RETRANS_INFO, "ooo": OOO_INFO}


@dataclass(frozen=True, slots=True, eq=False)
class SocketEnds:
    """Round trip times, segments and processes of flows.

    `rtt` is in seconds, NaN if unknown; `pids` has shape (n, 2), of origin and responder, 0 if unknown;
    `commands` are the names of these processes. `positions`, of shape (n, 2), are the sockets of both ends in
    `entries` (SOCKET_DTYPE), -1 if unknown."""

    rtt: Column
    pids: Column
    commands: Mapping[int, str]
    entries: Column
    positions: Column

    def segments(self, name: str, rows: Column | slice = slice(None)) -> Column:
        """Return one of SEGMENTS of both ends, shape (rows, 2), NaN if unknown."""
        positions = self.positions[rows]
        if not len(self.entries):
            return np.full(positions.shape, np.nan)
        known = (positions >= 0) & (self.entries["info"][positions] >= SEGMENTS[name])
        return np.where(known, self.entries[name][positions].astype(float), np.nan)

    def count(self, name: str, row: int) -> int | None:
        """Return the sum of both ends of one of SEGMENTS for a row, None if unknown."""
        known = [int(count) for count in self.segments(name, slice(row, row + 1))[0] if count == count]
        return sum(known) if known else None

    def total(self, name: str) -> Column:
        """Return the sum of both ends of one of SEGMENTS, NaN if neither is known."""
        ends = self.segments(name)
        return np.where(np.isnan(ends).all(axis=1), np.nan, np.nan_to_num(ends).sum(axis=1))


def socket_ends(index: FlowIndex, sockets: Mapping[int, Sockets]) -> SocketEnds:
    """Find the socket of each end, in the namespace of its address's owner.

    It is connected to the other end, or for UDP it may be unconnected and bound to that address and port."""
    count = len(index)
    rtt, pids = np.full(count, np.nan), np.zeros((count, 2), np.uint32)
    sockets_of_ends = np.full((count, 2), -1, np.int32)
    tables = [one for one in sockets.values() if len(one.entries)]
    if not tables or not count:
        return SocketEnds(rtt, pids, {}, no_sockets(), sockets_of_ends)
    entries = tables[0].entries if len(tables) == 1 else np.concatenate([one.entries for one in tables])
    namespaces = np.concatenate([np.full(len(one.entries), one.ns, np.uint64) for one in tables])
    positions = KeyPositions(row_keys(tuple_keys(entries, "local", "lport", "remote", "rport"), namespaces))
    owner_ns = np.array([0, *(owner.ns for owner in index.owners)], np.uint64)
    unconnected = _UnconnectedSockets(entries, namespaces)
    ends = ((index.origin, "orig_src", "orig_sport"), (index.responder, "reply_src", "reply_sport"))
    for end, (owner, address, port) in enumerate(ends):
        ns = owner_ns[owner + 1]
        position = positions.of(row_keys(index.socket_keys[end], ns))
        sockets_of_ends[:, end] = position
        rows = np.flatnonzero(position >= 0)
        pids[rows, end] = entries["pid"][position[rows]]
        trips = entries["rtt"][position[rows]]
        rtt[rows[trips > 0]] = trips[trips > 0] / 1e6
        missing = (pids[:, end] == 0) & (ns > 0) & (index.columns.column("l4_proto") == UDP)
        rows, holders = unconnected.find(np.flatnonzero(missing), index, ns, address, port)
        pids[rows, end] = holders
    commands = {pid: name for one in tables for pid, name in one.commands.items()}
    return SocketEnds(rtt, pids, commands, entries, sockets_of_ends)


class _UnconnectedSockets:
    """The UDP sockets without a peer, by address, port and namespace."""

    def __init__(self, entries: Column, namespaces: Column) -> None:
        chosen = (entries["l4_proto"] == UDP) & (entries["rport"] == 0) & (entries["pid"] > 0)
        self._entries = entries[chosen]
        address = address_halves(self._entries["local"])
        self._positions = KeyPositions(row_keys(*address, self._entries["lport"], namespaces[chosen]))
        self._ports = np.zeros(65536, bool)
        self._ports[self._entries["lport"]] = True

    def find(
        self, rows: Column, index: FlowIndex, ns: Column, address: str, port: str
    ) -> tuple[Column, Column]:
        """Return the rows whose end has such a socket, and the pids of its holders.

        A socket bound to the address comes before one bound to any."""
        rows = rows[self._ports[index.columns.column(port)[rows]]]
        ports, namespaces = index.columns.column(port)[rows], ns[rows]
        position = np.full(len(rows), -1, np.intp)
        for upper, lower in _bound_addresses(index.columns.raw(address, rows)):
            left = position < 0
            position[left] = self._positions.of(row_keys(upper, lower, ports, namespaces))[left]
        return rows[position >= 0], self._entries["pid"][position[position >= 0]]


def _bound_addresses(addresses: Column) -> list[tuple[Column, Column]]:
    """Return the addresses that a socket may be bound to: the address, then wildcards."""
    is_ipv4 = (addresses[:, :12] == _ANY_IPV4[:12]).all(axis=1)
    wildcard = np.where(is_ipv4[:, None], _ANY_IPV4, _ANY).astype(np.uint8)
    dual_stack = np.broadcast_to(_ANY, addresses.shape)
    return [address_halves(one) for one in (addresses, wildcard, dual_stack)]


@dataclass(frozen=True, eq=False)
class FlowView:
    """A table of flows and the index of its rows."""

    table: FlowTable
    index: FlowIndex

    @classmethod
    def of(cls, topology: Topology, table: FlowTable, before: FlowView | None = None) -> FlowView:
        """Index a table; reuse the index of `before` as far as it is still valid."""
        if before is not None and before.table is table and before.index.topology is topology:
            return before
        index = before.index if before is not None else None
        if index is None or index.generation != table.generation:
            index = FlowIndex(topology, table)
        elif not index.switch_topology(topology):
            index = FlowIndex(topology, table, index)
        return cls(table, index)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def ends(self) -> SocketEnds:
        """Round trip times, segments and processes."""
        return self.index.process_columns(self.table.sockets)

    def command(self, row: int, end: int) -> str:
        """Return the process at an end (0 origin, 1 responder), "" if unknown."""
        pid = int(self.ends.pids[row, end])
        name = self.ends.commands.get(pid, "")
        return f"{name}[{pid}]" if pid else ""

    def row_of(self, ns: int, number: int) -> int | None:
        """Return the row of a conntrack entry, None if it is gone."""
        rows = np.flatnonzero(self.index.columns.column("id") == number).tolist()
        return next((row for row in rows if self.index.columns.place(row)[0].ns == ns), None)
