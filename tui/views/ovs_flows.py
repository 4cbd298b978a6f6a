"""Columns and cells of OpenFlow flows with their counters."""

from __future__ import annotations

from core.model import OvsFlow
from tui.views import cells, formatting
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
