"""Compare links, their addresses and bridge ports; routes, rules and neighbours."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from core.model import (
    BridgePort,
    BridgeSettings,
    Change,
    Link,
    LinkKey,
    Neighbour,
    NetState,
    PolicyRule,
    Ref,
    Route,
    Snapshot,
    link_ref,
    namespace_ref,
)
from core.topology import Topology

# From this number on, additions or removals at once become one sentence.
MANY = 12
_UNNAMED_KINDS = ("physical", "loopback", "")


class ChangeList:
    """Two snapshots and the changes found so far."""

    def __init__(self, old: Snapshot, new: Snapshot, at: float) -> None:
        self.old, self.new = Topology(old), Topology(new)
        self.changes: list[Change] = []
        self._at = at

    def add(self, action: str, ref: Ref, sentence: str) -> None:
        """Add one change; `action` as in core.model.Change."""
        self.changes.append(Change(self._at, action, ref, sentence))

    def add_each(self, action: str, found: Sequence[tuple[Ref, str]], together: str, ref: Ref) -> None:
        """Add a change for each (ref, sentence), or one of `ref` for all if they are many."""
        if len(found) < MANY:
            for each, sentence in found:
                self.add(action, each, sentence)
        else:
            self.add(action, ref, f"{len(found)} {together}")

    def label(self, ns: int) -> str:
        """Return the label of a namespace, even if it no longer exists."""
        side = self.new if ns in self.new.snapshot.namespaces else self.old
        return side.label(ns)


def in_both[Part](old: Mapping[int, Part], new: Mapping[int, Part]) -> Iterator[tuple[int, Part, Part]]:
    """Iterate over (key, old, new) of the parts in both that aren't the same object."""
    for key, value in new.items():
        before = old.get(key)
        if before is not None and before is not value:
            yield key, before, value


def missing_in[Key](others: Container[Key], keys: Iterable[Key]) -> list[Key]:
    """Return the keys that aren't in others, in their order."""
    return [key for key in keys if key not in others]


def link_text(link: Link) -> str:
    """Name a link with its kind: "veth v-web1", "link eth0"."""
    return f"{'link' if link.kind in _UNNAMED_KINDS else link.kind} {link.name}"


_STATES = {"lowerlayerdown": "down: its other end is down", "notpresent": "not present"}
# Fields that aren't settings of the bridge itself, or are compared separately.
_IGNORED = ("root_id", "root_port", "bridge_id", "vlans")


def compare_links(log: ChangeList) -> None:
    """Report changes of links in namespaces that are in both snapshots."""
    for ns, old, new in in_both(log.old.snapshot.nets, log.new.snapshot.nets):
        if old.links is not new.links:
            _compare_net(log, ns, old, new)


def _compare_net(log: ChangeList, ns: int, old: NetState, new: NetState) -> None:
    same = {
        index
        for index in old.links.keys() & new.links.keys()
        if old.links[index].kind == new.links[index].kind
    }
    removed = [link for index, link in old.links.items() if index not in same]
    added = [link for index, link in new.links.items() if index not in same]
    where = log.label(ns)
    log.add_each(
        "removed", [(link_ref(link.key), f"{link_text(link)} is gone from {where}") for link in removed],
        f"links are gone from {where}", namespace_ref(ns),
    )  # fmt: skip
    log.add_each(
        "added", [(link_ref(link.key), _appeared(link, new, where)) for link in added],
        f"links appeared in {where}", namespace_ref(ns),
    )  # fmt: skip
    for index in sorted(same):
        before, after = old.links[index], new.links[index]
        if before is not after and before != after:
            for sentence in _differences(before, after, old, new, where):
                log.add("changed", link_ref(after.key), sentence)


def _appeared(link: Link, net: NetState, where: str) -> str:
    addresses = f" with {', '.join(_configured(link))}" if _configured(link) else ""
    port = f" as a port of {_master(link, net)}" if link.master is not None else ""
    return f"{link_text(link)} appeared in {where}{port}{addresses}"


def _differences(old: Link, new: Link, before: NetState, after: NetState, where: str) -> Iterator[str]:
    name = f"{link_text(new)} in {where}"
    if old.name != new.name:
        yield f"{link_text(old)} in {where} was renamed to {new.name}"
    toggled = old.admin_up != new.admin_up
    if toggled:
        yield f"{name} was set {'up' if new.admin_up else 'down'}"
    if old.state != new.state and not (toggled and new.state == ("up" if new.admin_up else "down")):
        yield f"{name} is {_STATES.get(new.state, new.state)} (was {old.state})"
    if old.mtu != new.mtu:
        yield f"the MTU of {name} changed from {old.mtu} to {new.mtu}"
    if old.sizes.gso != new.sizes.gso:
        yield f"gso_max_size of {name} changed from {old.sizes.gso} to {new.sizes.gso} bytes"
    if old.mac != new.mac:
        yield f"the MAC address of {name} changed from {old.mac or 'none'} to {new.mac or 'none'}"
    if old.alias != new.alias:
        yield f"the alias of {name} changed from {old.alias or 'none'} to {new.alias or 'none'}"
    if old.master != new.master:
        yield _moved(old, new, before, after, name)
    yield from _addresses(old, new, name)
    if old.port and new.port:
        port = replace(old.port, state=new.port.state) if toggled else old.port  # it follows admin_up
        yield from _settings(port, new.port, f"port {new.name} of {_master(new, after)} in {where}")
    if old.bridge and new.bridge:
        yield from _settings(old.bridge, new.bridge, name)


