"""Group flows by container, network, peer, port, process, client; as a matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from core.flows import PROTOCOLS, address_text
from core.flows.columns import row_keys
from core.flows.describe import protocol_name
from core.flows.merge import FAST, FlowTable, sum_by_group, sum_matrix
from core.model import Ref
from core.topology import Topology
from core.topology.flow_index import CLIENTS, NO_CLIENT, FlowView
from tui.views import cells, formatting
from tui.views.lists import ListRows
from tui.views.query import term
from tui.views.rows import Cell, Column, FlowViewOptions, Row

Array = np.ndarray[Any, Any]

OTHERS = "elsewhere"
_MOST = 1000  # groups that are shown, the biggest
_MATRIX_SIDE = 24
_KINDS = ("outside", "host", "beside", "other network")
_CLIENT_PLACES = [CLIENTS.index(kind) for kind in _KINDS]


class GroupRows(ListRows):
    """Groups in order, with a summary; an unknown column means the speed."""

    __slots__ = ("head",)

    def __init__(self, rows: Sequence[Row], columns: tuple[Column, ...], head: Sequence[Cell] = ()) -> None:
        super().__init__(rows, columns)
        self.head = head

    def sorted_by(self, column: str, reverse: bool) -> GroupRows:
        """Return the same rows in another order."""
        known = column if any(one.name == column for one in self.columns) else "rate"
        return GroupRows(super().sorted_by(known, reverse).rows, self.columns, self.head)


def group_rows(
    topology: Topology,
    flow_view: FlowView,
    order: Array,
    flow_options: FlowViewOptions,
    head: Sequence[Cell],
) -> GroupRows:
    """Group the flows of `order` as the options say."""
    if flow_options.by == "matrix":
        return _matrix(flow_view, order, head)
    codes, namer = _MAKERS[flow_options.by](topology, flow_view, order)
    return _grouped(flow_view, order, flow_options.by, codes, namer, head)


# Meaning of a code: its name, and the filter that selects its flows.
_Namer = Callable[[int], tuple[str, str]]
_Codes = tuple[Sequence[Array], _Namer]


def _by_container(topology: Topology, flow_view: FlowView, order: Array) -> _Codes:
    index = flow_view.index

    def name(code: int) -> tuple[str, str]:
        return index.owners[code].name, term("ct", index.owners[code].name)

    return (index.origin[order], index.responder[order]), name


def _by_network(topology: Topology, flow_view: FlowView, order: Array) -> _Codes:
    index = flow_view.index

    def name(code: int) -> tuple[str, str]:
        return index.networks[code].name, term("net", index.networks[code].name)

    return (index.origin_network[order], index.responder_network[order]), name


def _by_peer(topology: Topology, flow_view: FlowView, order: Array) -> _Codes:
    columns = flow_view.index.columns
    addresses = columns.peer()[0][order]
    unique, codes = np.unique(row_keys(addresses[:, 0], addresses[:, 1]), return_inverse=True)
    first = np.full(len(unique), 0)
    first[codes] = np.arange(len(codes))

    def name(code: int) -> tuple[str, str]:
        place = int(first[code])
        raw = addresses[place].astype(">u8").tobytes()
        table, _ = columns.place(int(order[place]))
        owner = columns.names(table.ns).get(raw, "") or flow_view.table.names.get(raw, "")
        text = address_text(raw)
        return (f"{owner} {text}" if owner else text), f"peer:{text}"

    return (codes,), name


def _by_port(topology: Topology, flow_view: FlowView, order: Array) -> _Codes:
    columns = flow_view.index.columns
    port = np.where(columns.has_ports, columns.column("reply_sport"), 0)[order].astype(np.int64)
    codes = port | columns.column("l4_proto")[order].astype(np.int64) << 16

    def name(code: int) -> tuple[str, str]:
        proto, number = PROTOCOLS[code >> 16], code & 0xFFFF
        if not number:
            return proto, term("proto", proto)
        return f"{number}/{protocol_name(code >> 16)}", f"{term('proto', proto)} dport:{number}"

    return (codes,), name


def _by_process(topology: Topology, flow_view: FlowView, order: Array) -> _Codes:
    ends = flow_view.ends
    names = sorted(set(ends.commands.values()))
    places = {name: place for place, name in enumerate(names)}
    pids, place = np.unique(ends.pids[order], return_inverse=True)
    code_of = np.array([places.get(ends.commands.get(int(pid), ""), -1) for pid in pids], np.int64)
    codes = code_of[place.reshape(-1, 2)] if len(pids) else np.zeros((0, 2), np.int64)

    def name(code: int) -> tuple[str, str]:
        return (names[code], term("process", names[code])) if code >= 0 else ("", "")

    return (codes[:, 0], codes[:, 1]), name


def _by_client(topology: Topology, flow_view: FlowView, order: Array) -> _Codes:
    codes = flow_view.index.client[order].astype(np.int64)

    def name(code: int) -> tuple[str, str]:
        return CLIENTS[code], term("client", CLIENTS[code])

    return (np.where(codes == NO_CLIENT, -1, codes),), name


_MAKERS: Mapping[str, Callable[[Topology, FlowView, Array], _Codes]] = {
    "container": _by_container, "network": _by_network, "peer": _by_peer, "port": _by_port,
    "process": _by_process, "client": _by_client,
}  # fmt: skip


def _columns(by: str) -> tuple[Column, ...]:
    return (
        Column("name", by, 22, grow=3),
        Column("flows", "flows", 7, align="right"),
        Column("rate", "rate", 11, align="right"),
        Column("share", "share", 10, priority=2),
        Column("bytes", "bytes", 8, align="right", priority=1),
        Column("packets", "packets", 8, align="right", priority=9),
        Column("fast", "fast", 5, align="right", priority=8),
        *(Column(kind.replace(" ", "-"), kind, max(7, len(kind)), align="right", priority=3 + place)
          for place, kind in enumerate(_KINDS) if by != "client"),
    )  # fmt: skip


def _grouped(
    flow_view: FlowView, order: Array, by: str, codes: Sequence[Array], name: _Namer, head: Sequence[Cell]
) -> GroupRows:
    table, index = flow_view.table, flow_view.index
    clients = [(index.client[order] == place) for place in _CLIENT_PLACES]
    values = np.array(
        [
            np.nan_to_num(table.bits[order]), table.octets[order].sum(axis=1),
            table.packets[order].sum(axis=1), fast_amount(table, order), *clients,
        ],
        float,
    )  # fmt: skip
    sums = sum_by_group(codes, values.T)
    biggest = np.lexsort((-sums.sums[:, 1], -sums.sums[:, 0]))[:_MOST]
    top = float(sums.sums[:, 0].max(initial=0.0))
    rows, columns = [], _columns(by)
    for place in biggest.tolist():
        text, selects = name(int(sums.codes[place]))
        ref = Ref("flow group", (by, selects))
        flows = int(sums.flows[place])
        line = _cells(text, flows, sums.sums[place].tolist(), top, table.measured)
        rows.append(Row(ref, line[: len(columns)]))
    return GroupRows(rows, columns, head)


def fast_amount(table: FlowTable, rows: Array) -> Array:
    """Return the fast path's share of flows: of their rate if known, else of bytes."""
    if table.measured:
        return np.where(table.path[rows] == FAST, np.nan_to_num(table.bits[rows]), 0)
    return np.asarray(table.fast_bytes[rows].sum(axis=1))


