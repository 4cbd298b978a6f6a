"""The detail of one flow, and of flows added up: in sentences, with its hops."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from core.flows import End, Flow, address_text, entry_of, flow_of, protocol_name, sentence
from core.flows.merge import FAST, PATHS, FlowTable
from core.model import Ref, conntrack_ref, container_ref, flow_ref
from core.text import safe
from core.topology import Topology
from core.topology.flow_index import CLIENTS, OUTSIDE, FlowView
from tui.views import cells, formatting, query
from tui.views.cells import Line
from tui.views.conntrack import state_cell
from tui.views.filters import flows_mask_of
from tui.views.flows import FlowRows, duration, none_if_nan, path_cell, rtt_cell
from tui.views.flows_groups import fast_amount
from tui.views.formatting import ARROW
from tui.views.links import missing_detail
from tui.views.rows import Cell, Detail, ViewContext

if TYPE_CHECKING:
    from core.reach import Question

_CLIENT_WORDS = {
    "host": "the host itself", "beside": "a container on the same network",
    "other network": "a container on another network", "outside": "another host",
    "itself": "the container itself",
}  # fmt: skip
_SEGMENTS = {"retrans": "retransmits", "lost": "lost now", "ooo": "out of order"}
_TOP = 8
_ASKED = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}


def detail(context: ViewContext, ref: Ref) -> Detail:
    """Return the details of a flow."""
    topology, flow_view = context.topology, context.flow_view
    row = flow_view.row_of(int(ref.key[0]), int(ref.key[1]))
    if row is None:
        return missing_detail("this flow")
    flow = _flow(flow_view, row)
    hops = flow_view.index.hops(row)
    related = [(f"hop {place} in {topology.label(_ns(flow_view, hop))}", _ref(flow_view, hop))
               for place, hop in enumerate(hops, 1)] if len(hops) > 1 else []  # fmt: skip
    entry = conntrack_ref(int(ref.key[0]), int(ref.key[1]))
    return Detail(
        safe(f"{protocol_name(flow.entry.l4_proto)} {flow.origin} {ARROW} {flow.responder}"),
        (
            *cells.section("Flow", _meaning(flow_view, row, flow)),
            *cells.section("Traffic", _traffic(flow_view, row)),
            *cells.section("Hops", _hops(topology, flow_view, hops)),
        ),
        (
            *((safe(label), target) for label, target in related if target != ref),
            *cells.related(topology, entry),
            ("conntrack entry", entry),
        ),
        safe(flow_text(flow_view, row)),
    )


def question_of(context: ViewContext, ref: Ref) -> Question | None:
    """Return the question of a flow's ends, None for other objects."""
    if ref.kind not in ("flow", "conntrack"):
        return None
    from core.reach import Question, resolve  # imported when first needed

    row = context.flow_view.row_of(int(ref.key[0]), int(ref.key[1]))
    if row is None:
        return None
    entry = _flow(context.flow_view, row).entry
    l4_proto = _ASKED.get(entry.l4_proto)
    if l4_proto is None:
        return None
    source, target = (
        resolve(context.topology, address_text(raw)) for raw in (entry.orig_src, entry.orig_dst)
    )
    question = Question(source, target, l4_proto, entry.orig_dport if l4_proto != "icmp" else 0)
    return None if question.source.is_outside and question.target.is_outside else question


def flow_text(flow_view: FlowView, row: int) -> str:
    """Return a flow on one line, with names verbatim.

    Such as `web1 172.18.0.2:41822 -> [SNAT 192.0.2.1:41822] -> 1.1.1.1:443 tcp ESTABLISHED 12.4 Mbit/s fast`.
    """
    words = [sentence(_flow(flow_view, row))]
    bits = none_if_nan(float(flow_view.table.bits[row]))
    words += [] if bits is None else [formatting.bits(bits)]
    return " ".join((*words, PATHS[int(flow_view.table.path[row])]))


def _flow(flow_view: FlowView, row: int) -> Flow:
    table, place = flow_view.table.columns.place(row)
    return flow_of(entry_of(table.entries[place]), flow_view.index.columns.names(table.ns))


def _ns(flow_view: FlowView, row: int) -> int:
    return flow_view.index.columns.place(row)[0].ns


def _ref(flow_view: FlowView, row: int) -> Ref:
    table, place = flow_view.index.columns.place(row)
    return flow_ref(table.ns, int(table.entries["id"][place]))


def _meaning(flow_view: FlowView, row: int, flow: Flow) -> Iterator[Line]:
    yield "", cells.text(flow_text(flow_view, row)), None
    for number, (title, end) in enumerate((("opened by", flow.origin), ("answered by", flow.responder))):
        code = int((flow_view.index.origin, flow_view.index.responder)[number][row])
        container = flow_view.index.container(code)
        target = container_ref(container.runtime, container.id) if container else None
        yield title, cells.text(_end(flow_view, end)), target
        if process := flow_view.command(row, number):
            yield "process", cells.text(process), target
    client = CLIENTS[flow_view.index.client[row]]
    if client:
        yield "client", Cell(_CLIENT_WORDS[client]), None
    yield "translation", cells.text(flow.translation or "none"), None
    yield "state", state_cell(flow.entry), None
    yield "expires in", Cell(f"{formatting.duration(flow.entry.timeout)} without a packet"), None


def _end(flow_view: FlowView, end: End) -> str:
    name = flow_view.table.name_of(end.address)
    return f"{end} ({name})" if name and not end.name else str(end)


