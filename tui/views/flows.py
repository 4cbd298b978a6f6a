"""The flows view: connections, speeds, paths; only visible rows become text."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial

import numpy as np

from core.flows import PROTOCOLS, STATES, End, Flow, entry_of, flow_of, protocol_name, translation_text
from core.flows.merge import AGAIN, FAST, PART, PATHS
from core.model import Demand, Part, Ref, flow_ref
from core.text import safe
from core.topology import Topology
from core.topology.flow_index import CLIENTS, SEGMENTS, FlowView
from tui.views import cells, formatting, query
from tui.views.conntrack import rank, state_cell
from tui.views.filters import flow_keys_of, flows_mask_of, remarks
from tui.views.formatting import PIN
from tui.views.lists import ListRows
from tui.views.rows import (
    DEFAULT_OPTIONS,
    GROUPINGS,
    TO_READ_TABLES,
    Cell,
    Column,
    FlowViewOptions,
    ListView,
    Row,
    ViewContext,
)

COLUMNS = (
    Column("from", "from", 21, grow=3, full=27, ends=True),
    Column("via", "NAT", 15, grow=1, priority=1, ends=True),
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
    Column("timeout", "timeout", 8, align="right", priority=9),
    Column("packets", "packets", 7, align="right", priority=10),
    Column("ns", "namespace", 10, grow=1, priority=11),
    Column("retrans", "retrans", 7, align="right", priority=12),
    Column("lost", "lost", 5, align="right", priority=13),
    Column("ooo", "ooo", 5, align="right", priority=14),
)


def cells_of(
    topology: Topology, flow_view: FlowView, row: int, flow: Flow, pinned: bool = False
) -> tuple[Cell, ...]:
    """Return a flow's cells in the order of COLUMNS."""
    table, index = flow_view.table, flow_view.index
    packets, octets = (
        (int(column[row].sum()) if table.counted[row] else None) for column in (table.packets, table.octets)
    )
    origin, responder = (named_end(flow_view, end) for end in (flow.origin, flow.responder))
    ns = index.columns.place(row)[0].ns
    return (
        cells.text(f"{PIN} {origin}" if pinned else origin, "accent" if pinned else ""),
        cells.text(translation_text(flow)),
        cells.text(responder),
        Cell(protocol_name(flow.entry.l4_proto)),
        cells.bits(none_if_nan(float(table.bits[row]))),
        path_cell(int(table.path[row])),
        state_cell(flow.entry),
        cells.text(CLIENTS[index.client[row]]),
        cells.size(octets),
        rtt_cell(float(flow_view.ends.rtt[row])),
        cells.text(processes(flow_view, row)),
        duration(float(table.age[row])),
        Cell(formatting.duration(flow.entry.timeout), sort=flow.entry.timeout),
        cells.count(packets),
        cells.text(topology.label(ns)),
        *(segments_cell(flow_view, row, name) for name in SEGMENTS),
    )


def segments_cell(flow_view: FlowView, row: int, name: str) -> Cell:
    """Return the cell of one of SEGMENTS, the sum of both ends."""
    return cells.count(flow_view.ends.count(name, row))


def named_end(flow_view: FlowView, end: End) -> str:
    """Return an end with a name; for an address of another host its DNS name."""
    name = end.name or flow_view.table.name_of(end.address)
    return str(end._replace(name=name))


def none_if_nan(value: float) -> float | None:
    """Return the value, None for NaN."""
    return None if math.isnan(value) else value


def path_cell(path: int) -> Cell:
    """Return the cell of the path that a flow takes now."""
    if path == PART:
        return Cell("part", "warn")
    return Cell("fast", "ok") if path == FAST else Cell(PATHS[0], "dim" if path == AGAIN else "")


def rtt_cell(seconds: float) -> Cell:
    """Return the cell of a round trip time."""
    if math.isnan(seconds):
        return cells.NONE
    text = (
        f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.{1 if seconds < 0.1 else 0}f} ms"
    )
    return Cell(text, sort=seconds)


