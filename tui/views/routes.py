"""The routes view: routes, policy rules and neighbours by namespace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from core.model import LinkKey, Neighbour, NetState, PolicyRule, Ref, Route, link_ref, namespace_ref
from core.rates import Rates
from core.text import safe
from core.topology import Topology
from tui.views import cells, namespaces
from tui.views.cells import Line
from tui.views.links import missing_detail
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Detail, ListView, Row, Tone, ViewContext

COLUMNS = (
    Column("name", "destination", 24, grow=2),
    Column("kind", "kind", 10),
    Column("family", "fam.", 4),
    Column("via", "via", 17, grow=1),
    Column("dev", "dev", 12, grow=1),
    Column("table", "table", 7, priority=2),
    Column("proto", "protocol", 8, priority=3),
    Column("state", "scope / state", 13, priority=1),
    Column("source", "source", 15, priority=4),
    Column("metric", "metric/prio", 11, align="right", priority=3),
)
_NEIGHBOUR_TONES: dict[str, Tone] = {
    "reachable": "ok", "permanent": "", "failed": "bad", "incomplete": "warn", "stale": "dim", "noarp": "dim",
}  # fmt: skip
_REFUSING = ("blackhole", "unreachable", "prohibit", "throw")


def rows(context: ViewContext) -> ListRows:
    """Return each namespace with its routes, rules and neighbours, the host's first."""
    topology = context.topology
    spaces = sorted(context.snapshot.nets, key=lambda ns: (ns != topology.host, topology.label(ns)))
    return ListRows(
        [row for ns in spaces for row in _space_rows(topology, context.snapshot.nets[ns])], COLUMNS
    )


def _space_rows(topology: Topology, net: NetState) -> Iterator[Row]:
    """Yield the rows of a namespace: configured entries first, then the kernel's own."""
    if not net.routes and not net.neighbours and not net.rules:
        return
    label = safe(topology.label(net.ns))
    yield _space_row(net, label)
    routes = sorted(net.routes, key=lambda route: route.family)
    yield from (_route_row(net, route, label) for route in routes if not _is_quiet(route))
    yield from (_rule_row(net, rule, label) for rule in net.rules)
    yield from (_neighbour_row(topology, net, neighbour, label) for neighbour in net.neighbours)
    yield from (_route_row(net, route, label) for route in routes if _is_quiet(route))


def _is_quiet(route: Route) -> bool:
    """Return whether it is one that comes with every address, or with every link."""
    return route.table == "local" or route.dst.startswith(("fe80:", "ff00:"))


def _space_row(net: NetState, label: str) -> Row:
    counts = {"via": f"{len(net.routes)} routes", "dev": f"{len(net.rules)} rules"}
    counts["state"] = f"{len(net.neighbours)} neighbours"
    cells = (Cell(counts.get(column.name, ""), "dim") for column in COLUMNS[2:])
    return Row(
        namespace_ref(net.ns),
        (Cell(label), Cell("namespace", "dim"), *cells),
        {"ns": label, "name": label, "kind": "namespace"},
    )


def _route_row(net: NetState, route: Route, label: str) -> Row:
    gateways = " ".join(hop.gateway for hop in route.nexthops if hop.gateway)
    devices = _devices(net, route)
    quiet: Tone = "dim" if _is_quiet(route) else ""
    kind = "route" if route.kind == "unicast" else route.kind
    return Row(
        route_ref(net.ns, route),
        (
            cells.text(route.dst, quiet), cells.text(kind, "warn" if route.kind in _REFUSING else quiet),
            _family(route.family),
            cells.text(gateways, quiet), cells.text(devices, quiet), cells.text(route.table, quiet),
            cells.text(route.protocol, quiet), cells.text(route.scope, quiet),
            cells.text(route.source, quiet),
            cells.number(route.metric) if route.metric else cells.NONE,
        ),
        {
            "ns": label, "kind": f"route {safe(route.kind)}", "dev": safe(devices),
            "addr": safe(f"{route.dst} {gateways}"),
            "proto": safe(route.protocol), "table": safe(route.table), "family": str(route.family),
        },
        depth=1,
    )  # fmt: skip


def _devices(net: NetState, route: Route) -> str:
    found = (net.links.get(hop.ifindex or 0) for hop in route.nexthops)
    return " ".join(link.name for link in found if link is not None)


def _rule_row(net: NetState, rule: PolicyRule, label: str) -> Row:
    return Row(
        rule_ref(net.ns, rule),
        (
            cells.text(selector(rule)), Cell("rule"), _family(rule.family), cells.text(action(rule)),
            cells.text(" ".join(filter(None, (rule.iif, rule.oif)))), cells.text(rule.table),
            cells.NONE, cells.NONE, cells.NONE, cells.number(rule.priority),
        ),
        {"ns": label, "kind": "rule", "table": safe(rule.table), "family": str(rule.family)},
        depth=1,
    )  # fmt: skip


def selector(rule: PolicyRule) -> str:
    """Return the selector of a policy rule without its links, which have a column.

    Such as "not from 10.0.0.0/8 to 1.2.3.4 fwmark 0x1".
    """
    return " ".join(replace(rule, iif="", oif="", more=()).selector_words())


def action(rule: PolicyRule) -> str:
    """Return the action of a policy rule."""
    return f"lookup {rule.table}" if rule.action == "lookup" else rule.action


