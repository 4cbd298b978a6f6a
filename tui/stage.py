"""Works out what the screen shows from the newest update; used by the worker's thread alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from core.findings import Finding
from core.model import Change, Problem, Ref, Snapshot
from core.rates import Rates
from core.topology import Topology
from tui.navigation import ViewState, Way
from tui.present import query, views
from tui.present.absence import empty_text
from tui.present.rows import Detail, ListView, Rows
from tui.present.scene import Scene


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What a list view shows: its rows, how many there are without the filter, whether parts of the snapshot
    that it needs were never read yet, what the list says when it is empty, and what the filter cannot
    mean."""

    view: str
    rows: Rows
    total: int
    pending: bool
    empty: str
    remarks: tuple[str, ...] = ()


# The parts of a snapshot without which a view has nothing to show; the links for views not named here.
_PARTS: Mapping[str, frozenset[str]] = {
    "containers": frozenset({"containers"}),
    "networks": frozenset({"links", "containers"}),
    "nat": frozenset({"firewall"}),
    "conntrack": frozenset({"conntrack"}),
    "events": frozenset(),
}
_LINKS = frozenset({"namespaces", "links"})
_ALL = _LINKS.union(*_PARTS.values())


class Stage:
    """Keeps the scene, and the rows of the view in sight before filter and order."""

    def __init__(self) -> None:
        self.scene = Scene(Topology(Snapshot(pending=_ALL)))
        self.problems: tuple[Problem, ...] = ()
        self.findings: tuple[Finding, ...] = ()
        self._base: tuple[str, Scene, Rows] | None = None

    def take(self, snapshot: Snapshot, rates: Rates | None, changes: tuple[Change, ...]) -> None:
        """Take in an update."""
        old = self.scene
        topology = old.topology
        if snapshot is not old.snapshot:
            topology, self.problems = Topology(snapshot), snapshot.problems
        self.scene = replace(old, topology=topology, rates=rates, log=old.log.extended(changes))

    def shown(self, view: ListView, state: ViewState) -> Shown:
        """The rows of a view in its present state."""
        base = self._rows_of(view)
        rows = base.matching(state.filter)
        if state.sort:
            rows = rows.sorted_by(state.sort, state.reverse)
        folded = getattr(rows, "folded", None)
        if folded is not None and state.closed:
            rows = folded(state.closed)
        pending = bool(self.scene.snapshot.pending & _PARTS.get(view.name, _LINKS))
        remarks = () if len(rows) else tuple(query.remarks(state.filter, base.keys()))
        if not pending:
            self.findings = self.scene.topology.findings
        empty = empty_text(view, self.scene.snapshot)
        return Shown(view.name, rows, len(base), pending, empty, remarks)

    def _rows_of(self, view: ListView) -> Rows:
        base = self._base
        if base is None or base[0] != view.name or base[1] is not self.scene:
            base = self._base = (view.name, self.scene, view.rows(self.scene))
        return base[2]

    def detail(self, ref: Ref) -> Detail:
        """Everything about one thing."""
        return views.detail(self.scene, ref)

    def way(self, trail: tuple[Ref, ...], target: Ref | None = None) -> Way | None:
        """Where Enter leads from the end of the trail, to `target` or else the foremost related thing; None
        where it leads nowhere."""
        topology = self.scene.topology
        ref = target or self._changed(trail) or topology.follow(trail)
        if ref is not None and ref.kind == "flows":
            return Way("conntrack", None, query.term(str(ref.key[0]), str(ref.key[1])))
        home = views.home_of(topology, ref) if ref else None
        return Way(home.name, ref) if home else None

    def _changed(self, trail: tuple[Ref, ...]) -> Ref | None:
        """What the event at the end of the trail happened to."""
        change = self.scene.log.change(trail[-1]) if trail and trail[-1].kind == "event" else None
        return change.ref if change else None
