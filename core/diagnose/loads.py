"""Find conntrack tables that are full or fail, and storms on bridges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from core.flows import address_text
from core.model import Conntrack, Link, Storm, container_ref, link_ref, namespace_ref, network_ref
from core.model.problem import Finding, Severity
from core.topology import Topology
from core.topology.index import names_in

if TYPE_CHECKING:
    from core.topology import Topology


# The most addresses to attribute to owners, the busiest first: a flood has thousands.
_MAX_ADDRESSES = 1000


@dataclass(frozen=True, slots=True)
class Source:
    """Owner of addresses that opened `entries` of a table's connections.

    `name` is "" if the owner is unknown, `address` the busiest one."""

    name: str
    address: str
    entries: int


def sources(topology: Topology, ns: int, most: int = 3) -> tuple[Source, ...]:
    """Return who opened the most connections in a namespace's table, busiest first."""
    table = topology.snapshot.conntracks.get(ns)
    return top_sources(table, names_in(topology, ns), most) if table is not None else ()


def top_sources(table: Conntrack, names: Mapping[bytes, str], most: int) -> tuple[Source, ...]:
    """Return who opened the most connections; `names` maps addresses of 16 bytes."""
    found: dict[str, Source] = {}
    for raw, count in _busiest(table.entries["orig_src"]):
        name, address = names.get(raw, ""), address_text(raw)
        before = found.get(name or address)
        found[name or address] = Source(
            name, before.address if before else address, count + (before.entries if before else 0)
        )
    return tuple(sorted(found.values(), key=lambda one: -one.entries)[:most])


def _busiest(addresses: np.ndarray) -> list[tuple[bytes, int]]:
    """Count distinct addresses (rows of 16 bytes), the most frequent first."""
    halves = np.ascontiguousarray(addresses).view(np.uint64)
    is_mapped = halves[:, 0] == 0  # IPv4 differs only in the lower half, which is fast to sort
    lower, ipv4_counts = np.unique(halves[is_mapped, 1], return_counts=True)
    ipv4 = np.stack((np.zeros_like(lower), lower), axis=1)
    ipv6, ipv6_counts = _counted(halves[~is_mapped])
    distinct, counts = np.concatenate((ipv4, ipv6)), np.concatenate((ipv4_counts, ipv6_counts))
    chosen = np.argsort(-counts, kind="stable")[:_MAX_ADDRESSES]
    return [(distinct[one].tobytes(), int(counts[one])) for one in chosen.tolist()]


def _counted(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct rows of two numbers, and the count of each."""
    ordered = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    differs = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.flatnonzero(np.concatenate((np.ones(min(1, len(pairs)), bool), differs)))
    return ordered[first], np.diff(np.append(first, len(ordered)))


# The share of a conntrack table above which it is nearly full.
_NEARLY_FULL = 0.8
# Findings for counters that grow: in short, the effect, the cause, and the severity.
_TABLE_FAILURES: Mapping[str, tuple[str, str, str, Severity]] = {
    "drop": ("packets dropped", "dropped {count} packets", "its table is full or memory is short", "bad"),
    "insert_failed": (
        "inserts fail",
        "failed to insert {count} connections",
        "other connections have the same addresses and ports",
        "warn",
    ),
    "early_drop": (
        "early drops", "dropped {count} connections early", "new ones need room in its table", "warn",
    ),
}  # fmt: skip


def full_tables(topology: Topology) -> Iterator[Finding]:
    """Find conntrack tables that are full or nearly so."""
    for ns, table in topology.snapshot.conntracks.items():
        count, limit = len(table.entries), table.limit
        if limit and count > limit * _NEARLY_FULL:
            sentence = (
                f"The conntrack table of {topology.label(ns)} holds {count:,} of {limit:,} connections: "
                "when it is full, new ones are dropped."
            )
            short = f"conntrack {count * 100 // limit}% full"
            yield Finding(
                "conntrack", namespace_ref(ns), short, sentence, "bad" if count >= limit else "warn"
            )


def failing_tables(topology: Topology) -> Iterator[Finding]:
    """Find conntrack tables whose failure counters have grown since the earlier poll."""
    for ns, table in topology.snapshot.conntracks.items():
        for counter, (short, effect, cause, severity) in _TABLE_FAILURES.items():
            if count := table.grown(counter):
                where = f"in {topology.label(ns)} within {table.stats_seconds:.0f} s"
                sentence = f"Conntrack {effect.format(count=f'{count:,}')} {where}: {cause}."
                yield Finding("conntrack", namespace_ref(ns), f"conntrack: {short}", sentence, severity)


def storms(topology: Topology) -> Iterator[Finding]:
    """Find broadcast and multicast storms, and the ports that they enter by."""
    for storm in topology.snapshot.storms:
        bridge = topology.snapshot.link((storm.ns, storm.ifindex))
        if bridge is not None:
            network = topology.network_of(bridge)
            found = (topology.snapshot.link((storm.ns, port)) for port in storm.ports)
            ports = [port for port in found if port is not None]
            peers = (topology.peer(port) for port in ports)
            senders = (topology.container_of(peer.ns) for peer in peers if peer is not None)
            related = (
                *(link_ref(port.key) for port in ports),
                *(container_ref(each.runtime, each.id) for each in senders if each),
                *((network_ref(network.id),) if network else ()),
            )
            source = " and ".join(_source(topology, port) for port in ports)
            source = f"; they enter by {source}" if source else ""
            sentence = f"{storm_text(storm, bridge)}{source}.{_loop_warning(bridge)}"
            short = f"{storm.kind} storm, {storm.rate:,.0f}/s"
            yield Finding("storm", link_ref(bridge.key), short, sentence, "bad", related)


def storm_text(storm: Storm, bridge: Link) -> str:
    """Describe a storm, without a full stop."""
    return (
        f"{storm.kind.capitalize()} storm on {bridge.name}: about {storm.rate:,.0f} frames/s, "
        f"{storm.share:.0%} of all that enter it"
    )


def _source(topology: Topology, port: Link) -> str:
    """Name a port, and the bridge or container behind it."""
    peer = topology.peer(port)
    if peer is None:
        return port.name
    end = topology.master_of(peer)
    return f"{port.name} (from {f'bridge {end.name}' if end else topology.label(peer.ns)})"


def _loop_warning(bridge: Link) -> str:
    if bridge.bridge is None or bridge.bridge.stp:
        return ""
    return " STP is off: if bridges form a loop, the storm lasts until the loop is cut."
