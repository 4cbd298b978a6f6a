"""Find what findings are about: joined containers, sources of connections, storms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from core.flows import address_text
from core.model import Conntrack, Container, GuardDrops, Link, Storm
from core.topology import Topology
from core.topology.index import names_in

# The most addresses to attribute to owners, the busiest first: a flood has thousands.
_MAX_ADDRESSES = 1000


@dataclass(frozen=True, slots=True)
class ConnectionSource:
    """Owner of addresses that opened `entries` of a table's connections.

    `name` is "" if the owner is unknown, `address` the busiest one."""

    name: str
    address: str
    entries: int


def sources(topology: Topology, ns: int, most: int = 3) -> tuple[ConnectionSource, ...]:
    """Return who opened the most connections in a namespace's table, busiest first."""
    table = topology.snapshot.conntracks.get(ns)
    return top_sources(table, names_in(topology, ns), most) if table is not None else ()


def top_sources(table: Conntrack, names: Mapping[bytes, str], most: int) -> tuple[ConnectionSource, ...]:
    """Return who opened the most connections; `names` maps addresses of 16 bytes."""
    found: dict[str, ConnectionSource] = {}
    for raw, count in _busiest(table.entries["orig_src"]):
        name, address = names.get(raw, ""), address_text(raw)
        before = found.get(name or address)
        found[name or address] = ConnectionSource(
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


def joined(topology: Topology, container: Container) -> Container | None:
    """Return the container that another is to join, None if it no longer exists."""
    kind, _, name = container.network_mode.partition(":")
    others = (one for one in topology.containers.values() if one.uid != container.uid)
    found = (one for one in others if kind == "container" and name in (one.id, one.name))
    return next(found, None)


def guard_text(port: str, drops: GuardDrops) -> str:
    """Describe what the storm guard of a port drops, without a full stop."""
    rate = f", about {drops.rate:,.0f} frames/s" if drops.rate else ""
    return f"The storm guard of {port} drops {drops.kind} frames{rate}"


def storm_text(storm: Storm, bridge: Link) -> str:
    """Describe a storm, without a full stop."""
    return (
        f"{storm.kind.capitalize()} storm on {bridge.name}: about {storm.rate:,.0f} frames/s, "
        f"{storm.share:.0%} of all frames that enter it"
    )
