"""What is wrong with a host's networks: each finding in a sentence, with the things that it concerns."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Literal

from core.model import (
    Container,
    Link,
    NatEntry,
    Ref,
    Storm,
    container_ref,
    link_ref,
    namespace_ref,
    nat_ref,
    network_ref,
)
from core.nat.letting import by_chain, drop_words, dropping, letting_words

if TYPE_CHECKING:
    from core.topology import Topology

Severity = Literal["bad", "warn"]
REFUSING = ("drop", "reject")
# The share of a conntrack table from which on it counts as nearly full.
_NEARLY_FULL = 0.8
# What a table's counters tell when they grow: in a few words, in full, and how bad it is.
_TABLE_TROUBLES: Mapping[str, tuple[str, str, Severity]] = {
    "drop": ("packets dropped", "dropped {count} packets, for lack of room or memory,", "bad"),
    "insert_failed": (
        "inserts fail",
        "could not take up {count} connections, whose addresses and ports another one has,",
        "warn",
    ),
    "early_drop": ("early drops", "threw out {count} connections early, for new ones,", "warn"),
}
_QUIET_STATES = ("forwarding", "disabled")

Span = tuple[int, int, int]  # IP version, first and last address


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `kind` is "mtu", "overlap", "dead join", "link", "port", "bridge", "dropped",
    "forward", "way out", "conntrack" or "storm"; `ref` where it shows; `short` what it is in a few words,
    `sentence` in full; `related` the other things that it concerns, of an overlap the other side first;
    `advice` what to try, "" where nothing is known. Names are text from outside, verbatim."""

    kind: str
    ref: Ref
    short: str
    sentence: str
    severity: Severity
    related: tuple[Ref, ...] = ()
    advice: str = ""


def findings(topology: Topology) -> tuple[Finding, ...]:
    """All that is wrong, what is broken before what is only doubtful."""
    found = [
        *_dead_joins(topology),
        *_of_links(topology),
        *_of_bridges(topology),
        *_overlaps(topology),
        *_drops(topology),
        *_shut_networks(topology),
        *_no_way_out(topology),
        *_full_tables(topology),
        *_failing_tables(topology),
        *_storms(topology),
    ]
    return tuple(sorted(found, key=lambda one: one.severity != "bad"))


def by_ref(found: Iterable[Finding]) -> Mapping[Ref, tuple[Finding, ...]]:
    """The findings that concern each thing."""
    groups: dict[Ref, list[Finding]] = {}
    for finding in found:
        for ref in dict.fromkeys((finding.ref, *finding.related)):
            groups.setdefault(ref, []).append(finding)
    return {ref: tuple(group) for ref, group in groups.items()}


def _dead_joins(topology: Topology) -> Iterator[Finding]:
    for container in topology.containers.values():
        card = topology.cards.get(container.uid)
        if card is not None and card.joined_dead:
            target = joined(topology, container)
            about = (_ref(target),) if target else ()
            words = f"{container.name}: {card.why}"
            advice = f"start {container.name} anew, after the one that it joins, or remove it"
            yield Finding(
                "dead join", _ref(container), "joined namespace is dead", words, "bad", about, advice
            )


def joined(topology: Topology, container: Container) -> Container | None:
    """Whom a container asked to join, by name or id; None where that one is gone."""
    kind, _, wanted = container.network_mode.partition(":")
    others = (one for one in topology.containers.values() if one.uid != container.uid)
    found = (one for one in others if kind == "container" and wanted in (one.id, one.name))
    return next(found, None)


def _of_links(topology: Topology) -> Iterator[Finding]:
    """What is wrong with the links of containers, each link once."""
    for ns, net in topology.snapshot.nets.items():
        container = topology.container_of(ns)
        if container is not None:
            for link in topology.links_of(container) if net.links else ():
                yield from _of_link(topology, container, link)


def _of_link(topology: Topology, container: Container, link: Link) -> Iterator[Finding]:
    """An end that is off, a port that does not forward, MTUs that differ along the way."""
    peer, bridge = topology.peer(link), topology.bridge_of(link)
    if bridge is None and peer is None:
        return
    ends = (peer, bridge)
    related = (_ref(container), *(link_ref(end.key) for end in ends if end is not None))
    here, ref = f"{link.name} of {container.name}", link_ref(link.key)
    dead = _off(link, peer, here)
    if dead:
        words = f"{dead[1]}: nothing gets in or out by it."
        yield Finding("link", ref, dead[0], words, "bad", related, _switch_on(topology, link, peer))
    if peer is not None and peer.port is not None and peer.port.state not in _QUIET_STATES:
        words = f"{peer.name}, the bridge port of {here}, does not forward: it is {peer.port.state}."
        advice = f"wait, where it listens or learns; else see the bridge: bridge -d link show dev {peer.name}"
        yield Finding("port", ref, f"port is {peer.port.state}", words, "warn", related, advice)
    for role, end in (("bridge", bridge), ("port", peer)):
        if end is not None and end.mtu != link.mtu:
            short = f"mtu {link.mtu}, {role} {end.mtu}"
            advice = _set(topology, link, f"--mtu {end.mtu}")
            yield Finding("mtu", ref, short, _mtu_words(link, end, here, role), "warn", related, advice)
            return


