"""The conntrack view: columns of all tables; only visible rows become text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from core.diagnose import findings_of
from core.diagnose.subjects import ConnectionSource, sources
from core.flows import (
    PROTOCOLS,
    STATES,
    ConntrackEntry,
    End,
    Flow,
    FlowColumns,
    address_text,
    entry_of,
    flow_of,
    icmp_text,
    protocol_name,
    sentence,
    status_words,
    translation_text,
)
from core.model import Conntrack, Demand, Part, Ref, conntrack_ref, container_ref, namespace_ref
from core.rates import Rates
from core.text import end_text, safe
from core.topology import Topology
from core.topology.index import names_in
from core.topology.related import mask_by_namespace
from tui.views import cells, formatting, query
from tui.views.cells import Line
from tui.views.filters import conntrack_keys_of, conntrack_mask_of
from tui.views.formatting import BOTH_WAYS
from tui.views.links import missing_detail
from tui.views.rows import TO_READ_TABLES, Cell, Column, Detail, ListView, Row, Tone, ViewContext

COLUMNS = (
    Column("proto", "proto", 5),
    Column("state", "state", 11),
    Column("inside", "inside", 16, grow=3, full=21, ends=True),
    Column("way", "", 1),
    Column("peer", "peer", 18, grow=3, full=21, ends=True),
    Column("translation", "translation", 17, grow=1),
    Column("bytes", "bytes", 8, align="right", priority=2),
    Column("timeout", "timeout", 8, align="right", priority=3),
    Column("packets", "packets", 7, align="right", priority=4),
    Column("ns", "namespace", 10, grow=1, priority=5),
)


class ConntrackRows:
    """Conntrack entries in order: `order` has row numbers of `columns`.

    `head` is about the tables.
    """

    def __init__(
        self,
        topology: Topology,
        columns: FlowColumns,
        order: np.ndarray | None = None,
        head: tuple[Cell, ...] = (),
    ) -> None:
        self._topology = topology
        self._columns = columns
        self.head = head
        self._order = np.arange(len(columns), dtype=np.uint32) if order is None else order

    def __len__(self) -> int:
        return len(self._order)

    def row(self, index: int) -> Row:
        """Return the row at that index as text.

        Raises IndexError outside.
        """
        table, place = self._columns.place(int(self._order[index]))
        flow = flow_of(entry_of(table.entries[place]), self._columns.names(table.ns))
        return Row(conntrack_ref(table.ns, flow.entry.id), _cells(flow, self._topology.label(table.ns)))

    def keys(self) -> Collection[str]:
        """Return the keys that filters can use, with column titles."""
        return conntrack_keys_of(self._topology, self._columns) | query.titles(COLUMNS).keys()

    def index(self, ref: Ref) -> int | None:
        """Return the index of that entry, None without one."""
        if ref.kind != "conntrack":
            return None
        for place in np.flatnonzero(self._ids == ref.key[1]).tolist():
            if self._columns.place(int(self._order[place]))[0].ns == ref.key[0]:
                return int(place)
        return None

    @cached_property
    def _ids(self) -> np.ndarray:
        return np.asarray(self._columns.column("id")[self._order])

    def sorted_by(self, column: str, reverse: bool) -> ConntrackRows:
        """Sort by a column, equal rows by their ends; rows without a value are last."""
        keys = self._keys(column)
        if keys is None or not len(self):
            return self
        given, ranks = self._order, self._columns.ranks
        ties = -ranks if reverse else ranks
        ordered = given[np.lexsort([key[given] for key in (ties, *keys)])]
        ordered = ordered[::-1] if reverse else ordered
        blank = self._blank(column)
        if blank is not None:
            ordered = np.concatenate((ordered[~blank[ordered]], ordered[blank[ordered]]))
        return self._ordered(ordered)

    def matching(self, text: str) -> ConntrackRows:
        """Return the rows that match a filter."""
        terms = query.parse(text)
        if not terms or not len(self):
            return self
        terms = query.by_name(terms, COLUMNS, conntrack_keys_of(self._topology, self._columns))
        mask = conntrack_mask_of(terms, self._topology, self._columns)
        return self._ordered(self._order[mask[self._order]])

    def _ordered(self, order: np.ndarray) -> ConntrackRows:
        return ConntrackRows(self._topology, self._columns, order, self.head)

    def within(self, scope: Collection[int]) -> ConntrackRows:
        """Return the rows in one of these namespaces, or with an end in one."""
        mask = mask_by_namespace(self._topology, scope)
        order = self._order[mask[self._order]]
        return ConntrackRows(self._topology, self._columns, order, health_line(self._topology, scope))

    @property
    def _labels(self) -> list[str]:
        return [self._topology.label(table.ns) for table in self._columns.tables]

    def _keys(self, column: str) -> tuple[np.ndarray, ...] | None:
        """Sort keys of a column, the foremost last; None for an unknown column."""
        columns = self._columns
        makers: Mapping[str, Callable[[], tuple[np.ndarray, ...]]] = {
            "proto": lambda: (rank(PROTOCOLS)[columns.column("l4_proto")],),
            "state": lambda: (rank(STATES)[columns.state],),
            "inside": lambda: _end_keys(*columns.inside()),
            "peer": lambda: _end_keys(*columns.peer()),
            "translation": lambda: (*_end_keys(*columns.outside()), columns.translation),
            "packets": lambda: (columns.total("packets"),),
            "bytes": lambda: (columns.total("bytes"),),
            "timeout": lambda: (columns.column("timeout"),),
            "ns": lambda: (columns.by_table(rank(self._labels)),),
        }
        maker = makers.get(column)
        return maker() if maker else None

    def _blank(self, column: str) -> np.ndarray | None:
        """Return a mask of the rows without a value in a column, None if all have one."""
        if column == "translation":
            return np.equal(self._columns.translation, 0)
        if column in ("packets", "bytes"):
            return ~self._columns.column("counted")
        return None


def rank(words: Sequence[str]) -> np.ndarray:
    """Return the position of each word in alphabetical order."""
    places = {word: place for place, word in enumerate(sorted(set(words), key=str.casefold))}
    return np.array([places[word] for word in words])


def _end_keys(addresses: np.ndarray, ports: np.ndarray) -> tuple[np.ndarray, ...]:
    return ports, addresses[:, 1], addresses[:, 0]


def _cells(flow: Flow, label: str) -> tuple[Cell, ...]:
    entry = flow.entry
    packets, octets = (
        (entry.orig_packets + entry.reply_packets, entry.orig_bytes + entry.reply_bytes)
        if entry.counted
        else (None, None)
    )
    return (
        Cell(protocol_name(entry.l4_proto)),
        state_cell(entry),
        cells.text(str(flow.inside)),
        Cell("←" if flow.inside is flow.responder else "→", "dim"),
        cells.text(str(flow.peer)),
        cells.text(translation_text(flow)),
        cells.size(octets),
        Cell(formatting.duration(entry.timeout), sort=entry.timeout),
        cells.count(packets),
        cells.text(label),
    )


def conntrack_rows(topology: Topology) -> ConntrackRows:
    """Return the entries of all namespaces, the host's first."""
    return ConntrackRows(topology, topology.flows, head=health_line(topology))


