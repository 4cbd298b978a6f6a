"""Whose flows: the ends' owners, the kinds of clients, the hops of one connection; worked out in columns."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from core.flows import FlowColumns, address_text
from core.flows import columns as keys_of
from core.flows.columns import KeyPositions, folded, halves, halves_of, one_way
from core.flows.describe import UDP
from core.flows.merge import FlowTable, connections, edges
from core.model import Container, Network, Sockets
from core.topology.index import names_in

if TYPE_CHECKING:
    from core.topology.index import Topology


Column = np.ndarray[Any, Any]

# Who opened a connection to a container, or to the host: nothing to say, the host itself, a container on a
# network that both are on, one on others, another host, the container itself.
CLIENTS = ("", "host", "beside", "other network", "outside", "itself")
NO_CLIENT, HOST, BESIDE, OTHER_NETWORK, OUTSIDE, ITSELF = range(len(CLIENTS))


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an address is: the host's (`ns` is the host's), a container's, or a namespace's without one."""

    name: str
    ns: int
    uid: str = ""
    networks: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Names:
    """Names by namespace, of the topology of the day; a thing of its own, so that index and columns make no
    cycle, which would keep large tables until garbage is collected."""

    topology: Topology

    def __call__(self, ns: int) -> Mapping[bytes, str]:
        return names_in(self.topology, ns)


