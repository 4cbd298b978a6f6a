"""Send the probe of an answer, with the kernel's drop reasons if BCC is there."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from core.drops import DropsUnavailable
from core.model.probe import DropObserver, ProbeResult
from core.probe.run import ProbeError
from core.probe.verify import Verification, verify
from core.reach import Answer
from core.topology import Topology
from tui.command import CommandError


def verified(topology: Topology, answer: Answer) -> Verification:
    """Send the probe of an answer. Raises CommandError."""
    try:
        return verify(topology, answer, drop_observer())
    except DropsUnavailable:
        pass
    except ProbeError as error:
        raise CommandError(str(error)) from None
    try:
        return verify(topology, answer)
    except ProbeError as error:
        raise CommandError(str(error)) from None


def drop_observer() -> DropObserver | None:
    """Return what observes the kernel's drop reasons, None without BCC."""
    try:
        from bpf.drop_observer import observe_drops
    except ImportError:
        return None
    return observe_drops


def probe_document(topology: Topology, found: Verification) -> dict[str, Any]:
    """Return a probe as JSON; docs/json.md has the schema."""
    result = found.result
    return {
        "outcome": result.outcome,
        "agrees": found.agrees,
        "sentence": found.sentence,
        "notes": list(found.notes),
        "rtt": result.rtt,
        "arrived": result.arrived,
        "sightings": [_sighting(topology, result, number) for number in range(len(result.sightings))],
        "steps": [{**asdict(step), "namespace": topology.label(step.ns)} for step in result.steps],
        "drops": [asdict(drop) for drop in result.drops],
    }


def _sighting(topology: Topology, result: ProbeResult, number: int) -> dict[str, Any]:
    one = result.sightings[number]
    link = topology.snapshot.link(one.link)
    found = asdict(one)
    found["link"] = {"ns": one.link.ns, "ifindex": one.link.ifindex, "name": link.name if link else ""}
    return {"namespace": topology.label(one.link.ns), **found}
