"""One snapshot put together: whose peer, whose network, whose address, and what leads where."""

from __future__ import annotations

import ipaddress
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from core.flows import FlowColumns, address_bytes
from core.model import (
    Container,
    Link,
    LinkKey,
    ModelCard,
    NatEntry,
    NetState,
    Network,
    Ref,
    Snapshot,
)
from core.modelcard import cards
from core.nat import nat_entries
from core.nat.forward_policy import PolicyEvaluator
from core.nat.packets import PlacedRule, placed_rules
from core.networks import all_networks, gateways_of, sandbox_of
from core.peers import resolve

_ENGINES_FIRST = {"docker": 0, "podman": 0, "netns": 1, "process": 2}


def primary(containers: Sequence[Container]) -> Container | None:
    """Of several containers in one namespace the one it is known by: an engine's before a plain one, one that
    runs before one that does not, one that made it before one that joined it."""
    return min(containers, key=_rank, default=None)


def _rank(container: Container) -> tuple[int, bool, bool, str]:
    return (
        _ENGINES_FIRST.get(container.runtime, 0),
        container.state != "running",
        container.network_mode.startswith("container:"),
        container.name,
    )


@dataclass(frozen=True, slots=True)
class AddressBook:
    """Owners of addresses. `seen` maps (namespace, address) to the container that is reached there over a
    link of that namespace; `own` the same for a namespace's own addresses; `parents` those that a namespace's
    links lead to; `of` a container's addresses by its uid."""

    seen: Mapping[tuple[int, str], Container]
    own: Mapping[tuple[int, str], Container]
    parents: Mapping[int, tuple[int, ...]]
    of: Mapping[str, tuple[str, ...]]

    def owner(self, ns: int, address: str) -> Container | None:
        """Who answers at `address`, as seen from namespace `ns`."""
        found = self.own.get((ns, address)) or self.seen.get((ns, address))
        if found is not None:
            return found
        beside = (self.seen.get((parent, address)) for parent in self.parents.get(ns, ()))
        return next((container for container in beside if container is not None), None)


def address_book(topology: Topology) -> AddressBook:
    """Gather the owners of all addresses of a snapshot: links' addresses first, then what engines say."""
    seen: dict[tuple[int, str], Container] = {}
    own: dict[tuple[int, str], Container] = {}
    parents: dict[int, tuple[int, ...]] = {}
    of: dict[str, dict[str, None]] = {}
    for ns, net in topology.snapshot.nets.items():
        container = topology.container_of(ns)
        parents[ns] = tuple(dict.fromkeys(_leads_to(topology, net)))
        if container is None:
            continue
        for link, address in _addresses(net):
            own.setdefault((ns, address), container)
            for member in topology.containers_in(ns):
                of.setdefault(member.uid, {})[address] = None
            for parent in _parents_of(topology, net, link):
                seen.setdefault((parent, address), container)
    for container in topology.containers.values():
        for address in _told(container):
            seen.setdefault((topology.host, address), container)
            of.setdefault(container.uid, {})[address] = None
    return AddressBook(seen, own, parents, {uid: tuple(found) for uid, found in of.items()})


def _addresses(net: NetState) -> Iterator[tuple[Link, str]]:
    for link in net.links.values():
        for address in link.addresses:
            if address.scope not in ("host", "link"):
                yield link, address.address


def _parents_of(topology: Topology, net: NetState, link: Link) -> Iterator[int]:
    peer = topology.peers.get(link.key)
    if peer is not None and peer.ns != net.ns:
        yield peer.ns
    elif link.lower_nsid is not None and link.lower_nsid in net.nsids:
        yield net.nsids[link.lower_nsid]


def _leads_to(topology: Topology, net: NetState) -> Iterator[int]:
    for link in net.links.values():
        yield from _parents_of(topology, net, link)


def _told(container: Container) -> Iterator[str]:
    """The addresses that an engine tells of a container; engines may tell anything, so only real ones."""
    for end in container.endpoints:
        for text in (end.ipv4, end.ipv6):
            address = text.partition("/")[0]
            if is_address(address):
                yield address


