"""Columns, cells and lines of OpenFlow flows with their counters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from core.model import OvsBridge, OvsFlow
from core.text import safe
from tui.views import cells, formatting
from tui.views.answers import AnswerLine
from tui.views.rows import Cell, Column

COLUMNS = (
    Column("table", "table", 5, align="right"),
    Column("priority", "priority", 8, align="right"),
    Column("packets", "packets", 8, align="right"),
    Column("bytes", "bytes", 8, align="right"),
    Column("age", "age", 8, align="right", priority=1),
    Column("match", "match", 20, grow=1),
    Column("actions", "actions", 20, grow=2),
)


def flow_cells(flow: OvsFlow) -> tuple[Cell, ...]:
    """Return the cells of a flow: table, priority, counters, age, match, actions."""
    return (
        cells.number(flow.table), cells.number(flow.priority), cells.number(flow.packets),
        Cell(formatting.size(flow.bytes), sort=flow.bytes), Cell(formatting.duration(flow.duration)),
        cells.text(flow.match or "all"), cells.text(flow.actions),
    )  # fmt: skip


def flow_lines(bridge: OvsBridge, flows: Sequence[OvsFlow], width: int) -> Iterator[AnswerLine]:
    """Yield the flows of a bridge as wrapped lines: counters, then match and actions."""
    if not flows:
        yield [(f"{safe(bridge.name)} has no flow: it drops all packets", "warn")]
    for flow in flows:
        counters = f"{formatting.several(flow.packets, 'packet')}, {formatting.size(flow.bytes)}"
        age = formatting.duration(flow.duration)
        yield [
            (f"table {flow.table}, priority {flow.priority}  ", "dim"),
            (counters, "" if flow.packets else "dim"), (f"  for {age}", "dim"),
        ]  # fmt: skip
        for text in (f"match {flow.match or 'all'}", f"actions {flow.actions}"):
            yield from ([(f"  {part}", "")] for part in formatting.wrapped(safe(text), max(10, width - 2)))
