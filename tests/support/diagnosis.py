"""Inject faults into this lab; report what `why` and `doctor` name first.

Run in a lab as `python -m tests.support.diagnosis PATIENCE NAME...`; prints a JSON object by fault, and the
findings of the healthy lab under "". A culprit must be named within PATIENCE seconds ("NAME=0": one look).
Then the first repair is applied, tried with the fault's probe, and undone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from core.apply import journal, run
from core.collect.snapshot import read_snapshot
from core.diagnose import findings
from core.flows import protocol_name
from core.lab import inject
from core.lab.blueprint import LabSettings
from core.lab.faults import FAULTS, HOST, Culprit, Fault
from core.model import Ref
from core.model.finding import Finding
from core.model.fix import (
    Fix,
    FixAccept,
    FixAddress,
    FixBridge,
    FixConnection,
    FixFdb,
    FixFirewall,
    FixLink,
    FixMasquerade,
    FixNeighbour,
    FixPolicyRule,
    FixPort,
    FixRoute,
    FixSysctl,
    FixVlan,
)
from core.operations import undo_of
from core.plan import Refused, plan
from core.plan.requests import Repair
from core.reach import Answer, Endpoint, Question, resolve, why
from core.topology import Topology
from tests.support.lab_probe import probe_command
from tests.support.waiting import eventually, scaled

_REPAIRED = scaled(10.0)  # seconds until a repair has an effect: ports that forward, expired neighbours

type Named = tuple[str, str, str]  # kind, name and place, as in Culprit


def names(topology: Topology, ref: Ref | None, fix: Fix | None, evidence: Sequence[str]) -> Iterator[Named]:
    """Yield the objects that a diagnosis names in its ref, fix and evidence."""
    if ref is not None:
        yield from _of_ref(topology, ref)
    for step in fix.steps if fix is not None else ():
        yield _of_step(topology, step)
    for line in evidence:  # "FAMILY TABLE CHAIN handle 7: ...", "FAMILY TABLE CHAIN: policy drop"
        head = line.partition(":")[0].partition(" handle ")[0]
        yield "rule", head, ""
        yield "rule", " ".join(head.split()[:2]), ""


def _place(topology: Topology, ns: int) -> str:
    return HOST if ns == topology.host else topology.label(ns)


def _of_ref(topology: Topology, ref: Ref) -> Iterator[Named]:
    if ref.kind == "link":
        link = topology.snapshot.link((int(ref.key[0]), int(ref.key[1])))
        if link is not None:
            yield "link", link.name, _place(topology, link.ns)
    elif ref.kind == "container":
        found = topology.containers.get(":".join(map(str, ref.key)))
        if found is not None:
            yield "container", found.name, ""
    elif ref.kind == "nat":
        entry = next(
            (one for one in topology.nat if (one.ns, one.entry_id) == (int(ref.key[0]), ref.key[1])), None
        )
        for rule_id in entry.rules if entry is not None else ():
            yield _rule(topology, int(ref.key[0]), rule_id)
    elif ref.kind == "conntrack":
        yield "conntrack entry", "", _place(topology, int(ref.key[0]))


def _rule(topology: Topology, ns: int, rule_id: str) -> Named:
    rules = topology.snapshot.firewalls[ns].rules
    rule = next(one for one in rules if one.rule_id == rule_id)
    return "rule", f"{rule.family} {rule.table} {rule.chain}", _place(topology, ns)


def _of_step(topology: Topology, step: Any) -> Named:
    match step:
        case FixLink(key) | FixPort(key) | FixVlan(key) | FixBridge(key):
            link = topology.snapshot.link(key)
            return "link", link.name if link else "", _place(topology, key[0])
        case FixSysctl(ns, name):
            return "sysctl", name, _place(topology, ns)
        case FixAddress(key, address):
            return "address", str(address), _place(topology, key[0])
        case FixRoute(ns, route):
            return "route", route.dst, _place(topology, ns)
        case FixPolicyRule(ns, rule):
            action = f"lookup {rule.table}" if rule.action == "lookup" else rule.action
            source = rule.src.removesuffix("/32") or "all"
            return "policy rule", f"from {source} {action}", _place(topology, ns)
        case FixNeighbour(ns, neighbour):
            return "neighbour", neighbour.address, _place(topology, ns)
        case FixFdb(ns, entry):
            return "fdb entry", entry.mac, _place(topology, ns)
        case FixFirewall(ns, rule_id):
            return _rule(topology, ns, rule_id)
        case FixAccept(ns):
            return "rule", f"{step.family} {step.table} {step.chain}", _place(topology, ns)
        case FixConnection(ns):
            ends = f"{step.src}:{step.sport} {step.dst}:{step.dport}"
            return "conntrack entry", f"{protocol_name(step.l4_proto)} {ends}", _place(topology, ns)
        case FixMasquerade(ns):
            return "rule", "ip hostnat", _place(topology, ns)  # as the table or its rule is gone
    raise ValueError(step)


def is_named(culprit: Culprit, named: Sequence[Named]) -> bool:
    """Return whether a culprit is among the objects that a diagnosis names."""
    for kind, name, place in named:
        is_it = name == culprit.name or (culprit.kind == "address" and name.startswith(f"{culprit.name}/"))
        is_it |= name == "ip hostnat" == culprit.name.removesuffix(" postrouting")
        if kind == culprit.kind and is_it and place in ("", culprit.place):
            return True
    return False


def ask(topology: Topology, fault: Fault) -> Answer:
    """Ask whether a fault's probe works."""
    probe = fault.probe
    source = resolve(topology, probe.source)
    if probe.origin:
        source = Endpoint(source.name, source.ns, probe.origin)
    target = resolve(topology, probe.address)
    return why(topology, Question(source, target, probe.protocol, probe.port))


