"""Bring maps and attachments in line with the host's links, addresses and bridges."""

from __future__ import annotations

import ipaddress
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from bpf import hooks, ports
from bpf.attachments import NO_FOREIGN, Attachments, Foreign, foreign_programs
from bpf.hooks import Filters, read_filters
from bpf.hostwatch import bridge_calls_iptables
from bpf.keepalive import Neighbours
from bpf.link_state import EngineNetworks, LinkReader, LinkState, Peer, PeerKey, RouteInfo, find_bridges
from bpf.maps import Loaded, Maps
from bpf.ports import OWNER_KEY, MapContents, peer_key
from bpf.rule_analysis import PacketLinks
from core.model import Link


class Observer:
    """Read the host's links and the peers of its veth pairs.

    `links` are the host's, as read last. Peers are read again only where something changed.
    """

    def __init__(self) -> None:
        self._reader = LinkReader()
        self.links: Mapping[int, Link] = {}
        self._peers: dict[int, tuple[Link, PeerKey, Peer]] = {}
        self._filters = Filters()

    def read_host(self) -> None:
        """Read the host's own links and their tc filters."""
        self.links = self._reader.links()
        self._filters = read_filters(self._reader, self.links)

    def invalidate(self) -> None:
        """Forget all peers: events were lost."""
        self._peers = {}

    def affects(self, dirty: Collection[int | None]) -> bool:
        """Return whether one of these namespaces is the host's or has a known peer."""
        return None in dirty or any(key[0] in dirty for _, key, _ in self._peers.values())

    def route_info(self) -> RouteInfo:
        """Read what must be known about the routes beforehand."""
        return self._reader.route_info()

    def link_state(
        self, bridges: Collection[int], foreign: Foreign, dirty: Collection[int | None] = ()
    ) -> LinkState:
        """Return the state of all links, with the peers of these bridges' ports.

        New peers are read, and those in one of the `dirty` namespaces. `foreign`: links with tcx programs
        of other tools.
        """
        wanted = {link.ifindex: link for link in self.links.values() if link.master in bridges}
        known = {
            ifindex: entry
            for ifindex, entry in self._peers.items()
            if wanted.get(ifindex) is entry[0] and entry[1][0] not in dirty
        }
        missing = {
            ifindex: (link, key)
            for ifindex, link in wanted.items()
            if ifindex not in known and (key := peer_key(link))
        }
        found = self._reader.peers(key for _, key in missing.values())
        known |= {
            ifindex: (link, key, found[key]) for ifindex, (link, key) in missing.items() if key in found
        }
        self._peers = known
        peers = {key: peer for _, key, peer in known.values()}
        programs_in, programs_out = foreign
        filters = Filters(
            self._filters.ingress | programs_in,
            self._filters.egress | programs_out,
            self._filters.unsafe | programs_out,
        )
        v4, v6 = bridge_calls_iptables()
        return LinkState(self.links, peers, filters, v4, v6)

    def close(self) -> None:
        """Close the socket."""
        self._reader.close()


_MAX_BINDINGS = 1 << 16  # addresses that are remembered, deleted ones included
_SEVERAL = (0, b"")  # the place of an address that was at several ports
# Seconds between two generations that begin because something moved. A generation costs every connection of
# all containers a packet in each direction, so a container that moves its address again and again must not
# begin one each time.
HOLDOFF = 0.25

Address = tuple[int, bytes]  # family and address
Place = tuple[int, bytes]  # ifindex of the port and MAC


