"""Follow a packet there and its answer back, and conclude."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from weakref import WeakKeyDictionary

from core.model import Link, LinkKey, Ref, link_ref, namespace_ref
from core.model.fix import Fix
from core.nat.packets import is_loopback
from core.reach import fixes, link_fixes
from core.reach.answer import Answer, Hop, Question
from core.reach.hooks import CLIENT_PORT, Index
from core.reach.packet import Packet
from core.reach.question import addresses
from core.reach.texts import evidence_of
from core.reach.walk import Walk
from core.text import end_text
from core.topology import Topology

_INDEXES: WeakKeyDictionary[Topology, Index] = WeakKeyDictionary()


def index_of(topology: Topology) -> Index:
    """Return the topology's index, cached."""
    found = _INDEXES.get(topology)
    if found is None:
        found = _INDEXES[topology] = Index(topology)
    return found


def why(topology: Topology, question: Question) -> Answer:
    """Answer whether the question's source can reach its target, and why not."""
    index = index_of(topology)
    if (dead := _dead_join(topology, question)) is not None:
        return Answer(question, "stop", _sentence(question, dead), (dead,), (), dead)
    source, target = addresses(topology, question)
    if not target:
        hop = _no_address(topology, question)
        return Answer(question, "stop", _sentence(question, hop), (hop,), (), hop)
    there = _first_packet(index, question, source, target)
    reached = there.run(_entry(index, question))
    back = _answer_walk(index, question, there) if reached else None
    answer = _pointed_at_published(topology, _conclude(question, there, back), target)
    ends = ((question.source, source), (question.target, target))
    examples = (address for end, address in ends if end.is_outside and not end.address)
    return replace(answer, example=next(examples, ""))


def _pointed_at_published(topology: Topology, answer: Answer, target: str) -> Answer:
    """Return the answer, with the published port of a target that rules close.

    No rule is to be changed then: the port is reachable by the host's address.
    """
    question, cause = answer.question, answer.cause
    if cause is None or cause.kind != "firewall" or not question.source.is_outside or not question.port:
        return answer
    port = _published_port(topology, question.l4_proto, end_text(target, question.port))
    if not port:
        return answer
    service = f"{port}/{question.l4_proto}" if question.l4_proto != "tcp" else port
    fix = Fix("use the published port", command=f"vnet-tui why outside host --port {service}")
    pointed = replace(cause, fix=fix)
    name = end_text(question.target.name, question.port)
    sentence = f"{answer.sentence} {name} is published as port {port} of the host."
    hops = tuple(pointed if hop is cause else hop for hop in answer.there)
    return replace(answer, sentence=sentence, there=hops, cause=pointed)


def _published_port(topology: Topology, l4_proto: str, inside: str) -> str:
    """Return the host's port for a container's address and port, "" if none is."""
    for entry in topology.nat:
        address, _, port = entry.outside.rpartition(":")
        is_for_it = (entry.kind, entry.l4_proto, entry.inside) == ("published port", l4_proto, inside)
        if (
            is_for_it
            and entry.ns == topology.host
            and port.isdigit()
            and not is_loopback(address.strip("[]"))
        ):
            return port
    return ""


def _dead_join(topology: Topology, question: Question) -> Hop | None:
    """Return the hop of an end whose joined network namespace is gone."""
    for end in (question.source, question.target):
        for container in topology.containers_in(end.ns) if end.ns is not None else ():
            card = topology.cards.get(container.uid)
            if card is not None and card.joined_dead and container.name == end.name:
                ref = Ref("container", (container.runtime, container.id))
                text = f"{container.name}{card.why.removeprefix('It').rstrip('.')}"
                fix = Fix(f"restart {container.name}, so that it joins the new namespace")
                return Hop("link", container.name, text, "stop", (), ref, fix, text)
    return None


def _no_address(topology: Topology, question: Question) -> Hop:
    ns = question.target.ns or 0
    place = topology.label(ns)
    text = f"{place} has no address"
    return Hop("route", place, text, "stop", ref=Ref("namespace", (ns,)), subject=text)


def _first_packet(index: Index, question: Question, source: str, target: str) -> Walk:
    l4_proto = question.l4_proto
    if l4_proto == "icmp" and ":" in target:
        l4_proto = "icmpv6"
    sport = CLIENT_PORT if question.port else 0
    packet = Packet(source, target, l4_proto, sport, question.port)
    ns = question.source.ns if question.source.ns is not None else index.topology.host
    return Walk(index, packet, ns, edge=_edge(index, question))


def _edge(index: Index, question: Question) -> LinkKey | None:
    """Return the host's uplink if one end is outside."""
    if not (question.source.is_outside or question.target.is_outside):
        return None
    found = index.topology.uplink(index.topology.host)
    return found[0].key if found else None


def _entry(index: Index, question: Question) -> Link | None:
    """Return the link by which a packet from outside enters, None for others."""
    if not question.source.is_outside:
        return None
    found = index.topology.uplink(index.topology.host)
    return found[0] if found else None


def _answer_walk(index: Index, question: Question, there: Walk) -> Walk:
    """Follow the answer back, from where the packet ended."""
    reply = _reply(there.packet)
    ns = there.left.ns if there.left is not None else there.ns
    walk = Walk(index, reply, ns, there.tracked, edge=_edge(index, question))
    if walk.run(there.left) and not question.source.is_outside:
        _check_answer(walk, there)
    return walk


