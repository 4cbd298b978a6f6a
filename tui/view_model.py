"""Keep the navigation history; work out rows and details of the current view."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from core.diagnose import Diagnosis, Finding, adopt, examine
from core.flows.merge import FlowTable
from core.flows.meter import FlowMeter, Reading
from core.model import (
    WATCHED_PARTS,
    Change,
    Conntrack,
    FastFlows,
    FastPath,
    Problem,
    Ref,
    Snapshot,
    conntrack_ref,
)
from core.topology import Topology
from core.topology.flow_index import FlowView
from core.topology.related import follow
from core.update import Update
from tui.baseline import Baseline
from tui.views import diff, doctor, query, registry
from tui.views.drops import DropRows, target_of
from tui.views.fastpath import state_change
from tui.views.findings import empty_text
from tui.views.flows import FlowRows
from tui.views.lists import ListRows
from tui.views.rows import (
    DEFAULT_OPTIONS,
    ChangeLog,
    Column,
    Detail,
    FlowViewOptions,
    ListView,
    Rows,
    ViewContext,
    head_of,
)


@dataclass(slots=True)
class ViewState:
    """State of a view: order, filter, closed rows, selection, position, options."""

    sort: str = ""
    reverse: bool = False
    filter: str = ""
    closed: frozenset[Ref] = frozenset()
    ref: Ref | None = None
    top: int = 0
    flow_options: FlowViewOptions = DEFAULT_OPTIONS


@dataclass(frozen=True, slots=True)
class ViewTarget:
    """Target of a jump: a view, with a thing in it or a filter for several."""

    view: str
    ref: Ref | None
    filter: str = ""


@dataclass(slots=True)
class HistoryEntry:
    """One entry of the history: a view and its state.

    `label` names the thing from which the next entry was opened; `filter` is the one that it was opened with.
    """

    view: str
    state: ViewState = field(default_factory=ViewState)
    label: str = ""
    filter: str = ""


class Navigation:
    """History of entries since the last jump, and the view before that jump."""

    def __init__(self, view: str) -> None:
        self.history = [HistoryEntry(view)]
        self.previous: str | None = None
        self._saved_states: dict[str, ViewState] = {}

    @property
    def current(self) -> HistoryEntry:
        """The last entry of the history."""
        return self.history[-1]

    @property
    def refs(self) -> tuple[Ref, ...]:
        """The selected thing of each entry, in the same order."""
        return tuple(entry.state.ref for entry in self.history if entry.state.ref is not None)

    def jump(self, view: str) -> None:
        """Start a new history in a view, with the state that it had before."""
        first = self.history[0]
        self._saved_states[first.view] = first.state
        if self.current.view != view:
            self.previous = self.current.view
        self.history = [HistoryEntry(view, self._saved_states.get(view) or ViewState())]

    def follow(self, target: ViewTarget, label: str) -> None:
        """Append an entry; `label` names the thing that it was reached from."""
        here = self.current
        here.label = label
        state = ViewState(filter=target.filter, ref=target.ref)
        if here.view == target.view:
            state.sort, state.reverse = here.state.sort, here.state.reverse
            state.flow_options = replace(here.state.flow_options, by="")
        self.history.append(HistoryEntry(target.view, state, filter=target.filter))

    def back(self) -> bool:
        """Go back one entry; False at the first."""
        if len(self.history) == 1:
            return False
        self.history.pop()
        self.current.label = ""
        return True


def read_at(tables: Mapping[int, Conntrack]) -> float:
    """Return when the last of the tables was read, as Unix time, 0 without one."""
    return max((one.taken_at for one in tables.values()), default=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class ViewData:
    """Data of a list view.

    `total` counts its rows without the filter; `pending` is set while needed parts of the snapshot were never
    read; `empty` explains an empty list; `remarks` say what the filter can't mean.
    """

    view: str
    rows: Rows
    total: int
    pending: bool
    empty: str
    remarks: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()


class ViewModel:
    """Keep the context, and the current view's rows before filter and order."""

    def __init__(self, offers_demo: bool = False) -> None:
        self.context = ViewContext(Topology(Snapshot(pending=WATCHED_PARTS)), offers_demo=offers_demo)
        self.problems: tuple[Problem, ...] = ()
        self.findings: tuple[Finding, ...] = ()
        self._base: tuple[str, ViewContext, Rows] | None = None
        self._flow_query: tuple[str, FlowViewOptions] = ("", DEFAULT_OPTIONS)
        self._update = Update(self.context.snapshot)
        self._fast_before: FastPath | None = None
        self._meter = FlowMeter()
        self._measured_tables: Mapping[int, Conntrack] | None = None
        self._since: dict[str, float] | None = None
        self._newest: Diagnosis | None = None
        self._shown: Diagnosis | None = None

    def apply_update(self, update: Update, changes: tuple[Change, ...]) -> None:
        """Show an update; `changes` are all since the last one that was shown."""
        is_new, self._update = update.snapshot is not self._update.snapshot, update
        old, topology = self.context, self.context.topology
        if is_new:
            snapshot, fast = update.snapshot, self._fast_before
            topology = self._undiagnosed(snapshot.with_fast_path(fast) if fast else snapshot)
            self.problems = update.snapshot.problems
        log = (ChangeLog() if update.replaces_log else old.log).extended(changes)
        self.context = replace(old, topology=topology, rates=update.rates, log=log, drops=update.drops)

    def _undiagnosed(self, snapshot: Snapshot) -> Topology:
        """Return the topology of a snapshot, with the findings of the one before."""
        topology = Topology(snapshot)
        adopt(topology, self._newest or Diagnosis())
        return topology

    def diagnose(self) -> bool:
        """Find what is wrong now; return whether the next rows will show other findings.

        It takes long on large hosts: call it on another thread than the one that works out the rows.
        """
        before, topology = self._newest, self.context.topology
        if topology.snapshot.pending:
            return False
        found = examine(topology)
        if before is not None and before.findings == found.findings:
            return False
        self._newest = found
        return True

    @property
    def shows_newest_findings(self) -> bool:
        """Whether the last rows had the newest findings."""
        return self._newest is self._shown

    def _take_diagnosis(self) -> None:
        """Show the newest findings from now on."""
        if self._newest is not None and self._newest is not self._shown:
            adopt(self.context.topology, self._newest)
            self.context, self._shown = replace(self.context), self._newest

    def set_fast_path(self, fast: FastPath) -> None:
        """Show the state of the fast path; a change of it becomes an event."""
        before, self._fast_before = self._fast_before, fast
        if fast != self.context.fast:
            log = self.context.log
            if before is not None:
                log = log.extended(state_change(before, fast, time.time()))
            topology = self.context.topology
            snapshot = topology.snapshot.with_fast_path(fast)
            if snapshot is not topology.snapshot:
                topology = self._undiagnosed(snapshot)
            self.context = replace(self.context, topology=topology, fast=fast, log=log)

    def set_baseline(self, baseline: Baseline | None) -> None:
        """Compare with another moment in the view `:diff`."""
        if baseline is not self.context.baseline:
            self.context = replace(self.context, baseline=baseline)

    def view_data(self, view: ListView, state: ViewState) -> ViewData:
        """Return the rows of a view in its current state."""
        self._take_diagnosis()
        if view.name == "flows":
            self._update_flows()
        base = self._rows_of(view)
        rows: Rows
        if isinstance(base, DropRows):
            base = base.grouped_by(state.flow_options.by)
        if isinstance(base, FlowRows):
            self._flow_query = state.filter, state.flow_options
            base = base.with_options(state.flow_options)
            rows = base.matching(state.filter).grouped()
            base.precompute()
        else:
            rows = base.matching(state.filter)
        if state.sort:
            rows = rows.sorted_by(state.sort, state.reverse)
        folded = getattr(rows, "folded", None)
        if folded is not None and state.closed:
            rows = folded(state.closed)
        pending = bool(self.context.snapshot.pending & view.parts)
        pending |= view.name == "doctor" and self._shown is None
        remarks = _remarks(state.filter, base, inverted=len(rows) > 0)
        if state.filter and not len(rows):
            remarks += tuple(query.remarks_of_none(state.filter, _owner_names(self.context.topology)))
        head_of(rows)  # worked out here, on the worker thread
        if isinstance(rows, ListRows):
            rows.needs()
        self._update_findings()
        empty = getattr(base, "empty", "") or empty_text(view, self.context.snapshot)
        columns = getattr(rows, "columns", view.columns)
        return ViewData(view.name, rows, len(base), pending, empty, remarks, columns)

    def _update_findings(self) -> None:
        """Note when findings appear; those of the first whole snapshot were there before."""
        if self.context.snapshot.pending or self._shown is None:
            self.findings = ()
            return
        known = doctor.by_id(self.context.topology)
        self.findings = tuple(
            one for name, one in known.items() if name not in self.context.muted and one.severity != "info"
        )
        if self._since is None or known.keys() != self._since.keys():
            now = 0.0 if self._since is None else time.time()
            before = self._since or {}
            self._since = {name: before.get(name, now) for name in known}
            self.context = replace(self.context, since=self._since)

    def set_muted(self, ids: frozenset[str]) -> None:
        """Set the ids of muted findings."""
        self.context = replace(self.context, muted=ids)

    def _update_flows(self) -> None:
        """Put the newest flows into the context, measured or worked out from the tables."""
        table = self._update.flows or self._measure_flows()
        flow_view = FlowView.of(self.context.topology, table, self.context.flows)
        if flow_view is not self.context.flows:
            self.context = replace(self.context, flows=flow_view)

    @property
    def uncounted(self) -> tuple[int, ...]:
        """The namespaces that have connections whose traffic the kernel does not count."""
        flow_view = self.context.flows
        return flow_view.table.uncounted if flow_view else ()

    def _measure_flows(self) -> FlowTable:
        """Return the flows of a source that measures none.

        That is a recording; the times of its tables give the rates.
        """
        tables, previous = self.context.snapshot.conntracks, self._update.previous
        if tables is not self._measured_tables:
            self._measured_tables = tables
            measured = self._meter.table.taken_at
            if previous and not read_at(previous.tables) <= measured <= read_at(tables):
                self._meter = FlowMeter()
                self._feed(*previous)
            elif read_at(tables) < measured:
                self._meter = FlowMeter()
            self._feed(tables, self._update.fast)
        return self._meter.table

    def _feed(self, tables: Mapping[int, Conntrack], fast: FastFlows | None) -> None:
        at = read_at(tables)
        readings = [Reading(one, one.taken_at, one.taken_at) for one in tables.values()]
        self._meter.feed(readings, fast, now=at, at=at)

    def _rows_of(self, view: ListView) -> Rows:
        base = self._base
        if base is None or base[0] != view.name or base[1] is not self.context:
            base = self._base = (view.name, self.context, view.rows(self.context))
        return base[2]

    def detail(self, ref: Ref) -> Detail:
        """Return the details of an object."""
        text, flow_options = self._flow_query
        return registry.detail(replace(self.context, flows_filter=text, flow_options=flow_options), ref)

    def target(self, history: tuple[Ref, ...], target: Ref | None = None) -> ViewTarget | None:
        """Return where Enter leads from the end of the history; None if nowhere.

        That is `target`, or else the foremost related thing.
        """
        topology = self.context.topology
        if history and history[-1].kind == "flow group" and target is None:
            text, _ = self._flow_query
            return ViewTarget("flows", None, " ".join(filter(None, (text, str(history[-1].key[1])))))
        if history and history[-1].kind == "flow":
            history = (*history[:-1], conntrack_ref(int(history[-1].key[0]), int(history[-1].key[1])))
        if history and history[-1].kind == "drop":
            target = target or target_of(self.context, history[-1])
        ref = (
            target
            or (subject_of(self.context, history[-1]) if history else None)
            or follow(topology, history)
        )
        if ref is not None and ref.kind == "connections":
            return ViewTarget("conntrack", None, query.term(str(ref.key[0]), str(ref.key[1])))
        home = registry.home_of(topology, ref) if ref else None
        return ViewTarget(home.name, ref) if home else None


def subject_of(context: ViewContext, ref: Ref) -> Ref | None:
    """Return the object that an event or a difference is about, None for others."""
    if ref.kind == "difference":
        found = diff.difference(context, ref)
        return found.ref if found else None
    change = context.log.change(ref) if ref.kind == "event" else None
    return change.ref if change else None


def _owner_names(topology: Topology) -> frozenset[str]:
    """Return the names by which addresses can be found."""
    labels = map(topology.label, topology.snapshot.namespaces)
    networks = (name for one in topology.networks for name in (one.name, one.bridge) if name)
    return frozenset((*(one.name for one in topology.containers.values()), *labels, *networks))


def _remarks(text: str, rows: Rows, inverted: bool) -> tuple[str, ...]:
    """Return the mistakes of a filter; if rows match, only of `inverted` terms."""
    if not text:
        return ()
    if isinstance(rows, FlowRows):
        return tuple(rows.remarks(text, inverted))
    return tuple(query.remarks(text, rows.keys(), inverted))