@dataclass(slots=True)
class Bindings:
    """Remember the port of each address and each MAC during one generation.

    A rule may match the source MAC or the bridge port, which are not part of a connection's tuple. When an
    address or a MAC moves to another port, its connections must therefore pass the rules again. If two ports
    claim one address, the first keeps it: a container must not send packets into another's connections. The
    kernel decides about the second.

    `retry_after`: seconds until a move that came too soon can be accepted, 0 if there is none.
    """

    addresses: dict[Address, Place] = field(default_factory=dict)
    macs: dict[bytes, int] = field(default_factory=dict)
    retry_after: float = 0.0
    _hold_until: float = 0.0

    def drop_conflicts(self, contents: MapContents) -> None:
        """Remove claims of an address that belongs to another port.

        That is one that another port had before, or that several ports claim at once. `contents.refused`
        names those ports.
        """
        claims: dict[Address, list[tuple[bytes, int]]] = {}
        for key in contents.owners:
            ifindex, family, address = OWNER_KEY.unpack(key)
            claims.setdefault((family, address), []).append((key, ifindex))
        for address, claimed in claims.items():
            if len(claimed) == 1:
                continue
            first = self.addresses.get(address, _SEVERAL)[0]
            for key, ifindex in claimed:
                if ifindex != first:
                    del contents.owners[key]
                    contents.refused[contents.links[ifindex].name] = _conflict_text(address)

    def update(self, contents: MapContents, now: float) -> bool:
        """Remember where addresses and MACs are; return if a generation must begin.

        It must if one moved, or if too many are remembered. Within HOLDOFF after the last one the ports
        that something moved to are removed from `contents` instead: the kernel forwards for them.
        """
        moved = self._moved(contents)
        may_begin = now >= self._hold_until
        if may_begin and (moved or len(self.addresses) > _MAX_BINDINGS):
            self.addresses, self.macs = {}, {}
            self._hold_until = now + HOLDOFF
            self.retry_after = 0.0
            self._remember(contents)
            return True
        _remove_ports(contents, moved)
        self.retry_after = self._hold_until - now if moved else 0.0
        self._remember(contents)
        return False

    def _moved(self, contents: MapContents) -> set[int]:
        """Return the ports with an address or a MAC that was elsewhere before.

        They stay moved even if the address returns: its connections may have passed the rules from the
        other port meanwhile.
        """
        moved = set()
        for key, mac in contents.owners.items():
            ifindex, family, address = OWNER_KEY.unpack(key)
            if self.addresses.get((family, address), (ifindex, mac)) != (ifindex, mac):
                moved.add(ifindex)
                self.addresses[family, address] = _SEVERAL
        for key, value in contents.macs.items():
            if self.macs.get(key, _port(value)) != _port(value):
                moved.add(_port(value))
                self.macs[key] = _SEVERAL[0]
        return moved

    def _remember(self, contents: MapContents) -> None:
        for key, mac in contents.owners.items():
            ifindex, family, address = OWNER_KEY.unpack(key)
            self.addresses[family, address] = (ifindex, mac)
        self.macs |= {key: _port(value) for key, value in contents.macs.items()}


def _remove_ports(contents: MapContents, ports: set[int]) -> None:
    """Remove all addresses and MACs of these ports."""
    if not ports:
        return
    contents.owners = {
        key: mac for key, mac in contents.owners.items() if OWNER_KEY.unpack(key)[0] not in ports
    }
    contents.macs = {key: value for key, value in contents.macs.items() if _port(value) not in ports}
    contents.port_macs = [each for each in contents.port_macs if each[0] not in ports]


def _port(value: bytes) -> int:
    """Return the ifindex in a value of the map `macs`."""
    return int.from_bytes(value[:4], sys.byteorder)


def _conflict_text(address: Address) -> str:
    packed = address[1][: 4 if address[0] == socket.AF_INET else 16]
    return f"its address {ipaddress.ip_address(packed)} is also on another port: the kernel forwards for it"


_FOREIGN_EVERY = 3  # polls


