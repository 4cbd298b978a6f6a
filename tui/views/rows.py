"""Define the contract of views: a context in, and rows, columns and details out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from core.flows.merge import table_of
from core.model import Change, Demand, Drops, FastPath, LinkKey, Part, Ref, Snapshot
from core.rates import LinkRate, Rates
from core.topology import Topology
from core.topology.flow_index import FlowView
from tui.baseline import Baseline

# Tones of cells: colours show state, and are no decoration.
Tone = Literal["", "ok", "warn", "bad", "dim", "accent"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    `name` is its key in filters and sorting; `width` the cells that it needs, `full` those that it gets
    before any column of a priority; `grow` its share of the rest; the higher `priority`, the earlier a narrow
    terminal drops it (0: never). With `counted` the list mentions that it was dropped; with `ends` its texts
    are ends of connections, whose port stays when they are cut.
    """

    name: str
    title: str
    width: int
    grow: int = 0
    align: Literal["left", "right"] = "left"
    priority: int = 0
    counted: bool = False
    full: int = 0
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell's plain text (no markup), its tone, and its sort value (None: the text)."""

    text: str
    tone: Tone = ""
    sort: float | int | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """History of a figure: `values` by slot, oldest first, NaN where unknown.

    `newest` is the number of the newest slot; `title` the length of time.
    """

    title: str
    newest: int
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Trend(Cell):
    """A figure with its history in each of core.rates.WINDOWS (none if unknown).

    `unit` formats its values.
    """

    curves: tuple[Curve, ...] = ()
    unit: Callable[[float], str] = str


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a list.

    `ref` is its thing, `cells` in the columns' order, `terms` further filter terms (`ns`, `ct`, `port`,
    `proto`, `state`, ...), `depth` how deep it is folded below another, `aliases` further things that it
    stands for (the other end of a veth).
    """

    ref: Ref
    cells: tuple[Cell, ...]
    terms: Mapping[str, str] = field(default_factory=dict)
    depth: int = 0
    aliases: tuple[Ref, ...] = ()


class Rows(Protocol):
    """Rows in order, however they are stored; only visible rows are made."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Return the row at that index."""
        ...

    def keys(self) -> Collection[str]:
        """Return the keys that filters can use."""
        ...

    def index(self, ref: Ref) -> int | None:
        """Return the index of the row with that ref, None without one."""
        ...

    def sorted_by(self, column: str, reverse: bool) -> Rows:
        """Return the same rows in another order."""
        ...

    def matching(self, query: str) -> Rows:
        """Return the rows that match a filter (`tui.views.query`)."""
        ...


def head_of(rows: Rows) -> Sequence[Cell]:
    """Return the lines above a list's columns, the `head` of its rows."""
    head: Sequence[Cell] = getattr(rows, "head", ())
    return head


@dataclass(frozen=True, slots=True)
class Section:
    """One titled part of a detail pane: (label, cell, where Enter leads to) lines."""

    title: str
    lines: Sequence[tuple[str, Cell, Ref | None]] = ()


@dataclass(frozen=True, slots=True)
class Detail:
    """Details of a thing.

    `related` are the things that Enter leads to, the foremost first; `copy` is the text to copy, "" for its
    name in the list.
    """

    title: str
    sections: Sequence[Section] = ()
    related: Sequence[tuple[str, Ref]] = ()
    copy: str = ""


_LINKS = frozenset({Part.NAMESPACES, Part.LINKS})
# Capabilities (capabilities(7)) without which no conntrack table or firewall rule can be read.
TO_READ_TABLES = ("CAP_NET_ADMIN", "CAP_SYS_ADMIN")


