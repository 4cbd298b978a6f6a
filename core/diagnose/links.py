"""Find dead joins, links and bridges that are down, MTU mismatches and overlaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from core.diagnose.subjects import guard_text, joined, storm_text
from core.model import (
    Container,
    Link,
    Ref,
    container_ref,
    link_ref,
    namespace_ref,
    network_ref,
)
from core.model.finding import Finding, Severity
from core.model.fix import Fix, FixLink
from core.reach.fixes import raise_limit
from core.reach.link_fixes import lowered_port, odd_mtu, set_up
from core.text import quoted
from core.text import quoted as quote
from core.topology import Topology

if TYPE_CHECKING:
    from core.topology import Topology


_QUIET_STATES = ("forwarding", "disabled")


def dead_joins(topology: Topology) -> Iterator[Finding]:
    """Find containers whose joined network namespace is gone."""
    for container in topology.containers.values():
        card = topology.cards.get(container.uid)
        if card is not None and card.joined_dead:
            target = joined(topology, container)
            related = (container_ref(target.runtime, target.id),) if target else ()
            sentence = f"{container.name}{card.why.removeprefix('It')}"
            advice = _rejoin(container, target)
            yield Finding(
                "dead join",
                container_ref(container.runtime, container.id),
                "joined namespace is gone",
                sentence,
                "bad",
                related,
                advice,
            )


def _rejoin(container: Container, target: Container | None) -> str:
    """Return the advice for a container whose joined namespace is gone."""
    if target is None:
        return f"remove {container.name}, and create it again to join another container"
    if container.runtime not in ("docker", "podman"):
        return f"restart {container.name} after {target.name}"
    restart = f"{container.runtime} restart {quote(container.name)}"
    if target.netns is None:
        return f"start {target.name}, then restart {container.name}; run: " + (
            f"{container.runtime} start {quote(target.name)}; {restart}"
        )
    return f"restart {container.name}, so that it joins the new namespace; run: {restart}"


def of_links(topology: Topology) -> Iterator[Finding]:
    """Find what is wrong with the links of containers, once per link."""
    found: dict[Ref, Finding] = {}
    for ns, net in topology.snapshot.nets.items():
        container = topology.container_of(ns)
        if container is not None:
            for link in topology.links_of(container) if net.links else ():
                yield from _of_link(topology, container, link)
                if (one := _mtu(topology, container, link)) is not None:
                    earlier = found.setdefault(one.ref, one)
                    if earlier is not one:
                        related = tuple(dict.fromkeys((*earlier.related, *one.related)))
                        found[one.ref] = replace(earlier, related=related)
    yield from found.values()


def _of_link(topology: Topology, container: Container, link: Link) -> Iterator[Finding]:
    """Find an end that is down, or a port that doesn't forward."""
    peer, bridge = topology.peer(link), topology.bridge_of(link)
    if bridge is None and peer is None:
        return
    related = _related(container, link, peer, bridge)
    name, ref = f"{link.name} of {container.name}", link_ref(link.key)
    down = _down(link, peer, name)
    if down:
        culprit = peer if peer is not None and link.admin_up and not peer.admin_up else link
        others = tuple(one for one in (ref, *related) if one != link_ref(culprit.key))
        sentence = f"{down[1]}: it can't send or receive packets."
        fix = None if culprit.admin_up else set_up(topology, culprit)
        advice = _set_up(topology, link, peer)
        yield Finding("link", link_ref(culprit.key), down[0], sentence, "bad", others, advice, fix=fix)
    if peer is not None and peer.port is not None and peer.port.state not in _QUIET_STATES:
        sentence = (
            f"{peer.name}, the bridge port of {name}, doesn't forward: its STP state is {peer.port.state}."
        )
        advice = (
            "wait if it is listening or learning; otherwise check its STP settings, run: "
            f"bridge -d link show dev {quote(peer.name)}"
        )
        yield Finding("port", ref, f"port is {peer.port.state}", sentence, "warn", related, advice)


def _related(container: Container, link: Link, *ends: Link | None) -> tuple[Ref, ...]:
    own = container_ref(container.runtime, container.id)
    return (own, *(link_ref(end.key) for end in ends if end is not None and end.key != link.key))


