"""Index one snapshot: peers, networks, owners of addresses, bridges and ports."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    OvsBridge,
    OvsPort,
    Ref,
    Snapshot,
)
from core.modelcard import cards
from core.nat import nat_entries
from core.nat.forward_policy import PolicyEvaluator
from core.nat.packets import PlacedRule, placed_rules
from core.networks import all_networks, gateways_of, sandbox_of
from core.peers import resolve
from core.text import is_address

_RUNTIME_RANKS = {"docker": 0, "podman": 0, "netns": 1, "process": 2}


def primary(containers: Sequence[Container]) -> Container | None:
    """Choose the container that names a namespace shared by several.

    An engine's comes before an unmanaged one, a running before a stopped one, and one that has the namespace
    before one that joined it."""
    return min(containers, key=_rank, default=None)


def _rank(container: Container) -> tuple[int, bool, bool, str]:
    return (
        _RUNTIME_RANKS.get(container.runtime, 0),
        container.state != "running",
        container.network_mode.startswith("container:"),
        container.name,
    )


@dataclass(frozen=True, slots=True)
class AddressOwners:
    """Owners of addresses.

    `reachable` maps (namespace, address) to the container that is reached over a link of that namespace;
    `own` likewise for a namespace's own addresses; `parents` maps a namespace to those that its links are
    connected to; `by_container` maps a container's uid to its addresses."""

    reachable: Mapping[tuple[int, str], Container]
    own: Mapping[tuple[int, str], Container]
    parents: Mapping[int, tuple[int, ...]]
    by_container: Mapping[str, tuple[str, ...]]

    def owner(self, ns: int, address: str) -> Container | None:
        """Return the owner of an address, as seen from namespace `ns`."""
        found = self.own.get((ns, address)) or self.reachable.get((ns, address))
        if found is not None:
            return found
        siblings = (self.reachable.get((parent, address)) for parent in self.parents.get(ns, ()))
        return next((container for container in siblings if container is not None), None)


def find_address_owners(topology: Topology) -> AddressOwners:
    """Find the owners of all addresses, first by links, then by engines."""
    reachable: dict[tuple[int, str], Container] = {}
    own: dict[tuple[int, str], Container] = {}
    parents: dict[int, tuple[int, ...]] = {}
    by_container: dict[str, dict[str, None]] = {}
    for ns, net in topology.snapshot.nets.items():
        container = topology.container_of(ns)
        parents[ns] = tuple(dict.fromkeys(_all_parents(topology, net)))
        if container is None:
            continue
        for link, address in _addresses(net):
            own.setdefault((ns, address), container)
            for member in topology.containers_in(ns):
                by_container.setdefault(member.uid, {})[address] = None
            for parent in _parents_of(topology, net, link):
                reachable.setdefault((parent, address), container)
    for container in topology.containers.values():
        for address in _engine_addresses(container):
            reachable.setdefault((topology.host, address), container)
            by_container.setdefault(container.uid, {})[address] = None
    return AddressOwners(reachable, own, parents, {uid: tuple(found) for uid, found in by_container.items()})


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


def _all_parents(topology: Topology, net: NetState) -> Iterator[int]:
    for link in net.links.values():
        yield from _parents_of(topology, net, link)


def _engine_addresses(container: Container) -> Iterator[str]:
    """Iterate over the valid addresses that an engine reports for a container."""
    for end in container.endpoints:
        for text in (end.ipv4, end.ipv6):
            address = text.partition("/")[0]
            if is_address(address):
                yield address


def label_of(topology: Topology, ns: int) -> str:
    """Return a namespace's label; see Topology.label."""
    if ns == topology.host:
        return "host"
    container = topology.container_of(ns)
    if container is not None and container.name:
        return container.name
    namespace = topology.snapshot.namespaces.get(ns)
    if namespace is None:
        return f"net:[{ns}]"
    process = f"{namespace.command}[{namespace.pids[0]}]" if namespace.command and namespace.pids else ""
    candidates = (*namespace.names, sandbox_of(namespace), namespace.unit, process)
    return next(filter(None, candidates), f"net:[{ns}]")


