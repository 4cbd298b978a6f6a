"""Run all checks of a topology."""

from __future__ import annotations

from collections.abc import Iterable

from core.diagnose import (
    addresses,
    connections,
    drops,
    forwarding,
    leftovers,
    links,
    paths,
    published,
    subnets,
)
from core.model.finding import SEVERITIES, Finding
from core.topology import Topology


def diagnose(topology: Topology) -> tuple[Finding, ...]:
    """Return all findings of a topology, the worst first."""
    blocked_ports = tuple(forwarding.blocked_ports(topology))
    found = [
        *links.dead_joins(topology),
        *links.of_links(topology),
        *links.of_bridges(topology),
        *subnets.overlaps(topology),
        *subnets.route_overlaps(topology),
        *addresses.duplicate_macs(topology),
        *addresses.wrong_prefixes(topology),
        *addresses.loopbacks_down(topology),
        *forwarding.docker_without_rules(topology),
        *forwarding.drops(topology),
        *forwarding.blocked_networks(topology),
        *blocked_ports,
        *forwarding.bypassing_ports(topology, blocked_ports),
        *addresses.discarding_routes(topology),
        *published.masqueraded_clients(topology),
        *published.direct_access(topology),
        *published.shadowed_listeners(topology),
        *connections.stale_connections(topology),
        *connections.exhausted_ports(topology),
        *links.full_tables(topology),
        *links.failing_tables(topology),
        *links.storms(topology),
        *drops.heavy_drops(topology),
        *leftovers.orphan_veths(topology),
        *leftovers.empty_namespaces(topology),
        *leftovers.rules_without_container(topology),
    ]
    found += [] if _has(found, "engine rules") else published.without_rule(topology)
    found = paths.merged(found, tuple(forwarding.no_default_route(topology)))
    found = paths.merged(found, paths.stopped_paths(topology))
    return tuple(sorted(found, key=lambda one: SEVERITIES.index(one.severity)))


def _has(found: Iterable[Finding], kind: str) -> bool:
    return any(one.kind == kind for one in found)
