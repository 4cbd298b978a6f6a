"""Compare links, their addresses and bridge ports; routes, rules and neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

from core.diff.changelist import ChangeList, Topic, in_both, missing_in
from core.model import (
    BridgePort,
    BridgeSettings,
    Link,
    LinkKey,
    Neighbour,
    NetState,
    PolicyRule,
    Route,
    link_ref,
    namespace_ref,
)
from core.text import range_text

_UNNAMED_KINDS = ("physical", "loopback", "")


def link_text(link: Link) -> str:
    """Name a link with its kind: "veth v-web1", "link eth0"."""
    return f"{'link' if link.kind in _UNNAMED_KINDS else link.kind} {link.name}"


_WEAK = 2  # the weight of what seldom breaks traffic
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
        f"links are gone from {where}", namespace_ref(ns), Topic.STATE,
    )  # fmt: skip
    log.add_each(
        "added", [(link_ref(link.key), _appeared(link, new, where)) for link in added],
        f"links appeared in {where}", namespace_ref(ns), Topic.STATE, _WEAK,
    )  # fmt: skip
    for index in sorted(same):
        before, after = old.links[index], new.links[index]
        if before is not after and before != after:
            for topic, weight, sentence in _differences(before, after, old, new, where):
                log.add("changed", link_ref(after.key), sentence, topic, weight)


def _appeared(link: Link, net: NetState, where: str) -> str:
    addresses = f" with {', '.join(_configured(link))}" if _configured(link) else ""
    port = f" as a port of {_master(link, net)}" if link.master is not None else ""
    return f"{link_text(link)} appeared in {where}{port}{addresses}"


def _differences(
    old: Link, new: Link, before: NetState, after: NetState, where: str
) -> Iterator[tuple[Topic, int, str]]:
    """Yield topic, weight and sentence of each difference of a link."""
    name = f"{link_text(new)} in {where}"
    if old.name != new.name:
        yield Topic.OTHER, 0, f"{link_text(old)} in {where} was renamed to {new.name}"
    yield from _state_changes(old, new, name)
    if old.mtu != new.mtu:
        yield Topic.MTU, 0, f"the MTU of {name} changed from {old.mtu} to {new.mtu}"
    if old.sizes.gso != new.sizes.gso:
        sizes = f"from {old.sizes.gso} to {new.sizes.gso} bytes"
        yield Topic.SETTING, 0, f"gso_max_size of {name} changed {sizes}"
    if old.mac != new.mac:
        macs = f"from {old.mac or 'none'} to {new.mac or 'none'}"
        yield Topic.ADDRESS, 1, f"the MAC address of {name} changed {macs}"
    if old.alias != new.alias:
        aliases = f"from {old.alias or 'none'} to {new.alias or 'none'}"
        yield Topic.OTHER, 0, f"the alias of {name} changed {aliases}"
    if old.master != new.master:
        yield Topic.STATE, 0, _moved(old, new, before, after, name)
    yield from _addresses(old, new, name)
    if old.port and new.port:
        follows = old.admin_up != new.admin_up
        port = replace(old.port, state=new.port.state) if follows else old.port
        settings = _settings(port, new.port, f"port {new.name} of {_master(new, after)} in {where}")
        yield from ((Topic.BRIDGE, 0, each) for each in settings)
    if old.bridge and new.bridge:
        yield from ((Topic.BRIDGE, 0, each) for each in _settings(old.bridge, new.bridge, name))


def _state_changes(old: Link, new: Link, name: str) -> Iterator[tuple[Topic, int, str]]:
    """Yield changes of the state, without those that follow from another."""
    toggled = old.admin_up != new.admin_up
    if toggled:
        yield Topic.STATE, _WEAK * new.admin_up, f"{name} was set {'up' if new.admin_up else 'down'}"
    if old.state != new.state and not (toggled and new.state == ("up" if new.admin_up else "down")):
        state = f"{name} is {_STATES.get(new.state, new.state)} (was {old.state})"
        yield Topic.STATE, _WEAK if new.state == "up" else 1, state


def _moved(old: Link, new: Link, before: NetState, after: NetState, name: str) -> str:
    if new.master is None:
        return f"{name} is no longer a port of {_master(old, before)}"
    if old.master is None:
        return f"{name} became a port of {_master(new, after)}"
    return f"{name} moved from {_master(old, before)} to {_master(new, after)}"


def _master(link: Link, net: NetState) -> str:
    master = net.links.get(link.master or 0)
    return master.name if master else f"the link with index {link.master}"


def _addresses(old: Link, new: Link, name: str) -> Iterator[tuple[Topic, int, str]]:
    before, after = _configured(old), _configured(new)
    for address in missing_in(before, after):
        yield Topic.ADDRESS, 1, f"{name} got the address {address}"
    for address in missing_in(after, before):
        yield Topic.ADDRESS, 0, f"{name} lost the address {address}"


def _configured(link: Link) -> list[str]:
    """Return the addresses but the link-local ones, which the kernel adds itself."""
    return [str(address) for address in link.addresses if address.scope != "link"]


def _settings[Kind: (BridgePort, BridgeSettings)](old: Kind, new: Kind, name: str) -> Iterator[str]:
    for field in fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after and field.name not in _IGNORED:
            yield f"{field.name} of {name} changed from {value_text(before)} to {value_text(after)}"
    if old.vlans != new.vlans:
        yield f"the VLANs of {name} changed from {_vlans(old)} to {_vlans(new)}"


def _vlans(holder: BridgePort | BridgeSettings) -> str:
    ranges = (range_text(one.vid, one.vid_end) for one in holder.vlans)
    return ",".join(ranges) or "none"


def value_text(value: Any) -> str:
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
    before, after = configured_routes(old.routes), configured_routes(new.routes)
    ref, where = namespace_ref(ns), log.label(ns)
    removed = [old.route_text(before[key]) for key in before if key not in after]
    added = [new.route_text(after[key]) for key in after if key not in before]
    log.add_each("removed", [(ref, f"route {route} is gone from {where}") for route in removed],
                 f"routes are gone from {where}", ref, Topic.ROUTE)  # fmt: skip
    log.add_each("added", [(ref, f"route {route} appeared in {where}") for route in added],
                 f"routes appeared in {where}", ref, Topic.ROUTE)  # fmt: skip
    for key in after:
        if key in before and (was := old.route_text(before[key])) != (now := new.route_text(after[key])):
            log.add("changed", ref, f"route {was} in {where} changed to {now}", Topic.ROUTE)


def configured_routes(routes: Iterable[Route]) -> dict[RouteKey, Route]:
    """Map the configured routes by key; the kernel's own only follow addresses."""
    return {
        (route.family, route.dst, route.kind, route.table, route.metric): route
        for route in routes
        if route.table != "local" and route.protocol != "kernel"
    }


def _compare_rules(
    log: ChangeList, ns: int, old: tuple[PolicyRule, ...], new: tuple[PolicyRule, ...]
) -> None:
    ref, where = namespace_ref(ns), log.label(ns)
    for rule in missing_in(new, old):
        sentence = f"routing rule {rule} is gone from {where}"
        log.add("removed", ref, sentence, Topic.POLICY_RULE)
    for rule in missing_in(old, new):
        sentence = f"routing rule {rule} appeared in {where}"
        log.add("added", ref, sentence, Topic.POLICY_RULE)


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
    sentence = f"neighbour {neighbour.address}{on} in {log.label(ns)} {text}"
    log.add("changed", ref, sentence, Topic.NEIGHBOUR)
