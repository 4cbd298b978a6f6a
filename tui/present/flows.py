"""The flows view: who talks to whom, how fast, on which path; only the rows in sight become text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np

from core.flows import PROTOCOLS, STATES, entry_of, flow_of
from core.flows.merge import PATHS
from core.model import Ref, talk_ref
from core.topology import Topology
from core.topology.flow_index import CLIENTS, FlowPicture
from tui.present import query
from tui.present.flow_cells import COLUMNS, cells_of
from tui.present.flows_filter import keys_of, mask_of, remarks
from tui.present.flows_head import head_of
from tui.present.lens import PLAIN, Lens
from tui.present.list_rows import ListRows
from tui.present.rows import Cell, ListView, Row
from tui.present.scene import Scene


class FlowRows:
    """Flows in their present order: `order` holds row numbers of the picture's table."""

    columns = COLUMNS

    def __init__(
        self, topology: Topology, picture: FlowPicture, lens: Lens = PLAIN, order: np.ndarray | None = None
    ) -> None:
        self._topology, self._picture, self._lens = topology, picture, lens
        if order is None:
            order = np.arange(len(picture)) if lens.per_hop else np.flatnonzero(picture.index.edge)
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def row(self, index: int) -> Row:
        """The row at that place, made into text now; raises IndexError outside."""
        picture, row = self._picture, int(self._order[index])
        table, place = picture.index.columns.place(row)
        now = picture.table.columns.place(row)[0]
        flow = flow_of(entry_of(now.entries[place]), picture.index.columns.names(table.ns))
        ref = talk_ref(table.ns, flow.entry.id)
        return Row(ref, cells_of(self._topology, picture, row, flow, ref in self._lens.pins))

    def keys(self) -> Collection[str]:
        """What a filter may ask for, by name or by a column's title."""
        return keys_of(self._topology, self._picture) | query.titles(COLUMNS).keys()

    def remarks(self, text: str, inverted: bool = False) -> Iterable[str]:
        """What a filter line cannot mean; only of its `inverted` terms, where others let something
        through."""
        return remarks(text, self.keys(), inverted)

    def index(self, ref: Ref) -> int | None:
        """Where that flow stands; of a hop, where its connection does. None where it does not."""
        row = self._row_of(ref)
        if row is None:
            return None
        places = np.flatnonzero(self._order == row)
        if not places.size:
            connection = self._picture.index.connection
            places = np.flatnonzero(connection[self._order] == connection[row])
        return int(places[0]) if places.size else None

    def _row_of(self, ref: Ref) -> int | None:
        if ref.kind not in ("talk", "flow"):
            return None
        return self._picture.row_of(int(ref.key[0]), int(ref.key[1]))

    def make_ready(self) -> None:
        """Work out what lines need of all flows together, so that painting them need not."""
        picture = self._picture
        _ = picture.ends, picture.index.client, picture.index.connection, picture.table.bits
        _ = picture.table.age, picture.table.columns, picture.index.columns.column("id")

    @cached_property
    def head(self) -> Sequence[Cell]:
        """What is said about the whole."""
        return head_of(self._topology, self._picture, self._lens, self._order)

    @property
    def numbers(self) -> np.ndarray:
        """The numbers of the rows in the picture's table, in order."""
        return self._order

    # ---- another look

    def seen_through(self, lens: Lens) -> FlowRows:
        """All rows, as the lens has them."""
        return self if lens == self._lens else FlowRows(self._topology, self._picture, lens)

    def matching(self, text: str) -> FlowRows:
        """Those rows that a filter lets through, and those that are pinned."""
        terms = query.parse(text)
        if not terms or not len(self):
            return self
        terms = query.by_name(terms, COLUMNS, keys_of(self._topology, self._picture))
        mask = mask_of(terms, self._topology, self._picture)
        mask[self._pinned] = True
        return self._with(self._order[mask[self._order]])

    def grouped(self) -> FlowRows | ListRows:
        """Added up, where the lens asks for that."""
        if not self._lens.by:
            return self
        from tui.present.flows_groups import group_rows

        return group_rows(self._topology, self._picture, self._order, self._lens, self.head)

    def _with(self, order: np.ndarray) -> FlowRows:
        return FlowRows(self._topology, self._picture, self._lens, order)

    @cached_property
    def _pinned(self) -> np.ndarray:
        rows = (self._row_of(ref) for ref in self._lens.pins)
        return np.array(sorted(row for row in rows if row is not None), np.intp)

    # ---- order

    def sorted_by(self, column: str, reverse: bool) -> FlowRows:
        """The same rows ordered by a column, those alike in an order that lasts; pinned ones come first,
        those that have nothing there last."""
        maker = self._makers().get(column)
        if maker is None or not len(self):
            return self
        keys = [key[self._order] for key in maker()]
        ordered = self._order[_order_of(keys, self._picture.index.ties[self._order], reverse)]
        if self._pinned.size:
            first = np.isin(ordered, self._pinned)
            ordered = np.concatenate((ordered[first], ordered[~first]))
        return self._with(ordered)

    def _makers(self) -> Mapping[str, Callable[[], Sequence[np.ndarray]]]:
        """What each column is sorted by, the foremost first; NaN where a row has nothing there."""
        picture, index, table = self._picture, self._picture.index, self._picture.table
        columns, now = index.columns, table.columns
        return {
            "from": lambda: _ends(columns.column("orig_src"), columns.column("orig_sport")),
            "to": lambda: _ends(columns.column("reply_src"), columns.column("reply_sport")),
            "via": lambda: (_blanked(columns.translation.astype(float), columns.translation == 0),),
            "proto": lambda: (_rank(PROTOCOLS)[columns.column("l4_proto")],),
            "state": lambda: (_rank(STATES)[now.state],),
            "rate": lambda: (table.bits,),
            "path": lambda: (_rank(PATHS)[table.path],),
            "rtt": lambda: (picture.ends.rtt,),
            "bytes": lambda: (_blanked(table.octets.sum(axis=1).astype(float), ~table.counted),),
            "packets": lambda: (_blanked(table.packets.sum(axis=1).astype(float), ~table.counted),),
            "age": lambda: (table.age,),
            "timeout": lambda: (now.column("timeout"),),
            "client": lambda: (_blanked(_rank(CLIENTS)[index.client].astype(float), index.client == 0),),
            "process": lambda: (_process_keys(picture),),
            "ns": lambda: (
                columns.by_table(_rank([self._topology.label(one.ns) for one in columns.tables])),
            ),
        }