def duration(seconds: float) -> Cell:
    """Return the cell of a duration, a dash if it is unknown."""
    return cells.NONE if math.isnan(seconds) else Cell(formatting.duration(seconds), sort=seconds)


def processes(flow_view: FlowView, row: int) -> str:
    """Return the known processes at the two ends, without their ids."""
    names = (flow_view.ends.commands.get(int(flow_view.ends.pids[row, end]), "") for end in (0, 1))
    return ", ".join(dict.fromkeys(name for name in names if name))


class FlowRows:
    """Flows in their present order: `order` holds row numbers of the picture's table."""

    columns = COLUMNS

    def __init__(
        self,
        topology: Topology,
        flow_view: FlowView,
        flow_options: FlowViewOptions = DEFAULT_OPTIONS,
        order: np.ndarray | None = None,
    ) -> None:
        self._topology, self._flow_view, self._options = topology, flow_view, flow_options
        if order is None:
            order = (
                np.arange(len(flow_view)) if flow_options.per_hop else np.flatnonzero(flow_view.index.edge)
            )
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def row(self, index: int) -> Row:
        """Return the row at that index as text.

        Raises IndexError outside.
        """
        flow_view, row = self._flow_view, int(self._order[index])
        table, place = flow_view.index.columns.place(row)
        now = flow_view.table.columns.place(row)[0]
        flow = flow_of(entry_of(now.entries[place]), flow_view.index.columns.names(table.ns))
        ref = flow_ref(table.ns, flow.entry.id)
        return Row(ref, cells_of(self._topology, flow_view, row, flow, ref in self._options.pins))

    def keys(self) -> Collection[str]:
        """Return the keys that filters can use, with column titles."""
        return flow_keys_of(self._topology, self._flow_view) | query.titles(COLUMNS).keys()

    def remarks(self, text: str, inverted: bool = False) -> Iterable[str]:
        """Yield the mistakes of a filter; only of `inverted` terms if others match."""
        return remarks(text, self.keys(), inverted)

    def index(self, ref: Ref) -> int | None:
        """Return the index of a flow, or of a hop's connection; None without one."""
        row = self._row_of(ref)
        if row is None:
            return None
        places = np.flatnonzero(self._order == row)
        if not places.size:
            connection = self._flow_view.index.connection
            places = np.flatnonzero(connection[self._order] == connection[row])
        return int(places[0]) if places.size else None

    def _row_of(self, ref: Ref) -> int | None:
        if ref.kind not in ("flow", "conntrack"):
            return None
        return self._flow_view.row_of(int(ref.key[0]), int(ref.key[1]))

    def precompute(self) -> None:
        """Work out values that depend on all flows, before lines are painted."""
        flow_view = self._flow_view
        _ = flow_view.ends, flow_view.index.client, flow_view.index.connection, flow_view.table.bits
        _ = flow_view.table.age, flow_view.table.columns, flow_view.index.columns.column("id")

    @cached_property
    def head(self) -> Sequence[Cell]:
        """What is said about the whole."""
        return head_of(self._topology, self._flow_view, self._options, self._order)

    @property
    def numbers(self) -> np.ndarray:
        """The numbers of the rows in the picture's table, in order."""
        return self._order

    # ---- another look

    def with_options(self, flow_options: FlowViewOptions) -> FlowRows:
        """Return all rows, shown with these options."""
        return (
            self if flow_options == self._options else FlowRows(self._topology, self._flow_view, flow_options)
        )

    def matching(self, text: str) -> FlowRows:
        """Return the rows that match a filter, and the pinned ones."""
        terms = query.parse(text)
        if not terms or not len(self):
            return self
        terms = query.by_name(terms, COLUMNS, flow_keys_of(self._topology, self._flow_view))
        mask = flows_mask_of(terms, self._topology, self._flow_view)
        mask[self._pinned] = True
        return self._with(self._order[mask[self._order]])

    def grouped(self) -> FlowRows | ListRows:
        """Group the flows if the options ask for it."""
        if not self._options.by:
            return self
        from tui.views.flows_groups import group_rows

        return group_rows(self._topology, self._flow_view, self._order, self._options, self.head)

    def _with(self, order: np.ndarray) -> FlowRows:
        return FlowRows(self._topology, self._flow_view, self._options, order)

    @cached_property
    def _pinned(self) -> np.ndarray:
        rows = (self._row_of(ref) for ref in self._options.pins)
        return np.array(sorted(row for row in rows if row is not None), np.intp)

    # ---- order

    def sorted_by(self, column: str, reverse: bool) -> FlowRows:
        """Sort by a column, equal rows in a stable order.

        Pinned rows come first, rows without a value last.
        """
        maker = self._sort_keys().get(column)
        if maker is None or not len(self):
            return self
        keys = [key[self._order] for key in maker()]
        ordered = self._order[_order_of(keys, self._flow_view.index.tie_breakers[self._order], reverse)]
        if self._pinned.size:
            first = np.isin(ordered, self._pinned)
            ordered = np.concatenate((ordered[first], ordered[~first]))
        return self._with(ordered)

    def _segments(self, name: str) -> Sequence[np.ndarray]:
        return (self._flow_view.ends.total(name),)

    def _sort_keys(self) -> Mapping[str, Callable[[], Sequence[np.ndarray]]]:
        """Sort keys of each column, the foremost first; NaN for rows without a value."""
        flow_view, index, table = self._flow_view, self._flow_view.index, self._flow_view.table
        columns, now = index.columns, table.columns
        return {
            "from": lambda: _ends(columns.column("orig_src"), columns.column("orig_sport")),
            "to": lambda: _ends(columns.column("reply_src"), columns.column("reply_sport")),
            "via": lambda: (_blanked(columns.translation.astype(float), columns.translation == 0),),
            "proto": lambda: (rank(PROTOCOLS)[columns.column("l4_proto")],),
            "state": lambda: (rank(STATES)[now.state],),
            "rate": lambda: (table.bits,),
            "path": lambda: (rank(PATHS)[table.path],),
            "rtt": lambda: (flow_view.ends.rtt,),
            **{name: partial(self._segments, name) for name in SEGMENTS},
            "bytes": lambda: (_blanked(table.octets.sum(axis=1).astype(float), ~table.counted),),
            "packets": lambda: (_blanked(table.packets.sum(axis=1).astype(float), ~table.counted),),
            "age": lambda: (table.age,),
            "timeout": lambda: (now.column("timeout"),),
            "client": lambda: (_blanked(rank(CLIENTS)[index.client].astype(float), index.client == 0),),
            "process": lambda: (_process_keys(flow_view),),
            "ns": lambda: (columns.by_table(rank([self._topology.label(one.ns) for one in columns.tables])),),
        }


