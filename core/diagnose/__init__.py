"""Find what is wrong with a host's networks, and the objects that it concerns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

from core.diagnose.identity import findings_by_id
from core.diagnose.subjects import joined, storm_text
from core.model import Ref
from core.model.finding import Finding, Severity
from core.topology import Topology

__all__ = ["Finding", "Severity", "findings", "findings_by_id", "findings_of", "joined", "storm_text"]

_FOUND: WeakKeyDictionary[Topology, tuple[tuple[Finding, ...], Mapping[Ref, tuple[Finding, ...]]]] = (
    WeakKeyDictionary()
)


def findings(topology: Topology) -> tuple[Finding, ...]:
    """Return all findings of a topology, those with severity "bad" first; cached."""
    return _found(topology)[0]


def findings_of(topology: Topology, ref: Ref) -> tuple[Finding, ...]:
    """Return the findings about an object, or that concern it."""
    return _found(topology)[1].get(ref, ())


def _found(topology: Topology) -> tuple[tuple[Finding, ...], Mapping[Ref, tuple[Finding, ...]]]:
    cached = _FOUND.get(topology)
    if cached is None:
        # Imported when first needed: following packets takes modules that the first paint doesn't need.
        from core.diagnose.checks import diagnose

        found = diagnose(topology)
        cached = _FOUND[topology] = (found, _by_ref(found))
    return cached


def _by_ref(found: Iterable[Finding]) -> Mapping[Ref, tuple[Finding, ...]]:
    groups: dict[Ref, list[Finding]] = {}
    for finding in found:
        for ref in dict.fromkeys((finding.ref, *finding.related)):
            groups.setdefault(ref, []).append(finding)
    return {ref: tuple(group) for ref, group in groups.items()}
