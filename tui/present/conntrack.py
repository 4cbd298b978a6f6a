"""The conntrack view: columns of all namespaces' tables; only the rows in sight become text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property

import numpy as np

from core.flows import (
    PROTOCOLS,
    STATES,
    Flow,
    FlowColumns,
    address_text,
    entry_of,
    flow_of,
    protocol_name,
)
from core.model import Ref, flow_ref
from core.topology import Topology
from core.topology.related import of_namespaces
from tui.present import cells, conntrack_health, query, units
from tui.present.conntrack_detail import detail, state_cell
from tui.present.conntrack_filter import keys_of, mask_of
from tui.present.rows import Cell, Column, ListView, Row
from tui.present.scene import Scene

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
    """Entries in their present order: `order` holds row numbers of `columns`; `head` is about the tables."""

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
        """The row at that place, made into text now; raises IndexError outside."""
        table, place = self._columns.place(int(self._order[index]))
        flow = flow_of(entry_of(table.entries[place]), self._columns.names(table.ns))
        return Row(flow_ref(table.ns, flow.entry.id), _cells(flow, self._topology.label(table.ns)))

    def keys(self) -> Collection[str]:
        """What a filter may ask for, by name or by a column's title."""
        return keys_of(self._topology, self._columns) | query.titles(COLUMNS).keys()

    def index(self, ref: Ref) -> int | None:
        """Where that entry stands, None where it does not."""
        if ref.kind != "flow":
            return None
        for place in np.flatnonzero(self._ids == ref.key[1]).tolist():
            if self._columns.place(int(self._order[place]))[0].ns == ref.key[0]:
                return int(place)
        return None

    @cached_property
    def _ids(self) -> np.ndarray:
        return np.asarray(self._columns.column("id")[self._order])

    def sorted_by(self, column: str, reverse: bool) -> ConntrackRows:
        """The same rows ordered by a column, rows alike by their ends; those that have nothing there come
        last."""
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
        """Those rows that a filter lets through."""
        terms = query.parse(text)
        if not terms or not len(self):
            return self
        terms = query.by_name(terms, COLUMNS, keys_of(self._topology, self._columns))
        mask = mask_of(terms, self._topology, self._columns)
        return self._ordered(self._order[mask[self._order]])

    def _ordered(self, order: np.ndarray) -> ConntrackRows:
        return ConntrackRows(self._topology, self._columns, order, self.head)

    def within(self, scope: Collection[int]) -> ConntrackRows:
        """Those rows that lie in one of these namespaces, or whose ends do."""
        mask = of_namespaces(self._topology, scope)
        order = self._order[mask[self._order]]
        return ConntrackRows(
            self._topology, self._columns, order, conntrack_health.head(self._topology, scope)
        )

    @property
    def _labels(self) -> list[str]:
        return [self._topology.label(table.ns) for table in self._columns.tables]

    def _keys(self, column: str) -> tuple[np.ndarray, ...] | None:
        """What a column is sorted by, the foremost last; None where there is no such column."""
        columns = self._columns
        makers: Mapping[str, Callable[[], tuple[np.ndarray, ...]]] = {
            "proto": lambda: (_rank(PROTOCOLS)[columns.column("l4_proto")],),
            "state": lambda: (_rank(STATES)[columns.state],),
            "inside": lambda: _end_keys(*columns.inside()),
            "peer": lambda: _end_keys(*columns.peer()),
            "translation": lambda: (*_end_keys(*columns.outside()), columns.translation),
            "packets": lambda: (columns.total("packets"),),
            "bytes": lambda: (columns.total("bytes"),),
            "timeout": lambda: (columns.column("timeout"),),
            "ns": lambda: (columns.by_table(_rank(self._labels)),),
        }
        maker = makers.get(column)
        return maker() if maker else None

    def _blank(self, column: str) -> np.ndarray | None:
        """Where a row has nothing in a column, None where every row has something."""
        if column == "translation":
            return np.equal(self._columns.translation, 0)
        if column in ("packets", "bytes"):
            return ~self._columns.column("counted")
        return None


def _rank(words: Sequence[str]) -> np.ndarray:
    """The place of each word among them in alphabetical order."""
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
        cells.text(_short(flow)),
        cells.size(octets),
        Cell(units.duration(entry.timeout), sort=entry.timeout),
        cells.count(packets),
        cells.text(label),
    )


def _short(flow: Flow) -> str:
    """The translation in short: of a destination its port where it has one, of a source its address."""
    entry = flow.entry
    words = []
    if flow.dnat:
        words.append(f"DNAT :{entry.orig_dport}" if entry.has_ports else f"DNAT {flow.dnat}")
    if flow.snat:
        words.append(f"SNAT {address_text(entry.reply_dst)}")
    return " ".join(words)


def conntrack_rows(topology: Topology) -> ConntrackRows:
    """The entries of all namespaces, the host's first."""
    return ConntrackRows(topology, topology.flows, head=conntrack_health.head(topology))


def rows(scene: Scene) -> ConntrackRows:
    """The rows of this view."""
    return conntrack_rows(scene.topology)


VIEW = ListView(
    "conntrack", "Conntrack", ("conn", "ct", "connections"), COLUMNS, rows,
    empty="No connection is tracked. The kernel tracks connections in a namespace as soon as a rule there "
    "translates or asks for their state; reading them needs root.",
    sort="inside",
    help=(
        ("ns:NAME", "a namespace's own table, and what begins or ends at it; also ct:NAME"),
        ("← →", "who called: the peer, or the inside"),
        ("addr:10.0.0.0/8", "by address or prefix, before or after translation; also src: and dst:"),
        ("net:NAME", "what begins or ends at a container's address on a network"),
        ("port:443", "by port, either end; also sport: and dport:"),
        ("state:est", "by state; state:unreplied and state:assured hold for every protocol"),
        ("nat:snat", "what is translated: nat:snat, nat:dnat"),
        ("proto:udp", "by protocol"),
        ("d", "have the kernel forget the connection; there is no undo"),
    ),
)  # fmt: skip

__all__ = ["COLUMNS", "VIEW", "ConntrackRows", "conntrack_rows", "detail", "rows"]