def _order_of(keys: Sequence[np.ndarray], ties: np.ndarray, reverse: bool) -> np.ndarray:
    """Return the indices in order; NaN comes last in either direction."""
    if len(keys) == 1 and keys[0].dtype.kind == "f":
        return _order_of_floats(keys[0], ties, reverse)
    order = np.lexsort([ties, *reversed(keys)])
    return order[::-1] if reverse else order


def _order_of_floats(key: np.ndarray, ties: np.ndarray, reverse: bool) -> np.ndarray:
    """Return the order of float keys by one sort of integers.

    The bits of a positive 32-bit float rise with its value; half of the tie is enough to distinguish rows.
    """
    bits = key.astype(np.float32).view(np.uint32).astype(np.uint64)
    if reverse:
        bits = np.uint64(0xFFFF_FFFF) - bits
    bits[np.isnan(key)] = 0xFFFF_FFFF
    return np.argsort((bits << np.uint64(32)) | (ties >> np.uint64(32)))


def _ends(addresses: np.ndarray, ports: np.ndarray) -> tuple[np.ndarray, ...]:
    return addresses[:, 0], addresses[:, 1], ports


def _blanked(values: np.ndarray, blank: np.ndarray) -> np.ndarray:
    return np.where(blank, np.nan, values)


def _process_keys(flow_view: FlowView) -> np.ndarray:
    """Return the rank of the first known process, NaN if none is known."""
    pids = flow_view.ends.pids
    chosen = np.where(pids[:, 0] > 0, pids[:, 0], pids[:, 1])
    unique, place = np.unique(chosen, return_inverse=True)
    ranks = rank([flow_view.ends.commands.get(int(pid), "") for pid in unique] or [""])
    return _blanked(ranks[place].astype(float), chosen == 0)