def _check_answer(walk: Walk, there: Walk) -> None:
    """Add a stop if the answer doesn't come from the address that was asked."""
    sent, answer = there.sent, walk.packet
    if sent is not None and there.origin is not None and walk.ns != there.origin:
        place = walk.index.topology.label(walk.ns)
        if walk.left is not None:
            text = f"answers to {answer.dst} leave this host by {walk.left.name}"
            subject = f"{text}: a route to it is missing"
            walk.hops.append(Hop("route", place, text, "stop", ref=link_ref(walk.left.key), subject=subject))
            return
        text = f"the answer ends in {place}, which has the address {answer.dst}, too"
        fix = link_fixes.delete_duplicate(walk.index.topology, walk.ns, answer.dst)
        subject = f"{answer.dst} is also an address of {place}"
        walk.hops.append(Hop("address", place, text, "stop", (), namespace_ref(walk.ns), fix, subject))
        return
    if sent is None or (answer.src, answer.sport, answer.dst) == (sent.dst, sent.dport, sent.src):
        return
    came, asked = end_text(answer.src, answer.sport or None), end_text(sent.dst, sent.dport or None)
    text = f"the answer comes from {came}, not from {asked}"
    subject, fix = text, None
    evidence: tuple[str, ...] = ()
    if there.dnat is not None:
        ns, rule = there.dnat
        evidence = (evidence_of(rule),)
        subject = f"{came} answers directly, not through {walk.index.topology.label(ns)}"
        fix = fixes.hairpin(walk.index.topology, ns, there.packet)
    place = walk.index.topology.label(walk.ns)
    walk.hops.append(Hop("nat", place, text, "stop", evidence, namespace_ref(walk.ns), fix, subject))


def _reply(packet: Packet) -> Packet:
    return Packet(packet.dst, packet.src, packet.l4_proto, packet.dport, packet.sport, True)


def _conclude(question: Question, there: Walk, back: Walk | None) -> Answer:
    forth, returned = _with_warnings(there), tuple(back.hops) if back else ()
    cause = _cause(there, back)
    verdict = cause.verdict if cause else "pass"
    if cause is not None and cause is there.untranslated and back is not None and not _ended(back):
        verdict = "stop"
    links = [*there.links, *(back.links if back else ())]
    mtu = min((one.mtu for one in links if one.mtu and one.kind != "loopback"), default=0)
    sentence = _sentence(question, cause, there.left, verdict)
    if cause is None and there.untranslated is not None:
        sentence = _routed_sentence(question, there.untranslated)
    return Answer(question, verdict, sentence, forth, returned, cause, mtu)


def _with_warnings(walk: Walk) -> tuple[Hop, ...]:
    untranslated = walk.untranslated
    if untranslated is None or any(hop.text == untranslated.text for hop in walk.hops):
        return tuple(walk.hops)
    place = next((number for number, hop in enumerate(walk.hops) if hop.kind == "uplink"), len(walk.hops))
    return (*walk.hops[:place], untranslated, *walk.hops[place:])


def _ended(walk: Walk) -> bool:
    return walk.arrived or walk.left is not None


def _cause(there: Walk, back: Walk | None) -> Hop | None:
    """Return the hop that decides: the first stop, doubt or warning."""
    stop = next(_with(there, "stop"), None)
    if stop is not None:
        return stop
    back_stop = next(_with(back, "stop"), None) if back else None
    warning = there.untranslated if there.untranslated and there.untranslated.verdict != "pass" else None
    if back_stop is not None:
        return (warning if back_stop.kind == "route" else None) or back_stop
    walks = [there] + ([back] if back else [])
    for verdict in ("unknown", "warn"):
        for walk in walks:
            if (hop := next(_with(walk, verdict), None)) is not None:
                return hop
    return warning


def _with(walk: Walk | None, verdict: str) -> Iterator[Hop]:
    return (hop for hop in (walk.hops if walk else ()) if hop.verdict == verdict)


def _sentence(question: Question, cause: Hop | None, left: Link | None = None, verdict: str = "") -> str:
    """Return the conclusion."""
    source, target = question.source.name, f"{question.target.name}{question.service}"
    verdict = verdict or (cause.verdict if cause else "pass")
    if cause is None and left is not None and left.kind == "vxlan":
        return (
            f"Packets from {source} to {target} leave by the tunnel {left.name}; what follows can't be seen."
        )
    if cause is None and left is not None:
        return f"Packets from {source} to {target} leave this host; what follows can't be seen from here."
    if cause is None:
        return f"{source} can reach {target}."
    because = cause.subject or cause.text
    if verdict == "stop":
        return f"{target} is not reachable from {source} because {because}."
    if verdict == "warn":
        return f"{source} can reach {target}, but {because}."
    return f"Whether {source} can reach {target} isn't certain: {because}."


def _routed_sentence(question: Question, hop: Hop) -> str:
    """Return the conclusion about packets that leave with their own source on purpose."""
    source, target = question.source.name, f"{question.target.name}{question.service}"
    return f"Packets from {source} to {target} leave this host with their own source: {hop.subject}."


def first_stop(answer: Answer) -> Hop | None:
    """Return the cause of an answer that is certain to fail."""
    return replace(answer.cause) if answer.cause and answer.verdict == "stop" else None
