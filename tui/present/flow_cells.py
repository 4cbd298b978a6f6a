"""One flow as cells: the sentence, column by column."""

from __future__ import annotations

import math

from core.flows import End, Flow, address_text, protocol_name
from core.flows.merge import AGAIN, FAST, PART, PATHS
from core.topology import Topology
from core.topology.flow_index import CLIENTS, FlowPicture
from tui.present import cells, units
from tui.present.conntrack_detail import state_cell
from tui.present.glyphs import PIN
from tui.present.rows import Cell, Column

COLUMNS = (
    Column("from", "from", 21, grow=3, full=27, ends=True),
    Column("via", "seen as", 15, grow=1, priority=1, ends=True),
    Column("to", "to", 21, grow=3, full=27, ends=True),
    Column("proto", "proto", 6),
    Column("rate", "rate", 11, align="right"),
    Column("path", "path", 6),
    Column("state", "state", 11, priority=2),
    Column("client", "client", 13, priority=3),
    Column("bytes", "bytes", 8, align="right", priority=4),
    Column("rtt", "rtt", 7, align="right", priority=6),
    Column("process", "process", 14, grow=1, priority=7),
    Column("age", "age", 7, align="right", priority=8),
    Column("timeout", "left", 7, align="right", priority=9),
    Column("packets", "packets", 7, align="right", priority=10),
    Column("ns", "namespace", 10, grow=1, priority=11),
)


def cells_of(
    topology: Topology, picture: FlowPicture, row: int, flow: Flow, pinned: bool = False
) -> tuple[Cell, ...]:
    """A flow's cells in the order of COLUMNS."""
    table, index = picture.table, picture.index
    packets, octets = (
        (int(column[row].sum()) if table.counted[row] else None) for column in (table.packets, table.octets)
    )
    origin, responder = (named(picture, end) for end in (flow.origin, flow.responder))
    ns = index.columns.place(row)[0].ns
    return (
        cells.text(f"{PIN} {origin}" if pinned else origin, "accent" if pinned else ""),
        cells.text(via(flow)),
        cells.text(responder),
        Cell(protocol_name(flow.entry.l4_proto)),
        cells.bits(known(float(table.bits[row]))),
        path_cell(int(table.path[row])),
        state_cell(flow.entry),
        cells.text(CLIENTS[index.client[row]]),
        cells.size(octets),
        rtt_cell(float(picture.ends.rtt[row])),
        cells.text(processes(picture, row)),
        duration(float(table.age[row])),
        Cell(units.duration(flow.entry.timeout), sort=flow.entry.timeout),
        cells.count(packets),
        cells.text(topology.label(ns)),
    )


def named(picture: FlowPicture, end: End) -> str:
    """An end, with the name that its address goes by elsewhere where it is nobody's here."""
    name = end.name or picture.table.name_of(end.address)
    return str(end._replace(name=name))


def known(value: float) -> float | None:
    """The value, None for NaN."""
    return None if math.isnan(value) else value


def via(flow: Flow) -> str:
    """The translation in short: of a destination what was addressed, of a source how it is seen."""
    entry = flow.entry
    words = []
    if flow.dnat:
        words.append(f"DNAT :{entry.orig_dport}" if entry.has_ports else f"DNAT {flow.dnat}")
    if flow.snat:
        words.append(f"SNAT {address_text(entry.reply_dst)}")
    return " ".join(words)


def path_cell(path: int) -> Cell:
    """What carries it now."""
    if path == PART:
        return Cell("part", "warn")
    return Cell("fast", "ok") if path == FAST else Cell(PATHS[0], "dim" if path == AGAIN else "")


def rtt_cell(seconds: float) -> Cell:
    """A round trip time."""
    if math.isnan(seconds):
        return cells.NONE
    text = (
        f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.{1 if seconds < 0.1 else 0}f} ms"
    )
    return Cell(text, sort=seconds)


def duration(seconds: float) -> Cell:
    """A length of time; a dash where it is not known."""
    return cells.NONE if math.isnan(seconds) else Cell(units.duration(seconds), sort=seconds)


def processes(picture: FlowPicture, row: int) -> str:
    """The processes at the two ends, as far as they are known, without their ids."""
    names = (picture.ends.commands.get(int(picture.ends.pids[row, end]), "") for end in (0, 1))
    return ", ".join(dict.fromkeys(name for name in names if name))