class Reconciler:
    """Resolve the targets to bridges, and keep maps and attachments up to date.

    `refused` are links by name with the reason, `unknown` are targets that match no bridge, `packet_links`
    are the links by which accelerated packets enter and leave, as rules see them.

    `wake` is called from other threads to reconcile again. Before the maps change, `readmit` is called if
    connections must pass the rules once more, and `links_changed` if `packet_links` changed.
    """

    def __init__(
        self,
        loaded: Loaded,
        maps: Maps,
        targets: list[str],
        wake: Callable[[], None],
        neighbours: Neighbours,
        readmit: Callable[[], None],
        links_changed: Callable[[], None],
    ) -> None:
        self.targets = targets
        self.attachments = Attachments(loaded.program)
        self.observers = Attachments(loaded.observer, egress=True)
        self.refused: dict[str, str] = {}
        self.unknown: tuple[str, ...] = ()
        # Seconds of CPU time, as waiting for a core is no reason for longer delays.
        self.duration = self.routes_duration = 0.0
        self._maps = maps
        self._observer = Observer()
        self._engines = EngineNetworks(wake)
        self._bindings = Bindings()
        self._neighbours = neighbours
        self._readmit, self._links_changed = readmit, links_changed
        self.packet_links = PacketLinks(frozenset(), frozenset(), frozenset())
        self._dirty: set[int | None] = {None}
        self._bridge_rules = False
        self._polls = 0
        self._foreign = NO_FOREIGN
        self._bridge_calls = bridge_calls_iptables()
        self.update_routes()

    @property
    def links(self) -> Mapping[int, Link]:
        """The host's links, as read last."""
        return self._observer.links

    def mark_dirty(self, dirty: Collection[int | None], everything: bool = False) -> None:
        """Mark namespaces as changed, by id (None: the host).

        `everything`: events were lost.
        """
        self._dirty |= set(dirty)
        if everything:
            self._observer.invalidate()

    def reconcile(self) -> None:
        """Read what may have changed, and update maps and attachments."""
        began = time.thread_time()
        dirty, self._dirty = self._dirty, set()
        if not self._observer.affects(dirty):
            return
        if None in dirty:
            self._observer.read_host()
            self._foreign = self._read_foreign()
        bridges, self.unknown = find_bridges(self.targets, self._observer.links, self._engines.networks)
        self._ask_engines()
        link_state = self._observer.link_state(bridges, self._foreign, dirty)
        contents = ports.map_contents(link_state, bridges, not self._bridge_rules)
        self._neighbours.watch_tunnels(ports.tunnels(self._observer.links, bridges))
        ports.add_tunnelled(contents, link_state, self._neighbours.tunnelled, self._neighbours.is_at_one_host)
        ports.drop_pinned(contents, self._neighbours.pinned)
        ports.fit_to_maps(contents)
        self._bindings.drop_conflicts(contents)
        if self._bindings.update(contents, time.monotonic()):
            self._readmit()
        packet_links = ports.packet_links(contents, self._observer.links)
        if packet_links != self.packet_links:
            self.packet_links = packet_links
            self._links_changed()
        if self._maps.fill(contents):
            self._maps.raise_epoch()
        failed = self.attachments.sync(contents.links)
        self.refused = contents.refused | {contents.links[each].name: why for each, why in failed.items()}
        self.observers.sync(ports.observed_links(contents))
        self._maps.port_macs = contents.port_macs
        self.duration = time.thread_time() - began

    def _ask_engines(self) -> None:
        """Ask the engines for their networks while a target matches no bridge."""
        if self.unknown:
            bridges = sorted(link.ifindex for link in self._observer.links.values() if link.kind == "bridge")
            self._engines.refresh((*self.unknown, *bridges))

    def update_routes(self) -> None:
        """Write to the maps what the program's own route lookup doesn't report."""
        began = time.thread_time()
        self._maps.set_route_info(self._observer.route_info())
        self.routes_duration = time.thread_time() - began

    def set_bridge_rules(self, present: bool) -> bool:
        """Set whether the bridge family has rules; return whether that changed."""
        changed, self._bridge_rules = present != self._bridge_rules, present
        return changed

    def has_silent_change(self) -> bool:
        """Return whether tcx programs or hooks of other tools changed.

        They send no event. Checked every third time, as it asks the kernel for each link and waits for the
        RTNL lock.
        """
        self._polls += 1
        self._ask_engines()
        if self._polls % _FOREIGN_EVERY:
            return False
        before, self._foreign = self._foreign, self._read_foreign()
        return before != self._foreign

    def _read_foreign(self) -> Foreign:
        """Return the links with programs or hook functions of other tools.

        At ingress, and at egress.
        """
        links = self._observer.links
        programs_in, programs_out = foreign_programs(links, self.attachments.ids | self.observers.ids)
        hooked_in, hooked_out = hooks.links_with_foreign_hooks(
            {each: link.name for each, link in links.items()}
        )
        return programs_in | hooked_in, programs_out | hooked_out

    def has_new_sysctls(self) -> bool:
        """Return whether br_netfilter's sysctls changed, and mark the host dirty if so.

        They send no event, and bridged frames may have to pass the rules now. Reads two files and waits
        for no lock.
        """
        before, self._bridge_calls = self._bridge_calls, bridge_calls_iptables()
        if before != self._bridge_calls:
            self.mark_dirty({None})
        return before != self._bridge_calls

    @property
    def retry_after(self) -> float:
        """Seconds until it must reconcile again because something moved too soon, or 0."""
        return self._bindings.retry_after

    @property
    def is_dirty(self) -> bool:
        """Say whether changes were marked that were not read yet."""
        return bool(self._dirty)

    def close(self) -> None:
        """Detach the programs from every link."""
        self.attachments.close()
        self.observers.close()
        self._observer.close()
