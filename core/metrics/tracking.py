"""Conntrack's tables as metrics: their counts alone, as reading all entries at each scrape costs too much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from core.collect.conntrack import read_usage
from core.collect.netns import NamespaceGone
from core.metrics.sheet import Sheet
from core.model import Namespace

# Each counter of ConntrackStats by its metric.
_COUNTERS = {
    "found": "found", "invalid": "invalid_packets", "insert": "inserts", "insert_failed": "insert_failures",
    "drop": "drops", "early_drop": "early_drops", "error": "errors", "search_restart": "search_restarts",
    "clash_resolve": "clashes_resolved", "chain_too_long": "chain_too_long",
}  # fmt: skip


def fill(sheet: Sheet, namespaces: Mapping[int, Namespace], labels: Mapping[int, str]) -> None:
    """Every namespace's table. Raises OSError where none could be read."""
    errors: list[OSError] = []
    ordered = sorted(namespaces.values(), key=lambda one: not one.is_host)
    for namespace in sheet.bounded("conntrack table", ordered):
        try:
            _fill(sheet, namespace, labels[namespace.inode])
        except NamespaceGone:
            continue
        except OSError as error:
            errors.append(error)
    if errors and len(errors) == len(namespaces):
        raise errors[0]


def _fill(sheet: Sheet, namespace: Namespace, label: str) -> None:
    count, limit, stats = read_usage(namespace)
    sheet.add("vnet_conntrack_entries", (label,), count)
    sheet.add("vnet_conntrack_entries_limit", (label,), limit)
    for name, value in asdict(stats).items() if stats else ():
        sheet.add(f"vnet_conntrack_{_COUNTERS[name]}_total", (label,), value)