class FlowIndex:
    """What follows from the tuples of a FlowTable and a topology; worked out once for both, each part when
    it is first asked for. Rows are those of the table."""

    def __init__(self, topology: Topology, table: FlowTable, before: FlowIndex | None = None) -> None:
        """`before` is an index over the same rows, for another topology."""
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
        """That which it serves now."""
        return self._names.topology

    def _inherit(self, before: FlowIndex) -> None:
        """Take over what took long and says the same in this topology."""
        kept = ["ties", "sides"]
        if before.topology.host == self.topology.host and before.near == self.near:
            kept += ["connection", "edge"]
        self.__dict__.update({name: before.__dict__[name] for name in kept if name in before.__dict__})

    def serving(self, topology: Topology) -> bool:
        """Serve another topology, where that knows the same people; whether it does."""
        if not same_people(self.topology, topology):
            return False
        self._names.topology = topology
        return True

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def ties(self) -> Column:
        """A number for each row that stays the same over time: the order of rows that are alike."""
        parts = [keys_of.identity(table.ns, table.entries) for table in self.columns.tables]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint64)

    # ---- owners

    @cached_property
    def owners(self) -> tuple[Owner, ...]:
        """Everybody whose addresses are known where a table is; the host comes first."""
        return self._owned[0]

    @cached_property
    def _owned(self) -> tuple[tuple[Owner, ...], dict[int, tuple[KeyPositions, Column, Column]]]:
        """The owners, and for each namespace with a table its known addresses: their places, and at each the
        owner and the network."""
        topology = self.topology
        codes: dict[Owner, int] = {Owner("host", topology.host): 0}
        books: dict[int, tuple[KeyPositions, Column, Column]] = {}
        for ns in dict.fromkeys(table.ns for table in self.columns.tables):
            names = self.columns.names(ns)
            raws = [raw for raw in names if raw]
            found = [self._owner(ns, raw, names[raw]) for raw in raws]
            owner = np.array([codes.setdefault(one, len(codes)) for one in found], np.int32)
            network = np.array(
                [self._network(one, raw) for one, raw in zip(found, raws, strict=True)], np.int32
            )
            books[ns] = KeyPositions(_address_keys(halves(raws))), owner, network
        return tuple(codes), books

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
        """The network on which an owner has an address, -1 where there is none."""
        address = ipaddress.ip_address(address_text(raw))
        mine = (number for number, net, key in self._subnets if key in owner.networks and address in net)
        return next(mine, -1)

    def _looked_up(self, name: str, network: bool) -> Column:
        """For each row what is known of an address ("orig_src", ...): the owner, or the network."""
        keys = _address_keys(self.columns.column(name))
        result = np.full(len(self), -1, np.int32)
        for table, start, end in zip(
            self.columns.tables, self.columns.starts, self.columns.starts[1:], strict=False
        ):
            places, owners, networks = self._owned[1][table.ns]
            found, book = places.of(keys[start:end]), networks if network else owners
            if len(book):
                result[start:end] = np.where(found >= 0, book[np.maximum(found, 0)], -1)
        return result

    @cached_property
    def origin(self) -> Column:
        """The owner of the end that opened it, -1 where nobody is known."""
        return self._looked_up("orig_src", False)

    @cached_property
    def responder(self) -> Column:
        """The owner of the end that answers."""
        return self._looked_up("reply_src", False)

    @cached_property
    def origin_network(self) -> Column:
        """The network (a place in `networks`) on which the opener has its address, -1 where there is none."""
        return self._looked_up("orig_src", True)

    @cached_property
    def responder_network(self) -> Column:
        """The same of the end that answers."""
        return self._looked_up("reply_src", True)

    # ---- clients

    @cached_property
    def client(self) -> Column:
        """What kind of client a connection has: an index in CLIENTS."""
        return np.asarray(self._kinds[self.origin + 1, self.responder + 1])

    @cached_property
    def _kinds(self) -> Column:
        """The kind of client by the two ends' owners + 1."""
        owners = self.owners
        kinds = np.zeros((len(owners) + 1, len(owners) + 1), np.uint8)
        for place, server in enumerate(owners[1:], start=2):
            if server.ns == self.topology.host:
                continue
            kinds[0, place], kinds[1, place] = OUTSIDE, HOST
            for other, client in enumerate(owners[1:], start=2):
                beside = bool(client.networks & server.networks)
                kinds[other, place] = BESIDE if beside else OTHER_NETWORK
            kinds[place, place] = ITSELF
        return kinds

    # ---- hops

    @cached_property
    def near(self) -> Mapping[int, set[int]]:
        """Which namespaces hang together."""
        return neighbours(self.topology)

    @cached_property
    def connection(self) -> Column:
        """A number for each row, the same for the hops of one connection through several namespaces."""
        tables = self.columns.tables
        spaces = list(dict.fromkeys(table.ns for table in tables))
        if len(spaces) < 2:
            return np.arange(len(self))
        place = self.columns.by_table(np.array([spaces.index(table.ns) for table in tables]))
        first = np.concatenate([keys_of.before(table.entries) for table in tables])
        last = np.concatenate([keys_of.after(table.entries) for table in tables])
        near = self.near
        matrix = np.array(
            [[one == other or other in near.get(one, ()) for other in spaces] for one in spaces]
        )
        return connections(first, last, place, matrix)

    @cached_property
    def edge(self) -> Column:
        """Where a row stands for its connection: the host's own entry, else one that counts."""
        at_host = self.columns.by_table(
            np.array([table.ns == self.topology.host for table in self.columns.tables], bool)
        )
        rank = at_host.astype(np.int8) + 2 * self.columns.column("counted").astype(np.int8)
        return edges(self.connection, rank)

    def hops(self, row: int) -> list[int]:
        """The rows of a row's connection, itself among them, in the order in which its packets meet them."""
        rows = np.flatnonzero(self.connection == self.connection[row]).tolist()
        return self._ordered(rows)

    def _ordered(self, rows: list[int]) -> list[int]:
        """Hops follow one another where the one's tuple leaves as the other's comes in; those that change
        nothing stand nearest to the end whose namespace they are in."""
        entries = [self.columns.place(row) for row in rows]
        first = [int(keys_of.before(table.entries[at : at + 1])[0]) for table, at in entries]
        last = [int(keys_of.after(table.entries[at : at + 1])[0]) for table, at in entries]
        spaces = [table.ns for table, _ in entries]
        opener, server = self._space(self.origin, rows), self._space(self.responder, rows)
        order: list[int] = []
        left = set(range(len(rows)))
        while left:
            starts = [one for one in left if not any(last[o] == first[one] != first[o] for o in left - {one})]
            best = min(starts or left, key=lambda one: _nearness(spaces[one], opener, server))
            order.append(rows[best])
            left.remove(best)
        return order

    def _space(self, ends: Column, rows: list[int]) -> int:
        """The namespace of an end, as any of the hops knows it; 0 where none does."""
        known = (int(ends[row]) for row in rows)
        return next((self.owners[code].ns for code in known if code >= 0), 0)

    # ---- sockets

    def process_columns(self, sockets: Mapping[int, Sockets]) -> SocketEnds:
        """What sockets tell of the ends: each is looked for in the namespace of its address's owner."""
        if self._ends is None or self._ends[0] is not sockets:
            self._ends = sockets, socket_ends(self, sockets)
        return self._ends[1]

    @cached_property
    def sides(self) -> tuple[Column, Column]:
        """The keys of what the opener's socket sends, and the server's."""
        tables = self.columns.tables
        first = [keys_of.before(table.entries) for table in tables]
        back = [keys_of.back(table.entries) for table in tables]
        return np.concatenate(first), np.concatenate(back)

    def container(self, code: int) -> Container | None:
        """The container that an owner is, None for others."""
        return self.topology.containers.get(self.owners[code].uid) if code >= 0 else None


