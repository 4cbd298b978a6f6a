"""Register the views: numbers, names, and the home of each kind of thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from core.model import Link, Ref
from core.peers import PAIR_KINDS
from core.rates import Rates
from core.topology import Topology
from tui.views import (
    bridges,
    conntrack,
    containers,
    diff,
    doctor,
    drops,
    events,
    fastpath,
    findings,
    flows,
    flows_detail,
    links,
    namespaces,
    nat,
    networks,
    overlay,
    overview,
    ovs,
    routes,
    veths,
)
from tui.views.rows import Detail, ListView, ViewContext

DetailOf = Callable[[Topology, Ref, Rates | None], Detail]


@dataclass(frozen=True, slots=True)
class View:
    """A view; `number` is its key (None: opened by name only).

    The overview's rows are for the command line; on the screen it is drawn.
    """

    number: int | None
    list: ListView

    @property
    def name(self) -> str:
        """The name that `:name` jumps to."""
        return self.list.name


VIEWS: tuple[View, ...] = (
    View(1, overview.VIEW),
    View(2, bridges.VIEW),
    View(3, veths.VIEW),
    View(4, networks.VIEW),
    View(5, containers.VIEW),
    View(6, nat.VIEW),
    View(7, conntrack.VIEW),
    View(8, flows.VIEW),
    View(9, events.VIEW),
    View(None, doctor.VIEW),
    View(None, namespaces.VIEW),
    View(None, links.VIEW),
    View(None, routes.VIEW),
    View(None, ovs.VIEW),
    View(None, overlay.VIEW),
    View(None, fastpath.VIEW),
    View(None, drops.VIEW),
    View(None, diff.VIEW),
)

_BY_NAME: Mapping[str, View] = {
    name: view for view in reversed(VIEWS) for name in (*view.list.aliases, view.name)
}
_HOMES = {
    "namespace": "namespaces", "container": "containers", "network": "networks", "nat": "nat",
    "finding": "doctor", "flow": "flows", "flow group": "flows", "fast": "fastpath", "drop": "drops",
    "conntrack": "conntrack", "route": "routes", "rule": "routes", "neighbour": "routes", "event": "events",
    "difference": "diff", "ovs": "ovs", "vtep": "overlay",
}  # fmt: skip
_DETAILS: Mapping[str, DetailOf] = {
    "namespace": namespaces.detail, "container": containers.detail, "network": networks.detail,
    "nat": nat.detail, "conntrack": conntrack.detail, "route": routes.detail, "rule": routes.detail,
    "neighbour": routes.detail, "ovs": ovs.detail, "vtep": overlay.detail,
}  # fmt: skip
_CONTEXT_DETAILS: Mapping[str, Callable[[ViewContext, Ref], Detail]] = {
    "event": events.detail, "fast": fastpath.detail, "drop": drops.detail,
    "finding": doctor.detail,
    "difference": diff.detail,
}  # fmt: skip
_LINK_DETAILS: Mapping[str, DetailOf] = {
    "bridges": bridges.detail, "veths": veths.detail, "links": links.detail,
}  # fmt: skip


def view_named(name: str) -> View | None:
    """Return the view of that name or alias, or of a unique prefix."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    found = {view.name: view for known, view in _BY_NAME.items() if name and known.startswith(name)}
    return next(iter(found.values())) if len(found) == 1 else None


def home_of(topology: Topology, ref: Ref) -> View | None:
    """Return the view whose rows contain a ref, None without one."""
    if ref.kind == "link":
        link = links.link_of(topology, ref)
        return _BY_NAME[_home_of_link(topology, link)] if link else None
    return _BY_NAME[_HOMES[ref.kind]] if ref.kind in _HOMES else None


def _home_of_link(topology: Topology, link: Link) -> str:
    if topology.is_bridge(link):
        return "bridges"
    return "veths" if link.kind in PAIR_KINDS else "links"


def detail(context: ViewContext, ref: Ref) -> Detail:
    """Return the details of an object of any kind, its findings first."""
    found = _detail(context, ref)
    return replace(found, sections=(*findings.findings_sections(context.topology, ref), *found.sections))


def _detail(context: ViewContext, ref: Ref) -> Detail:
    topology = context.topology
    if ref.kind in _CONTEXT_DETAILS:
        return _CONTEXT_DETAILS[ref.kind](context, ref)
    if ref.kind in ("flow", "flow group"):
        return (flows_detail.detail if ref.kind == "flow" else flows_detail.group_detail)(context, ref)
    if ref.kind == "link":
        link = links.link_of(topology, ref)
        home = _home_of_link(topology, link) if link else "links"
        return _LINK_DETAILS[home](topology, ref, context.rates)
    if ref.kind in _DETAILS:
        return _DETAILS[ref.kind](topology, ref, context.rates)
    return links.missing_detail(f"this {ref.kind}")


# Actions of the dashboard that can be called by name.
ACTIONS = (
    "help", "log", "pause", "problems", "quit", "refresh", "record", "theme", "undo", "write", "bundle",
)  # fmt: skip


def parse_command(text: str) -> tuple[View, str] | str | None:
    """Parse a command: a view with a filter, or an action; None if unknown."""
    word, _, rest = text.strip().partition(" ")
    word = word.casefold()
    view = view_named(word)
    if view is not None:
        return view, rest.strip()
    return next((action for action in ACTIONS if word and action.startswith(word)), None)


def complete_command(text: str) -> str:
    """Complete the first word, as long as it is the only one."""
    found = parse_command(text)
    if found is None or " " in text:
        return text
    return found if isinstance(found, str) else found[0].name