def rows(context: ViewContext) -> ConntrackRows:
    """Return the rows of this view."""
    return conntrack_rows(context.topology)


VIEW = ListView(
    "conntrack", "Conntrack", ("conn", "ct", "connections"), COLUMNS, rows,
    empty="No connection is tracked. The kernel tracks the connections of a namespace once a rule there uses "
    "NAT or matches on their state. Reading them needs root.",
    sort="inside",
    help=(
        ("ns:NAME", "a namespace's table, and connections from or to it; also ct:NAME"),
        ("← →", "opened by the peer, or by the inside"),
        ("addr:10.0.0.0/8", "by address or prefix, before or after NAT; also src: and dst:"),
        ("net:NAME", "connections from or to containers on a network"),
        ("port:443", "by port, either end; also sport: and dport:"),
        ("state:est", "by state; state:unreplied and state:assured hold for every protocol"),
        ("nat:snat", "translated connections: nat:snat, nat:dnat"),
        ("proto:udp", "by protocol"),
        ("d", "delete the connection, as conntrack -D does; this can't be undone"),
    ),
    demand=frozenset({Demand.CONNTRACK}),
    parts=frozenset({Part.CONNTRACK}),
    problem_parts=(Part.CONNTRACK,),
    capabilities=TO_READ_TABLES,
)  # fmt: skip

__all__ = ["COLUMNS", "VIEW", "ConntrackRows", "conntrack_rows", "detail", "rows"]


