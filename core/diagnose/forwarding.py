"""Find packets that rules drop, and missing default routes and Docker rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from core.model import (
    Chain,
    Container,
    Firewall,
    FirewallRule,
    NatEntry,
    Network,
    container_ref,
    link_ref,
    namespace_ref,
    nat_ref,
    network_ref,
)
from core.model.finding import Finding
from core.model.fix import Fix, FixFirewall
from core.nat.describe import describe_drop, describe_remedy, host_firewall, restrict_command
from core.nat.forward_policy import DroppingChain, ForwardPath, Published, by_chain
from core.nat.packets import is_loopback, targets
from core.reach.fixes import default_route
from core.reach.link_fixes import down_link, set_up
from core.reach.texts import evidence_of, policy_evidence
from core.text import TABLE, join_short
from core.text import quoted as quote
from core.topology import Topology

REFUSING = ("drop", "reject")
_MAX_LISTED_PORTS = 8


def drops(topology: Topology) -> Iterator[Finding]:
    """Find containers whose packets a rule has dropped, one finding per container."""
    refused: dict[str, list[NatEntry]] = {}
    for entry in topology.nat:
        if entry.verdict in REFUSING and entry.packets:
            for uid in entry.containers:
                refused.setdefault(uid, []).append(entry)
    for uid, entries in refused.items():
        container = topology.containers[uid]
        # One that joined another's namespace has the same finding as that one.
        if container.netns is None or topology.container_of(container.netns) == container:
            yield from _drop(topology, container, entries)


def _drop(topology: Topology, container: Container, entries: Iterable[NatEntry]) -> Iterator[Finding]:
    addresses = topology.addresses_of(container)
    own = [entry for entry in entries if entry.inside.partition("/")[0] in addresses]
    count = sum(entry.packets or 0 for entry in own)
    if own:
        packets = f"{count:,} packet{'s' * (count != 1)}"
        sentence = f"A rule dropped {packets} of {container.name}: {own[0].name}."
        related = tuple(nat_ref(entry.ns, entry.entry_id) for entry in own)
        advice, fix = _delete_rule(topology, own[0]), _fix_of(own[0])
        evidence = tuple(evidence_of(rule) for rule in _rules_of(topology, own))
        yield Finding(
            "dropped",
            container_ref(container.runtime, container.id),
            f"{packets} dropped",
            sentence,
            "warn",
            related,
            advice,
            evidence,
            fix,
        )


def _rules_of(topology: Topology, entries: Iterable[NatEntry]) -> Iterator[FirewallRule]:
    """Yield the rules that have the effect of some entries."""
    for entry in entries:
        firewall = topology.snapshot.firewalls.get(entry.ns)
        yield from (rule for rule in (firewall.rules if firewall else ()) if rule.rule_id in entry.doing)


def _fix_of(entry: NatEntry) -> Fix:
    """Return the repair that deletes an entry's rules."""
    return Fix(f"delete the rule {entry.name}", tuple(FixFirewall(entry.ns, one) for one in entry.doing))


def _delete_rule(topology: Topology, entry: NatEntry) -> str:
    """Return the command that deletes an entry's rule, as advice."""
    firewall = topology.snapshot.firewalls.get(entry.ns)
    rule = next((one for one in firewall.rules if one.rule_id in entry.doing), None) if firewall else None
    if rule is None:
        return "check the rule, and delete it or make it more specific"
    chain = f"{rule.family} {quote(rule.table)} {quote(rule.chain)}"
    if rule.backend == "nft":
        command = f"nft delete rule {chain} handle {rule.rule_id.rpartition('/')[2]}"
    else:
        tool = "ip6tables" if rule.family == "ip6" else "iptables"
        command = f"{tool} -t {quote(rule.table)} {rule.text.replace('-A ', '-D ', 1)}"
    return f"to allow them, delete the rule; run: {command}"


