"""Routes, policy rules and neighbours that change in a way a person would care about."""

from __future__ import annotations

from collections.abc import Iterable

from core.diff.told import Told, in_both, missing_in
from core.model import LinkKey, Neighbour, NetState, PolicyRule, Route, link_ref, namespace_ref

_ANSWERING = ("reachable", "stale", "delay", "probe")

RouteKey = tuple[int, str, str, str, int]


def tell_routing(told: Told) -> None:
    """Tell what happened to routes, rules and neighbours in namespaces that were there before and after."""
    for ns, old, new in in_both(told.old.snapshot.nets, told.new.snapshot.nets):
        if old.routes is not new.routes:
            _tell_routes(told, ns, old, new)
        if old.rules is not new.rules:
            _tell_rules(told, ns, old.rules, new.rules)
        if old.neighbours is not new.neighbours:
            _tell_neighbours(told, ns, old, new)


def _tell_routes(told: Told, ns: int, old: NetState, new: NetState) -> None:
    before, after = _keyed(old.routes), _keyed(new.routes)
    ref, where = namespace_ref(ns), told.place(ns)
    gone = [_route_words(before[key], old) for key in before if key not in after]
    come = [_route_words(after[key], new) for key in after if key not in before]
    told.tell_each("removed", [(ref, f"route {words} is gone from {where}") for words in gone],
                   f"routes are gone from {where}", ref)  # fmt: skip
    told.tell_each("added", [(ref, f"route {words} appeared in {where}") for words in come],
                   f"routes appeared in {where}", ref)  # fmt: skip
    for key in after:
        if key in before and _route_words(before[key], old) != _route_words(after[key], new):
            words = f"route {_route_words(after[key], new)} in {where} was {_route_words(before[key], old)}"
            told.tell("changed", ref, words)


def _keyed(routes: Iterable[Route]) -> dict[RouteKey, Route]:
    """The routes that someone chose; the kernel's own only follow addresses, which are told already."""
    return {
        (route.family, route.dst, route.kind, route.table, route.metric): route
        for route in routes
        if route.table != "local" and route.protocol != "kernel"
    }


def _route_words(route: Route, net: NetState) -> str:
    words = [] if route.kind == "unicast" else [route.kind]
    words.append(route.dst)
    for hop in route.nexthops:
        link = net.links.get(hop.ifindex or 0)
        words += ["via", hop.gateway] if hop.gateway else []
        words += ["dev", link.name] if link else []
    return " ".join([*words, *(["table", route.table] if route.table != "main" else [])])


def _tell_rules(told: Told, ns: int, old: tuple[PolicyRule, ...], new: tuple[PolicyRule, ...]) -> None:
    ref, where = namespace_ref(ns), told.place(ns)
    for rule in missing_in(new, old):
        told.tell("removed", ref, f"routing rule {_rule_words(rule)} is gone from {where}")
    for rule in missing_in(old, new):
        told.tell("added", ref, f"routing rule {_rule_words(rule)} appeared in {where}")


def _rule_words(rule: PolicyRule) -> str:
    words = [f"{rule.priority}:", *(["not"] if rule.inverted else []), "from", rule.src or "all"]
    for name, value in (("to", rule.dst), ("iif", rule.iif), ("oif", rule.oif)):
        words += [name, value] if value else []
    words += ["fwmark", hex(rule.fwmark)] if rule.fwmark is not None else []
    words += rule.more
    words += ["lookup", rule.table] if rule.action == "lookup" else [rule.action]
    return " ".join([*words, *([str(rule.goto)] if rule.goto is not None else [])])


def _tell_neighbours(told: Told, ns: int, old: NetState, new: NetState) -> None:
    """Only who stopped answering and who answers again: the states between come and go all the time."""
    before = {(each.ifindex, each.address): each.state for each in old.neighbours}
    for neighbour in new.neighbours:
        was = before.get((neighbour.ifindex, neighbour.address))
        if was in _ANSWERING and neighbour.state == "failed":
            _tell_neighbour(told, ns, new, neighbour, "does not answer any more")
        elif was == "failed" and neighbour.state in _ANSWERING:
            _tell_neighbour(told, ns, new, neighbour, "answers again")


def _tell_neighbour(told: Told, ns: int, net: NetState, neighbour: Neighbour, what: str) -> None:
    link = net.links.get(neighbour.ifindex)
    on = f" on {link.name}" if link else ""
    ref = link_ref(LinkKey(ns, neighbour.ifindex))
    told.tell("changed", ref, f"neighbour {neighbour.address}{on} in {told.place(ns)} {what}")
