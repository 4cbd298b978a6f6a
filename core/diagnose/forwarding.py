"""What rules drop, and networks and hosts without a way out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from core.model import (
    Chain,
    Container,
    Firewall,
    NatEntry,
    Network,
    container_ref,
    link_ref,
    namespace_ref,
    nat_ref,
    network_ref,
)
from core.model.problem import Finding
from core.nat.describe import describe_drop, describe_remedy, host_firewall, restrict_command
from core.nat.forward_policy import ForwardPath, Published, by_chain
from core.nat.packets import is_loopback, targets
from core.tags import TABLE
from core.text import quoted as quote
from core.topology import Topology

REFUSING = ("drop", "reject")
# Of longer lists of ports only the first few are said.
_SAID = 8


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
    """Networks in use whose new connections, or the answers to these, a chain of others drops."""
    judge, found = topology.judge, topology.uplink(topology.host)
    if judge is None or found is None:
        return
    for network in topology.networks:
        bridge = topology.bridge_link(network)
        if bridge is None or bridge.ns != topology.host or network.kind not in ("nat", "routed"):
            continue
        if not bridge.addresses:
            continue  # an engine's that is stopped: nothing is led out of it
        way = ForwardPath(bridge.name, found[0].name, network.subnets)
        ref, about = network_ref(network.id), (link_ref(bridge.key),)
        dropped = (one for one in judge.dropping(way, ("out", "answers")) if one.certain)
        for chain, kinds in by_chain(dropped):
            words = (
                f"{describe_drop(judge.firewall, chain, kinds, way)}: its containers get no answer outside."
            )
            yield Finding(
                "forward", ref, "no way out", words, "bad", about, describe_remedy(chain, kinds, way)
            )


def shut_ports(topology: Topology) -> Iterator[Finding]:
    """Published ports of ours that a chain of others drops what comes from outside to."""
    judge, found = topology.judge, topology.uplink(topology.host)
    if judge is None or found is None:
        return
    for entry, port in published(topology):
        network = next((one for one in map(topology.network, entry.networks) if one and one.bridge), None)
        if network is None or is_loopback(port.host_ip):
            continue
        way = ForwardPath(network.bridge, found[0].name, published=port)
        about = tuple(container_ref(*uid.split(":", 1)) for uid in entry.containers)
        dropped = (one for one in judge.dropping(way, ("published", "replies")) if one.certain)
        for chain, kinds in by_chain(dropped):
            words = f"{describe_drop(judge.firewall, chain, kinds, way)}: nothing outside reaches that port."
            ref, advice = nat_ref(entry.ns, entry.entry_id), describe_remedy(chain, kinds, way)
            yield Finding("forward", ref, "not reached", words, "bad", about, advice)


def published(topology: Topology) -> Iterator[tuple[NatEntry, Published]]:
    """The ports that vnet publishes, each with its entry."""
    entries = {entry.doing[0]: entry for entry in reversed(topology.nat) if entry.ns == topology.host}
    firewall = topology.snapshot.firewalls.get(topology.host)
    for rule in firewall.rules if firewall else ():
        entry = entries.get(rule.rule_id)
        if rule.table == TABLE and rule.verdict == "dnat" and entry and entry.kind == "published port":
            ends = rule.translations
            address = ends[0].to_address if ends else rule.to_address
            ports = f"{ends[0].to_port}-{ends[-1].to_port}" if ends else rule.to_port or rule.dport
            yield entry, Published(address, rule.l4_proto, ports, rule.dst, rule.dport)


def bypassing_ports(topology: Topology, shut: Iterable[Finding]) -> Iterator[Finding]:
    """Published ports that the host's own firewall program has no say in, one finding for all of them but
    those that nothing reaches anyway."""
    firewall, found = topology.snapshot.firewalls.get(topology.host), topology.uplink(topology.host)
    program = host_firewall(firewall) if firewall else ""
    if not firewall or not program:
        return
    dropped = {finding.ref for finding in shut}
    open_ones = [
        entry
        for entry in topology.nat
        if entry.kind == "published port"
        and entry.ns == topology.host
        and not is_loopback(entry.outside.rpartition(":")[0].strip("[]"))
        and nat_ref(entry.ns, entry.entry_id) not in dropped
    ]
    ports = list(dict.fromkeys(f"{one.l4_proto}/{one.outside.rpartition(':')[2]}" for one in open_ones))
    if ports:
        words = (
            f"{program}'s rules for incoming connections don't apply to published ports ({_listed(ports)}): "
            f"these are open to all that reach this host."
        )
        one, uplink = open_ones[0], found[0].name if found else ""
        way = restrict_command(
            firewall, one.l4_proto, ports[0].partition("/")[2], one.family == "ip6", uplink
        )
        about = tuple(nat_ref(one.ns, one.entry_id) for one in open_ones)
        advice = f"to restrict one of them, run: {way}"
        yield Finding("bypass", namespace_ref(topology.host), f"past {program}", words, "warn", about, advice)


def _listed(ports: list[str]) -> str:
    more = len(ports) - _SAID
    return ", ".join(ports[:_SAID]) + (f" and {more} more" if more > 0 else "")


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


_OWN = "DOCKER"  # what the names of Docker's chains begin with
_NFT_TABLE = "docker-bridges"  # of its backend for nftables
_PURPOSES = {
    "nat": "published ports and masquerading don't work",
    "filter": "nothing keeps its networks apart, and the policy of FORWARD alone decides what passes",
}


def docker_without_rules(topology: Topology) -> Iterator[Finding]:
    """Docker's chains that no packet comes to any more, as after `iptables -F` or `nft flush ruleset`."""
    firewall, networks = topology.snapshot.firewalls.get(topology.host), _translated(topology)
    if not networks or firewall is None or firewall.problems:
        return
    reached, left = _reached(firewall), any(map(_is_dockers, firewall.chains))
    lost = [table for table in _PURPOSES if table not in reached]
    # Where nothing of Docker's is left, it may also run with iptables=false, and a person's rules translate.
    if not lost or (not left and all(one.kind != "routed" for one in networks)):
        return
    what = "; ".join(_PURPOSES[table] for table in lost)
    words = f"Docker's rules are gone from {' and '.join(lost)}: {what}."
    unless = "" if left else ' (unless it runs with "iptables": false)'
    yield Finding(
        "engine rules",
        namespace_ref(topology.host),
        "Docker's rules are gone",
        words,
        "bad" if left else "warn",
        tuple(network_ref(one.id) for one in networks),
        f"systemctl restart docker{unless}",
    )


def _translated(topology: Topology) -> list[Network]:
    """Docker's networks for which it makes rules on this host."""
    engine = topology.snapshot.engines.get("docker")
    if engine is None or engine.state != "ok":
        return []
    return [
        network
        for network in topology.networks
        if network.engine == "docker"
        and network.driver == "bridge"
        and network.kind in ("nat", "routed")
        and any(":" not in subnet for subnet in network.subnets)
        and (bridge := topology.bridge_link(network))
        and bridge.ns == topology.host
    ]


def _reached(firewall: Firewall) -> set[str]:
    """The tables of iptables in which packets come to a chain of Docker's; all, where it uses nftables."""
    if any(chain.table == _NFT_TABLE for chain in firewall.chains):
        return set(_PURPOSES)
    hooked = {(chain.backend, chain.table, chain.name) for chain in firewall.chains if chain.hook}
    return {
        rule.table
        for rule in firewall.rules
        if rule.family == "ip" and (rule.backend, rule.table, rule.chain) in hooked
        for *_, target in targets(rule)
        if target.startswith(_OWN)
    }


def _is_dockers(chain: Chain) -> bool:
    return chain.family == "ip" and chain.name.startswith(_OWN) and not chain.hook