def _mtu(topology: Topology, container: Container, link: Link) -> Finding | None:
    """Find MTUs that differ on a link, its peer and its bridge."""
    peer, bridge = topology.peer(link), topology.bridge_of(link)
    differing = [end for end in (bridge, peer) if end is not None and end.mtu != link.mtu]
    if not differing:
        return None
    ports = topology.ports_of(bridge.key) if bridge is not None else ()
    inner = [one for port in ports if (one := topology.peer(port))]
    ends = [one for one in (link, peer, bridge) if one is not None]
    wanted = Counter(one.mtu for one in (*ports, *inner, bridge) if one is not None) if bridge else Counter()
    usual = wanted.most_common(1)[0][0] if wanted else odd_mtu(topology, ends)[1]
    culprit = next((one for one in ends if one.mtu != usual), link)
    if bridge is not None and (lowered := lowered_port(topology, bridge, usual)) is not None:
        if differing == [bridge] and lowered.key != link.key and _is_of_container(topology, lowered):
            return None  # it is the finding of the container that has that port
        culprit = lowered if culprit is bridge else culprit
    other = next(one for one in (*differing, link) if one.mtu != culprit.mtu)
    related = tuple(one for one in (link_ref(link.key), *_related(container, link, peer, bridge)))
    others = tuple(one for one in related if one != link_ref(culprit.key))
    role = "bridge" if other is bridge else "port"
    sentence = _mtu_sentence(
        link, differing[0], f"{link.name} of {container.name}", "bridge" if differing[0] is bridge else "port"
    )
    if culprit.key != link.key:
        least = min(culprit.mtu, usual)
        place = topology.label(culprit.ns)
        sentence = (
            f"{culprit.name} ({place}) has MTU {culprit.mtu}, but the links next to it have {usual}: "
            f"packets larger than {least} bytes are lost."
        )
        role = "others"
    short = f"mtu {culprit.mtu}, {role} {usual}"
    fix = Fix(f"set the MTU of {culprit.name} to {usual}", (FixLink(culprit.key, "mtu", str(usual)),))
    advice = _set(topology, culprit, f"--mtu {usual}")
    return Finding("mtu", link_ref(culprit.key), short, sentence, "warn", others, advice, fix=fix)


def _is_of_container(topology: Topology, port: Link) -> bool:
    peer = topology.peer(port)
    return peer is not None and topology.container_of(peer.ns) is not None


def _set_up(topology: Topology, link: Link, peer: Link | None) -> str:
    if peer is not None and link.admin_up and not peer.admin_up:
        return _set(topology, peer, "--up")
    return _set(topology, link, "--up") if not link.admin_up else "check the link's other end"


def _set(topology: Topology, link: Link, option: str) -> str:
    """Advise to change a link: by a key of the dashboard, or by a command."""
    namespace = "" if link.ns == topology.host else f" --ns {quote(topology.label(link.ns))}"
    return f"press e on the link, or run: vnet-tui link set {quote(link.name)} {option}{namespace}"


def _down(link: Link, peer: Link | None, name: str) -> tuple[str, str] | None:
    """Return why a link is down, in short and as a clause; None if both ends are up."""
    if not link.admin_up:
        return "link is down", f"{name} is down"
    if peer is not None and not peer.admin_up:
        return "port is down", f"{peer.name}, the other end of {name}, is down"
    # A bridge without ports has no carrier either, which is normal.
    return None if link.carrier or link.kind == "bridge" else ("no carrier", f"{name} has no carrier")


def _mtu_sentence(link: Link, other: Link, name: str, role: str) -> str:
    other_end = "its bridge" if role == "bridge" else "its other end"
    return (
        f"{name} has MTU {link.mtu}, but {other_end} {other.name} has {other.mtu}: "
        f"packets larger than {min(link.mtu, other.mtu)} bytes are lost."
    )


def of_bridges(topology: Topology) -> Iterator[Finding]:
    """Find networks whose bridge is missing or down."""
    for network in topology.networks:
        bridge = topology.bridge_link(network)
        ref, is_read = network_ref(network.id), network.ns in topology.snapshot.nets
        if network.bridge and bridge is None and is_read:
            sentence = (
                f"The bridge {network.bridge} of network {network.name} no longer exists: "
                "the network carries no packets."
            )
            advice = "remove the network and create it again"
            yield Finding("bridge", ref, "bridge is gone", sentence, "bad", (), advice)
        elif bridge is not None and not bridge.admin_up:
            count = len(topology.ports_of(bridge.key))
            ports = f"its {count} port{'s' * (count != 1)} can't" if count else "ports attached to it can't"
            sentence = f"The bridge {bridge.name} is down: {ports} reach anything."
            related = (link_ref(bridge.key),)
            advice, fix = _set(topology, bridge, "--up"), set_up(topology, bridge)
            yield Finding("bridge", ref, "bridge is down", sentence, "bad", related, advice, fix=fix)


