"""The mark of what is accelerated, for lists of bridges and networks and for the overview."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.model import FastPath, Link, Ref
from core.model.fastpath import ALL
from core.topology import Topology
from tui.present.list_rows import ListRows
from tui.present.rows import Cell, Column, Row, Tone
from tui.present.scene import Scene

MARK = "»"
COLUMN = Column("fast", "fast", 8)
_TONES: dict[str, Tone] = {"on": "ok", "changing": "ok", "paused": "warn", "silent": "bad"}
_NONE = Cell("")


def mark_of(scene: Scene, bridge: Link | None) -> Cell:
    """The mark of a bridge, an empty cell where it is not accelerated."""
    fast = scene.fast
    if bridge is None or not fast.is_running or not is_meant(fast, scene.topology, bridge):
        return _NONE
    words = "on" if fast.state == "changing" else fast.state
    return Cell(f"{MARK} {words}", _TONES[fast.state])


def is_meant(fast: FastPath, topology: Topology, bridge: Link) -> bool:
    """Whether a bridge is accelerated, or will be with its first container."""
    if bridge.ns != topology.host or bridge.kind != "bridge":
        return False
    if bridge.name in fast.bridges or ALL in fast.targets:
        return True
    network = topology.network_of(bridge)
    names = {bridge.name, *bridge.altnames, *((network.name, network.id) if network else ())}
    return bool(names & set(fast.targets))


def marked(scene: Scene, rows: ListRows, at: int, bridge_of: Callable[[Ref], Link | None]) -> ListRows:
    """The rows with a column of marks at that place, as long as anything is accelerated."""
    if not scene.fast.is_running:
        return rows

    def with_mark(row: Row) -> Row:
        cell = mark_of(scene, bridge_of(row.ref))
        return replace(row, cells=(*row.cells[:at], cell, *row.cells[at:]))

    columns = (*rows.columns[:at], COLUMN, *rows.columns[at:])
    return ListRows([with_mark(row) for row in rows], columns)