def blocked_networks(topology: Topology) -> Iterator[Finding]:
    """Find networks whose connections, or the replies, other tools' rules drop."""
    evaluator, uplink = topology.policy_evaluator, topology.uplink(topology.host)
    if evaluator is None or uplink is None:
        return
    for network in topology.networks:
        bridge = topology.bridge_link(network)
        if bridge is None or bridge.ns != topology.host or network.kind not in ("nat", "routed"):
            continue
        if not bridge.addresses:
            continue  # its engine is stopped, so it isn't routed
        path = ForwardPath(bridge.name, uplink[0].name, network.subnets)
        ref, related = network_ref(network.id), (link_ref(bridge.key),)
        dropped = (one for one in evaluator.dropping(path, ("out", "answers")) if one.certain)
        for chain, kinds in by_chain(dropped):
            cause = describe_drop(evaluator.firewall, chain, kinds, path)
            sentence = f"{cause}: containers on {network.name} can't reach the outside."
            advice, evidence = describe_remedy(chain, kinds, path), _evidence(chain, kinds)
            yield Finding("forward", ref, "no outside access", sentence, "bad", related, advice, evidence)


def _evidence(chain: Chain, dropping: Iterable[DroppingChain]) -> tuple[str, ...]:
    """Return the rules or the policy that drop whatever is left of the packets."""
    last = (one.last_rule for one in dropping)
    return tuple(dict.fromkeys(evidence_of(rule) if rule else policy_evidence(chain) for rule in last))


def blocked_ports(topology: Topology) -> Iterator[Finding]:
    """Find vnet's published ports whose packets from outside other tools' rules drop."""
    evaluator, uplink = topology.policy_evaluator, topology.uplink(topology.host)
    if evaluator is None or uplink is None:
        return
    for entry, port in published(topology):
        network = next((one for one in map(topology.network, entry.networks) if one and one.bridge), None)
        if network is None or is_loopback(port.host_ip):
            continue
        path = ForwardPath(network.bridge, uplink[0].name, published=port)
        related = tuple(container_ref(*uid.split(":", 1)) for uid in entry.containers)
        dropped = (one for one in evaluator.dropping(path, ("published", "replies")) if one.certain)
        for chain, kinds in by_chain(dropped):
            cause = describe_drop(evaluator.firewall, chain, kinds, path)
            sentence = f"{cause}: the port can't be reached from outside."
            ref, advice = nat_ref(entry.ns, entry.entry_id), describe_remedy(chain, kinds, path)
            evidence = _evidence(chain, kinds)
            yield Finding("forward", ref, "unreachable", sentence, "bad", related, advice, evidence)


def published(topology: Topology) -> Iterator[tuple[NatEntry, Published]]:
    """Iterate over the ports that vnet publishes, each with its NAT entry."""
    entries = {entry.doing[0]: entry for entry in reversed(topology.nat) if entry.ns == topology.host}
    firewall = topology.snapshot.firewalls.get(topology.host)
    for rule in firewall.rules if firewall else ():
        entry = entries.get(rule.rule_id)
        if rule.table == TABLE and rule.verdict == "dnat" and entry and entry.kind == "published port":
            ends = rule.translations
            address = ends[0].to_address if ends else rule.to_address
            ports = f"{ends[0].to_port}-{ends[-1].to_port}" if ends else rule.to_port or rule.dport
            yield entry, Published(address, rule.l4_proto, ports, rule.dst, rule.dport)


def bypassing_ports(topology: Topology) -> Iterator[Finding]:
    """Find the published ports that bypass ufw or firewalld, as one finding.

    Ports that rules block anyway are left out."""
    firewall, found = topology.snapshot.firewalls.get(topology.host), topology.uplink(topology.host)
    program = host_firewall(firewall) if firewall else ""
    if not firewall or not program:
        return
    dropped = {finding.ref for finding in blocked_ports(topology)}
    entries = [
        entry
        for entry in topology.nat
        if entry.kind == "published port"
        and entry.ns == topology.host
        and not is_loopback(entry.outside.rpartition(":")[0].strip("[]"))
        and nat_ref(entry.ns, entry.entry_id) not in dropped
    ]
    ports = list(dict.fromkeys(f"{one.l4_proto}/{one.outside.rpartition(':')[2]}" for one in entries))
    if ports:
        sentence = (
            f"{program}'s rules for incoming connections don't apply to published ports "
            f"({join_short(ports, _MAX_LISTED_PORTS)}): every host that can reach this one can connect to "
            "them."
        )
        first, uplink = entries[0], found[0].name if found else ""
        port = ports[0].partition("/")[2]
        command = restrict_command(firewall, first.l4_proto, port, first.family == "ip6", uplink)
        related = tuple(nat_ref(one.ns, one.entry_id) for one in entries)
        advice = f"to restrict one of them, run: {command}"
        ref, short = namespace_ref(topology.host), f"bypasses {program}"
        yield Finding("bypass", ref, short, sentence, "warn", related, advice)


