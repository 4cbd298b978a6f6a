"""Find what is wrong with a host's networks, and the objects that it concerns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from core.diagnose.identity import findings_by_id
from core.diagnose.subjects import guard_text, joined, storm_text
from core.model import Ref
from core.model.finding import Finding, Severity
from core.topology import Topology

__all__ = [
    "Diagnosis", "Finding", "Severity", "adopt", "diagnosis_of", "examine", "findings", "findings_by_id",
    "findings_of", "guard_text", "joined", "storm_text",
]  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Diagnosis:
    """All findings of a topology, the worst first; also by id and by object."""

    findings: tuple[Finding, ...] = ()
    by_id: Mapping[str, Finding] = field(default_factory=dict)
    by_ref: Mapping[Ref, tuple[Finding, ...]] = field(default_factory=dict)


_FOUND: WeakKeyDictionary[Topology, Diagnosis] = WeakKeyDictionary()


def findings(topology: Topology) -> tuple[Finding, ...]:
    """Return all findings of a topology, those with severity "bad" first; cached."""
    return diagnosis_of(topology).findings


def findings_of(topology: Topology, ref: Ref) -> tuple[Finding, ...]:
    """Return the findings about an object, or that concern it."""
    return diagnosis_of(topology).by_ref.get(ref, ())


def diagnosis_of(topology: Topology) -> Diagnosis:
    """Return the diagnosis of a topology; cached."""
    return _FOUND.get(topology) or examine(topology)


def examine(topology: Topology) -> Diagnosis:
    """Find what is wrong, whatever the topology has adopted; slow on large hosts."""
    # Imported when first needed: following packets takes modules that the first paint doesn't need.
    from core.diagnose.checks import diagnose

    found = diagnose(topology)
    made = _FOUND[topology] = Diagnosis(found, findings_by_id(topology, found), _by_ref(found))
    return made


def adopt(topology: Topology, diagnosis: Diagnosis) -> None:
    """Let a topology have the diagnosis of an earlier one until it is examined."""
    _FOUND[topology] = diagnosis


def _by_ref(found: Iterable[Finding]) -> Mapping[Ref, tuple[Finding, ...]]:
    groups: dict[Ref, list[Finding]] = {}
    for finding in found:
        for ref in dict.fromkeys((finding.ref, *finding.related)):
            groups.setdefault(ref, []).append(finding)
    return {ref: tuple(group) for ref, group in groups.items()}