def _switch_on(topology: Topology, link: Link, peer: Link | None) -> str:
    if peer is not None and link.admin_up and not peer.admin_up:
        return _set(topology, peer, "--up")
    return _set(topology, link, "--up") if not link.admin_up else "see its other end"


def _set(topology: Topology, link: Link, change: str) -> str:
    """How to change a link, by the command; in the dashboard its form opens by a key."""
    place = "" if link.ns == topology.host else f" --ns {quote(topology.label(link.ns))}"
    return f"vnet-tui link set {quote(link.name)} {change}{place} (or e on it)"


def _off(link: Link, peer: Link | None, here: str) -> tuple[str, str] | None:
    """Why nothing passes a link, in a few words and in more; None where it is up at both ends."""
    if not link.admin_up:
        return "link is off", f"{here} is switched off"
    if peer is not None and not peer.admin_up:
        return "port is off", f"{peer.name}, the other end of {here}, is switched off"
    # A bridge without ports has no carrier either, and nothing is wrong with it.
    return None if link.carrier or link.kind == "bridge" else ("no carrier", f"{here} has no carrier")


def _mtu_words(link: Link, other: Link, here: str, role: str) -> str:
    other_end = "its bridge" if role == "bridge" else "its other end"
    return (
        f"{here} has MTU {link.mtu}, {other_end} {other.name} {other.mtu}: "
        f"packets of more than {min(link.mtu, other.mtu)} bytes are lost on the way."
    )


def _of_bridges(topology: Topology) -> Iterator[Finding]:
    """Networks whose bridge is gone or off."""
    for network in topology.networks:
        bridge = topology.bridge_link(network)
        ref, there = network_ref(network.id), network.ns in topology.snapshot.nets
        if network.bridge and bridge is None and there:
            words = f"The bridge {network.bridge} of network {network.name} is gone: nothing carries it."
            yield Finding(
                "bridge", ref, "bridge is gone", words, "bad", (), "remove the network, and make it anew"
            )
        elif bridge is not None and not bridge.admin_up:
            count = len(topology.ports_of(bridge.key))
            left = f"its {count} port{'s' * (count != 1)} cannot" if count else "a port on it could not"
            words = f"The bridge {bridge.name} is switched off: {left} reach anything."
            about = (link_ref(bridge.key),)
            yield Finding("bridge", ref, "bridge is off", words, "bad", about, _set(topology, bridge, "--up"))


@dataclass(frozen=True, slots=True)
class _Claim:
    """Addresses that a network, or a link outside any, claims in a namespace."""

    ns: int
    ref: Ref
    also: tuple[Ref, ...]
    name: str
    subnets: tuple[str, ...]
    ports: int = 0


def _overlaps(topology: Topology) -> Iterator[Finding]:
    """Each pair of claims in one namespace that share an address, one of them at least a network's."""
    spans: dict[tuple[int, int], list[tuple[int, int, _Claim]]] = {}
    for claim in _claims(topology):
        for version, first, last in _spans(claim.subnets):
            spans.setdefault((claim.ns, version), []).append((first, last, claim))
    pairs: dict[tuple[Ref, Ref], tuple[_Claim, _Claim]] = {}
    for group in spans.values():
        for one, other in _meeting(sorted(group, key=lambda span: span[:2])):
            networks_only = "network" in (one.ref.kind, other.ref.kind)
            if networks_only and one.ref != other.ref and (other.ref, one.ref) not in pairs:
                pairs.setdefault((one.ref, other.ref), (one, other))
    return (_overlap(one, other) for one, other in pairs.values())


def _meeting(ordered: list[tuple[int, int, _Claim]]) -> Iterator[tuple[_Claim, _Claim]]:
    """Those of spans in order that share an address, pair by pair."""
    for place, (_, last, one) in enumerate(ordered):
        for first, _, other in ordered[place + 1 :]:
            if first > last:
                break
            yield one, other


def _claims(topology: Topology) -> Iterator[_Claim]:
    for network in topology.networks:
        bridge = topology.bridge_link(network)
        also = (link_ref(bridge.key),) if bridge else ()
        ports = len(topology.ports_of(bridge.key)) if bridge else 0
        ns, ref = network.ns or topology.host, network_ref(network.id)
        yield _Claim(ns, ref, also, network.name, network.subnets, ports)
    bridges = {(network.ns or topology.host, network.bridge) for network in topology.networks}
    for ns in {network.ns or topology.host for network in topology.networks}:
        net = topology.snapshot.nets.get(ns)
        for link in net.links.values() if net else ():
            if (ns, link.name) not in bridges and link.kind != "loopback":
                yield _Claim(ns, link_ref(link.key), (), link.name, tuple(map(str, link.addresses)))