def look(fault: Fault, healthy: set[str]) -> dict[str, Any]:
    """Diagnose the lab once."""
    topology = Topology(read_snapshot())
    answer = ask(topology, fault)
    found = [one for one in findings(topology) if one.sentence not in healthy]
    hop, first = answer.cause, next(iter(found), None)
    by_why = hop is not None and is_named(fault.culprit, [*names(topology, hop.ref, hop.fix, hop.evidence)])
    by_doctor = first is not None and is_named(fault.culprit, [*_named_by(topology, first)])
    return {
        "by": "why" if by_why else "doctor" if by_doctor else "",
        "verdict": answer.verdict,
        "why": answer.sentence,
        "fix": first_repair(answer, found, by_why),
        "doctor": [f"{one.severity}: {one.sentence}" for one in found],
    }


def first_repair(answer: Answer, found: Sequence[Finding], by_why: bool) -> Fix | None:
    """Return the first repair of `why` (if it names the culprit) or `doctor`, else the first advice."""
    offered = [answer.cause.fix if by_why and answer.cause else None, *(one.fix for one in found)]
    fixes = [one for one in offered if one is not None]
    return next((one for one in fixes if one.steps), fixes[0] if fixes else None)


def repair(fault: Fault, fix: Fix) -> dict[str, Any]:
    """Apply a fix and undo it; report whether the fault's probe is answered meanwhile."""
    made = plan(Repair(fix.sentence, fix.steps), Topology(read_snapshot()))
    if isinstance(made, Refused):
        return {"refused": list(made.reasons)}
    outcome = run.apply(made.title, made.steps)
    works = eventually(lambda: is_answered(fault), _REPAIRED)
    undone = run.undo(journal.find(outcome.entry_id)) if undo_of(made.steps) else outcome
    return {"works": works, "errors": [*outcome.errors, *undone.errors]}


def is_answered(fault: Fault, patience: float = 1.0) -> bool:
    """Send the fault's probe; return whether it is answered."""
    done = subprocess.run(probe_command(fault.probe, patience), capture_output=True, check=False)
    return done.returncode == 0


def _named_by(topology: Topology, finding: Finding) -> Iterator[Named]:
    yield from names(topology, finding.ref, finding.fix, finding.evidence)


def try_fault(fault: Fault, settings: LabSettings, healthy: set[str], patience: float) -> dict[str, Any]:
    """Inject a fault, wait until its culprit is named, and undo it."""
    try:
        inject.inject(fault.name, settings)
    except inject.FaultError as error:
        return {"lacking": str(error)}
    seen: dict[str, Any] = {}

    def named() -> str:
        seen.update(look(fault, healthy))
        return str(seen["by"])

    try:
        eventually(named, patience, pause=0.1)
        fix = seen.pop("fix")
        seen["advice"] = fix.sentence if fix is not None else ""
        if fix is not None and fix.steps:
            seen["repair"] = repair(fault, fix)
    finally:
        inject.undo(fault.name, settings)
    eventually(lambda: ask(Topology(read_snapshot()), fault).verdict == "pass", patience)
    return seen


def main(patience: float, wanted: Sequence[str]) -> None:
    """Try the wanted faults one after the other; print the results."""
    settings = inject.lab_settings()
    assert settings is not None
    healthy = [f"{one.severity}: {one.sentence}" for one in findings(Topology(read_snapshot()))]
    texts = {one.partition(": ")[2] for one in healthy}
    results: dict[str, Any] = {"": healthy}
    for word in wanted:
        name, _, own = word.partition("=")
        results[name] = try_fault(FAULTS[name], settings, texts, float(own or patience))
    print(json.dumps(results))


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