def no_default_route(topology: Topology) -> Iterator[Finding]:
    """Find a host without a default route (or IPv4's) that has NAT or routed networks."""
    net = topology.snapshot.nets.get(topology.host)
    outgoing = [one for one in topology.networks if one.kind in ("nat", "routed")]
    with_ipv4 = [one for one in outgoing if any(":" not in subnet for subnet in one.subnets)]
    defaults = {route.family for route in net.routes if route.dst == "default"} if net else set()
    affected = outgoing if not defaults else with_ipv4 if 4 not in defaults else []
    if net and net.routes and affected:
        family = " over IPv4" if defaults else ""
        names = ", ".join(one.name for one in affected)
        sentence = (
            f"The host has no default route{' for IPv4' if defaults else ''}: "
            f"the host and {names} can't reach the outside{family}."
        )
        advice = (
            "undo the change that removed it (u, or vnet-tui undo), or run: ip route add default via GATEWAY"
        )
        ref, fix = namespace_ref(topology.host), default_route(topology, topology.host, False)
        if (down := down_link(net)) is not None:
            sentence = f"{down.name} is down: the host and {names} can't reach the outside."
            ref, fix = link_ref(down.key), set_up(topology, down)
            advice = fix.sentence
        yield Finding("way out", ref, "no default route", sentence, "warn", (), advice, fix=fix)


_CHAIN_PREFIX = "DOCKER"
_NFT_TABLE = "docker-bridges"  # of Docker's nftables backend
_PURPOSES = {
    "nat": "published ports and masquerading don't work",
    "filter": "its networks aren't isolated from each other, and only the policy of FORWARD filters packets",
}


def docker_without_rules(topology: Topology) -> Iterator[Finding]:
    """Find Docker's rules missing, as after `iptables -F` or `nft flush ruleset`."""
    firewall, networks = topology.snapshot.firewalls.get(topology.host), _networks_with_rules(topology)
    if not networks or firewall is None or firewall.problems:
        return
    reached, left = _reached_tables(firewall), any(map(_is_dockers, firewall.chains))
    lost = [table for table in _PURPOSES if table not in reached]
    # Without any chain of Docker's, it may also run with iptables=false, and the user's rules do the NAT.
    if not lost or (not left and all(one.kind != "routed" for one in networks)):
        return
    consequences = "; ".join(_PURPOSES[table] for table in lost)
    tables = f"table{'s' * (len(lost) > 1)} {' and '.join(lost)}"
    sentence = f"Docker's rules are missing in the iptables {tables}: {consequences}."
    unless = "" if left else ' (unless it runs with "iptables": false)'
    yield Finding(
        "engine rules",
        namespace_ref(topology.host),
        "Docker's rules missing",
        sentence,
        "bad" if left else "warn",
        tuple(network_ref(one.id) for one in networks),
        f"restart Docker{unless}; run: systemctl restart docker",
    )


def _networks_with_rules(topology: Topology) -> list[Network]:
    """Return the Docker networks that have rules on this host."""
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


def _reached_tables(firewall: Firewall) -> set[str]:
    """Return the iptables tables that jump to Docker's chains; all if it uses nft."""
    if any(chain.table == _NFT_TABLE for chain in firewall.chains):
        return set(_PURPOSES)
    hooked = {(chain.backend, chain.table, chain.name) for chain in firewall.chains if chain.hook}
    return {
        rule.table
        for rule in firewall.rules
        if rule.family == "ip" and (rule.backend, rule.table, rule.chain) in hooked
        for *_, target in targets(rule)
        if target.startswith(_CHAIN_PREFIX)
    }


def _is_dockers(chain: Chain) -> bool:
    return chain.family == "ip" and chain.name.startswith(_CHAIN_PREFIX) and not chain.hook