def _spans(subnets: Iterable[str]) -> Iterator[Span]:
    for subnet in subnets:
        try:
            parsed = ipaddress.ip_network(subnet, strict=False)
        except ValueError:
            continue
        if not parsed.is_link_local:
            yield parsed.version, int(parsed.network_address), int(parsed.broadcast_address)


def _overlap(one: _Claim, other: _Claim) -> Finding:
    if one.ref.kind != "network":
        one, other = other, one
    words = (
        f"{one.name} ({' '.join(one.subnets)}) and {other.name} ({' '.join(other.subnets)}) overlap: "
        "an address in both is reached in one of them only."
    )
    short = f"overlaps {other.name}"
    smaller = one if other.ref.kind != "network" else min(one, other, key=lambda each: each.ports)
    advice = (
        f"give {smaller.name}, the one with fewer ports, another subnet: delete it (d) and make it anew (n), "
        "or where vnet did not make it, by whatever did"
    )
    return Finding("overlap", one.ref, short, words, "bad", (other.ref, *one.also, *other.also), advice)


def _drops(topology: Topology) -> Iterator[Finding]:
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
        yield Finding("dropped", _ref(container), f"{packets} dropped", words, "warn", related, advice)


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


def _shut_networks(topology: Topology) -> Iterator[Finding]:
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


def _no_way_out(topology: Topology) -> Iterator[Finding]:
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


def _full_tables(topology: Topology) -> Iterator[Finding]:
    for ns, table in topology.snapshot.conntracks.items():
        count, limit = len(table.entries), table.limit
        if limit and count > limit * _NEARLY_FULL:
            words = (
                f"The conntrack table of {topology.label(ns)} holds {count:,} of {limit:,} connections: "
                "when it is full, new ones are dropped."
            )
            short = f"conntrack {count * 100 // limit}% full"
            yield Finding("conntrack", namespace_ref(ns), short, words, "bad" if count >= limit else "warn")


def _storms(topology: Topology) -> Iterator[Finding]:
    for storm in topology.snapshot.storms:
        bridge = topology.snapshot.link((storm.ns, storm.ifindex))
        if bridge is not None:
            network = topology.network_of(bridge)
            about = (network_ref(network.id),) if network else ()
            found = (topology.snapshot.link((storm.ns, port)) for port in storm.ports)
            ports = [port for port in found if port is not None]
            peers = (topology.peer(port) for port in ports)
            senders = (topology.container_of(peer.ns) for peer in peers if peer is not None)
            also = (*(link_ref(port.key) for port in ports), *(_ref(each) for each in senders if each))
            source = " and ".join(_source(topology, port) for port in ports)
            source = f"; they come in by {source}" if source else ""
            words = f"{storm_words(storm, bridge)}{source}.{_loop_words(bridge)}"
            short = f"{storm.kind} storm, {storm.rate:,.0f}/s"
            yield Finding("storm", link_ref(bridge.key), short, words, "bad", (*also, *about))


def storm_words(storm: Storm, bridge: Link) -> str:
    """A storm as the beginning of a sentence."""
    return (
        f"A storm of {storm.kind}s on {bridge.name}: about {storm.rate:,.0f} frames/s, "
        f"{storm.share:.0%} of all that enter it"
    )


def _source(topology: Topology, port: Link) -> str:
    """A port, and what lies behind it."""
    peer = topology.peer(port)
    if peer is None:
        return port.name
    end = topology.master_of(peer)
    return f"{port.name} (from {f'bridge {end.name}' if end else topology.label(peer.ns)})"


def _loop_words(bridge: Link) -> str:
    if bridge.bridge is None or bridge.bridge.stp:
        return ""
    return " Its spanning tree is off: a loop of bridges would go on until it is cut."


def _failing_tables(topology: Topology) -> Iterator[Finding]:
    """Tables of which some counter of trouble has grown since the look before."""
    for ns, table in topology.snapshot.conntracks.items():
        for counter, (short, words, severity) in _TABLE_TROUBLES.items():
            if count := table.grown(counter):
                where = f"in {topology.label(ns)} within {table.stats_seconds:.0f} s"
                told = f"Conntrack {words.format(count=f'{count:,}')} {where}."
                yield Finding("conntrack", namespace_ref(ns), f"conntrack: {short}", told, severity)


def _ref(container: Container) -> Ref:
    return container_ref(container.runtime, container.id)