def same_people(one: Topology, other: Topology) -> bool:
    """Whether two topologies know the same namespaces, links and containers, so that addresses belong to the
    same; equal parts of snapshots are the same objects."""
    mine, theirs = one.snapshot, other.snapshot
    return (
        mine.nets is theirs.nets
        and mine.engines is theirs.engines
        and mine.namespaces is theirs.namespaces
        and mine.ovs is theirs.ovs
        and one.host == other.host
    )


def neighbours(topology: Topology) -> dict[int, set[int]]:
    """Which namespaces hang together: by a veth, or by ports of the same bridge."""
    near: dict[int, set[int]] = {}
    on_bridge: dict[tuple[int, int], set[int]] = {}
    for key, peer in topology.peers.items():
        near.setdefault(key.ns, set()).add(peer.ns)
        near.setdefault(peer.ns, set()).add(key.ns)
        link = topology.snapshot.link(key)
        master = topology.master_of(link) if link else None
        if master is not None:
            on_bridge.setdefault(master.key, {master.ns}).add(peer.ns)
    for spaces in on_bridge.values():
        for ns in spaces:
            near.setdefault(ns, set()).update(spaces)
    return near


def _address_keys(addresses: Column) -> Column:
    return keys_of.folded(addresses[:, 0], addresses[:, 1])


def _nearness(ns: int, opener: int, server: int) -> int:
    return 0 if ns == opener else 2 if ns == server else 1


_MAPPED = np.frombuffer(bytes(10) + b"\xff\xff" + bytes(4), np.uint8)  # 0.0.0.0
_ANY = np.zeros(16, np.uint8)  # ::, which also takes IPv4


@dataclass(frozen=True, slots=True, eq=False)
class SocketEnds:
    """`rtt` in seconds, NaN where not known; `pids` has shape (n, 2), of opener and server, 0 where not
    known; `commands` the names of these processes."""

    rtt: Column
    pids: Column
    commands: Mapping[int, str]