def _moved(old: Link, new: Link, before: NetState, after: NetState, name: str) -> str:
    if new.master is None:
        return f"{name} is no longer a port of {_master(old, before)}"
    if old.master is None:
        return f"{name} became a port of {_master(new, after)}"
    return f"{name} moved from {_master(old, before)} to {_master(new, after)}"


def _master(link: Link, net: NetState) -> str:
    master = net.links.get(link.master or 0)
    return master.name if master else f"the link with index {link.master}"


def _addresses(old: Link, new: Link, name: str) -> Iterator[str]:
    before, after = _configured(old), _configured(new)
    for address in missing_in(before, after):
        yield f"{name} got the address {address}"
    for address in missing_in(after, before):
        yield f"{name} lost the address {address}"


def _configured(link: Link) -> list[str]:
    """Return the addresses but the link-local ones, which the kernel adds itself."""
    return [str(address) for address in link.addresses if address.scope != "link"]


def _settings[Kind: (BridgePort, BridgeSettings)](old: Kind, new: Kind, name: str) -> Iterator[str]:
    for field in fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after and field.name not in _IGNORED:
            yield f"{field.name} of {name} changed from {_value_text(before)} to {_value_text(after)}"
    if old.vlans != new.vlans:
        yield f"the VLANs of {name} changed from {_vlans(old)} to {_vlans(new)}"


def _vlans(holder: BridgePort | BridgeSettings) -> str:
    ranges = (str(v.vid) if v.vid == v.vid_end else f"{v.vid}-{v.vid_end}" for v in holder.vlans)
    return ",".join(ranges) or "none"


def _value_text(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


_ANSWERING = ("reachable", "stale", "delay", "probe")

RouteKey = tuple[int, str, str, str, int]


def compare_routing(log: ChangeList) -> None:
    """Report changes of routes, rules and neighbours in namespaces in both snapshots."""
    for ns, old, new in in_both(log.old.snapshot.nets, log.new.snapshot.nets):
        if old.routes is not new.routes:
            _compare_routes(log, ns, old, new)
        if old.rules is not new.rules:
            _compare_rules(log, ns, old.rules, new.rules)
        if old.neighbours is not new.neighbours:
            _compare_neighbours(log, ns, old, new)


def _compare_routes(log: ChangeList, ns: int, old: NetState, new: NetState) -> None:
    before, after = _keyed(old.routes), _keyed(new.routes)
    ref, where = namespace_ref(ns), log.label(ns)
    removed = [_route_text(before[key], old) for key in before if key not in after]
    added = [_route_text(after[key], new) for key in after if key not in before]
    log.add_each("removed", [(ref, f"route {route} is gone from {where}") for route in removed],
                 f"routes are gone from {where}", ref)  # fmt: skip
    log.add_each("added", [(ref, f"route {route} appeared in {where}") for route in added],
                 f"routes appeared in {where}", ref)  # fmt: skip
    for key in after:
        if key in before and (was := _route_text(before[key], old)) != (now := _route_text(after[key], new)):
            log.add("changed", ref, f"route {was} in {where} changed to {now}")


def _keyed(routes: Iterable[Route]) -> dict[RouteKey, Route]:
    """Map the configured routes by key; the kernel's own only follow addresses."""
    return {
        (route.family, route.dst, route.kind, route.table, route.metric): route
        for route in routes
        if route.table != "local" and route.protocol != "kernel"
    }


def _route_text(route: Route, net: NetState) -> str:
    words = [] if route.kind == "unicast" else [route.kind]
    words.append(route.dst)
    for hop in route.nexthops:
        link = net.links.get(hop.ifindex or 0)
        words += ["via", hop.gateway] if hop.gateway else []
        words += ["dev", link.name] if link else []
    return " ".join([*words, *(["table", route.table] if route.table != "main" else [])])


def _compare_rules(
    log: ChangeList, ns: int, old: tuple[PolicyRule, ...], new: tuple[PolicyRule, ...]
) -> None:
    ref, where = namespace_ref(ns), log.label(ns)
    for rule in missing_in(new, old):
        log.add("removed", ref, f"routing rule {_rule_text(rule)} is gone from {where}")
    for rule in missing_in(old, new):
        log.add("added", ref, f"routing rule {_rule_text(rule)} appeared in {where}")


def _rule_text(rule: PolicyRule) -> str:
    words = [f"{rule.priority}:", *(["not"] if rule.inverted else []), "from", rule.src or "all"]
    for name, value in (("to", rule.dst), ("iif", rule.iif), ("oif", rule.oif)):
        words += [name, value] if value else []
    words += ["fwmark", hex(rule.fwmark)] if rule.fwmark is not None else []
    words += rule.more
    words += ["lookup", rule.table] if rule.action == "lookup" else [rule.action]
    return " ".join([*words, *([str(rule.goto)] if rule.goto is not None else [])])


def _compare_neighbours(log: ChangeList, ns: int, old: NetState, new: NetState) -> None:
    """Report neighbours that fail or answer again: other states change all the time."""
    before = {(each.ifindex, each.address): each.state for each in old.neighbours}
    for neighbour in new.neighbours:
        was = before.get((neighbour.ifindex, neighbour.address))
        if was in _ANSWERING and neighbour.state == "failed":
            _report_neighbour(log, ns, new, neighbour, "no longer answers")
        elif was == "failed" and neighbour.state in _ANSWERING:
            _report_neighbour(log, ns, new, neighbour, "answers again")


def _report_neighbour(log: ChangeList, ns: int, net: NetState, neighbour: Neighbour, text: str) -> None:
    link = net.links.get(neighbour.ifindex)
    on = f" on {link.name}" if link else ""
    ref = link_ref(LinkKey(ns, neighbour.ifindex))
    log.add("changed", ref, f"neighbour {neighbour.address}{on} in {log.label(ns)} {text}")