_STATE_TONES: dict[str, Tone] = {
    "ESTABLISHED": "ok", "ASSURED": "ok", "UNREPLIED": "warn", "SYN_SENT": "warn", "SYN_SENT2": "warn",
    "TIME_WAIT": "dim", "CLOSE": "dim", "NONE": "dim",
}  # fmt: skip


def state_cell(entry: ConntrackEntry) -> Cell:
    """Return the cell of an entry's state; one without an answer stands out."""
    return Cell(entry.state, _STATE_TONES.get(entry.state, ""))


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Return the details of an entry."""
    table = topology.snapshot.conntracks.get(int(ref.key[0]))
    places = np.flatnonzero(table.entries["id"] == ref.key[1]).tolist() if table else []
    if table is None or not places:
        return missing_detail("this connection")
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
    """Return the translation as a sentence."""
    parts = []
    if flow.dnat:
        parts.append(f"packets to {flow.dnat} go to {flow.responder.text}")
    if flow.snat:
        parts.append(f"packets from {flow.origin.text} get the source {flow.snat}")
    return "; ".join(parts) or "none: both ends see each other's address"


def _state(entry: ConntrackEntry) -> Iterator[Line]:
    yield "state", state_cell(entry), None
    yield "status", cells.text(", ".join(status_words(entry.status))), None
    yield "expires in", Cell(f"{formatting.duration(entry.timeout)} without a packet"), None


def _direction(table: Conntrack, entry: ConntrackEntry, way: str) -> Iterator[Line]:
    """Yield the lines for one direction: the kernel's tuple and its counters."""
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
    yield "traffic", Cell(f"{formatting.size(octets)} in {formatting.several(packets, 'packet')}"), None


def _why_uncounted(table: Conntrack) -> str:
    if table.accounting:
        return "the connection is older than nf_conntrack_acct=1"
    return "nf_conntrack_acct is off"


def _marks(topology: Topology, table: Conntrack, entry: ConntrackEntry) -> Iterator[Line]:
    if entry.start:
        began = entry.start / 1e9
        yield "started", Cell(formatting.age(began, table.taken_at)), None
    yield "mark", Cell(f"{entry.mark:#x}" if entry.mark else "0", "" if entry.mark else "dim"), None
    yield "zone", cells.number(entry.zone), None
    yield "id", Cell(str(entry.id)), None
    yield "namespace", cells.text(topology.label(table.ns)), namespace_ref(table.ns)


# Error counters with their texts; packets with an invalid state are ordinary.
_TROUBLES = (("insert_failed", "failed inserts"), ("drop", "drops"), ("early_drop", "early drops"))
_MOST_SOURCES = 3


def health_line(topology: Topology, scope: Collection[int] | None = None) -> tuple[Cell, ...]:
    """Return a line about the fullest table and all errors; () if none was read.

    `scope` are the namespaces whose tables are meant, None for all.
    """
    every = topology.snapshot.conntracks.values()
    tables = [table for table in every if (scope is None or table.ns in scope) and table.is_read]
    if not tables:
        return ()
    fullest = max(tables, key=lambda table: (len(table.entries), table.ns == topology.host))
    level, troubles = _level(topology, fullest, len(tables) > 1), [*_troubles(tables)]
    text = _sources(sources(topology, fullest.ns, _MOST_SOURCES), len(fullest.entries))
    most, tone = [f"top sources: {text}"] if text else [], _tone(topology, tables)
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
    """Yield the errors since the namespaces were created, and how many are recent."""
    for counter, title in _TROUBLES:
        total = sum(getattr(table.stats, counter) for table in tables if table.stats)
        grown = sum(table.grown(counter) for table in tables)
        seconds = max(table.stats_seconds for table in tables)
        late = f" (+{grown:,} in {formatting.duration(seconds)})" if grown else ""
        if total:
            yield f"{total:,} {title}{late}"


def _sources(found: Collection[ConnectionSource], entries: int) -> str:
    return ", ".join(f"{one.name or one.address} {_percent(one.entries, entries)}" for one in found)


def _tone(topology: Topology, tables: Collection[Conntrack]) -> Tone:
    """Return the severity of the worst finding about one of them."""
    wrong = [
        finding.severity
        for table in tables
        for finding in findings_of(topology, namespace_ref(table.ns))
        if finding.kind == "conntrack"
    ]
    return "bad" if "bad" in wrong else "warn" if wrong else "dim"