# The share of a conntrack table above which it is nearly full.
_NEARLY_FULL = 0.8
# Findings for counters that grow: in short, the effect, the cause, and the severity.
_TABLE_FAILURES: Mapping[str, tuple[str, str, str, Severity]] = {
    "drop": ("packets dropped", "dropped {count} packets", "its table is full or memory ran out", "bad"),
    "insert_failed": (
        "inserts fail",
        "failed to insert {count} connections",
        "other connections have the same addresses and ports",
        "warn",
    ),
    "early_drop": (
        "early drops", "removed {count} connections early", "its table had no room for new ones", "warn",
    ),
}  # fmt: skip


def full_tables(topology: Topology) -> Iterator[Finding]:
    """Find conntrack tables that are full or nearly so."""
    for ns, table in topology.snapshot.conntracks.items():
        count, limit = len(table.entries), table.limit
        if limit and count > limit * _NEARLY_FULL:
            sentence = (
                f"The conntrack table of {topology.label(ns)} has {count:,} of {limit:,} connections: "
                "when it is full, new ones are dropped."
            )
            short = f"conntrack {count * 100 // limit}% full"
            advice = f"raise the limit; run: sysctl -w net.netfilter.nf_conntrack_max={2 * limit}"
            severity: Severity = "bad" if count >= limit else "warn"
            fix = raise_limit(ns, limit)
            yield Finding("conntrack", namespace_ref(ns), short, sentence, severity, (), advice, fix=fix)


def failing_tables(topology: Topology) -> Iterator[Finding]:
    """Find conntrack tables whose failure counters have grown since the earlier poll."""
    for ns, table in topology.snapshot.conntracks.items():
        for counter, (short, effect, cause, severity) in _TABLE_FAILURES.items():
            if count := table.grown(counter):
                where = f"in {topology.label(ns)} within {table.stats_seconds:.0f} s"
                sentence = f"Conntrack {effect.format(count=f'{count:,}')} {where}: {cause}."
                yield Finding("conntrack", namespace_ref(ns), f"conntrack: {short}", sentence, severity)


def storms(topology: Topology) -> Iterator[Finding]:
    """Find broadcast and multicast storms, and the ports that they enter by."""
    for storm in topology.snapshot.storms:
        bridge = topology.snapshot.link((storm.ns, storm.ifindex))
        if bridge is not None:
            network = topology.network_of(bridge)
            found = (topology.snapshot.link((storm.ns, port)) for port in storm.ports)
            ports = [port for port in found if port is not None]
            peers = (topology.peer(port) for port in ports)
            senders = (topology.container_of(peer.ns) for peer in peers if peer is not None)
            related = (
                *(link_ref(port.key) for port in ports),
                *(container_ref(each.runtime, each.id) for each in senders if each),
                *((network_ref(network.id),) if network else ()),
            )
            source = " and ".join(_source(topology, port) for port in ports)
            source = f"; they enter through {source}" if source else ""
            sentence = f"{storm_text(storm, bridge)}{source}.{_loop_warning(bridge)}"
            short = f"{storm.kind} storm, {storm.rate:,.0f}/s"
            yield Finding("storm", link_ref(bridge.key), short, sentence, "bad", related)


def storm_guards(topology: Topology) -> Iterator[Finding]:
    """Find storm guards that drop frames at present."""
    for guard in topology.snapshot.storm_guards:
        port = topology.snapshot.link((guard.ns, guard.ifindex))
        for drops in guard.drops if port else ():
            assert port
            bridge, peer = topology.master_of(port), topology.peer(port)
            sender = topology.container_of(peer.ns) if peer else None
            related = (
                *((link_ref(bridge.key),) if bridge else ()),
                *((container_ref(sender.runtime, sender.id),) if sender else ()),
            )
            short = f"storm guard drops {drops.kind}"
            sentence = (
                f"{guard_text(_source(topology, port), drops)}.{_loop_warning(bridge) if bridge else ''}"
            )
            advice = f"vnet-tui storm loop {quoted(bridge.name)}" if bridge else ""
            yield Finding("storm", link_ref(port.key), short, sentence, "warn", related, advice)


def _source(topology: Topology, port: Link) -> str:
    """Name a port, and the bridge or container behind it."""
    peer = topology.peer(port)
    if peer is None:
        return port.name
    end = topology.master_of(peer)
    return f"{port.name} (from {f'bridge {end.name}' if end else topology.label(peer.ns)})"


def _loop_warning(bridge: Link) -> str:
    if bridge.bridge is None or bridge.bridge.stp:
        return ""
    return " STP is off, so nothing breaks a loop of bridges: look for one."
