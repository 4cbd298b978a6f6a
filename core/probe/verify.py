"""Verify a static answer with a probe, and compare both.

See core.reach for the answer and core.probe.run for the probe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.model import LinkKey, Namespace
from core.model.probe import (
    DropEvent,
    DropObserver,
    FunctionObserver,
    ProbeRequest,
    ProbeResult,
    Protocol,
    TraceStep,
    rule_of,
)
from core.probe.run import ProbeError, probe
from core.reach import Answer, Question
from core.reach.question import addresses
from core.reach.texts import evidence_of
from core.text import failure_sentence
from core.topology import Topology

TIMEOUT = 1.5  # seconds
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "icmp": "icmp"}


@dataclass(frozen=True, slots=True)
class Verification:
    """A probe beside the static answer.

    `agrees` is None if the static answer was uncertain. `sentence` compares both; `notes` are what the kernel
    did: the rule that dropped the packet, drop reasons, neighbours that didn't answer, and what couldn't be
    recorded. `conclusion` replaces that of an answer that ends at the uplink if the target answered, else "".
    """

    result: ProbeResult
    agrees: bool | None
    sentence: str
    notes: tuple[str, ...] = ()
    conclusion: str = ""


def verify(
    topology: Topology,
    answer: Answer,
    observer: DropObserver | None = None,
    functions: FunctionObserver | None = None,
) -> Verification:
    """Send a probe for the question of an answer, and compare. Raises ProbeError."""
    result = probe(replace(request_of(topology, answer.question, observer), functions=functions))
    agrees = _agrees(answer, result)
    sentence, notes = _sentence(topology, answer, result, agrees), tuple(_notes(topology, result))
    return Verification(result, agrees, sentence, notes, _conclusion(answer, result))


def _conclusion(answer: Answer, result: ProbeResult) -> str:
    """Return the conclusion about a target outside that answered, "" for others."""
    if answer.cause is not None or result.outcome != "answered" or not _leaves(answer):
        return ""
    question = answer.question
    target = f"{question.target.name}{question.service}"
    return (
        f"{question.source.name} can reach {target}: it answered the probe. Its path outside can't be seen."
    )


def _leaves(answer: Answer) -> bool:
    return any(hop.kind == "uplink" for hop in answer.there)


def request_of(
    topology: Topology, question: Question, observer: DropObserver | None = None, timeout: float = TIMEOUT
) -> ProbeRequest:
    """Return the probe of a question. Raises ProbeError."""
    source, target = addresses(topology, question)
    if not target:
        what = f"can't send a probe to {question.target.name}"
        raise ProbeError(failure_sentence(what, "it has no address", "attach it to a network"))
    namespace = topology.snapshot.namespaces.get(question.source.ns or 0)
    if namespace is None:
        what = f"can't send a probe from {question.source.name}"
        remedy = "the other direction, or a container as the sender"
        raise ProbeError(failure_sentence(what, "it isn't on this host", remedy))
    return ProbeRequest(
        namespace, target, _PROTOCOLS[question.l4_proto], question.port, source, timeout,
        through=_through(topology, question), destination=_namespace(topology, question.target.ns),
        observer=observer,
    )  # fmt: skip


def _namespace(topology: Topology, ns: int | None) -> Namespace | None:
    return topology.snapshot.namespaces.get(ns) if ns is not None else None


def _through(topology: Topology, question: Question) -> tuple[Namespace, ...]:
    """Return the host's namespace, and those that the ends' links lead to."""
    found = [topology.host]
    for ns in (question.source.ns, question.target.ns):
        net = topology.snapshot.nets.get(ns or 0)
        for link in net.links.values() if net else ():
            peer = topology.peer(link)
            found += [peer.ns] if peer is not None else []
    spaces = (topology.snapshot.namespaces.get(ns) for ns in dict.fromkeys(found))
    return tuple(one for one in spaces if one is not None)


def _agrees(answer: Answer, result: ProbeResult) -> bool | None:
    """Return whether the probe agrees with the answer, None for an uncertain answer."""
    if answer.verdict == "unknown":
        return None
    if answer.verdict == "stop":
        return result.outcome != "answered"
    # An answer that ends at the uplink says nothing about what follows.
    return result.outcome == "answered" or _leaves(answer)


def _sentence(topology: Topology, answer: Answer, result: ProbeResult, agrees: bool | None) -> str:
    found = _outcome(topology, result)
    if agrees is None:
        return f"The probe settles it: {found}."
    if not agrees:
        return f"The probe disagrees: {found}. Both are shown; the host may have changed meanwhile."
    if answer.verdict != "stop" and result.outcome != "answered":
        return f"The probe left this host: {found}."
    if answer.verdict != "stop" and _leaves(answer):
        return f"The target can be reached: {found}."
    return f"The probe agrees with the static answer: {found}."


def _outcome(topology: Topology, result: ProbeResult) -> str:
    """Describe the outcome of a probe, without a full stop."""
    if result.outcome == "answered":
        return f"answered by {result.sender} after {(result.rtt or 0) * 1000:.2f} ms"
    sender = f" by {result.sender}" if result.sender else ""
    error = f" ({result.error.name})" if result.error is not None else ""
    if result.outcome == "refused":
        return f"refused{sender}{error}"
    if result.outcome == "unreachable":
        return f"unreachable, reported{sender or ' by the sending host'}{error}"
    return ", ".join(filter(None, (f"no answer within {TIMEOUT:g} s", _end_of(topology, result))))


def _end_of(topology: Topology, result: ProbeResult) -> str:
    """Describe where a packet without an answer ended, "" if that isn't known."""
    if (step := result.dropped_by) is not None:
        return f"a rule in {topology.label(step.ns)} dropped {_packet_name(step.role == 'request')}"
    for drop in result.drops:
        if place := _place_of(topology, LinkKey(drop.ns, drop.ifindex)):
            return f"{_packet_name(not _is_answer(drop, result))} was dropped {place}"
    seen = [one for one in result.sightings if one.role == "request"]
    if result.arrived and seen:
        return f"the request was last seen {_place_of(topology, seen[-1].link)}"
    if result.arrived is None:
        return ""
    return "but it arrived" if result.arrived else "and it didn't arrive"


