"""How conntrack's tables fare, in a line or two above their entries: fill level, failures, who fills them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from core.diagnose import findings_of
from core.model import Conntrack, namespace_ref
from core.topology import Topology
from core.topology.table_usage import Source, sources
from tui.present import units
from tui.present.rows import Cell, Tone

# The counters of trouble, in words; packets with an invalid state are ordinary.
_TROUBLES = (("insert_failed", "failed inserts"), ("drop", "drops"), ("early_drop", "early drops"))
_MOST_SOURCES = 3


def head(topology: Topology, scope: Collection[int] | None = None) -> tuple[Cell, ...]:
    """The fullest table and what went wrong in all of them; nothing where none was read. `scope` holds the
    namespaces whose tables are wanted, None for all."""
    every = topology.snapshot.conntracks.values()
    tables = [table for table in every if (scope is None or table.ns in scope) and table.is_read]
    if not tables:
        return ()
    fullest = max(tables, key=lambda table: (len(table.entries), table.ns == topology.host))
    level, troubles = _level(topology, fullest, len(tables) > 1), [*_troubles(tables)]
    told = _sources(sources(topology, fullest.ns, _MOST_SOURCES), len(fullest.entries))
    most, tone = [f"most by {told}"] if told else [], _tone(topology, tables)
    if not troubles:
        fine = ["no failures"] if any(table.stats for table in tables) else []
        return (Cell(" · ".join([level, *fine, *most]), tone),)
    lines = (" · ".join([level, *troubles]), *most)
    return tuple(Cell(line, tone) for line in lines)


def _level(topology: Topology, table: Conntrack, others: bool) -> str:
    where = f"{topology.label(table.ns)}: " if others else ""
    count = len(table.entries)
    if not table.limit:
        return f"{where}{count:,} connections"
    return f"{where}{count:,} of {table.limit:,} ({_percent(count, table.limit)})"


def _percent(count: int, limit: int) -> str:
    return "under 1%" if 0 < count * 100 < limit else f"{count * 100 // limit}%"


def _troubles(tables: Collection[Conntrack]) -> Iterator[str]:
    """What went wrong since the namespaces were made, and by how much that grew of late."""
    for counter, title in _TROUBLES:
        total = sum(getattr(table.stats, counter) for table in tables if table.stats)
        grown = sum(table.grown(counter) for table in tables)
        seconds = max(table.stats_seconds for table in tables)
        late = f" (+{grown:,} in {units.duration(seconds)})" if grown else ""
        if total:
            yield f"{total:,} {title}{late}"


def _sources(found: Collection[Source], entries: int) -> str:
    return ", ".join(f"{one.name or one.address} {_percent(one.entries, entries)}" for one in found)


def _tone(topology: Topology, tables: Collection[Conntrack]) -> Tone:
    """As bad as the worst finding about one of them."""
    wrong = [
        finding.severity
        for table in tables
        for finding in findings_of(topology, namespace_ref(table.ns))
        if finding.kind == "conntrack"
    ]
    return "bad" if "bad" in wrong else "warn" if wrong else "dim"
