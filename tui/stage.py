"""Works out what the screen shows from the newest update; used by the worker's thread alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from core.diagnose import Finding, findings
from core.flows.merge import FlowTable
from core.flows.meter import FlowMeter, Reading
from core.model import PARTS, Change, Conntrack, FastFlows, FastPath, Problem, Ref, Snapshot, flow_ref
from core.rates import Rates
from core.topology import Topology
from core.topology.flow_index import FlowPicture
from core.topology.related import follow
from tui.navigation import ViewState, Way
from tui.present import query, views
from tui.present.fastpath import turned
from tui.present.findings import empty_text
from tui.present.flows import FlowRows
from tui.present.lists import ListRows
from tui.present.rows import Column, Detail, ListView, Rows, head_of
from tui.present.scene import PLAIN, ChangeLog, Lens, Scene
from tui.source import Update

# Tables of connections by namespace, and what the fast path carried then.
Tracked = tuple[Mapping[int, Conntrack], FastFlows | None]


def retold(update: Update) -> bool:
    """Whether its changes are all that ever happened until then, as a recording tells them."""
    return bool(getattr(update, "retold", False))


def fast_of(update: Update) -> FastFlows | None:
    """What the fast path counted, where the source tells that by itself, as a recording does."""
    return getattr(update, "fast", None)


def before(update: Update) -> Tracked | None:
    """The connections as they were read before those of the update, where the source measures no flows."""
    return getattr(update, "before", None)


def read_at(tables: Mapping[int, Conntrack]) -> float:
    """When the last of the tables was read, Unix time; 0 where there is none."""
    return max((one.taken_at for one in tables.values()), default=0.0)


class Inbox:
    """Holds the newest update and all changes since the last `take`; `ring` is called, from any thread, when
    something comes into an empty inbox."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._lock = threading.Lock()
        self._update: Update | None = None
        self._changes: list[Change] = []

    def put(self, update: Update) -> None:
        """Take in an update, from any thread."""
        with self._lock:
            first = self._update is None
            self._update = update
            if retold(update):
                self._changes.clear()
            self._changes += update.changes
        if first:
            self._ring()

    def take(self) -> tuple[Update, tuple[Change, ...]] | None:
        """The newest update and the changes of all since the last time, None where none came."""
        with self._lock:
            update, self._update = self._update, None
            changes, self._changes = tuple(self._changes), []
        return (update, changes) if update else None


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What a list view shows: its rows, how many there are without the filter, whether parts of the snapshot
    that it needs were never read yet, what the list says when it is empty, and what the filter cannot
    mean; its columns."""

    view: str
    rows: Rows
    total: int
    pending: bool
    empty: str
    remarks: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()


# The parts of a snapshot without which a view has nothing to show; the links for views not named here.
_PARTS: Mapping[str, frozenset[str]] = {
    "containers": frozenset({"containers"}),
    "networks": frozenset({"links", "containers"}),
    "nat": frozenset({"firewall"}),
    "conntrack": frozenset({"conntrack"}),
    "events": frozenset(),
    "fastpath": frozenset(),
}
_LINKS = frozenset({"namespaces", "links"})


class Stage:
    """Keeps the scene, and the rows of the view in sight before filter and order."""

    def __init__(self, offers_demo: bool = False) -> None:
        self.scene = Scene(Topology(Snapshot(pending=PARTS)), offers_demo=offers_demo)
        self.problems: tuple[Problem, ...] = ()
        self.findings: tuple[Finding, ...] = ()
        self._base: tuple[str, Scene, Rows] | None = None
        self._look: tuple[str, Lens] = ("", PLAIN)
        self._flows: FlowTable | None = None
        self._fast: FastFlows | None = None
        self._fast_before: FastPath | None = None
        self._before: Tracked | None = None
        self._meter = FlowMeter()
        self._metered: Mapping[int, Conntrack] | None = None

    def take(
        self,
        snapshot: Snapshot,
        rates: Rates | None,
        changes: tuple[Change, ...],
        retold: bool = False,
        flows: FlowTable | None = None,
        fast: FastFlows | None = None,
        before: Tracked | None = None,
    ) -> None:
        """Take in an update; `retold` where its changes stand for all that were told before."""
        self._flows, self._fast, self._before = flows, fast, before
        old = self.scene
        topology = old.topology
        if snapshot is not old.snapshot:
            topology, self.problems = Topology(snapshot), snapshot.problems
        log = (ChangeLog() if retold else old.log).extended(changes)
        self.scene = replace(old, topology=topology, rates=rates, log=log)

    def stand(self, fast: FastPath) -> None:
        """Take in how the fast path stands; what became of it since the last time is an event."""
        before, self._fast_before = self._fast_before, fast
        if fast != self.scene.fast:
            log = self.scene.log
            if before is not None:
                log = log.extended(turned(before, fast, time.time()))
            self.scene = replace(self.scene, fast=fast, log=log)

    def shown(self, view: ListView, state: ViewState) -> Shown:
        """The rows of a view in its present state."""
        if view.name == "flows":
            self._take_flows()
        base = self._rows_of(view)
        rows: Rows
        if isinstance(base, FlowRows):
            self._look = state.filter, state.lens
            base = base.seen_through(state.lens)
            rows = base.matching(state.filter).grouped()
            base.make_ready()
        else:
            rows = base.matching(state.filter)
        if state.sort:
            rows = rows.sorted_by(state.sort, state.reverse)
        folded = getattr(rows, "folded", None)
        if folded is not None and state.closed:
            rows = folded(state.closed)
        pending = bool(self.scene.snapshot.pending & _PARTS.get(view.name, _LINKS))
        remarks = _remarks(state.filter, base, inverted=len(rows) > 0)
        head_of(rows)  # worked out here, where nobody waits for it
        if isinstance(rows, ListRows):
            rows.needs()
        self.findings = () if self.scene.snapshot.pending else findings(self.scene.topology)
        empty = empty_text(view, self.scene.snapshot)
        columns = getattr(rows, "columns", view.columns)
        return Shown(view.name, rows, len(base), pending, empty, remarks, columns)

    def _take_flows(self) -> None:
        """Put the newest flows into the scene: those that were measured, or what the tables themselves
        tell."""
        table = self._flows or self._measured()
        picture = FlowPicture.of(self.scene.topology, table, self.scene.flows)
        if picture is not self.scene.flows:
            self.scene = replace(self.scene, flows=picture)

    @property
    def uncounted(self) -> tuple[int, ...]:
        """The namespaces that have connections whose traffic the kernel does not count."""
        picture = self.scene.flows
        return picture.table.uncounted if picture else ()

    def _measured(self) -> FlowTable:
        """The flows of a source that measures none, such as a recording: by the times of its tables."""
        tables = self.scene.snapshot.conntracks
        if tables is not self._metered:
            self._metered = tables
            if self._before and not read_at(self._before[0]) <= self._meter.table.taken_at <= read_at(tables):
                self._meter = FlowMeter()
                self._feed(*self._before)
            elif read_at(tables) < self._meter.table.taken_at:
                self._meter = FlowMeter()
            self._feed(tables, self._fast)
        return self._meter.table

    def _feed(self, tables: Mapping[int, Conntrack], fast: FastFlows | None) -> None:
        at = read_at(tables)
        readings = [Reading(one, one.taken_at, one.taken_at) for one in tables.values()]
        self._meter.feed(readings, fast, now=at, at=at)

    def _rows_of(self, view: ListView) -> Rows:
        base = self._base
        if base is None or base[0] != view.name or base[1] is not self.scene:
            base = self._base = (view.name, self.scene, view.rows(self.scene))
        return base[2]

    def detail(self, ref: Ref) -> Detail:
        """Everything about one thing."""
        text, lens = self._look
        return views.detail(replace(self.scene, flows_filter=text, lens=lens), ref)

    def way(self, trail: tuple[Ref, ...], target: Ref | None = None) -> Way | None:
        """Where Enter leads from the end of the trail, to `target` or else the foremost related thing; None
        where it leads nowhere."""
        topology = self.scene.topology
        if trail and trail[-1].kind == "talkers" and target is None:
            text, _ = self._look
            return Way("flows", None, " ".join(filter(None, (text, str(trail[-1].key[1])))))
        if trail and trail[-1].kind == "talk":
            trail = (*trail[:-1], flow_ref(int(trail[-1].key[0]), int(trail[-1].key[1])))
        ref = target or self._changed(trail) or follow(topology, trail)
        if ref is not None and ref.kind == "flows":
            return Way("conntrack", None, query.term(str(ref.key[0]), str(ref.key[1])))
        home = views.home_of(topology, ref) if ref else None
        return Way(home.name, ref) if home else None

    def _changed(self, trail: tuple[Ref, ...]) -> Ref | None:
        """What the event at the end of the trail happened to."""
        change = self.scene.log.change(trail[-1]) if trail and trail[-1].kind == "event" else None
        return change.ref if change else None


def _remarks(text: str, rows: Rows, inverted: bool) -> tuple[str, ...]:
    """What a filter line cannot mean; only of its `inverted` terms, where rows are let through."""
    if not text:
        return ()
    if isinstance(rows, FlowRows):
        return tuple(rows.remarks(text, inverted))
    return tuple(query.remarks(text, rows.keys(), inverted))