def names_in(topology: Topology, ns: int) -> dict[bytes, str]:
    """Map addresses (16 bytes) known in a namespace to their owners' names."""
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
# Interfaces of Open vSwitch with a link of their own name.
_NAMED = frozenset({"system", "internal", "tap"})


class Topology:
    """A snapshot and the data derived from it, each computed at first use and cached."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._labels: dict[int, str] = {}

    @cached_property
    def host(self) -> int:
        """The inode of the host namespace, 0 if not known yet."""
        marked = (one.inode for one in self.snapshot.namespaces.values() if one.is_host)
        return self.snapshot.host.netns or next(marked, 0)

    @cached_property
    def peers(self) -> Mapping[LinkKey, LinkKey]:
        """The peer of each veth."""
        return resolve(self.snapshot.nets)

    @cached_property
    def networks(self) -> tuple[Network, ...]:
        """All networks, engines' and kernel's."""
        return all_networks(self.snapshot)

    @cached_property
    def _networks_by_id(self) -> Mapping[str, Network]:
        return {network.id: network for network in self.networks}

    def network(self, network_id: str) -> Network | None:
        """Return the network with that id, None if there is none."""
        return self._networks_by_id.get(network_id)

    @cached_property
    def cards(self) -> Mapping[str, ModelCard]:
        """The model card of each container, by uid."""
        return cards(self.snapshot, self.peers)

    @cached_property
    def nat(self) -> tuple[NatEntry, ...]:
        """Translations and forward filters."""
        return nat_entries(self.snapshot, self.networks)

    @cached_property
    def policy_evaluator(self) -> PolicyEvaluator | None:
        """The evaluator of the host's forward policy, None if rules were not read."""
        firewall = self.snapshot.firewalls.get(self.host)
        return PolicyEvaluator(firewall) if firewall else None

    @cached_property
    def dnat_rules(self) -> tuple[PlacedRule, ...]:
        """The host's DNAT and redirect rules that a packet can reach, with their jumps."""
        firewall = self.snapshot.firewalls.get(self.host)
        placed = placed_rules(firewall) if firewall else ()
        return tuple(one for one in placed if one.rule.verdict in ("dnat", "redirect") and one.hooks)

    @cached_property
    def _nat_by_key(self) -> Mapping[tuple[int | str, ...], NatEntry]:
        return {(entry.ns, entry.entry_id): entry for entry in self.nat}

    def nat_entry(self, ref: Ref) -> NatEntry | None:
        """Return the NAT entry with that ref, None if there is none."""
        return self._nat_by_key.get(ref.key)

    @cached_property
    def _nat_by_container(self) -> Mapping[str, tuple[NatEntry, ...]]:
        groups: dict[str, list[NatEntry]] = {}
        for entry in self.nat:
            for uid in entry.containers:
                groups.setdefault(uid, []).append(entry)
        return {uid: tuple(group) for uid, group in groups.items()}

    def nat_of(self, container: Container) -> tuple[NatEntry, ...]:
        """Return the NAT entries with a container's own address or link."""
        return self._nat_by_container.get(container.uid, ())

    @cached_property
    def flows(self) -> FlowColumns:
        """The conntrack entries of all namespaces, the host's first."""
        tables = self.snapshot.conntracks.values()
        ordered = sorted(tables, key=lambda table: (table.ns != self.host, self.label(table.ns)))
        # A reference cycle would keep the tables of old snapshots until a rare full collection.
        weak = weakref.ref(self)
        return FlowColumns(ordered, lambda ns: names_in(topology, ns) if (topology := weak()) else {})

    @cached_property
    def containers(self) -> Mapping[str, Container]:
        """All containers by uid."""
        return {container.uid: container for container in self.snapshot.containers()}

    @cached_property
    def _by_namespace(self) -> Mapping[int, tuple[Container, ...]]:
        groups: dict[int, list[Container]] = {}
        for container in self.containers.values():
            if container.netns is not None:
                groups.setdefault(container.netns, []).append(container)
        return {ns: tuple(group) for ns, group in groups.items()}

    def containers_in(self, ns: int) -> tuple[Container, ...]:
        """Return the containers in a network namespace."""
        return self._by_namespace.get(ns, ())

    def container_of(self, ns: int) -> Container | None:
        """Return the container that names a namespace; None for the host's or without any."""
        return None if ns == self.host else primary(self.containers_in(ns))

    @cached_property
    def _addresses(self) -> AddressOwners:
        return find_address_owners(self)

    def container_at(self, ns: int, address: str) -> Container | None:
        """Return the owner of an address, as seen from namespace `ns`.

        It is in that namespace, connected to it by a veth or macvlan, or connected to the same namespace."""
        return self._addresses.owner(ns, address)

    def reachable_addresses(self) -> Collection[tuple[int, str]]:
        """Return the addresses of containers by the namespaces whose links lead to them."""
        return self._addresses.reachable.keys()

    def addresses_of(self, container: Container) -> tuple[str, ...]:
        """Return a container's addresses without prefix length, none of the host's."""
        return self._addresses.by_container.get(container.uid, ())

    @cached_property
    def _names(self) -> Counter[str]:
        return Counter(container.name for container in self.containers.values())

    def title(self, container: Container) -> str:
        """Return a container's name; if not unique, with its pid or namespace's inode."""
        if self._names[container.name] <= 1:
            return container.name
        return f"{container.name} [{container.pid or container.netns or container.id[:12]}]"

    def label(self, ns: int) -> str:
        """Return a namespace's label.

        It is "host", a container's or namespace's name, a unit, "command[pid]" or "net:[inode]"; untrusted
        text, verbatim."""
        if ns not in self._labels:
            self._labels[ns] = label_of(self, ns)
        return self._labels[ns]

    def peer(self, link: Link) -> Link | None:
        """Return the peer of a veth, None for another kind or if it isn't known."""
        key = self.peers.get(link.key)
        return self.snapshot.link(key) if key else None

    @cached_property
    def _masters(self) -> Mapping[LinkKey, LinkKey]:
        """The master of each port; for an OVS port its bridge's own link."""
        found = {
            link.key: LinkKey(link.ns, link.master)
            for link in self.snapshot.links()
            if link.master is not None
        }
        for key, places in self._ovs_ports.items():
            own = self.ovs_link(places[0][0].name)
            if own is not None and key != own.key:
                found[key] = own.key
        return found

    @cached_property
    def _ovs_ports(self) -> Mapping[LinkKey, tuple[tuple[OvsBridge, OvsPort], ...]]:
        found: dict[LinkKey, dict[tuple[str, str], tuple[OvsBridge, OvsPort]]] = {}
        for bridge in self.snapshot.ovs:
            for port in bridge.ports:
                for one in port.interfaces:
                    link = self.snapshot.link((self.host, one.ifindex or 0))
                    # ovs-vswitchd may run in another namespace; tunnels share a link of another name.
                    if link and one.ifindex and (one.name == link.name or one.kind not in _NAMED):
                        places = found.setdefault(LinkKey(self.host, one.ifindex), {})
                        places[bridge.name, port.name] = bridge, port
        return {key: tuple(places.values()) for key, places in found.items()}

    def ovs_ports_of(self, link: Link) -> tuple[tuple[OvsBridge, OvsPort], ...]:
        """Return the ports of Open vSwitch that a link is, each with its bridge.

        There are several for the link that tunnels of the kernel's datapath share ("vxlan_sys_4789")."""
        return self._ovs_ports.get(link.key, ())

    def ovs_bridge(self, link: Link) -> OvsBridge | None:
        """Return the Open vSwitch bridge whose own link this is, None for other links."""
        if link.ns != self.host:
            return None
        return next((bridge for bridge in self.snapshot.ovs if bridge.name == link.name), None)

    def bridges_named(self, text: str) -> list[Link]:
        """Return the host's bridge of that name, or of the networks of that name or id."""
        net = self.snapshot.nets.get(self.host)
        for link in net.links.values() if net else ():
            if link.kind == "bridge" and text in (link.name, *link.altnames):
                return [link]
        named = (self.bridge_link(one) for one in self.networks if text in (one.name, one.id))
        return list({one.key: one for one in named if one}.values())

    def ovs_link(self, bridge: str) -> Link | None:
        """Return the own link of an Open vSwitch bridge, None if there is none."""
        return self._link_named(self.host, bridge)

    @cached_property
    def _ports(self) -> Mapping[LinkKey, tuple[Link, ...]]:
        groups: dict[LinkKey, list[Link]] = {}
        for port, master in self._masters.items():
            link = self.snapshot.link(port)
            if link is not None:
                groups.setdefault(master, []).append(link)
        return {key: tuple(group) for key, group in groups.items()}

    def ports_of(self, bridge: LinkKey) -> tuple[Link, ...]:
        """Return the ports of a bridge, a bond or the like."""
        return self._ports.get(bridge, ())

    def master_of(self, link: Link) -> Link | None:
        """Return the bridge, bond or the like that a link is a port of."""
        master = self._masters.get(link.key)
        return self.snapshot.link(master) if master else None

    @cached_property
    def _ovs_links(self) -> frozenset[LinkKey]:
        found = (self.ovs_link(bridge.name) for bridge in self.snapshot.ovs)
        return frozenset(link.key for link in found if link is not None)

    def is_bridge(self, link: Link) -> bool:
        """Return whether a link is a kernel bridge or an OVS bridge's own link."""
        return link.kind in BRIDGE_KINDS or link.key in self._ovs_links

    def bridge_of(self, link: Link) -> Link | None:
        """Return the bridge of a link: itself, its master, or its peer's master."""
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
        """Return the network of a link's bridge."""
        bridge = self.bridge_of(link)
        return self._networks_by_bridge.get((bridge.ns, bridge.name)) if bridge else None

    def bridge_link(self, network: Network) -> Link | None:
        """Return the bridge of a network, None if it has none or it is gone."""
        return self._link_named(network.ns or self.host, network.bridge)

    def parent_link(self, network: Network) -> Link | None:
        """Return the parent of a macvlan or ipvlan network, None for others or if gone."""
        return self._link_named(network.ns or self.host, network.parent)

    def _link_named(self, ns: int, name: str) -> Link | None:
        net = self.snapshot.nets.get(ns)
        links = net.links.values() if net and name else ()
        return next((link for link in links if link.name == name), None)

    def gateways(self, network: Network) -> tuple[str, ...]:
        """Return a network's gateways, even if its engine doesn't report them."""
        return gateways_of(network, self.bridge_link(network))

    def uplink(self, ns: int) -> tuple[Link, str] | None:
        """Return link and gateway ("" if on-link) of a namespace's default route.

        IPv4's comes before IPv6's, the lowest metric first."""
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
        ports = self.ports_of(bridge.key) if bridge else ()
        connected = {peer.ns for port in ports if (peer := self.peer(port))}
        return tuple(
            container
            for container in self.containers.values()
            if (container.netns in connected and container.netns != self.host)
            or (container.runtime == network.engine and container.endpoints_of(network))
        )

    def members(self, network: Network) -> tuple[Container, ...]:
        """Return the containers on a network, by its bridge's ports and by their engine."""
        return self._members.get(network.id, ())

    @cached_property
    def _networks_of(self) -> Mapping[str, tuple[Network, ...]]:
        groups: dict[str, list[Network]] = {}
        for network in self.networks:
            for container in self.members(network):
                groups.setdefault(container.uid, []).append(network)
        return {uid: tuple(group) for uid, group in groups.items()}

    def networks_of(self, container: Container) -> tuple[Network, ...]:
        """Return the networks that a container is on."""
        return self._networks_of.get(container.uid, ())

    def links_of(self, container: Container) -> tuple[Link, ...]:
        """Return a container's links but loopback, none if it is in the host namespace."""
        net = self.snapshot.nets.get(container.netns or 0)
        if net is None or net.ns == self.host:
            return ()
        return tuple(link for link in net.links.values() if link.kind != "loopback")
