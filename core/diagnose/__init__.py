"""What is wrong with a host's networks: each finding in a sentence, with the things that it concerns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

from core.diagnose import forwarding, links, loads
from core.diagnose.links import joined
from core.diagnose.loads import storm_words
from core.model import Ref
from core.model.problem import Finding, Severity
from core.topology import Topology

__all__ = ["Finding", "Severity", "findings", "findings_of", "joined", "storm_words"]

_FOUND: WeakKeyDictionary[Topology, tuple[tuple[Finding, ...], Mapping[Ref, tuple[Finding, ...]]]] = (
    WeakKeyDictionary()
)


def findings(topology: Topology) -> tuple[Finding, ...]:
    """Find everything that is wrong with a host's networks; worked out once for each topology.

    Findings with severity "bad" come first.
    """
    return _found(topology)[0]


def findings_of(topology: Topology, ref: Ref) -> tuple[Finding, ...]:
    """Return the findings about a thing, or that concern it."""
    return _found(topology)[1].get(ref, ())


def _found(topology: Topology) -> tuple[tuple[Finding, ...], Mapping[Ref, tuple[Finding, ...]]]:
    known = _FOUND.get(topology)
    if known is None:
        found = _diagnose(topology)
        known = _FOUND[topology] = (found, _by_ref(found))
    return known


def _diagnose(topology: Topology) -> tuple[Finding, ...]:
    shut = tuple(forwarding.shut_ports(topology))
    found = [
        *links.dead_joins(topology),
        *links.of_links(topology),
        *links.of_bridges(topology),
        *links.overlaps(topology),
        *forwarding.docker_without_rules(topology),
        *forwarding.drops(topology),
        *forwarding.shut_networks(topology),
        *shut,
        *forwarding.bypassing_ports(topology, shut),
        *forwarding.no_way_out(topology),
        *loads.full_tables(topology),
        *loads.failing_tables(topology),
        *loads.storms(topology),
    ]
    return tuple(sorted(found, key=lambda one: one.severity != "bad"))


def _by_ref(found: Iterable[Finding]) -> Mapping[Ref, tuple[Finding, ...]]:
    groups: dict[Ref, list[Finding]] = {}
    for finding in found:
        for ref in dict.fromkeys((finding.ref, *finding.related)):
            groups.setdefault(ref, []).append(finding)
    return {ref: tuple(group) for ref, group in groups.items()}