@dataclass(frozen=True, slots=True)
class ListView:
    """A list view: names, columns, rows, texts, and what it needs to be read.

    `name` is what `:name` jumps to, `aliases` its short forms; `empty` explains an empty list to a newcomer;
    `help` are (key or term, meaning) lines that belong to this view only; `empty_file` takes the place of
    `empty` where a file is looked at.

    `demand` is what a watcher should read often while the view is open, `parts` those of the snapshot without
    which it has no rows yet. Problems of `problem_parts` (`Problem.part`) leave it empty, those of
    `maker_parts` only without some of its rows; without `capabilities` it has none. With `stays_on_top` a
    cursor on the first line stays on the first line: the newest, the biggest. `is_recorded` is False for a
    view of something that recordings don't contain. `groupings` are those of its rows, in the order in which
    a key goes through them.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: Callable[..., Rows]
    empty: str
    sort: str = ""
    reverse: bool = False
    help: tuple[tuple[str, str], ...] = ()
    empty_file: str = ""
    demand: frozenset[Demand] = frozenset()
    parts: frozenset[Part] = _LINKS
    problem_parts: tuple[str, ...] = (Part.NAMESPACES, Part.LINKS)
    maker_parts: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    stays_on_top: bool = False
    is_recorded: bool = True
    groupings: tuple[str, ...] = ()


# Groupings of flows, in the order in which a key goes through them.
GROUPINGS = ("", "container", "network", "peer", "port", "process", "client", "matrix")


@dataclass(frozen=True, slots=True)
class FlowViewOptions:
    """Describe how flows are shown.

    With `per_hop` each namespace's entry is a row, else each connection; `by` is one of GROUPINGS; `pins`
    stay on top, whatever filter and order.
    """

    per_hop: bool = False
    by: str = ""
    pins: frozenset[Ref] = frozenset()

    @property
    def title(self) -> str:
        """The grouping as text."""
        return {"": "not grouped", "matrix": "traffic matrix"}.get(self.by, f"by {self.by}")

    def grouped_next(self, groupings: Sequence[str] = GROUPINGS) -> FlowViewOptions:
        """Return the options with the next grouping."""
        return replace(self, by=groupings[(groupings.index(self.by) + 1) % len(groupings)])

    def pinned(self, ref: Ref) -> FlowViewOptions:
        """Pin a flow, or unpin it."""
        return replace(self, pins=self.pins ^ {ref})


DEFAULT_OPTIONS = FlowViewOptions()


LOG_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class ChangeLog:
    """The last LOG_LENGTH changes, oldest first.

    `dropped` counts those before, so that a change keeps its number while it is in the log.
    """

    changes: tuple[Change, ...] = ()
    dropped: int = 0

    def extended(self, changes: Iterable[Change]) -> ChangeLog:
        """Return the log with more changes at its end."""
        whole = (*self.changes, *changes)
        surplus = max(0, len(whole) - LOG_LENGTH)
        return ChangeLog(whole[surplus:], self.dropped + surplus)

    def numbered(self) -> Iterator[tuple[Ref, Change]]:
        """Yield each change with its reference, oldest first."""
        for place, change in enumerate(self.changes):
            yield Ref("event", (self.dropped + place,)), change

    def change(self, ref: Ref) -> Change | None:
        """Return the change of that ref, None if the log no longer has it."""
        place = int(ref.key[0]) - self.dropped
        return self.changes[place] if 0 <= place < len(self.changes) else None


@dataclass(frozen=True, slots=True, eq=False)
class ViewContext:
    """Input of the views at one moment.

    `rates` is None where nothing counts (a dump file). `flow_options` and `flows_filter` determine what
    grouped flows add up to; `offers_demo` is set where a key opens the demo if there is nothing else to see.
    `muted` are the ids of muted findings; `since` is when each finding appeared, 0 for those that were there
    at the start.
    `drops` is None while dropped packets aren't counted; `baseline` is the other side of `:diff`.
    """

    topology: Topology
    rates: Rates | None = None
    log: ChangeLog = field(default_factory=ChangeLog)
    flows: FlowView | None = None
    fast: FastPath = field(default_factory=FastPath)
    flows_filter: str = ""
    flow_options: FlowViewOptions = DEFAULT_OPTIONS
    offers_demo: bool = False
    muted: frozenset[str] = frozenset()
    since: Mapping[str, float] = field(default_factory=dict)
    drops: Drops | None = None
    baseline: Baseline | None = None

    @property
    def flow_view(self) -> FlowView:
        """The flows as measured; where nothing measures, as in the tables."""
        if self.flows is not None:
            return self.flows
        snapshot = self.snapshot
        return FlowView.of(self.topology, table_of(snapshot.conntracks, at=snapshot.taken_at))

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot behind the topology."""
        return self.topology.snapshot

    def rate(self, key: LinkKey) -> LinkRate | None:
        """Return the rates of a link, None if unknown."""
        return self.rates.of(key) if self.rates else None

    def traffic_of(self, key: LinkKey) -> tuple[float, tuple[float, ...]] | None:
        """Return a link's traffic in bits per second and its history, None if unknown.

        Each frame of a bridge counts once, where it enters: received by a port, or sent by the bridge's own
        link. A bridge's history is both directions of all ports, which has the same shape.
        """
        own, ports = self.rate(key), self.topology.ports_of(key)
        if not ports:
            return (own.rx_bps + own.tx_bps, own.history) if own else None
        rates = [rate for port in ports if (rate := self.rate(port.key))]
        if own is None and not rates:
            return None
        length = max((len(rate.history) for rate in rates), default=0)
        padded = ((0.0,) * (length - len(rate.history)) + rate.history for rate in rates)
        history = tuple(map(sum, zip(*padded, strict=True)))
        return sum(rate.rx_bps for rate in rates) + (own.tx_bps if own else 0.0), history