def _neighbour_row(topology: Topology, net: NetState, neighbour: Neighbour, label: str) -> Row:
    link = net.links.get(neighbour.ifindex)
    owner = topology.container_at(net.ns, neighbour.address)
    whose = f" ({owner.name})" if owner else ""
    tone = _NEIGHBOUR_TONES.get(neighbour.state, "")
    return Row(
        neighbour_ref(net.ns, neighbour),
        (
            cells.text(f"{neighbour.address}{whose}"), Cell("neighbour"), _family(neighbour.family),
            cells.text(neighbour.mac),
            cells.text(link.name if link else ""), cells.NONE, cells.NONE, cells.text(neighbour.state, tone),
            cells.NONE, cells.NONE,
        ),
        {
            "ns": label, "kind": "neighbour", "addr": safe(neighbour.address), "mac": neighbour.mac,
            "dev": safe(link.name) if link else "", "state": safe(neighbour.state),
            "ct": safe(owner.name) if owner else "", "family": str(neighbour.family),
        },
        depth=1,
    )  # fmt: skip


def _family(family: int) -> Cell:
    return Cell(f"IPv{family}", "dim")


def route_ref(ns: int, route: Route) -> Ref:
    """Return the ref of a route: namespace, ifindex, distinguishing attributes."""
    ifindex = route.nexthops[0].ifindex or 0 if route.nexthops else 0
    words = (route.dst, route.table, route.kind, route.protocol, route.source, route.scope)
    return Ref("route", (ns, ifindex, *words, route.family, route.metric))


def rule_ref(ns: int, rule: PolicyRule) -> Ref:
    """Return the ref of a policy rule."""
    words = (selector(rule), rule.iif, rule.oif, rule.table, rule.action)
    return Ref("rule", (ns, 0, *words, rule.family, rule.priority))


def neighbour_ref(ns: int, neighbour: Neighbour) -> Ref:
    """Return the ref of a neighbour: its namespace, ifindex and address."""
    return Ref("neighbour", (ns, neighbour.ifindex, neighbour.address))


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Return the details of a route, rule or neighbour; of a heading, its namespace's."""
    if ref.kind == "namespace":
        return namespaces.detail(topology, ref, rates)
    net = topology.snapshot.nets.get(int(ref.key[0]))
    lines = _LINES[ref.kind](topology, net, ref) if net else None
    if not lines:
        return missing_detail(f"this {ref.kind}")
    where = safe(topology.label(int(ref.key[0])))
    return Detail(
        f"{ref.kind} {safe(str(ref.key[2]))} in {where}",
        cells.section(ref.kind.capitalize(), lines),
        cells.related(topology, ref),
    )


def _route_lines(topology: Topology, net: NetState, ref: Ref) -> list[Line]:
    route = next((one for one in net.routes if route_ref(net.ns, one) == ref), None)
    if route is None:
        return []
    lines: list[Line] = [
        ("destination", cells.text(route.dst), None),
        ("family", Cell(f"IPv{route.family}"), None),
        ("kind", cells.text(route.kind), None),
    ]
    for hop in route.nexthops:
        link = net.links.get(hop.ifindex or 0)
        words = f"{hop.gateway or 'on the link itself'}{f' dev {link.name}' if link else ''}"
        words += f", weight {hop.weight}" if len(route.nexthops) > 1 else ""
        lines.append(("next hop", cells.text(words), link_ref(link.key) if link else None))
    pairs = (
        ("source", route.source), ("table", route.table), ("protocol", route.protocol),
        ("scope", route.scope), ("metric", str(route.metric or "")), ("MTU", str(route.mtu or "")),
    )  # fmt: skip
    return [*lines, *((title, cells.text(value), None) for title, value in pairs if value)]


def _rule_lines(topology: Topology, net: NetState, ref: Ref) -> list[Line]:
    rule = next((one for one in net.rules if rule_ref(net.ns, one) == ref), None)
    if rule is None:
        return []
    pairs = (
        ("priority", str(rule.priority)), ("selector", selector(rule)), ("iif", rule.iif),
        ("oif", rule.oif), ("action", action(rule)), ("family", f"IPv{rule.family}"),
    )  # fmt: skip
    return [(title, cells.text(value), None) for title, value in pairs if value]


def _neighbour_lines(topology: Topology, net: NetState, ref: Ref) -> list[Line]:
    found = next((one for one in net.neighbours if neighbour_ref(net.ns, one) == ref), None)
    if found is None:
        return []
    link = net.links.get(found.ifindex)
    target = link_ref(LinkKey(net.ns, found.ifindex)) if link else None
    flags = ", ".join(name for name, on in (("proxy", found.proxy), ("router", found.router)) if on)
    return [
        ("address", cells.text(found.address), None),
        ("MAC", cells.text(found.mac), None),
        ("on link", cells.text(link.name if link else ""), target),
        ("state", cells.text(found.state, _NEIGHBOUR_TONES.get(found.state, "")), None),
        *([("flags", cells.text(flags), None)] if flags else []),
    ]


_LINES = {"route": _route_lines, "rule": _rule_lines, "neighbour": _neighbour_lines}

VIEW = ListView(
    "routes", "Routes and neighbours", ("rt", "route", "neigh", "arp"), COLUMNS, rows,
    empty="No route yet. Without routes, packets only reach the host itself.",
    help=(
        ("h l", "fold and unfold a namespace"),
        ("kind:route", "routes only; also rule, neighbour, local, blackhole"),
        ("ns:NAME", "one namespace"),
        ("!table:local", "without the kernel's own local routes"),
        ("state:failed", "neighbours that don't answer"),
    ),
)  # fmt: skip
