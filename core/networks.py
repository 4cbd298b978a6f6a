"""List all networks: those of engines, and one per other bridge; find uplinks."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property

from core.model import Firewall, Link, Namespace, Network, OvsBridge, Snapshot
from core.nat.filters import is_isolated
from core.nat.packets import (
    PlacedRule,
    Prefix,
    covers,
    is_everything,
    matches_link,
    placed_rules,
    prefixes,
    split,
)
from core.nat.raw_entries import host_netns
from core.text import TABLE, parse_tag

_DRIVER_KINDS = {
    "host": "host",
    "null": "none",
    "macvlan": "macvlan",
    "ipvlan": "ipvlan",
    "overlay": "overlay",
}
_NIC_KINDS = ("physical", "bond", "team", "vlan")
_FORWARDING = "net.ipv4.ip_forward"
_SANDBOX = re.compile(r"/netns/([^/]+)$")


def all_networks(snapshot: Snapshot) -> tuple[Network, ...]:
    """List all networks of a snapshot.

    First the engines' with bridge, MTU and kind completed, then one of engine "kernel" for each other bridge
    of each namespace and of Open vSwitch, with id "kernel:INODE:IFINDEX" and the name of its tag, or of the
    bridge. A veth pair without a bridge isn't a network."""
    builder = _NetworkBuilder(snapshot)
    owned = [builder.complete(network) for engine in snapshot.engines.values() for network in engine.networks]
    taken = {(network.ns, network.bridge) for network in owned if network.bridge}
    found = [link for link in snapshot.links() if link.kind == "bridge" or builder.ovs_of(link)]
    bridges = [link for link in found if (link.ns, link.name) not in taken]
    return (*owned, *(builder.of_bridge(bridge) for bridge in bridges))


def uplinks(snapshot: Snapshot) -> tuple[Link, ...]:
    """Return the host's links with a default route, lowest metric first."""
    net = snapshot.nets.get(host_netns(snapshot))
    if net is None:
        return ()
    defaults = sorted(
        (route for route in net.routes if route.dst == "default" and route.table == "main"),
        key=lambda route: route.metric,
    )
    found = dict.fromkeys(hop.ifindex for route in defaults for hop in route.nexthops)
    return tuple(link for ifindex in found if ifindex and (link := net.links.get(ifindex)))


def sandbox_of(space: Namespace) -> str:
    """Return the name of a namespace's file under /run/docker/netns, or "".

    It is "ingress_sbox", "1-ID" for an overlay, "lb_ID", or that of a container."""
    found = (_SANDBOX.search(mount) for mount in space.mounts)
    return next((match[1] for match in found if match), "")


def gateways_of(network: Network, bridge: Link | None) -> tuple[str, ...]:
    """Return a network's gateways: those of its engine, else its bridge's addresses.

    Docker doesn't report the gateway that it chose in a user-defined subnet, so for a family without one the
    bridge's addresses in the network's subnets are taken."""
    has_ipv6 = {":" in one for one in network.gateways}
    subnets = [prefix for subnet in network.subnets for prefix in prefixes(subnet) or ()]
    found = (one.address for one in (bridge.addresses if bridge else ()) if one.scope == "global")
    inside = (one for one in found if any(ipaddress.ip_address(one) in subnet for subnet in subnets))
    return (*network.gateways, *(one for one in inside if (":" in one) not in has_ipv6))