def rows(context: ViewContext) -> FlowRows:
    """Return the rows of this view."""
    return FlowRows(context.topology, context.flow_view)


VIEW = ListView(
    "flows", "Flows", ("flow", "fl", "talkers", "traffic"), COLUMNS, rows,
    empty="No connection is tracked. The kernel tracks the connections of a namespace once a rule there uses "
    "NAT or matches on their state. Reading them needs root.",
    sort="rate",
    reverse=True,
    help=(
        ("rate:>1M", "by number: rate: in bit/s, bytes: packets: age: timeout: in seconds, rtt: in ms"),
        ("ct:NAME net:NAME", "flows from or to a container, or containers on a network"),
        ("from:NAME to:NAME", "by the end that opened it or answers: a name or an address"),
        ("client:outside", "by a container's client: outside, host, beside (same network), other network"),
        ("process:NAME", "by the process at either end"),
        ("path:fast", "(nearly) all packets forwarded by the fast path; path:part, path:kernel"),
        ("port:443 proto:udp", "by port, by protocol; also sport: dport: addr: src: dst: state: nat:"),
        ("hops:>1", "flows that several namespaces track"),
        ("retrans:>0 lost:>0", "TCP segments sent again, or taken for lost now; ooo: received out of order"),
    ),
    demand=frozenset({Demand.FLOWS}),
    groupings=GROUPINGS,
    problem_parts=(Part.CONNTRACK,),
    capabilities=TO_READ_TABLES,
    stays_on_top=True,
)  # fmt: skip

__all__ = ["COLUMNS", "VIEW", "FlowRows", "rows"]


_PINNED = ", pinned first"
_WORDS = {"beside": "same network"}
_ORDER = ("outside", "host", "beside", "other network", "itself")


def head_of(
    topology: Topology, flow_view: FlowView, flow_options: FlowViewOptions, order: np.ndarray
) -> Sequence[Cell]:
    """Return the lines above the columns.

    They show grouping, amounts and clients, and which namespaces don't count traffic.
    """
    if not len(flow_view):
        return ()
    lines = [Cell(_summary(flow_view, flow_options, order), "dim")]
    uncounted = flow_view.table.uncounted
    if uncounted:
        names = ", ".join(safe(topology.label(ns)) for ns in uncounted[:3])
        more = f" and {len(uncounted) - 3} more" if len(uncounted) > 3 else ""
        lines.append(Cell(f"traffic not counted (to count it: W, then A): {names}{more}", "warn"))
    return lines


def _summary(flow_view: FlowView, flow_options: FlowViewOptions, order: np.ndarray) -> str:
    count = f"{len(order):,} flow{'s' * (len(order) != 1)}"
    how = " per hop" if flow_options.per_hop else ", each once"
    words = [f"{count}{how}{_PINNED if flow_options.pins else ''}"]
    if flow_view.table.measured:
        words.append(formatting.bits(float(np.nansum(flow_view.table.bits[order]))))
    kinds = np.bincount(flow_view.index.client[order], minlength=len(CLIENTS)).tolist()
    counts = {name: kinds[CLIENTS.index(name)] for name in _ORDER}
    called = [f"{_WORDS.get(name, name)} {count:,}" for name, count in counts.items() if count]
    words += [f"into containers: {', '.join(called)}"] if called else []
    return " · ".join(words)
