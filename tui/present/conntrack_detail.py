"""The detail of one conntrack entry: who talks to whom, and both directions as the kernel keeps them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from core.flows import (
    End,
    Entry,
    Flow,
    address_text,
    end_text,
    entry_of,
    flow_of,
    icmp_text,
    protocol_name,
    sentence,
    status_words,
)
from core.model import Conntrack, Ref, container_ref, namespace_ref
from core.rates import Rates
from core.text import safe
from core.topology import Topology
from core.topology.index import names_in
from tui.present import cells, units
from tui.present.cells import Line
from tui.present.glyphs import BOTH_WAYS
from tui.present.link_detail import gone
from tui.present.rows import Cell, Detail, Tone

_STATE_TONES: dict[str, Tone] = {
    "ESTABLISHED": "ok", "ASSURED": "ok", "UNREPLIED": "warn", "SYN_SENT": "warn", "SYN_SENT2": "warn",
    "TIME_WAIT": "dim", "CLOSE": "dim", "NONE": "dim",
}  # fmt: skip


def state_cell(entry: Entry) -> Cell:
    """An entry's state; one that waits for its answer stands out."""
    return Cell(entry.state, _STATE_TONES.get(entry.state, ""))


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Everything about one entry."""
    table = topology.snapshot.conntracks.get(int(ref.key[0]))
    places = np.flatnonzero(table.entries["id"] == ref.key[1]).tolist() if table else []
    if table is None or not places:
        return gone("this connection")
    entry = entry_of(table.entries[places[0]])
    flow = flow_of(entry, names_in(topology, table.ns))
    return Detail(
        safe(f"{protocol_name(entry.l4_proto)} {flow.inside} {BOTH_WAYS} {flow.peer}"),
        (
            *cells.section("Connection", _meaning(topology, table.ns, flow)),
            *cells.section("State", _state(entry)),
            *cells.section("Original direction", _direction(table, entry, "orig")),
            *cells.section("Reply direction", _direction(table, entry, "reply")),
            *cells.section("Entry", _marks(topology, table, entry)),
        ),
        cells.related(topology, ref),
        safe(sentence(flow)),
    )


def _meaning(topology: Topology, ns: int, flow: Flow) -> Iterator[Line]:
    yield "", cells.text(sentence(flow)), None
    yield "inside", cells.text(str(flow.inside)), _owner(topology, ns, flow.inside)
    yield "peer", cells.text(str(flow.peer)), _owner(topology, ns, flow.peer)
    yield "translation", cells.text(_translation(flow)), None


def _owner(topology: Topology, ns: int, end: End) -> Ref | None:
    owner = topology.container_at(ns, end.address)
    return container_ref(owner.runtime, owner.id) if owner else None


def _translation(flow: Flow) -> str:
    """The translation in a sentence."""
    parts = []
    if flow.dnat:
        parts.append(f"what is sent to {flow.dnat} goes to {_bare(flow.responder)}")
    if flow.snat:
        parts.append(f"{_bare(flow.origin)} is seen as {flow.snat}")
    return "; ".join(parts) or "none: both ends see each other's own address"


def _bare(end: End) -> str:
    return end_text(end.address, end.port)


def _state(entry: Entry) -> Iterator[Line]:
    yield "state", state_cell(entry), None
    yield "status", cells.text(", ".join(status_words(entry.status))), None
    yield "expires in", Cell(f"{units.duration(entry.timeout)} without a packet"), None


def _direction(table: Conntrack, entry: Entry, way: str) -> Iterator[Line]:
    """One tuple as the kernel keeps it, and what was counted that way."""
    for title, end in (("from", "src"), ("to", "dst")):
        address = address_text(getattr(entry, f"{way}_{end}"))
        port = getattr(entry, f"{way}_{end[0]}port") if entry.has_ports else None
        yield title, cells.text(end_text(address, port)), None
    if entry.is_icmp:
        kind = icmp_text(entry.l4_proto, getattr(entry, f"{way}_dport"))
        yield "ICMP", cells.text(f"{kind}, id {getattr(entry, f'{way}_sport')}"), None
    if not entry.counted:
        yield "traffic", Cell(f"not counted: {_why_uncounted(table)}", "dim"), None
        return
    packets, octets = getattr(entry, f"{way}_packets"), getattr(entry, f"{way}_bytes")
    yield "traffic", Cell(f"{units.size(octets)} in {units.several(packets, 'packet')}"), None


def _why_uncounted(table: Conntrack) -> str:
    if table.accounting:
        return "the connection is older than nf_conntrack_acct=1"
    return "nf_conntrack_acct is off"


def _marks(topology: Topology, table: Conntrack, entry: Entry) -> Iterator[Line]:
    if entry.start:
        began = entry.start / 1e9
        yield "began", Cell(units.age(began, table.taken_at)), None
    yield "mark", Cell(f"{entry.mark:#x}" if entry.mark else "0", "" if entry.mark else "dim"), None
    yield "zone", cells.number(entry.zone), None
    yield "id", Cell(str(entry.id)), None
    yield "namespace", cells.text(topology.label(table.ns)), namespace_ref(table.ns)