def socket_ends(index: FlowIndex, sockets: Mapping[int, Sockets]) -> SocketEnds:
    """Each end is looked for in the namespace of its address's owner: the socket that is connected to the
    other end, or else, of UDP, one that serves everybody at that address and port."""
    count = len(index)
    rtt, pids = np.full(count, np.nan), np.zeros((count, 2), np.uint32)
    kept = [one for one in sockets.values() if len(one.entries)]
    if not kept or not count:
        return SocketEnds(rtt, pids, {})
    entries = np.concatenate([one.entries for one in kept])
    spaces = np.concatenate([np.full(len(one.entries), one.ns, np.uint64) for one in kept])
    places = KeyPositions(folded(one_way(entries, "local", "lport", "remote", "rport"), spaces))
    owner_ns = np.array([0, *(owner.ns for owner in index.owners)], np.uint64)
    servers = _Servers(entries, spaces)
    ends = ((index.origin, "orig_src", "orig_sport"), (index.responder, "reply_src", "reply_sport"))
    for end, (owner, address, port) in enumerate(ends):
        ns = owner_ns[owner + 1]
        place = places.of(folded(index.sides[end], ns))
        rows = np.flatnonzero(place >= 0)
        found = entries[place[rows]]
        pids[rows, end] = found["pid"]
        measured = found["rtt"] > 0
        rtt[rows[measured]] = found["rtt"][measured] / 1e6
        open_ends = (pids[:, end] == 0) & (ns > 0) & (index.columns.column("l4_proto") == UDP)
        rows, holders = servers.at(np.flatnonzero(open_ends), index, ns, address, port)
        pids[rows, end] = holders
    commands = {pid: name for one in kept for pid, name in one.commands.items()}
    return SocketEnds(rtt, pids, commands)


class _Servers:
    """The UDP sockets that are connected to nobody, by address, port and namespace."""

    def __init__(self, entries: Column, spaces: Column) -> None:
        chosen = (entries["l4_proto"] == UDP) & (entries["rport"] == 0) & (entries["pid"] > 0)
        self._entries = entries[chosen]
        halves = halves_of(self._entries["local"])
        self._places = KeyPositions(folded(*halves, self._entries["lport"], spaces[chosen]))
        self._ports = np.zeros(65536, bool)
        self._ports[self._entries["lport"]] = True

    def at(
        self, rows: Column, index: FlowIndex, ns: Column, address: str, port: str
    ) -> tuple[Column, Column]:
        """Of these rows those whose end such a socket holds, and by which process: one that is bound to the
        very address comes before one that takes any."""
        rows = rows[self._ports[index.columns.column(port)[rows]]]
        ports, spaces = index.columns.column(port)[rows], ns[rows]
        place = np.full(len(rows), -1, np.intp)
        for low, high in _locals(index.columns.raw(address, rows)):
            left = place < 0
            place[left] = self._places.of(folded(low, high, ports, spaces))[left]
        return rows[place >= 0], self._entries["pid"][place[place >= 0]]


def _locals(addresses: Column) -> list[tuple[Column, Column]]:
    """The addresses that a socket may be bound to for these, the very ones first."""
    is_ipv4 = (addresses[:, :12] == _MAPPED[:12]).all(axis=1)
    wild = np.where(is_ipv4[:, None], _MAPPED, _ANY).astype(np.uint8)
    every = np.broadcast_to(_ANY, addresses.shape)
    return [halves_of(one) for one in (addresses, wild, every)]


@dataclass(frozen=True, eq=False)
class FlowPicture:
    """A table of flows and the index over its rows."""

    table: FlowTable
    index: FlowIndex

    @classmethod
    def of(cls, topology: Topology, table: FlowTable, before: FlowPicture | None = None) -> FlowPicture:
        """The picture of a table; the index of the picture before serves on, where it holds for both."""
        if before is not None and before.table is table and before.index.topology is topology:
            return before
        index = before.index if before is not None else None
        if index is None or index.generation != table.generation:
            index = FlowIndex(topology, table)
        elif not index.serving(topology):
            index = FlowIndex(topology, table, index)
        return cls(table, index)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def ends(self) -> SocketEnds:
        """What sockets tell of the ends."""
        return self.index.process_columns(self.table.sockets)

    def command(self, row: int, end: int) -> str:
        """The process that holds the socket at an end (0 the opener, 1 the server), "" where not known."""
        pid = int(self.ends.pids[row, end])
        name = self.ends.commands.get(pid, "")
        return f"{name}[{pid}]" if pid else ""

    def row_of(self, ns: int, number: int) -> int | None:
        """The row of a conntrack entry, None where it is gone."""
        rows = np.flatnonzero(self.index.columns.column("id") == number).tolist()
        return next((row for row in rows if self.index.columns.place(row)[0].ns == ns), None)
