"""Keep neighbours and forwarding tables fresh, as forwarded traffic would."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from bpf import layout, syscall
from bpf.clock import jiffies_ago
from bpf.maps import Loaded, Maps
from core.netlink.client import (
    NLM_F_ACK,
    ROUTE,
    Netlink,
    attribute,
    attributes,
    listener,
    pending_events,
    walk,
)

_NEW, _DEL, _GET = 28, 29, 30
_FILTERS = (44, 45)  # RTM_NEWTFILTER, RTM_DELTFILTER
_GROUPS = (3, 4)  # RTNLGRP_NEIGH, RTNLGRP_TC
_BUFFER = 4 << 20
_NDA_DST, _NDA_LLADDR, _NDA_MASTER = 1, 2, 9
_NDMSG = struct.Struct("=BxxxiHBB")
_REACHABLE, _STALE = 0x02, 0x04
_VALID = 0xDE  # reachable, stale, delay, probe, noarp, permanent
_NTF_USE, _NTF_MASTER, _NTF_STICKY = 0x01, 0x04, 0x40
_STATIC = 0x40 | 0x80  # NUD_NOARP ("static"), NUD_PERMANENT
_AF_BRIDGE = 7

Key = tuple[int, int, bytes]  # family, ifindex, address


@dataclass(slots=True)
class NeighbourChanges:
    """Report changes of neighbours and filters.

    `moved`: a neighbour has another MAC or none, or a MAC is behind another host of a tunnel. `filters`: a tc
    filter was added or deleted, a MAC was pinned to a port, or is now known behind a tunnel, or no longer.
    """

    moved: bool = False
    filters: bool = False


class Neighbours:
    """Follow the MACs of this namespace's neighbours by events.

    `pinned`: ports by bridge and MAC of entries that were set by hand in a forwarding table. `tunnelled`: the
    same of all entries at tunnels.
    """

    def __init__(self) -> None:
        self._socket = listener(ROUTE, _GROUPS, _BUFFER)
        self._macs: dict[Key, bytes] = {}
        self._stale: set[Key] = set()
        self.pinned: dict[tuple[int, bytes], int] = {}
        self.tunnelled: dict[tuple[int, bytes], int] = {}
        self._hosts: dict[tuple[int, bytes], set[bytes]] = {}
        self._hosts_moved = False
        self._tunnels: frozenset[int] = frozenset()
        self._read_all()

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._socket.fileno()

    def read_events(self) -> NeighbourChanges:
        """Return the changes since the last call; never waits."""
        found = NeighbourChanges()
        for data in pending_events(self._socket):
            if data is None:
                self._read_all()
                found.moved = found.filters = True
                continue
            for kind, _, _, payload in walk(data):
                if kind in _FILTERS:
                    found.filters = True
                elif kind in (_NEW, _DEL) and payload[0] == _AF_BRIDGE:
                    found.filters |= self._update_fdb(payload, kind == _DEL)
                    is_new, has_moved = self._update_hosts(payload, kind == _DEL)
                    found.filters |= is_new or has_moved
                    found.moved |= has_moved
                elif kind in (_NEW, _DEL) and self._update(payload, kind == _DEL):
                    found.moved = True
        return found

    def _read_all(self) -> None:
        self._macs, self._stale, self.pinned, self.tunnelled, self._hosts = {}, set(), {}, {}, {}
        self._read((0, _AF_BRIDGE))

    def _read(self, families: Iterable[int]) -> None:
        with Netlink(ROUTE) as kernel:
            for family in families:
                for message in kernel.dump(_GET, _NDMSG.pack(family, 0, 0, 0, 0)):
                    self._update(message.payload, False)
        self._hosts_moved = False

    def watch_tunnels(self, ports: frozenset[int]) -> None:
        """Follow the MACs behind these bridge ports."""
        if ports != self._tunnels:
            self._tunnels, self.tunnelled, self._hosts = ports, {}, {}
            self._read((_AF_BRIDGE,))

    def _update(self, payload: bytes, is_gone: bool) -> bool:
        """Update one neighbour; return whether it was known with another MAC."""
        family, ifindex, state, _, _ = _NDMSG.unpack_from(payload)
        if family == _AF_BRIDGE:
            self._update_hosts(payload, is_gone)
            return self._update_fdb(payload, is_gone)
        given = attributes(payload, _NDMSG.size)
        key = (family, ifindex, given.get(_NDA_DST, b""))
        before = self._macs.get(key)
        self._stale.discard(key)
        if is_gone or not state & _VALID:
            return self._macs.pop(key, None) is not None
        mac = given.get(_NDA_LLADDR, b"")
        self._macs[key] = mac
        if state & _STALE:
            self._stale.add(key)
        return before is not None and before != mac

    def _update_fdb(self, payload: bytes, is_gone: bool) -> bool:
        """Update an entry of a bridge's forwarding table.

        Returns whether one changed that isn't learned, or is behind a tunnel.
        """
        _, port, state, flags, _ = _NDMSG.unpack_from(payload)
        given = attributes(payload, _NDMSG.size)
        if _NDA_MASTER not in given:
            return False
        key = (int.from_bytes(given[_NDA_MASTER], sys.byteorder), given.get(_NDA_LLADDR, b""))
        before, tunnel = self.pinned.get(key), self.tunnelled.pop(key, None)
        if not is_gone and port in self._tunnels:
            self.tunnelled[key] = port
        if not is_gone and (state & _STATIC or flags & _NTF_STICKY):
            self.pinned[key] = port
        elif before == port:
            del self.pinned[key]
        return self.pinned.get(key) != before or self.tunnelled.get(key) != tunnel

    def _update_hosts(self, payload: bytes, is_gone: bool) -> tuple[bool, bool]:
        """Update the hosts that a tunnel's own table has for a MAC.

        Returns whether the MAC is new, and whether it moved. An entry that is replaced looks like one that
        is added, so it is read again.
        """
        _, tunnel, _, _, _ = _NDMSG.unpack_from(payload)
        given = attributes(payload, _NDMSG.size)
        if tunnel not in self._tunnels or _NDA_MASTER in given:
            return False, False
        key, host = (tunnel, given.get(_NDA_LLADDR, b"")), given.get(_NDA_DST, b"")
        known = self._hosts.pop(key, set())
        if is_gone:
            self._hosts_moved |= bool(known - {host})
            return False, bool(known)
        self._hosts[key] = known | {host}
        has_moved = bool(known) and host not in known
        self._hosts_moved |= has_moved
        return not known, has_moved

    def is_at_one_host(self, tunnel: int, mac: bytes) -> bool:
        """Return whether a tunnel sends frames for this MAC to one host, without flooding."""
        if self._hosts_moved:
            self._hosts = {}
            self._read((_AF_BRIDGE,))
        hosts = self._hosts.get((tunnel, mac), set())
        return len(hosts) == 1 and b"" not in hosts

    def has_stale(self, ifindexes: Collection[int]) -> bool:
        """Return whether the kernel could expire unused neighbours on these interfaces."""
        return any(key[1] in ifindexes for key in self._stale)

    def confirm(self, macs: set[bytes]) -> int:
        """Ask the kernel to confirm stale neighbours with these MACs; return how many."""
        stale = [key for key in self._stale if self._macs.get(key) in macs]
        if not stale:
            return 0
        with Netlink(ROUTE) as kernel:
            kernel.batch([(_NEW, _use_request(key)) for key in stale])
        self._stale.difference_update(stale)
        return len(stale)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _use_request(key: Key) -> bytes:
    family, ifindex, address = key
    return _NDMSG.pack(family, ifindex, 0, _NTF_USE, 0) + attribute(_NDA_DST, address)


def refresh_fdb(entries: list[tuple[int, bytes]]) -> None:
    """Keep entries (port, MAC) of forwarding tables from ageing, as frames would."""
    requests = [
        (
            _NEW,
            _NDMSG.pack(_AF_BRIDGE, port, _REACHABLE, _NTF_USE | _NTF_MASTER, 0)
            + attribute(_NDA_LLADDR, mac),
        )
        for port, mac in entries
    ]
    if requests:
        with Netlink(ROUTE) as kernel:
            kernel.batch(requests, NLM_F_ACK)


_RECENT = 30  # seconds
_FDB_EVERY = 60.0


class Keepalive:
    """Refresh what flows use; reads the flows only if something may expire."""

    def __init__(self, loaded: Loaded, maps: Maps, neighbours: Neighbours) -> None:
        self._descriptors = loaded.maps
        self._maps = maps
        self._neighbours = neighbours
        self._fdb_at = time.monotonic() + _FDB_EVERY

    def run(self) -> None:
        """Refresh neighbours and FDB entries that flows use; called every few seconds."""
        fdb_due = time.monotonic() >= self._fdb_at and bool(self._maps.port_macs)
        l3 = {link.l3_ifindex for link in self._maps.links.values()}
        if not (self._neighbours.has_stale(l3) or fdb_due):
            return
        sent_to, received_from = self._macs_in_use()
        self._neighbours.confirm(sent_to)
        if fdb_due:
            self._fdb_at = time.monotonic() + _FDB_EVERY
            refresh_fdb([(port, mac) for port, mac in self._maps.port_macs if mac in sent_to | received_from])

    def _flows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield keys and flows of each family."""
        for name, key in (("flows4", layout.KEY4), ("flows6", layout.KEY6)):
            flows = self._descriptors[name]
            yield syscall.read_all(flows, key, layout.FLOW, syscall.max_entries(flows))

    def _macs_in_use(self) -> tuple[set[bytes], set[bytes]]:
        """Return the MACs that recent flows were sent to and came from."""
        now, recent = self._maps.clock.now(), _RECENT * self._maps.clock.hz
        sent_to: set[bytes] = set()
        received_from: set[bytes] = set()
        for _, flows in self._flows():
            is_recent = jiffies_ago(flows["last_seen"], now) < recent
            used = flows[is_recent & (flows["action"] >= layout.ACTION_PEER)]
            sent_to |= {row.tobytes() for row in np.unique(used["eth_out"][:, :6], axis=0)}
            received_from |= {row.tobytes() for row in np.unique(used["eth_in"][:, 6:], axis=0)}
        return sent_to, received_from
