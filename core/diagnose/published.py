"""Find lost published ports, hidden clients, and what Docker drops on purpose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_network

from core.diagnose.forwarding import published as vnet_published
from core.model import (
    Container,
    FirewallRule,
    Link,
    Listener,
    Network,
    PublishedPort,
    Ref,
    container_ref,
    link_ref,
    nat_ref,
    network_ref,
)
from core.model.finding import Finding
from core.nat.packets import PlacedRule, covers, is_loopback, matches_link, placed_rules
from core.reach.fixes import open_network
from core.text import bounds
from core.text import quoted as quote
from core.topology import Topology

_ENGINES = ("docker", "podman")
_ANY = ("", "0.0.0.0", "::")
# Kinds of links by which other machines or networks are reached.
_TUNNELS = ("wireguard", "tun", "ipip", "gre", "xfrm", "ppp")


def without_rule(topology: Topology) -> Iterator[Finding]:
    """Find published ports that no rule forwards, or only a proxy."""
    listening = topology.snapshot.listeners.get(topology.host)
    firewall = topology.snapshot.firewalls.get(topology.host)
    if listening is None or firewall is None or firewall.problems:
        return
    for container in topology.containers.values():
        ports = [port for port in container.ports if _needs_rule(topology, container, port)]
        missing = [port for port in ports if not _has_rule(topology, port)]
        lost = [port for port in missing if not _is_heard(listening, port)]
        proxied = [port for port in missing if port not in lost and not is_loopback(port.host_ip)]
        if lost:
            yield _lost(topology, container, lost)
        if proxied and _is_published_by_rules(container):
            yield _proxied(topology, container, proxied)


def _is_published_by_rules(container: Container) -> bool:
    # Rootless podman forwards by a process only, which is by design.
    return container.runtime == "docker"


def _needs_rule(topology: Topology, container: Container, port: PublishedPort) -> bool:
    """Return whether the host has to forward a port to a container over IPv4."""
    if container.runtime not in _ENGINES or container.state != "running" or not port.host_port:
        return False
    if container.netns in (None, topology.host) or port.l4_proto not in ("tcp", "udp") or ":" in port.host_ip:
        return False
    networks = [one for one in topology.networks_of(container) if one.engine == container.runtime]
    ways = [one for one in networks if one.driver == "bridge" and not one.internal]
    return bool(ways) and all(one.gateway_mode.get("ipv4", "nat").startswith("nat") for one in ways)


def _has_rule(topology: Topology, port: PublishedPort) -> bool:
    return any(_forwards(one.effective, port) for one in topology.dnat_rules)


def _forwards(rule: FirewallRule, port: PublishedPort) -> bool:
    if rule.translations:
        return any(
            (one.l4_proto or rule.l4_proto) in ("", port.l4_proto)
            and _has_port(one.dport or rule.dport, port)
            for one in rule.translations
        )
    is_protocol = not rule.l4_proto or port.l4_proto in rule.l4_proto.split(",")
    return is_protocol and rule.family in ("ip", "inet") and _has_port(rule.dport, port)


def _has_port(text: str, port: PublishedPort) -> bool:
    """Return whether a match of ports may hold for a published port."""
    try:
        ranges = [bounds(part) for part in text.split(",")] if text else []
    except ValueError:
        return True
    return not ranges or any(low <= port.host_port <= high for low, high in ranges)


def _is_heard(listening: Sequence[Listener], port: PublishedPort) -> bool:
    return any((one.l4_proto, one.port) == (port.l4_proto, port.host_port) for one in listening)


def _text(ports: Sequence[PublishedPort]) -> str:
    return ", ".join(f"{one.host_port}/{one.l4_proto}" for one in ports)


def _lost(topology: Topology, container: Container, ports: Sequence[PublishedPort]) -> Finding:
    name, many = topology.title(container), len(ports) > 1
    sentence = (
        f"{name} publishes {_text(ports)}, but no rule forwards {'them' if many else 'it'} "
        f"and no proxy listens: the port{'s' * many} can't be reached."
    )
    own = container_ref(container.runtime, container.id)
    related = tuple(network_ref(one.id) for one in topology.networks_of(container))
    restart = f"{container.runtime} restart {quote(container.name)}"
    advice = f"restart {name}, so that its engine makes the rules again; run: {restart}"
    evidence = tuple(f"published: {one.host_ip or '*'}:{one.host_port}/{one.l4_proto}" for one in ports)
    short = f"no rule forwards {_text(ports)}"
    return Finding("nat", own, short, sentence, "bad", related, advice, evidence)


def _proxied(topology: Topology, container: Container, ports: Sequence[PublishedPort]) -> Finding:
    sentence = (
        f"{topology.title(container)} gets connections to {_text(ports)} from a process of the host, "
        "and not by a rule: it sees the gateway's address, and not the client's."
    )
    advice = (
        'check that Docker may make rules ("iptables": true in /etc/docker/daemon.json), '
        "then restart Docker; run: systemctl restart docker"
    )
    ref = container_ref(container.runtime, container.id)
    short = f"client addresses hidden on {_text(ports)}"
    evidence = tuple(f"LISTEN {one.host_ip or '*'}:{one.host_port}/{one.l4_proto}" for one in ports)
    return Finding("nat", ref, short, sentence, "info", (), advice, evidence)


def masqueraded_clients(topology: Topology) -> Iterator[Finding]:
    """Find masquerades that also match what comes in to published ports."""
    rules = {rule.rule_id: rule for rule in _rules(topology)}
    ports = [one for one in topology.nat if one.ns == topology.host and one.kind == "published port"]
    for entry in topology.nat:
        if entry.ns != topology.host or entry.kind not in ("masquerade", "snat") or not ports:
            continue
        found = next((rules[one] for one in entry.doing if one in rules), None)
        hidden = [one for one in ports if found is not None and _masks(topology, found, one.networks)]
        if found is not None and hidden:
            names = ", ".join(
                dict.fromkeys(topology.containers[uid].name for one in hidden for uid in one.containers[:1])
            )
            sentence = (
                f"The {found.verdict} rule in {found.table} {found.chain} also changes the source of what "
                f"comes in: {names or 'containers'} see this host as the client of published ports."
            )
            related = tuple(nat_ref(one.ns, one.entry_id) for one in hidden)
            advice = "restrict the rule to packets that leave by the uplink (-o UPLINK, or oifname)"
            ref, short = nat_ref(entry.ns, entry.entry_id), "client addresses hidden"
            yield Finding("nat", ref, short, sentence, "warn", related, advice, (found.text,))


def _rules(topology: Topology) -> Iterator[FirewallRule]:
    """Return the rules that translate sources, with the matches on their paths."""
    firewall = topology.snapshot.firewalls.get(topology.host)
    for one in placed_rules(firewall) if firewall else ():
        if one.rule.verdict in ("masquerade", "snat") and "postrouting" in one.hooks and one.rule.understood:
            yield one.effective


def _masks(topology: Topology, rule: FirewallRule, networks: Sequence[str]) -> bool:
    """Return whether a rule changes the source of all packets to a network."""
    everything = ip_network("0.0.0.0/0")
    if covers(rule.src, everything) is not True or rule.iif or rule.ct_state or rule.sport or rule.dport:
        return False
    network = next((one for one in map(topology.network, networks) if one and one.bridge), None)
    subnets = [one for one in network.subnets if ":" not in one] if network else []
    if network is None or not subnets or not matches_link(rule.oif, network.bridge):
        return False
    return all(covers(rule.dst, ip_network(one, strict=False)) is True for one in subnets)


def direct_access(topology: Topology) -> Iterator[Finding]:
    """Find what Docker 28 and later drop on purpose: direct access, unpublished ports."""
    firewall = topology.snapshot.firewalls.get(topology.host)
    placed = placed_rules(firewall) if firewall else ()
    tunnels = _tunnels(topology)
    for network in topology.networks:
        bridge = topology.bridge_link(network)
        if network.engine != "docker" or bridge is None or bridge.ns != topology.host:
            continue
        direct = [one for one in placed if _is_direct_drop(one, network)]
        closed = [one for one in placed if _is_closed_drop(one, network)]
        yield from _direct(network, bridge, direct, tunnels)
        yield from _closed(network, bridge, closed)


def _tunnels(topology: Topology) -> list[Link]:
    net = topology.snapshot.nets.get(topology.host)
    links = net.links.values() if net else ()
    return [one for one in links if one.kind in _TUNNELS and one.admin_up and one.addresses]


def _is_direct_drop(one: PlacedRule, network: Network) -> bool:
    """Return whether a rule drops packets to containers from other links."""
    rule = one.effective
    negated = rule.iif.startswith("!") and network.bridge in rule.iif.removeprefix("!").split(",")
    if rule.verdict != "drop" or not negated or not rule.dst or "prerouting" not in one.hooks:
        return False
    return any(covers(subnet, ip_network(part, strict=False)) is True
               for subnet in network.subnets for part in rule.dst.split(",") if _is_prefix(part))  # fmt: skip


def _is_prefix(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _is_closed_drop(one: PlacedRule, network: Network) -> bool:
    """Return whether a rule drops what no rule for a published port has accepted."""
    rule = one.effective
    is_foreign = rule.iif == f"!{network.bridge}" and rule.oif == network.bridge
    return rule.verdict == "drop" and is_foreign and not rule.dst and "forward" in one.hooks


def _direct(
    network: Network, bridge: Link, rules: Sequence[PlacedRule], tunnels: Sequence[Link]
) -> Iterator[Finding]:
    others = [one for one in tunnels if one.name not in network.trusted_links]
    count = sum(one.rule.packets or 0 for one in rules)
    if not rules or "*" in network.trusted_links or not (count or others):
        return
    who = f"behind {', '.join(one.name for one in others)}" if others else "on other links"
    dropped = f" (dropped so far: {count:,} packets)" if count else ""
    sentence = (
        f"Docker lets no other link reach the containers of {network.name} by their own addresses: clients "
        f"{who} can use only published ports{dropped}."
    )
    link = others[0].name if others else "LINK"
    advice = f"use published ports, or {open_network(network.name, link).sentence}"
    related: tuple[Ref, ...] = (link_ref(bridge.key), *(link_ref(one.key) for one in others))
    evidence = tuple(one.rule.text for one in rules[:2])
    yield Finding(
        "nat", network_ref(network.id), "no direct access", sentence, "info", related, advice, evidence
    )


def _closed(network: Network, bridge: Link, rules: Sequence[PlacedRule]) -> Iterator[Finding]:
    count = sum(one.rule.packets or 0 for one in rules)
    if not count:
        return
    packets = f"{count:,} packet{'s' * (count != 1)}"
    sentence = f"Docker dropped {packets} to ports of {network.name} that no container publishes."
    advice = "publish the port (P), if it should be reached from other networks"
    short = f"{packets} to unpublished ports"
    evidence = tuple(one.rule.text for one in rules[:1])
    ref, related = network_ref(network.id), (link_ref(bridge.key),)
    yield Finding("dropped", ref, short, sentence, "info", related, advice, evidence)


def shadowed_listeners(topology: Topology) -> Iterator[Finding]:
    """Find processes of the host whose port vnet publishes for a container."""
    listening = topology.snapshot.listeners.get(topology.host, ())
    for entry, port in vnet_published(topology):
        heard = [
            one
            for one in listening
            if one.l4_proto == port.l4_proto and _hears(one, port.host_ip, port.host_ports)
        ]
        if heard and not is_loopback(port.host_ip):
            sentence = (
                f"A process of the host also listens on {heard[0].l4_proto} {heard[0].port}, "
                f"which is published as {entry.name}: it gets no connections from outside."
            )
            show = f"ss -ltnup 'sport = :{heard[0].port}'"
            advice = f"publish another port of the host, or stop the process; run: {show}"
            ref, short = nat_ref(entry.ns, entry.entry_id), f"shadows a process on {heard[0].port}"
            evidence = (f"LISTEN {heard[0].address}:{heard[0].port}",)
            yield Finding("nat", ref, short, sentence, "info", (), advice, evidence)


def _hears(one: Listener, host_ip: str, ports: str) -> bool:
    try:
        low, high = bounds(ports)
    except ValueError:
        return False
    is_reached = one.address in _ANY or host_ip in ("", one.address)
    return low <= one.port <= high and is_reached and not is_loopback(one.address)