def _order_of(keys: Sequence[np.ndarray], ties: np.ndarray, reverse: bool) -> np.ndarray:
    """The places in order; whatever is NaN comes last in either direction."""
    if len(keys) == 1 and keys[0].dtype.kind == "f":
        return _order_of_floats(keys[0], ties, reverse)
    order = np.lexsort([ties, *reversed(keys)])
    return order[::-1] if reverse else order


def _order_of_floats(key: np.ndarray, ties: np.ndarray, reverse: bool) -> np.ndarray:
    """One sort of whole numbers: the bits of a positive float of 32 bits rise with its value; half of the
    tie is enough to tell rows apart."""
    bits = key.astype(np.float32).view(np.uint32).astype(np.uint64)
    if reverse:
        bits = np.uint64(0xFFFF_FFFF) - bits
    bits[np.isnan(key)] = 0xFFFF_FFFF
    return np.argsort((bits << np.uint64(32)) | (ties >> np.uint64(32)))


def _rank(words: Sequence[str]) -> np.ndarray:
    """The place of each word among them in alphabetical order."""
    places = {word: place for place, word in enumerate(sorted(set(words), key=str.casefold))}
    return np.array([places[word] for word in words])


def _ends(addresses: np.ndarray, ports: np.ndarray) -> tuple[np.ndarray, ...]:
    return addresses[:, 0], addresses[:, 1], ports


def _blanked(values: np.ndarray, blank: np.ndarray) -> np.ndarray:
    return np.where(blank, np.nan, values)


def _process_keys(picture: FlowPicture) -> np.ndarray:
    """The rank of the process that is known first, NaN where none is."""
    pids = picture.ends.pids
    chosen = np.where(pids[:, 0] > 0, pids[:, 0], pids[:, 1])
    unique, place = np.unique(chosen, return_inverse=True)
    ranks = _rank([picture.ends.commands.get(int(pid), "") for pid in unique] or [""])
    return _blanked(ranks[place].astype(float), chosen == 0)


def rows(scene: Scene) -> FlowRows:
    """The rows of this view."""
    return FlowRows(scene.topology, scene.flow_picture)


VIEW = ListView(
    "flows", "Flows", ("fl", "talkers", "traffic"), COLUMNS, rows,
    empty="No connection is tracked. The kernel tracks connections in a namespace as soon as a rule there "
    "translates or asks for their state; reading them needs root.",
    sort="rate",
    reverse=True,
    help=(
        ("rate:>1M", "by size: rate: in bits a second, bytes: packets: age: timeout: in seconds, rtt: in ms"),
        ("ct:NAME net:NAME", "what begins or ends at a container, or on a network"),
        ("from:NAME to:NAME", "by who opened it, by who answers: a name or an address"),
        ("client:outside", "who calls a container: outside, host, beside, other network, itself"),
        ("process:NAME", "by the process at either end"),
        ("path:fast", "what the fast path carries (nearly) all of; path:part, path:kernel"),
        ("port:443 proto:udp", "by port, by protocol; also sport: dport: addr: src: dst: state: nat:"),
        ("hops:>1", "what passes several namespaces that track it"),
    ),
)  # fmt: skip

__all__ = ["COLUMNS", "VIEW", "FlowRows", "rows"]
