"""Conntrack tables as JSON objects: how full they are, how they fare, and who fills them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from core.codec import plain
from core.model import Conntrack
from core.topology import Topology
from core.topology.filling import sources

Item = dict[str, Any]

_MOST_SOURCES = 10


def tables(topology: Topology, scope: Collection[int] | None) -> Iterator[Item]:
    """The table of every namespace."""
    for table in topology.snapshot.conntracks.values():
        if scope is None or table.ns in scope:
            yield _table(topology, table)


def _table(topology: Topology, table: Conntrack) -> Item:
    return {
        "ns": table.ns,
        "namespace": topology.label(table.ns),
        "entries": len(table.entries),
        "limit": table.limit or None,
        "accounting": table.accounting,
        "stats": plain(table.stats) if table.stats else None,
        "sources": [
            {"name": one.name or None, "address": one.address, "entries": one.entries}
            for one in sources(topology, table.ns, _MOST_SOURCES)
        ],
    }
