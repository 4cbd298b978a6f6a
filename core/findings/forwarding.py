"""What rules drop, and networks and hosts without a way out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from core.findings.finding import Finding
from core.model import Container, NatEntry, container_ref, link_ref, namespace_ref, nat_ref, network_ref
from core.nat.letting import by_chain, drop_words, dropping, letting_words
from core.text import quoted as quote

if TYPE_CHECKING:
    from core.topology import Topology

REFUSING = ("drop", "reject")


def drops(topology: Topology) -> Iterator[Finding]:
    """Containers whose own packets a rule has dropped, one finding for each container."""
    refused: dict[str, list[NatEntry]] = {}
    for entry in topology.nat:
        if entry.verdict in REFUSING and entry.packets:
            for uid in entry.containers:
                refused.setdefault(uid, []).append(entry)
    for uid, entries in refused.items():
        container = topology.containers[uid]
        # One that joined another's namespace is held up as that one is.
        if container.netns is None or topology.container_of(container.netns) == container:
            yield from _drop(topology, container, entries)


def _drop(topology: Topology, container: Container, entries: Iterable[NatEntry]) -> Iterator[Finding]:
    addresses = topology.addresses_of(container)
    own = [entry for entry in entries if entry.inside.partition("/")[0] in addresses]
    count = sum(entry.packets or 0 for entry in own)
    if own:
        packets = f"{count:,} packet{'s' * (count != 1)}"
        words = f"A rule has dropped {packets} of {container.name}: {own[0].name}."
        related = tuple(nat_ref(entry.ns, entry.entry_id) for entry in own)
        advice = _without_rule(topology, own[0])
        yield Finding(
            "dropped",
            container_ref(container.runtime, container.id),
            f"{packets} dropped",
            words,
            "warn",
            related,
            advice,
        )


def _without_rule(topology: Topology, entry: NatEntry) -> str:
    """How to let pass what an entry's rule drops."""
    firewall = topology.snapshot.firewalls.get(entry.ns)
    rule = next((one for one in firewall.rules if one.rule_id in entry.doing), None) if firewall else None
    if rule is None:
        return "see the rule, and remove or narrow it"
    where = f"{rule.family} {quote(rule.table)} {quote(rule.chain)}"
    if rule.backend == "nft":
        way = f"nft delete rule {where} handle {rule.rule_id.rpartition('/')[2]}"
    else:
        tool = "ip6tables" if rule.family == "ip6" else "iptables"
        way = f"{tool} -t {quote(rule.table)} {rule.text.replace('-A ', '-D ', 1)}"
    return f"where that is not meant, take the rule away: {way}"


def shut_networks(topology: Topology) -> Iterator[Finding]:
    """Networks in use whose new connections a forward chain of others drops for want of a rule."""
    firewall, way = topology.snapshot.firewalls.get(topology.host), topology.uplink(topology.host)
    if firewall is None or way is None:
        return
    for network in topology.networks:
        bridge = topology.bridge_link(network)
        if bridge is None or bridge.ns != topology.host or network.kind not in ("nat", "routed"):
            continue
        found = dropping(firewall, bridge.name, ("out",), way[0].name, network.subnets)
        ref, about = network_ref(network.id), (link_ref(bridge.key),)
        for chain, kinds in by_chain(one for one in found if one.certain):
            words = (
                f"{drop_words(firewall, chain, kinds, bridge.name)}: its containers get no answer outside."
            )
            advice = letting_words(firewall, chain, kinds, bridge.name)
            yield Finding("forward", ref, "no way out", words, "bad", about, advice)


def no_way_out(topology: Topology) -> Iterator[Finding]:
    """A host with networks that lead outside, and no default route to get there by: of IPv4, or of any."""
    net = topology.snapshot.nets.get(topology.host)
    leading = [one for one in topology.networks if one.kind in ("nat", "routed")]
    by_ipv4 = [one for one in leading if any(":" not in subnet for subnet in one.subnets)]
    defaults = {route.family for route in net.routes if route.dst == "default"} if net else set()
    needing = leading if not defaults else by_ipv4 if 4 not in defaults else []
    if net and net.routes and needing:
        which = "default route" if not defaults else "default route for IPv4"
        names = ", ".join(one.name for one in needing)
        words = (
            f"The host has no {which}: it and {names} reach nothing outside{' by it' if defaults else ''}."
        )
        advice = "take back what removed it (u, or vnet-tui undo), or: ip route add default via GATEWAY"
        yield Finding("way out", namespace_ref(topology.host), "no way out", words, "warn", (), advice)
