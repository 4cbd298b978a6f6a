"""What sockets tell of flows: round trip times, and the processes at the ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from core.flows import keys as keys_of
from core.flows.keys import Places
from core.flows.words import UDP
from core.model import Sockets

if TYPE_CHECKING:
    from core.topology.flowindex import FlowIndex

Column = np.ndarray[Any, Any]

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
    places = Places(keys_of.folded(keys_of.one_way(entries, "local", "lport", "remote", "rport"), spaces))
    owner_ns = np.array([0, *(owner.ns for owner in index.owners)], np.uint64)
    servers = _Servers(entries, spaces)
    ends = ((index.origin, "orig_src", "orig_sport"), (index.responder, "reply_src", "reply_sport"))
    for end, (owner, address, port) in enumerate(ends):
        ns = owner_ns[owner + 1]
        place = places.of(keys_of.folded(index.sides[end], ns))
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
        halves = keys_of.halves_of(self._entries["local"])
        self._places = Places(keys_of.folded(*halves, self._entries["lport"], spaces[chosen]))
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
            place[left] = self._places.of(keys_of.folded(low, high, ports, spaces))[left]
        return rows[place >= 0], self._entries["pid"][place[place >= 0]]


def _locals(addresses: Column) -> list[tuple[Column, Column]]:
    """The addresses that a socket may be bound to for these, the very ones first."""
    is_ipv4 = (addresses[:, :12] == _MAPPED[:12]).all(axis=1)
    wild = np.where(is_ipv4[:, None], _MAPPED, _ANY).astype(np.uint8)
    every = np.broadcast_to(_ANY, addresses.shape)
    return [keys_of.halves_of(one) for one in (addresses, wild, every)]