def _traffic(flow_view: FlowView, row: int) -> Iterator[Line]:
    table = flow_view.table
    yield "path", path_cell(int(table.path[row])), None
    if not table.counted[row]:
        accounting = flow_view.index.columns.place(row)[0].accounting
        why = "it is older than nf_conntrack_acct=1" if accounting else "nf_conntrack_acct is off; W, then A"
        yield "traffic", Cell(f"not counted: {why}", "dim"), None
    else:
        for way, title in enumerate(("sent", "received")):
            yield title, _direction(flow_view, row, way), None
    yield "started", _started(float(table.age[row])), None
    yield "round trip", rtt_cell(float(flow_view.ends.rtt[row])), None
    for name, title in _SEGMENTS.items():
        if cell := _segments(flow_view, row, name):
            yield title, cell, None


def _segments(flow_view: FlowView, row: int, name: str) -> Cell | None:
    """Return the counts of the ends whose sockets are on this host, None without one."""
    ends = flow_view.ends.segments(name, slice(row, row + 1))[0]
    counts = [none_if_nan(float(count)) for count in ends]
    words = [
        f"{formatting.count(int(count))} by {end}"
        for count, end in zip(counts, ("the client", "the server"), strict=True)
        if count is not None
    ]
    return Cell(", ".join(words), "warn" if any(counts) else "") if words else None


def _direction(flow_view: FlowView, row: int, way: int) -> Cell:
    table = flow_view.table
    rate, pace = none_if_nan(float(table.speeds[row, way])), none_if_nan(float(table.speeds[row, way + 2]))
    words = [] if rate is None or pace is None else [formatting.bits(rate), formatting.packets(pace)]
    packets = int(table.packets[row, way])
    words.append(f"{formatting.size(int(table.octets[row, way]))} in {formatting.several(packets, 'packet')}")
    fast = int(table.fast_bytes[row, way])
    if fast or table.path[row] == FAST:
        words.append(f"{formatting.size(fast)} of it fast")
    return Cell(", ".join(words))


def _started(age: float) -> Cell:
    found = duration(age)
    return found if found is cells.NONE else Cell(f"{found.text} ago")


def _hops(topology: Topology, flow_view: FlowView, hops: list[int]) -> Iterator[Line]:
    for hop in hops if len(hops) > 1 else ():
        flow = _flow(flow_view, hop)
        bits = none_if_nan(float(flow_view.table.bits[hop]))
        seen = " -> ".join(
            filter(
                None,
                (flow.origin.text, flow.translation and f"[{flow.translation}]", flow.responder.text),
            )
        )
        speed = f"  {formatting.bits(bits)}" if bits is not None else ""
        yield topology.label(_ns(flow_view, hop)), cells.text(seen + speed), _ref(flow_view, hop)


def group_title(selects: str) -> str:
    """Return the title of a group: its filter without the colons of keys."""
    return re.sub(r"(^|\s)([\w-]+):=?", r"\1\2 ", selects) or "all flows"


def group_detail(context: ViewContext, ref: Ref) -> Detail:
    """Return the details of grouped flows: total, clients, largest flows."""
    topology, flow_view = context.topology, context.flow_view
    selects = str(ref.key[1])
    mask = flows_mask_of(query.parse(selects), topology, flow_view)
    shown = FlowRows(topology, flow_view, context.flow_options).matching(context.flows_filter).numbers
    rows = np.sort(shown[mask[shown]])
    if not rows.size:
        return missing_detail("this group")
    bits = np.nan_to_num(flow_view.table.bits[rows])
    largest = rows[np.argsort(-bits, kind="stable")[:_TOP]].tolist()
    return Detail(
        safe(group_title(selects)),
        (
            *cells.section("Total", _total(flow_view, rows)),
            *cells.section("Clients", _clients(flow_view, rows)),
            *cells.section("Largest flows", _largest(flow_view, largest)),
        ),
        tuple((safe(flow_text(flow_view, row)), _ref(flow_view, row)) for row in largest[:3]),
    )


def _total(flow_view: FlowView, rows: np.ndarray[Any, Any]) -> Iterator[Line]:
    table = flow_view.table
    yield "flows", cells.number(len(rows)), None
    yield "rate", cells.bits(float(np.nansum(table.bits[rows])) if table.measured else None), None
    yield "bytes", cells.size(int(table.octets[rows].sum())), None
    yield (
        "fast",
        Cell(f"{int((table.path[rows] == FAST).sum())} of {_count(len(rows))}{_share(table, rows)}"),
        None,
    )


def _share(table: FlowTable, rows: np.ndarray[Any, Any]) -> str:
    """Return the share of the traffic as text, "" if there is none."""
    whole = np.nansum(table.bits[rows]) if table.measured else table.octets[rows].sum()
    return f", {fast_amount(table, rows).sum() / whole:.0%} of the traffic" if whole >= 1 else ""


def _clients(flow_view: FlowView, rows: np.ndarray[Any, Any]) -> Iterator[Line]:
    """Yield the kinds of clients with their numbers."""
    kinds, bits = flow_view.index.client[rows], flow_view.table.bits[rows]
    order = (OUTSIDE, *(kind for kind in range(1, len(CLIENTS)) if kind != OUTSIDE))
    for kind in order:
        here = kinds == kind
        if here.any():
            speed = f", {formatting.bits(float(np.nansum(bits[here])))}" if flow_view.table.measured else ""
            yield CLIENTS[kind], Cell(f"{_count(int(here.sum()))}{speed}"), None


def _count(flows: int) -> str:
    return f"{flows} flow{'s' * (flows != 1)}"


def _largest(flow_view: FlowView, rows: list[int]) -> Iterator[Line]:
    for row in rows:
        yield "", cells.text(flow_text(flow_view, row)), _ref(flow_view, row)


__all__ = ["detail", "duration", "flow_text", "group_detail"]
