"""Conntrack tables that are full or fail, and storms on bridges."""

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


# Of the addresses that opened connections, so many, the busiest, are looked at: a flood has thousands.
_MOST_ADDRESSES = 1000


@dataclass(frozen=True, slots=True)
class Source:
    """Who opened `entries` of a table's connections: `name` whose addresses these are ("" for nobody known
    here), `address` the busiest one of them."""

    name: str
    address: str
    entries: int


def sources(topology: Topology, ns: int, most: int = 3) -> tuple[Source, ...]:
    """Those who opened most of the connections in a namespace's table, the busiest first."""
    table = topology.snapshot.conntracks.get(ns)
    return top_sources(table, names_in(topology, ns), most) if table is not None else ()


def top_sources(table: Conntrack, names: Mapping[bytes, str], most: int) -> tuple[Source, ...]:
    """The same of one table; `names` tells, by an address's 16 bytes, whose it is."""
    found: dict[str, Source] = {}
    for raw, count in _busiest(table.entries["orig_src"]):
        name, address = names.get(raw, ""), address_text(raw)
        known = found.get(name or address)
        found[name or address] = Source(
            name, known.address if known else address, count + (known.entries if known else 0)
        )
    return tuple(sorted(found.values(), key=lambda one: -one.entries)[:most])


def _busiest(addresses: np.ndarray) -> list[tuple[bytes, int]]:
    """Different addresses (rows of 16 bytes) and how often each comes, the most frequent first."""
    pairs = np.ascontiguousarray(addresses).view(np.uint64)
    is_mapped = pairs[:, 0] == 0  # IPv4 differs in its lower half alone: one fast sort tells
    lower, often = np.unique(pairs[is_mapped, 1], return_counts=True)
    mapped = np.stack((np.zeros_like(lower), lower), axis=1)
    others, counts = _counted(pairs[~is_mapped])
    every, times = np.concatenate((mapped, others)), np.concatenate((often, counts))
    chosen = np.argsort(-times, kind="stable")[:_MOST_ADDRESSES]
    return [(every[one].tobytes(), int(times[one])) for one in chosen.tolist()]


def _counted(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different rows of two numbers, and how often each comes."""
    ordered = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    differs = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.flatnonzero(np.concatenate((np.ones(min(1, len(pairs)), bool), differs)))
    return ordered[first], np.diff(np.append(first, len(ordered)))


# The share of a conntrack table from which on it counts as nearly full.
_NEARLY_FULL = 0.8
# What a table's counters tell when they grow: in a few words, in full, and how bad it is.
_TABLE_TROUBLES: Mapping[str, tuple[str, str, Severity]] = {
    "drop": ("packets dropped", "dropped {count} packets, for lack of room or memory,", "bad"),
    "insert_failed": (
        "inserts fail",
        "could not take up {count} connections, whose addresses and ports another one has,",
        "warn",
    ),
    "early_drop": ("early drops", "threw out {count} connections early, for new ones,", "warn"),
}


def full_tables(topology: Topology) -> Iterator[Finding]:
    for ns, table in topology.snapshot.conntracks.items():
        count, limit = len(table.entries), table.limit
        if limit and count > limit * _NEARLY_FULL:
            words = (
                f"The conntrack table of {topology.label(ns)} holds {count:,} of {limit:,} connections: "
                "when it is full, new ones are dropped."
            )
            short = f"conntrack {count * 100 // limit}% full"
            yield Finding("conntrack", namespace_ref(ns), short, words, "bad" if count >= limit else "warn")


def failing_tables(topology: Topology) -> Iterator[Finding]:
    """Tables of which some counter of trouble has grown since the look before."""
    for ns, table in topology.snapshot.conntracks.items():
        for counter, (short, words, severity) in _TABLE_TROUBLES.items():
            if count := table.grown(counter):
                where = f"in {topology.label(ns)} within {table.stats_seconds:.0f} s"
                told = f"Conntrack {words.format(count=f'{count:,}')} {where}."
                yield Finding("conntrack", namespace_ref(ns), f"conntrack: {short}", told, severity)


def storms(topology: Topology) -> Iterator[Finding]:
    for storm in topology.snapshot.storms:
        bridge = topology.snapshot.link((storm.ns, storm.ifindex))
        if bridge is not None:
            network = topology.network_of(bridge)
            about = (network_ref(network.id),) if network else ()
            found = (topology.snapshot.link((storm.ns, port)) for port in storm.ports)
            ports = [port for port in found if port is not None]
            peers = (topology.peer(port) for port in ports)
            senders = (topology.container_of(peer.ns) for peer in peers if peer is not None)
            also = (
                *(link_ref(port.key) for port in ports),
                *(container_ref(each.runtime, each.id) for each in senders if each),
            )
            source = " and ".join(_source(topology, port) for port in ports)
            source = f"; they come in by {source}" if source else ""
            words = f"{storm_words(storm, bridge)}{source}.{_loop_words(bridge)}"
            short = f"{storm.kind} storm, {storm.rate:,.0f}/s"
            yield Finding("storm", link_ref(bridge.key), short, words, "bad", (*also, *about))


def storm_words(storm: Storm, bridge: Link) -> str:
    """A storm as the beginning of a sentence."""
    return (
        f"A storm of {storm.kind}s on {bridge.name}: about {storm.rate:,.0f} frames/s, "
        f"{storm.share:.0%} of all that enter it"
    )


def _source(topology: Topology, port: Link) -> str:
    """A port, and what lies behind it."""
    peer = topology.peer(port)
    if peer is None:
        return port.name
    end = topology.master_of(peer)
    return f"{port.name} (from {f'bridge {end.name}' if end else topology.label(peer.ns)})"


def _loop_words(bridge: Link) -> str:
    if bridge.bridge is None or bridge.bridge.stp:
        return ""
    return " Its spanning tree is off: a loop of bridges would go on until it is cut."