def _packet_name(is_request: bool) -> str:
    return "the request" if is_request else "the answer"


def _place_of(topology: Topology, key: LinkKey) -> str:
    link = topology.snapshot.link(key)
    return f"at {link.name} in {topology.label(link.ns)}" if link else ""


def _is_answer(drop: DropEvent, result: ProbeResult) -> bool:
    """Return whether a dropped packet is the answer to the probe."""
    sent = result.addresses
    if drop.addresses is None or drop.addresses.src == sent.src:
        return False
    sources = {one.addresses.src for one in result.sightings if one.role == "answer"}
    return drop.addresses.src in {sent.dst, *sources}


def _notes(topology: Topology, result: ProbeResult) -> list[str]:
    notes = []
    if (step := result.dropped_by) is not None:
        what = _packet_name(step.role == "request")
        notes.append(f"nft trace: {what} was dropped by {step_text(topology, step)}")
    for drop in result.drops:
        if result.outcome == "answered" and _is_answer(drop, result):
            continue  # the probe reads its answer from a packet socket; no other socket waits for it
        place = _place_of(topology, LinkKey(drop.ns, drop.ifindex))
        function = f", {drop.function}" if drop.function else ""
        notes.append(f"kernel: dropped{' ' + place if place else ''}: {drop.reason}{function}")
    for one in result.neighbours:
        notes.append(f"neighbour: {one.address} is {one.state} in {topology.label(one.ns)}")
    return [*dict.fromkeys(notes), *(problem.sentence for problem in result.problems)]


def step_text(topology: Topology, step: TraceStep) -> str:
    """Return the rule or policy of a step of nftables' trace."""
    firewall = topology.snapshot.firewalls.get(step.ns)
    rule = rule_of(step, firewall) if firewall else None
    where = f"in {topology.label(step.ns)}"
    if rule is not None:
        return f"{evidence_of(rule)} ({where})"
    what = "policy" if step.kind == "policy" else f"handle {step.handle}"
    return f"{step.family} {step.table} {step.chain}: {what} {step.verdict} ({where})"
