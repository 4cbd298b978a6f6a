"""Every network: those of the engines and one for each bridge that no engine made; and the host's uplinks."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property

from core.model import Firewall, Link, Namespace, Network, Snapshot
from core.nat.filters import is_isolated
from core.nat.owners import host_netns
from core.nat.packets import PlacedRule, Prefix, covers, matches_link, placed_rules, prefixes, split
from core.tags import words_of

_DRIVER_KINDS = {
    "host": "host",
    "null": "none",
    "macvlan": "macvlan",
    "ipvlan": "ipvlan",
    "overlay": "overlay",
}
_BRIDGE_KINDS = ("bridge", "ovs-bridge")
_CARD_KINDS = ("physical", "bond", "team", "vlan")
_FORWARDING = "net.ipv4.ip_forward"
_SANDBOX = re.compile(r"/netns/([^/]+)$")


def all_networks(snapshot: Snapshot) -> tuple[Network, ...]:
    """The engines' networks with bridge, MTU and kind filled in, then a network of engine "kernel" for each
    other bridge of each namespace, with id "kernel:INODE:IFINDEX" and the bridge's name, or that which our
    tag on it tells. A veth pair that leads into a container without a bridge is no network."""
    decider = _Decider(snapshot)
    owned = [decider.complete(network) for engine in snapshot.engines.values() for network in engine.networks]
    taken = {(network.ns, network.bridge) for network in owned if network.bridge}
    bridges = [
        link for link in snapshot.links() if link.kind in _BRIDGE_KINDS and (link.ns, link.name) not in taken
    ]
    return (*owned, *(decider.of_bridge(bridge) for bridge in bridges))


def uplinks(snapshot: Snapshot) -> tuple[Link, ...]:
    """The links of the host that default routes leave by, the one of the lowest metric first."""
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
    """What Docker calls a namespace, by the name of its file under /run/docker/netns: "ingress_sbox", "1-ID"
    of an overlay, "lb_ID", or a container's; "" where there is none."""
    found = (_SANDBOX.search(mount) for mount in space.mounts)
    return next((match[1] for match in found if match), "")


def gateways_of(network: Network, bridge: Link | None) -> tuple[str, ...]:
    """A network's gateways: those its engine tells, and its bridge's addresses in its subnets of a family
    without one, for Docker does not tell the one that it chose in a subnet that a person gave."""
    told = {":" in one for one in network.gateways}
    subnets = [prefix for subnet in network.subnets for prefix in prefixes(subnet) or ()]
    found = (one.address for one in (bridge.addresses if bridge else ()) if one.scope == "global")
    inside = (one for one in found if any(ipaddress.ip_address(one) in subnet for subnet in subnets))
    return (*network.gateways, *(one for one in inside if (":" in one) not in told))


class _Decider:
    """Decides about the networks of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.host = host_netns(snapshot)
        self._source_nat: dict[int, tuple[PlacedRule, ...]] = {}

    def complete(self, network: Network) -> Network:
        """An engine's network with what the kernel tells of it."""
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
        """The network that a bridge without an engine makes."""
        addresses = [address for address in bridge.addresses if address.scope == "global"]
        found = Network(
            "kernel",
            f"kernel:{bridge.ns}:{bridge.ifindex}",
            _name(bridge),
            ns=bridge.ns,
            bridge=bridge.name,
            subnets=tuple(dict.fromkeys(str(ipaddress.ip_interface(str(one)).network) for one in addresses)),
            gateways=tuple(address.address for address in addresses),
            mtu=bridge.mtu,
        )
        return replace(found, kind=self._kind(found, bridge))

    def _of_overlay(self, network: Network) -> Link | None:
        """The bridge of a swarm's overlay, in the sandbox that Docker calls NUMBER-ID; None where it has none
        on this host."""
        if network.driver != "overlay":
            return None
        sandbox = next((ns for name, ns in self._sandboxes if name == network.id[:10]), None)
        net = self.snapshot.nets.get(sandbox or 0)
        links = net.links.values() if net else ()
        return next((link for link in links if link.kind == "bridge"), None)

    @cached_property
    def _sandboxes(self) -> tuple[tuple[str, int], ...]:
        """The id of each overlay's network, and the namespace that its bridge is in."""
        named = ((sandbox_of(space), ns) for ns, space in self.snapshot.namespaces.items())
        return tuple((name.partition("-")[2], ns) for name, ns in named if "-" in name)

    def _bridge(self, ns: int, name: str) -> Link | None:
        net = self.snapshot.nets.get(ns)
        links: Iterable[Link] = net.links.values() if net and name else ()
        return next((link for link in links if link.name == name), None)

    def _kind(self, network: Network, bridge: Link | None) -> str:
        if network.driver in _DRIVER_KINDS:
            return _DRIVER_KINDS[network.driver]
        if network.internal:
            return "internal"
        return self._kind_by_ports(bridge) or self._kind_by_rules(network, bridge)

    def _kind_by_ports(self, bridge: Link | None) -> str:
        net = self.snapshot.nets.get(bridge.ns) if bridge else None
        if bridge is None or net is None:
            return ""
        kinds = {link.kind for link in net.links.values() if link.master == bridge.ifindex}
        if kinds & set(_CARD_KINDS):
            return "nic-bridged"
        return "overlay" if "vxlan" in kinds else ""

    def _kind_by_rules(self, network: Network, bridge: Link | None) -> str:
        """What becomes of packets that leave a network: a rule that translates its very addresses is more
        telling than filters, filters more than a rule that translates others' as well."""
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
        if self._keeps_in(ns) or is_isolated(firewall, network.bridge, subnets[0]):
            return "internal"
        return "nat" if translating else "routed"

    def _keeps_in(self, ns: int) -> bool:
        return ns == self.host and self.snapshot.host.sysctls.get(_FORWARDING) == "0"

    def _source_nat_of(self, firewall: Firewall) -> tuple[PlacedRule, ...]:
        if firewall.ns not in self._source_nat:
            self._source_nat[firewall.ns] = tuple(_source_nat(firewall))
        return self._source_nat[firewall.ns]


def _name(bridge: Link) -> str:
    """What the network of a bridge is called."""
    return ((words_of(bridge.alias) or {}).get("net") or (bridge.name,))[0]


def _source_nat(firewall: Firewall) -> Iterator[PlacedRule]:
    for placed in placed_rules(firewall):
        if placed.rule.verdict in ("masquerade", "snat") and "postrouting" in placed.hooks:
            yield placed


def _translates(placed: PlacedRule, bridge: str, subnet: Prefix) -> bool:
    """Whether a rule gives another source address to what leaves a subnet by another link than its bridge."""
    rule = placed.effective
    only_to = bool(rule.dst) and not rule.dst.startswith("!") and not _is_everything(rule.dst)
    back_only = split(rule.oif) == (False, (bridge,))
    vague = not placed.rule.understood and not rule.src
    sources = ",".join(one.src for one in rule.translations) if rule.translations else rule.src
    return (
        not (only_to or back_only or vague)
        and matches_link(rule.iif, bridge)
        and covers(sources, subnet) is True
    )


def _is_everything(text: str) -> bool:
    return any(prefix.prefixlen == 0 for prefix in prefixes(text) or ())