class _NetworkBuilder:
    """Completes the networks of one snapshot from its links and rules."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.host = host_netns(snapshot)
        self._source_nat: dict[int, tuple[PlacedRule, ...]] = {}
        self._ovs = {bridge.name: bridge for bridge in snapshot.ovs}

    def ovs_of(self, link: Link) -> OvsBridge | None:
        """Return the Open vSwitch bridge whose own link this is."""
        return self._ovs.get(link.name) if link.ns == self.host else None

    def _name(self, bridge: Link) -> str:
        """Return the name of a bridge's network: that of its tag, or the bridge's."""
        ovs = self.ovs_of(bridge)
        tag = parse_tag(ovs.external_ids.get(TABLE, "") if ovs else bridge.alias) or {}
        return (tag.get("net") or (bridge.name,))[0]

    def complete(self, network: Network) -> Network:
        """Complete an engine's network with its bridge, MTU and kind."""
        ns = network.ns or self.host
        bridge = self._bridge(ns, network.bridge) or self._of_overlay(network)
        return replace(
            network,
            ns=bridge.ns if bridge else ns,
            bridge=bridge.name if bridge else network.bridge,
            mtu=network.mtu or (bridge.mtu if bridge else 0),
            kind=self._kind(network, bridge),
        )

    def of_bridge(self, bridge: Link) -> Network:
        """Return the network of a bridge without an engine."""
        addresses = [address for address in bridge.addresses if address.scope == "global"]
        found = Network(
            "kernel",
            f"kernel:{bridge.ns}:{bridge.ifindex}",
            self._name(bridge),
            ns=bridge.ns,
            bridge=bridge.name,
            subnets=tuple(dict.fromkeys(str(ipaddress.ip_interface(str(one)).network) for one in addresses)),
            gateways=tuple(address.address for address in addresses),
            mtu=bridge.mtu,
        )
        return replace(found, kind=self._kind(found, bridge))

    def _of_overlay(self, network: Network) -> Link | None:
        """Return the bridge of a swarm overlay, None if it has none on this host.

        It is in the namespace that Docker calls NUMBER-ID."""
        if network.driver != "overlay":
            return None
        sandbox = next((ns for name, ns in self._sandboxes if name == network.id[:10]), None)
        net = self.snapshot.nets.get(sandbox or 0)
        links = net.links.values() if net else ()
        return next((link for link in links if link.kind == "bridge"), None)

    @cached_property
    def _sandboxes(self) -> tuple[tuple[str, int], ...]:
        """The network id of each overlay, and its bridge's namespace."""
        named = ((sandbox_of(namespace), ns) for ns, namespace in self.snapshot.namespaces.items())
        return tuple((name.partition("-")[2], ns) for name, ns in named if "-" in name)

    def _bridge(self, ns: int, name: str) -> Link | None:
        net = self.snapshot.nets.get(ns)
        links: Iterable[Link] = net.links.values() if net and name else ()
        return next((link for link in links if link.name == name), None)

    def _kind(self, network: Network, bridge: Link | None) -> str:
        if network.driver in _DRIVER_KINDS:
            return _DRIVER_KINDS[network.driver]
        if bridge is not None and self.ovs_of(bridge):
            return "ovs"
        if network.internal:
            return "internal"
        return self._kind_by_ports(bridge) or self._kind_by_rules(network, bridge)

    def _kind_by_ports(self, bridge: Link | None) -> str:
        net = self.snapshot.nets.get(bridge.ns) if bridge else None
        if bridge is None or net is None:
            return ""
        kinds = {link.kind for link in net.links.values() if link.master == bridge.ifindex}
        if kinds & set(_NIC_KINDS):
            return "nic-bridged"
        return "overlay" if "vxlan" in kinds else ""

    def _kind_by_rules(self, network: Network, bridge: Link | None) -> str:
        """Derive the kind from the rules for packets that leave a network.

        SNAT of exactly its subnet takes precedence over filters, filters over SNAT of a larger prefix."""
        subnets = [prefix for subnet in network.subnets for prefix in prefixes(subnet) or ()]
        if not subnets:
            own = [one for one in bridge.addresses if one.scope == "global"] if bridge else ()
            return "switched" if bridge and not own else "routed" if bridge else ""
        ns = network.ns or self.host
        firewall = self.snapshot.firewalls.get(ns)
        if firewall is None or (firewall.problems and not firewall.rules):
            return ""
        translating = [
            placed.effective
            for placed in self._source_nat_of(firewall)
            if any(_translates(placed, network.bridge, subnet) for subnet in subnets)
        ]
        if any(rule.iif or set(prefixes(rule.src) or ()) & set(subnets) for rule in translating):
            return "nat"
        if self._is_forwarding_off(ns) or is_isolated(firewall, network.bridge, subnets[0]):
            return "internal"
        return "nat" if translating else "routed"

    def _is_forwarding_off(self, ns: int) -> bool:
        return ns == self.host and self.snapshot.host.sysctls.get(_FORWARDING) == "0"

    def _source_nat_of(self, firewall: Firewall) -> tuple[PlacedRule, ...]:
        if firewall.ns not in self._source_nat:
            self._source_nat[firewall.ns] = tuple(_source_nat(firewall))
        return self._source_nat[firewall.ns]


def _source_nat(firewall: Firewall) -> Iterator[PlacedRule]:
    for placed in placed_rules(firewall):
        if placed.rule.verdict in ("masquerade", "snat") and "postrouting" in placed.hooks:
            yield placed


def _translates(placed: PlacedRule, bridge: str, subnet: Prefix) -> bool:
    """Return whether a rule does SNAT for packets that leave a subnet by another link."""
    rule = placed.effective
    has_destination = bool(rule.dst) and not rule.dst.startswith("!") and not is_everything(rule.dst)
    is_hairpin = split(rule.oif) == (False, (bridge,))
    is_unclear = not placed.rule.understood and not rule.src
    sources = ",".join(one.src for one in rule.translations) if rule.translations else rule.src
    return (
        not (has_destination or is_hairpin or is_unclear)
        and matches_link(rule.iif, bridge)
        and covers(sources, subnet) is True
    )