def _share(fast: float, of: float) -> Cell:
    return Cell(f"{100 * fast / of:.0f}%", "" if fast else "dim", fast / of) if of >= 1 else cells.NONE


def _cells(name: str, flows: int, sums: Sequence[float], top: float, measured: bool) -> tuple[Cell, ...]:
    bits, octets, packets, fast, *clients = sums
    return (
        cells.text(name),
        cells.number(flows),
        cells.bits(bits if measured else None),
        Cell("█" * round(10 * bits / top) if top else "", "accent", bits),
        cells.size(int(octets)),
        cells.count(int(packets)),
        _share(fast, bits if measured else octets),
        *(cells.number(count) for count in clients),
    )


def _matrix(flow_view: FlowView, order: Array, head: Sequence[Cell]) -> GroupRows:
    """Return the traffic matrix: the busiest containers, the host, all others.

    Columns are in the order of names; those that carried the least so far are left out first, so that columns
    stay in place.
    """
    index, table = flow_view.index, flow_view.table
    size = len(index.owners) + 1
    origin, responder = index.origin[order] + 1, index.responder[order] + 1
    values = np.nan_to_num(table.speeds[order, :2]) if table.measured else table.octets[order].astype(float)
    sent = sum_matrix(origin, responder, size, values[:, 0]) + sum_matrix(
        responder, origin, size, values[:, 1]
    )
    counts = sum_matrix(origin, responder, size, np.ones(len(order)))
    so_far = table.octets[order].sum(axis=1).astype(float)
    carried = sum_matrix(origin, responder, size, so_far)
    busy = carried.sum(axis=0) + carried.sum(axis=1)
    active = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    ranked = active[np.argsort(-busy[active], kind="stable")][:_MATRIX_SIDE].tolist()
    called = {code: OTHERS if code == 0 else index.owners[code - 1].name for code in ranked}
    shown = np.array(sorted(ranked, key=lambda code: (code == 0, called[code])), np.intp)
    names = [called[code] for code in shown.tolist()]
    ranks = {code: rank for rank, code in enumerate(ranked)}
    columns = (
        Column("name", "from \\ to", 16, grow=1),
        *(Column(f"to-{called[code]}", called[code], 11, align="right", priority=ranks[code], counted=True)
          for code in shown.tolist()),
        Column("rate", "total", 11, align="right"),
    )  # fmt: skip
    if len(active) > len(shown):
        words = f"the {len(shown)} busiest of {len(active)} ends; the others are left out"
        head = (*head, Cell(words, "dim"))
    word = formatting.bits if table.measured else formatting.size
    rows = []
    for place, code in enumerate(shown.tolist()):
        line = [_figure(float(sent[code, other]), word) for other in shown.tolist()]
        selects = "" if code == 0 else term("ct", names[place])
        whole = _figure(float(sent[code, shown].sum()), word)
        rows.append(Row(Ref("flow group", ("matrix", selects)), (cells.text(names[place]), *line, whole)))
    return GroupRows(rows, columns, head)


def _figure(value: float, word: Callable[[float], str]) -> Cell:
    return Cell(word(value), "", value) if value >= 1 else Cell("·", "dim", 0)
