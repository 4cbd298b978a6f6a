"""Who fills a conntrack table: its entries by the one who opened them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from core.flows import address_text
from core.model import Conntrack
from core.topology.index import names_in

if TYPE_CHECKING:
    from core.topology.index import Topology

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
