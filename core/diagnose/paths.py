"""Follow the packets that should pass on a healthy host; report what stops them.

Each container's way to the outside, to its neighbour and gateway, each published port from outside, and the
host's own way out. What stops several of them is one finding, at its cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from core.model import (
    Container,
    Link,
    NatEntry,
    Network,
    Part,
    Ref,
    container_ref,
    namespace_ref,
    nat_ref,
    network_ref,
)
from core.model.finding import Finding, Severity
from core.model.fix import Fix, FixAccept
from core.nat.packets import is_loopback
from core.reach import Answer, Endpoint, Hop, Question, why
from core.reach.fixes import OUTSIDE_ADDRESS, keeps_source
from core.text import is_address, safe
from core.topology import Topology

OUTSIDE = Endpoint("the outside")
_OUTSIDE_PORT = 443
_MOST_NAMED = 4
_NEEDED = (Part.LINKS, Part.FIREWALL, Part.CONTAINERS, Part.NAMESPACES, Part.OVS)
_COUNTER = re.compile(r" \([\d,]+ packets\)$")  # findings are kept while only counters differ
# First words of what is wrong that are no names.
_WORDS = frozenset({"nothing", "no", "a", "the", "packets", "port", "wrong", "blackhole", "unreachable"})
_ALL_BUT_LISTENER = (
    "route", "forwarding", "rp_filter", "firewall", "nat", "neighbour", "link", "bridge", "conntrack",
    "uplink", "address", "overlap",
)  # fmt: skip
# Kinds of hops, as kinds of findings.
_KINDS = {"firewall": "forward", "bridge": "port", "uplink": "link"}


@dataclass(frozen=True, slots=True)
class Path:
    """A path that should work.

    `ref` is the object whose path it is, `phrase` says in a sentence what fails ("web1 can't reach the
    outside"), `ignored` are the kinds of hops that may stop it on a healthy host, `networks` those that it
    is about, `is_within` whether both ends are on one network.
    """

    question: Question
    ref: Ref
    phrase: str
    ignored: tuple[str, ...] = ()
    networks: tuple[Ref, ...] = ()
    is_within: bool = False


def stopped_paths(topology: Topology) -> Iterator[Finding]:
    """Find what stops the paths that should work, one finding per cause."""
    snapshot = topology.snapshot
    if any(part in snapshot.pending for part in _NEEDED) or topology.host not in snapshot.nets:
        return
    causes: dict[tuple[Ref | None, str], list[tuple[Path, Answer, Hop]]] = {}
    for path in paths(topology):
        answer = why(topology, path.question)
        hop = answer.cause
        if hop is None or answer.verdict != "stop" or hop.kind in path.ignored:
            continue
        causes.setdefault((hop.ref, _cause(hop)), []).append((path, answer, hop))
    for stopped in causes.values():
        yield _finding([path for path, _, _ in stopped], stopped[0][2])


def _cause(hop: Hop) -> str:
    """Return what is wrong without the direction: a rule may drop packets and answers."""
    return hop.subject.replace(" the packets", "").replace(" the answers", "")


def _finding(stopped: Sequence[Path], hop: Hop) -> Finding:
    phrases = list(dict.fromkeys(path.phrase for path in stopped))
    more = len(phrases) - _MOST_NAMED
    listed = "; ".join(phrases[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
    subject = hop.subject or hop.text
    ref = hop.ref or stopped[0].ref
    refs = (*(path.ref for path in stopped), *(one for path in stopped for one in path.networks))
    related = tuple(one for one in dict.fromkeys(refs) if one != ref)
    sentence = f"{_capitalized(subject)}: {listed}."
    # Rules that separate containers of a network are often meant to.
    within = hop.kind == "firewall" and all(path.is_within for path in stopped)
    severity: Severity = "warn" if within else "bad"
    return Finding(
        _KINDS.get(hop.kind, hop.kind), ref, subject, sentence, severity, related, advice_of(hop.fix),
        hop.evidence, hop.fix,
    )  # fmt: skip


def _capitalized(text: str) -> str:
    """Begin a sentence with a capital letter, unless it begins with a name."""
    first = text.partition(" ")[0]
    return f"{text[:1].upper()}{text[1:]}" if first in _WORDS else text


def advice_of(fix: Fix | None) -> str:
    """Return a repair as an advice."""
    if fix is None:
        return ""
    return f"{fix.sentence}; run: {fix.command}" if fix.command else fix.sentence


def paths(topology: Topology) -> Iterator[Path]:
    """Yield the paths that should work."""
    if topology.uplink(topology.host) is not None:
        question = Question(
            Endpoint("the host", topology.host), _outside(topology, topology.host), "tcp", 443
        )
        phrase = "the host can't reach the outside"
        yield Path(question, namespace_ref(topology.host), phrase, ("listener",))
    for ns in topology.snapshot.nets:
        container = topology.container_of(ns)
        if container is not None:
            yield from _of_container(topology, container, ns)
    for network in topology.networks:
        yield from _of_network(topology, network)
    yield from _of_published(topology)


def _outside(topology: Topology, ns: int) -> Endpoint:
    """Return an address outside, of the family of the namespace's default route."""
    net = topology.snapshot.nets[ns]
    families = {route.family for route in net.routes if route.dst == "default"}
    own = {one.family for link in net.links.values() for one in link.addresses if one.scope == "global"}
    ipv6 = 6 in families and 4 not in families and 4 not in own
    return Endpoint(OUTSIDE.name, None, OUTSIDE_ADDRESS[ipv6])


def _of_container(topology: Topology, container: Container, ns: int) -> Iterator[Path]:
    """Yield a container's way to the outside, if it is meant to have one."""
    networks = topology.networks_of(container)
    net, links = topology.snapshot.nets[ns], topology.links_of(container)
    has_default = any(route.dst == "default" for route in net.routes)
    wants = any(one.kind == "nat" and topology.uplink(one.ns or topology.host) for one in networks)
    has_address = any(one.scope == "global" for link in links for one in link.addresses)
    if not has_address or any(one.internal for one in networks) or not (has_default or wants):
        return
    if not any(topology.peer(link) is not None for link in links):
        return  # a router, or connected to something that can't be seen
    name = topology.title(container)
    question = Question(Endpoint(name, ns), _outside(topology, ns), "tcp", _OUTSIDE_PORT)
    ref = container_ref(container.runtime, container.id)
    refs = tuple(network_ref(one.id) for one in networks)
    ipv6 = ":" in question.target.address
    routed = any(keeps_source(topology, one, ipv6) for one in networks)
    ignored = ("listener", "nat") if routed else ("listener",)
    yield Path(question, ref, f"{name} can't reach the outside", ignored, refs)


def _of_network(topology: Topology, network: Network) -> Iterator[Path]:
    """Yield the ways from each member of a network to the next one, and to the bridge."""
    bridge = topology.bridge_link(network)
    if bridge is None:
        return
    members = _members(topology, network, bridge)
    for number, (ns, _, address) in enumerate(members):
        name, ref = topology.label(ns), _ref_of(topology, ns)
        own = next((one for one in bridge.addresses if _same_family(one.address, address)), None)
        if own is not None:
            question = Question(
                Endpoint(name, ns, address), Endpoint(bridge.name, bridge.ns, own.address), "icmp"
            )
            phrase = f"{name} can't reach its bridge {bridge.name}"
            yield Path(question, ref, phrase, ("firewall", "listener"))
        if len(members) > 1:
            other, _, target = members[(number + 1) % len(members)]
            if _same_family(address, target):
                question = Question(
                    Endpoint(name, ns, address), Endpoint(topology.label(other), other, target)
                )
                phrase = f"{name} can't reach {topology.label(other)}"
                ignored = ("firewall", "listener") if _is_separated(network) else ("listener",)
                yield Path(question, ref, phrase, ignored, is_within=True)


def _is_separated(network: Network) -> bool:
    """Return whether Docker separates the containers of a network (icc=false)."""
    return network.options.get("com.docker.network.bridge.enable_icc") == "false"


def _same_family(one: str, other: str) -> bool:
    return (":" in one) == (":" in other)


def _members(topology: Topology, network: Network, bridge: Link) -> list[tuple[int, Link, str]]:
    """Return namespace, link and first address of each container on a bridge."""
    found = []
    for port in topology.ports_of(bridge.key):
        peer = topology.peer(port)
        if peer is None or peer.ns == bridge.ns or topology.container_of(peer.ns) is None:
            continue
        own = sorted((one for one in peer.addresses if one.scope == "global"), key=lambda one: one.family)
        if own:
            found.append((peer.ns, peer, own[0].address))
    return found


def _ref_of(topology: Topology, ns: int) -> Ref:
    container = topology.container_of(ns)
    return container_ref(container.runtime, container.id) if container else namespace_ref(ns)


def _of_published(topology: Topology) -> Iterator[Path]:
    """Yield the ways from outside to each published port."""
    uplink = topology.uplink(topology.host)
    if uplink is None:
        return
    for entry in topology.nat:
        found = _published(topology, entry, uplink[0])
        if entry.kind != "published port" or entry.ns != topology.host or found is None:
            continue
        address, port = found
        question = Question(OUTSIDE, Endpoint(f"port {port}", topology.host, address), entry.l4_proto, port)
        names = [topology.title(topology.containers[uid]) for uid in entry.containers[:1]]
        whose = f" of {names[0]}" if names else ""
        phrase = f"port {port}/{entry.l4_proto}{whose} can't be reached from outside"
        yield Path(question, nat_ref(entry.ns, entry.entry_id), safe(phrase))
        yield from _within_target(topology, entry, safe(phrase))


def _within_target(topology: Topology, entry: NatEntry, phrase: str) -> Iterator[Path]:
    """Yield the way from a published port's container to itself.

    So a service that doesn't listen is found even if something else stops the packets before."""
    address, _, port = entry.inside.rpartition(":")
    address = address.strip("[]")
    container = topology.containers.get(entry.containers[0]) if entry.containers else None
    if container is None or container.netns is None or not port.isdigit() or not is_address(address):
        return
    end = Endpoint(topology.title(container), container.netns, address)
    question = Question(end, end, entry.l4_proto, int(port))
    yield Path(question, nat_ref(entry.ns, entry.entry_id), phrase, _ALL_BUT_LISTENER)


def _published(topology: Topology, entry: NatEntry, uplink: Link) -> tuple[str, int] | None:
    """Return the host's address and port of a published port, None for loopback."""
    host_ip, _, text = entry.outside.rpartition(":")
    host_ip = host_ip.strip("[]")
    port = text.partition("-")[0].partition(",")[0]
    if not port.isdigit() or entry.l4_proto not in ("tcp", "udp") or is_loopback(host_ip):
        return None
    if host_ip not in ("", "*"):
        address = host_ip.partition("/")[0]
        return (address, int(port)) if is_address(address) else None
    family = 6 if entry.family == "ip6" else 4
    own = (one.address for one in uplink.addresses if one.family == family and one.scope == "global")
    address = next(own, "")
    return (address, int(port)) if address else None


def merged(static: Sequence[Finding], found: Sequence[Finding]) -> list[Finding]:
    """Join both kinds of findings, so that no cause is named twice."""
    result = list(static)
    for one in found:
        places = [place for place, each in enumerate(result) if _is_same_cause(one, each)]
        if not places:
            result.append(one)
            continue
        old = result[places[0]]
        related = tuple(dict.fromkeys((*old.related, *one.related)))
        result[places[0]] = replace(
            old, fix=old.fix or one.fix, evidence=old.evidence or one.evidence, related=related
        )
    return result


def _is_same_cause(one: Finding, static: Finding) -> bool:
    if static.kind == "overlap" and _is_misled(one, static):
        return True
    if static.kind not in _SAME_CAUSE.get(one.kind, (one.kind,)):
        return False
    if one.kind == "forward" and not _is_same_rule(one, static):
        return False
    by_network = one.kind == "forward" and static.ref in one.related
    return by_network or one.ref in (static.ref, *static.related)


def _is_same_rule(one: Finding, static: Finding) -> bool:
    """Return whether both name the same rule or policy; without evidence they may."""
    rules, others = ({_COUNTER.sub("", text) for text in each.evidence} for each in (one, static))
    return not rules or not others or not rules.isdisjoint(others)


def _is_misled(one: Finding, static: Finding) -> bool:
    """Return whether rules drop what an overlap has sent to a wrong link."""
    accepted = [step.text for step in (one.fix.steps if one.fix else ()) if isinstance(step, FixAccept)]
    words = [word.strip("'\"") for text in (one.advice, *accepted) for word in text.split()]
    leaving = {link for option, link in pairwise(words) if option in ("-o", "oifname")}
    return one.kind == "forward" and bool(leaving & set(static.sentence.replace(":", "").split()))


# Static findings that name the same cause as one of a path.
_SAME_CAUSE = {
    "link": ("link", "bridge", "way out"),
    "way out": ("link",),
    "port": ("port", "link", "bridge"),
    "route": ("way out", "route"),
    "overlap": ("overlap",),
    "address": ("address", "neighbour"),
    "mtu": ("mtu",),
    "forward": ("forward", "dropped"),
}
