"""What is wrong with a host's networks: each finding in a sentence, with the things that it concerns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from core.findings import forwarding, links, loads
from core.findings.finding import Finding, Severity
from core.findings.links import joined
from core.findings.loads import storm_words
from core.model import Ref

if TYPE_CHECKING:
    from core.topology import Topology

__all__ = ["Finding", "Severity", "by_ref", "findings", "joined", "storm_words"]


def findings(topology: Topology) -> tuple[Finding, ...]:
    """All that is wrong, what is broken before what is only doubtful."""
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


def by_ref(found: Iterable[Finding]) -> Mapping[Ref, tuple[Finding, ...]]:
    """The findings that concern each thing."""
    groups: dict[Ref, list[Finding]] = {}
    for finding in found:
        for ref in dict.fromkeys((finding.ref, *finding.related)):
            groups.setdefault(ref, []).append(finding)
    return {ref: tuple(group) for ref, group in groups.items()}
