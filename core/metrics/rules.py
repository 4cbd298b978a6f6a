"""Translations, forward filters and findings as metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from core.metrics.sheet import Sheet
from core.topology import Topology

_FILTER = "filter"


def fill_nat(sheet: Sheet, topology: Topology, labels: Mapping[int, str]) -> None:
    """How many of each kind there are, and what those counted whose rules count."""
    kinds = Counter((entry.ns, entry.kind) for entry in topology.nat)
    for (ns, kind), count in kinds.items():
        sheet.add("vnet_nat_entries", (labels[ns], kind), count)
    counted = [entry for entry in topology.nat if entry.packets is not None and entry.ns in labels]
    for entry in sheet.bounded("nat", counted):
        where, packets = labels[entry.ns], entry.packets or 0
        if entry.kind == _FILTER:
            about = (where, entry.name, entry.verdict, entry.l4_proto)
            sheet.add("vnet_filter_packets_total", about, packets)
            sheet.add("vnet_filter_bytes_total", about, entry.bytes or 0)
        else:
            sheet.add("vnet_nat_connections_total", (where, entry.kind, entry.name, entry.l4_proto), packets)


def fill_findings(sheet: Sheet, topology: Topology) -> None:
    """How many things of each kind are wrong, and how many could not be read."""
    for part, count in Counter(one.part for one in topology.snapshot.problems).items():
        sheet.add("vnet_problems", (part,), count)
    for (kind, severity), count in Counter((one.kind, one.severity) for one in topology.findings).items():
        sheet.add("vnet_findings", (kind, severity), count)