def is_address(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def label_of(topology: Topology, ns: int) -> str:
    """What a person calls a namespace; see Topology.label."""
    if ns == topology.host:
        return "host"
    container = topology.container_of(ns)
    if container is not None and container.name:
        return container.name
    space = topology.snapshot.namespaces.get(ns)
    if space is None:
        return f"net:[{ns}]"
    named = f"{space.command}[{space.pids[0]}]" if space.command and space.pids else ""
    return next(
        (text for text in (*space.names, sandbox_of(space), space.unit, named) if text), f"net:[{ns}]"
    )


def names_in(topology: Topology, ns: int) -> dict[bytes, str]:
    """Whose addresses are known in a namespace, by their 16 bytes: its own, and containers seen from it."""
    net = topology.snapshot.nets.get(ns)
    links = net.links.values() if net else ()
    names = {address_bytes(one.address): topology.label(ns) for link in links for one in link.addresses}
    for container in topology.containers.values():
        for address in topology.addresses_of(container):
            owner = topology.container_at(ns, address)
            if owner is not None:
                names[address_bytes(address)] = owner.name
    return names


BRIDGE_KINDS = frozenset({"bridge", "ovs-bridge"})


class Topology:
    """A snapshot and what follows from it; each part is worked out when it is first asked for, then kept."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._labels: dict[int, str] = {}

    @cached_property
    def host(self) -> int:
        """The inode of the namespace that plays the host, 0 where it is not known yet."""
        marked = (space.inode for space in self.snapshot.namespaces.values() if space.is_host)
        return self.snapshot.host.netns or next(marked, 0)

    @cached_property
    def peers(self) -> Mapping[LinkKey, LinkKey]:
        """The other end of each veth."""
        return resolve(self.snapshot.nets)

    @cached_property
    def networks(self) -> tuple[Network, ...]:
        """Every network, engines' and kernel's."""
        return all_networks(self.snapshot)

    @cached_property
    def _networks_by_id(self) -> Mapping[str, Network]:
        return {network.id: network for network in self.networks}

    def network(self, network_id: str) -> Network | None:
        """The network of that id, None where it is gone."""
        return self._networks_by_id.get(network_id)

    @cached_property
    def cards(self) -> Mapping[str, ModelCard]:
        """The model card of each container, by uid."""
        return cards(self.snapshot, self.peers)

    @cached_property
    def nat(self) -> tuple[NatEntry, ...]:
        """Translations and forward filters, understood."""
        return nat_entries(self.snapshot, self.networks)

    @cached_property
    def judge(self) -> PolicyEvaluator | None:
        """What the host's rules drop of forwarded packets, None where they were not read."""
        firewall = self.snapshot.firewalls.get(self.host)
        return PolicyEvaluator(firewall) if firewall else None

    @cached_property
    def led_in(self) -> tuple[PlacedRule, ...]:
        """The host's rules that change destinations, each with what leads to it; none out of reach."""
        firewall = self.snapshot.firewalls.get(self.host)
        placed = placed_rules(firewall) if firewall else ()
        return tuple(one for one in placed if one.rule.verdict in ("dnat", "redirect") and one.hooks)

    @cached_property
    def _nat_by_key(self) -> Mapping[tuple[int | str, ...], NatEntry]:
        return {(entry.ns, entry.entry_id): entry for entry in self.nat}

    def nat_entry(self, ref: Ref) -> NatEntry | None:
        """The NAT entry of that reference, None where it is gone."""
        return self._nat_by_key.get(ref.key)

    @cached_property
    def _nat_by_container(self) -> Mapping[str, tuple[NatEntry, ...]]:
        groups: dict[str, list[NatEntry]] = {}
        for entry in self.nat:
            for uid in entry.containers:
                groups.setdefault(uid, []).append(entry)
        return {uid: tuple(group) for uid, group in groups.items()}

    def nat_of(self, container: Container) -> tuple[NatEntry, ...]:
        """The NAT entries that carry a container's own address or link."""
        return self._nat_by_container.get(container.uid, ())

    @cached_property
    def flows(self) -> FlowColumns:
        """The conntrack entries of all namespaces, the host's first."""
        tables = self.snapshot.conntracks.values()
        ordered = sorted(tables, key=lambda table: (table.ns != self.host, self.label(table.ns)))
        # A weak reference: in a circle, the tables of past moments would stay until a rare full collection.
        me = weakref.ref(self)
        return FlowColumns(ordered, lambda ns: names_in(there, ns) if (there := me()) else {})

    @cached_property
    def containers(self) -> Mapping[str, Container]:
        """Every container by uid."""
        return {container.uid: container for container in self.snapshot.containers()}

    @cached_property
    def _by_namespace(self) -> Mapping[int, tuple[Container, ...]]:
        groups: dict[int, list[Container]] = {}
        for container in self.containers.values():
            if container.netns is not None:
                groups.setdefault(container.netns, []).append(container)
        return {ns: tuple(group) for ns, group in groups.items()}

    def containers_in(self, ns: int) -> tuple[Container, ...]:
        """Those whose network namespace this is."""
        return self._by_namespace.get(ns, ())

    def container_of(self, ns: int) -> Container | None:
        """The one that a namespace is known by, None for the host's and for one without a container."""
        return None if ns == self.host else primary(self.containers_in(ns))

    @cached_property
    def _addresses(self) -> AddressBook:
        return address_book(self)

    def container_at(self, ns: int, address: str) -> Container | None:
        """Who owns an address, as seen from namespace `ns`: itself, its neighbours over a veth or macvlan,
        or those that hang off the same namespace as it does."""
        return self._addresses.owner(ns, address)

    def addresses_of(self, container: Container) -> tuple[str, ...]:
        """A container's addresses without prefix length, links' before engines', none of the host's."""
        return self._addresses.of.get(container.uid, ())

    @cached_property
    def _names(self) -> Counter[str]:
        return Counter(container.name for container in self.containers.values())

    def title(self, container: Container) -> str:
        """A container's name; where others bear it too, with its process or its namespace's inode."""
        if self._names[container.name] <= 1:
            return container.name
        return f"{container.name} [{container.pid or container.netns or container.id[:12]}]"

    def label(self, ns: int) -> str:
        """What a person calls a namespace: "host", a container's or namespace's name, a unit, "command[pid]"
        or "net:[inode]"; text from outside, verbatim."""
        if ns not in self._labels:
            self._labels[ns] = label_of(self, ns)
        return self._labels[ns]

    def peer(self, link: Link) -> Link | None:
        """The other end of a veth, None for another kind or where it is out of sight."""
        key = self.peers.get(link.key)
        return self.snapshot.link(key) if key else None

    @cached_property
    def _masters(self) -> Mapping[LinkKey, LinkKey]:
        """The link that each port hangs from: its master, or its Open vSwitch bridge's own link."""
        found = {
            link.key: LinkKey(link.ns, link.master)
            for link in self.snapshot.links()
            if link.master is not None
        }
        for bridge in self.snapshot.ovs:
            own = self.ovs_link(bridge.name)
            ports = (one.ifindex for port in bridge.ports for one in port.interfaces if one.ifindex)
            if own is not None:
                found |= {LinkKey(self.host, port): own.key for port in ports if port != own.ifindex}
        return found

    def ovs_link(self, bridge: str) -> Link | None:
        """The link of an Open vSwitch bridge's own, None where it is gone."""
        return self._named(self.host, bridge)

    @cached_property
    def _ports(self) -> Mapping[LinkKey, tuple[Link, ...]]:
        groups: dict[LinkKey, list[Link]] = {}
        for port, master in self._masters.items():
            link = self.snapshot.link(port)
            if link is not None:
                groups.setdefault(master, []).append(link)
        return {key: tuple(group) for key, group in groups.items()}

    def ports_of(self, bridge: LinkKey) -> tuple[Link, ...]:
        """The links that hang from a bridge, a bond or the like."""
        return self._ports.get(bridge, ())

    def master_of(self, link: Link) -> Link | None:
        """The bridge, bond or the like that has taken a link."""
        master = self._masters.get(link.key)
        return self.snapshot.link(master) if master else None

    @cached_property
    def _ovs_links(self) -> frozenset[LinkKey]:
        found = (self.ovs_link(bridge.name) for bridge in self.snapshot.ovs)
        return frozenset(link.key for link in found if link is not None)

    def is_bridge(self, link: Link) -> bool:
        """Whether a link is a bridge of the kernel's or an Open vSwitch bridge's own link."""
        return link.kind in BRIDGE_KINDS or link.key in self._ovs_links

    def bridge_of(self, link: Link) -> Link | None:
        """The bridge that carries a link: itself, its master, or its peer's master."""
        if self.is_bridge(link):
            return link
        for end in (link, self.peer(link)):
            master = self.master_of(end) if end else None
            if master is not None and self.is_bridge(master):
                return master
        return None

    @cached_property
    def _networks_by_bridge(self) -> Mapping[tuple[int | None, str], Network]:
        return {(net.ns, net.bridge): net for net in self.networks if net.bridge}

    def network_of(self, link: Link) -> Network | None:
        """The network that a link belongs to by its bridge."""
        bridge = self.bridge_of(link)
        return self._networks_by_bridge.get((bridge.ns, bridge.name)) if bridge else None

    def bridge_link(self, network: Network) -> Link | None:
        """The bridge of a network, None where it has none or it is gone."""
        return self._named(network.ns or self.host, network.bridge)

    def parent_link(self, network: Network) -> Link | None:
        """The link that a macvlan or ipvlan network sits on, None for others or where it is gone."""
        return self._named(network.ns or self.host, network.parent)

    def _named(self, ns: int, name: str) -> Link | None:
        net = self.snapshot.nets.get(ns)
        links = net.links.values() if net and name else ()
        return next((link for link in links if link.name == name), None)

    def gateways(self, network: Network) -> tuple[str, ...]:
        """A network's gateways, also where its engine does not tell them."""
        return gateways_of(network, self.bridge_link(network))

    def uplink(self, ns: int) -> tuple[Link, str] | None:
        """The link that a namespace's default route leaves by, and the gateway ("" where it is on the link
        itself); IPv4's before IPv6's, the lowest metric first."""
        net = self.snapshot.nets.get(ns)
        routes = [one for one in net.routes if one.dst == "default" and one.table == "main"] if net else []
        for route in sorted(routes, key=lambda one: (one.family, one.metric)):
            for hop in route.nexthops:
                link = self.snapshot.link((ns, hop.ifindex or 0))
                if link is not None:
                    return link, hop.gateway
        return None

    @cached_property
    def _members(self) -> Mapping[str, tuple[Container, ...]]:
        return {network.id: self._find_members(network) for network in self.networks}

    def _find_members(self, network: Network) -> tuple[Container, ...]:
        bridge = self.bridge_link(network)
        spaces = (
            {peer.ns for port in self.ports_of(bridge.key) if (peer := self.peer(port))} if bridge else set()
        )
        return tuple(
            container
            for container in self.containers.values()
            if (container.netns in spaces and container.netns != self.host)
            or (container.runtime == network.engine and self._is_attached(container, network))
        )

    @staticmethod
    def _is_attached(container: Container, network: Network) -> bool:
        return any(end.network in (network.name, network.id) for end in container.endpoints)

    def members(self, network: Network) -> tuple[Container, ...]:
        """The containers on a network, by its bridge's ports and by what their engine says."""
        return self._members.get(network.id, ())

    @cached_property
    def _networks_of(self) -> Mapping[str, tuple[Network, ...]]:
        groups: dict[str, list[Network]] = {}
        for network in self.networks:
            for container in self.members(network):
                groups.setdefault(container.uid, []).append(network)
        return {uid: tuple(group) for uid, group in groups.items()}

    def networks_of(self, container: Container) -> tuple[Network, ...]:
        """The networks that a container is on."""
        return self._networks_of.get(container.uid, ())

    def links_of(self, container: Container) -> tuple[Link, ...]:
        """The links in a container's namespace but loopback; none for one in the host's own."""
        net = self.snapshot.nets.get(container.netns or 0)
        if net is None or net.ns == self.host:
            return ()
        return tuple(link for link in net.links.values() if link.kind != "loopback")
