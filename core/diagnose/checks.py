"""Run all checks of a topology."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from core.diagnose import (
    addresses,
    checksums,
    connections,
    drops,
    fast_path,
    forwarding,
    leftovers,
    links,
    overlay,
    paths,
    published,
    subnets,
)
from core.diagnose.kept import Check, Kept, kept
from core.model.finding import SEVERITIES, Finding
from core.topology import Topology

# The checks that depend on what Kept compares, before and after those of counters and connections.
_FIRST: tuple[Check, ...] = (
    links.dead_joins,
    links.of_links,
    links.of_bridges,
    subnets.overlaps,
    subnets.route_overlaps,
    addresses.duplicate_macs,
    addresses.wrong_prefixes,
    addresses.loopbacks_down,
    forwarding.docker_without_rules,
)
_THEN: tuple[Check, ...] = (
    forwarding.blocked_networks,
    forwarding.blocked_ports,
    forwarding.bypassing_ports,
    addresses.discarding_routes,
    published.masqueraded_clients,
    published.direct_access,
    published.shadowed_listeners,
    overlay.too_large_mtus,
    overlay.left_out_hosts,
    overlay.stale_neighbours,
    overlay.duplicates,
    overlay.equal_vnis,
    overlay.unreachable_hosts,
    overlay.blocked_tunnels,
    overlay.lost_sessions,
    overlay.unannounced_addresses,
)
_CHANGING: tuple[Check, ...] = (
    connections.stale_connections,
    connections.exhausted_ports,
    links.full_tables,
    links.failing_tables,
    links.storms,
    links.storm_guards,
    drops.heavy_drops,
    checksums.wrong_checksums,
)
_LEFTOVERS: tuple[Check, ...] = (
    leftovers.orphan_veths,
    leftovers.empty_namespaces,
    leftovers.rules_without_container,
)


def diagnose(topology: Topology) -> tuple[Finding, ...]:
    """Return all findings of a topology, the worst first."""
    known = kept(topology)
    found = [
        *_of(_FIRST, known, topology),
        *forwarding.drops(topology),
        *_of(_THEN, known, topology),
        *(one for check in _CHANGING for one in check(topology)),
        *_of(_LEFTOVERS, known, topology),
    ]
    found += () if _has(found, "engine rules") else known.of(published.without_rule, topology)
    found = paths.merged(found, known.of(forwarding.no_default_route, topology))
    found = paths.merged(found, known.of(paths.stopped_paths, topology))
    found += fast_path.inactive(topology, found)
    return tuple(sorted(found, key=lambda one: SEVERITIES.index(one.severity)))


def _of(checks: Iterable[Check], known: Kept, topology: Topology) -> Iterator[Finding]:
    return (one for check in checks for one in known.of(check, topology))


def _has(found: Iterable[Finding], kind: str) -> bool:
    return any(one.kind == kind for one in found)
