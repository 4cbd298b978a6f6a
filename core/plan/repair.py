"""Plan the repair of a finding: each of its steps becomes operations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import singledispatch

from core.model import (
    Address,
    Link,
    LinkKey,
    NetState,
    PortVlan,
    Route,
)
from core.model.fix import (
    FixAddress,
    FixBridge,
    FixConnection,
    FixFdb,
    FixLink,
    FixNeighbour,
    FixPolicyRule,
    FixPort,
    FixRoute,
    FixSysctl,
    FixVlan,
)
from core.operations import (
    AddFdb,
    AddNeighbour,
    AddPolicyRule,
    AddVlan,
    DeleteConnection,
    DeleteFdb,
    DeleteNeighbour,
    DeletePolicyRule,
    DeleteRoute,
    DeleteVlan,
    NetnsTarget,
    SetBridge,
    SetLink,
    SetPort,
    SetPortState,
    SetSysctl,
)
from core.operations.forwarding import FDB_FLAGS, POLICY_SELECTORS
from core.plan.builder import CannotPlan, PlanBuilder, plan_steps, require, when
from core.plan.connectivity import changes_critical_link
from core.plan.requests import Repair
from core.plan.teardown import (
    address_operation,
    as_operation,
    has_gateway,
    is_static_over,
    own_addresses,
    prefix_of,
)
from core.text import safe

GONE = "it no longer exists"
ALREADY = "it is already so: nothing to do"
_CUT_OFF = (
    "the host's default route or your own session uses it: the change is undone after 60 s unless you "
    "confirm it"
)


@plan_steps.register
def plan_repair(request: Repair, builder: PlanBuilder) -> str:
    require(when(not request.steps, "it is only an advice, without steps"))
    for step in request.steps:
        add_fix(step, builder)
    if changes_critical_link(builder.steps, builder.topology, builder.session):
        builder.guarded = True
        builder.warn(_CUT_OFF)
    return safe(request.sentence)


@singledispatch
def add_fix(step: object, builder: PlanBuilder) -> None:
    """Add the operations of one step of a fix. Raises CannotPlan."""
    raise TypeError(f"no repair for {step!r}")


def _find_link(key: LinkKey, builder: PlanBuilder) -> tuple[Link, NetnsTarget]:
    link = builder.snapshot.link(key)
    if link is None:
        raise CannotPlan([GONE])
    return link, builder.netns_target(link.ns)


def _find_net(ns: int, builder: PlanBuilder) -> tuple[NetState, NetnsTarget]:
    net = builder.snapshot.nets.get(ns)
    if net is None:
        raise CannotPlan(["the namespace no longer exists"])
    return net, builder.netns_target(ns)


# ---- links and bridge ports


@add_fix.register
def _(step: FixLink, builder: PlanBuilder) -> None:
    link, place = _find_link(step.key, builder)
    before = _attribute(link, step.attribute, builder)
    require(when(before == step.value, ALREADY))
    if step.attribute == "master":
        net, _ = _find_net(link.ns, builder)
        known = any(one.name == step.value for one in net.links.values())
        require(when(step.value and not known, f"there is no link {safe(step.value)} in {place}"))
    builder.add(SetLink(link.name, step.attribute, step.value, before, place))


def _attribute(link: Link, name: str, builder: PlanBuilder) -> str:
    if name == "up":
        return "up" if link.admin_up else "down"
    if name == "mtu":
        return str(link.mtu)
    if name == "arp":
        return "off" if link.arp_off else "on"
    if name == "address":
        return link.mac
    if name == "master":
        master = builder.snapshot.link((link.ns, link.master)) if link.master is not None else None
        return master.name if master else ""
    raise CannotPlan([f'vnet-tui doesn\'t repair the attribute "{safe(name)}" of a link'])


@add_fix.register
def _(step: FixPort, builder: PlanBuilder) -> None:
    link, place = _find_link(step.key, builder)
    if link.port is None:
        raise CannotPlan([f"{safe(link.name)} isn't a bridge port any more"])
    if step.flag == "state":
        _set_state(link, place, builder)
        return
    before = bool(getattr(link.port, step.flag))
    require(when(before == step.on, ALREADY))
    builder.add(SetPort(link.name, step.flag, step.on, before, place))


def _set_state(link: Link, place: NetnsTarget, builder: PlanBuilder) -> None:
    assert link.port is not None
    bridge = builder.snapshot.link((link.ns, link.master)) if link.master is not None else None
    name = safe(bridge.name) if bridge else ""
    stopped = [one.name for one in builder.steps if isinstance(one, SetBridge) and one.place == place]
    runs_stp = bool(bridge and bridge.bridge and bridge.bridge.stp and bridge.name not in stopped)
    remedy = f"Try: wait 30 s, or vnet-tui bridge set {name} stp_state 0"
    require(
        when(link.port.state == "forwarding", ALREADY),
        when(runs_stp, f"STP of {name} decides the state of its ports. {remedy}"),
        when(not link.carrier, f"{safe(link.name)} has no carrier, so the kernel disables the port"),
    )
    builder.add(SetPortState(link.name, "forwarding", link.port.state, place))


@add_fix.register
def _(step: FixBridge, builder: PlanBuilder) -> None:
    link, place = _find_link(step.key, builder)
    require(when(link.bridge is None or not link.bridge.stp, ALREADY))
    builder.add(SetBridge(link.name, "stp_state", 0, 1, place))


@add_fix.register
def _(step: FixVlan, builder: PlanBuilder) -> None:
    link, place = _find_link(step.key, builder)
    own = link.kind == "bridge"
    held = link.bridge.vlans if own and link.bridge else link.port.vlans if link.port else None
    if held is None:
        raise CannotPlan([f"{safe(link.name)} isn't a bridge port any more"])
    wanted = step.vlan
    overlapping = [shared for one in held if (shared := _shared(one, wanted))]
    require(when(step.add and any(_covers(one, wanted) for one in held), ALREADY))
    require(when(not step.add and not overlapping, GONE))
    for one in overlapping:
        builder.add(DeleteVlan(_vlan(link, one, own, place)))
    if step.add:
        # The kernel lets a port have one PVID: an undo has to restore the other one.
        for one in held:
            if wanted.pvid and one.pvid and not _shared(one, wanted):
                builder.add(
                    DeleteVlan(_vlan(link, one, own, place)),
                    _vlan(link, replace(one, pvid=False), own, place),
                )
        builder.add(_vlan(link, wanted, own, place))


def _vlan(link: Link, vlan: PortVlan, own: bool, place: NetnsTarget) -> AddVlan:
    return AddVlan(link.name, vlan.vid, vlan.vid_end, vlan.pvid, vlan.untagged, own, place)


def _shared(one: PortVlan, other: PortVlan) -> PortVlan | None:
    """Return the VLANs of `one` that are also in `other`."""
    first, last = max(one.vid, other.vid), min(one.vid_end, other.vid_end)
    return replace(one, vid=first, vid_end=last) if first <= last else None


def _covers(one: PortVlan, other: PortVlan) -> bool:
    flags = (one.pvid, one.untagged) == (other.pvid, other.untagged)
    return flags and one.vid <= other.vid and other.vid_end <= one.vid_end


@add_fix.register
def _(step: FixFdb, builder: PlanBuilder) -> None:
    net, place = _find_net(step.ns, builder)
    entry, link = step.entry, net.links.get(step.entry.port)
    require(when(entry not in net.fdb or link is None, GONE))
    assert link is not None
    on_master = entry.bridge is not None and entry.bridge != entry.port
    flags = tuple(one for one in entry.flags if one in FDB_FLAGS)
    made = AddFdb(link.name, entry.mac, on_master, place, entry.vlan or 0, entry.state, entry.dst, flags)
    builder.add(DeleteFdb(made))


# ---- addresses, routes, neighbours, settings

# What an undo sets for the states of neighbours that have a MAC.
_STATES = {one: one for one in ("permanent", "reachable", "stale")} | {"delay": "stale", "probe": "stale"}


@add_fix.register
def _(step: FixAddress, builder: PlanBuilder) -> None:
    link, place = _find_link(step.key, builder)
    same = [one for one in link.addresses if str(one) == str(step.address)]
    if step.add:
        require(when(same, ALREADY))
        builder.add(address_operation(link.name, step.address, place))
        return
    require(when(not same, GONE))
    _delete_address(link, same[0], place, builder)


def _delete_address(link: Link, address: Address, place: NetnsTarget, builder: PlanBuilder) -> None:
    """Plan to delete an address; what the kernel deletes with it is kept, or restored.

    With the first address of an IPv4 subnet it deletes the later ones.
    """
    others = [one for one in own_addresses(link) if one != address and one.family == address.family]
    net = builder.snapshot.nets[link.ns]
    lost = [one for one in net.routes if one.family == address.family and is_static_over(one, link)]
    gone = [one for one in lost if not others or one.source == address.address]
    operations = (as_operation(one, net, place) for one in gone)
    for route in sorted(operations, key=lambda one: not has_gateway(one)):
        builder.add(DeleteRoute(route))
        builder.add_side_effect(f"the route to {route.dst} over it is deleted")
    secondary = _later(link, address)
    for one in reversed(secondary):
        builder.add(*address_operation(link.name, one, place).inverse())
    builder.add(*address_operation(link.name, address, place).inverse())
    builder.add(*(address_operation(link.name, one, place) for one in secondary))
    builder.add(*_wrong_neighbours(link, address, builder))


def _wrong_neighbours(link: Link, address: Address, builder: PlanBuilder) -> Iterator[DeleteNeighbour]:
    """Yield steps that delete neighbour entries of an address that another link has.

    The kernel would use them for up to 40 s more (ip-sysctl.rst, base_reachable_time_ms).
    """
    others = (one for one in builder.snapshot.links() if one.key != link.key)
    if not any(each.address == address.address for one in others for each in one.addresses):
        return
    for net in builder.snapshot.nets.values():
        for one in net.neighbours:
            there = net.links.get(one.ifindex)
            if there and (one.address, one.mac) == (address.address, link.mac) and one.state in _STATES:
                place = builder.netns_target(net.ns)
                yield DeleteNeighbour(
                    AddNeighbour(there.name, one.address, one.mac, place, _STATES[one.state])
                )


def _later(link: Link, address: Address) -> list[Address]:
    """Return the secondary addresses, which the kernel deletes with an address."""
    subnet = [one for one in link.addresses if one.family == 4 and prefix_of(one) == prefix_of(address)]
    return subnet[1:] if subnet[:1] == [address] else []


@add_fix.register
def _(step: FixRoute, builder: PlanBuilder) -> None:
    net, place = _find_net(step.ns, builder)
    deleted = [one.route for one in builder.steps if isinstance(one, DeleteRoute)]
    if step.add:
        same = [one for one in net.routes if _same_way(one, step.route)]
        # The kernel deletes routes with an address: then an earlier step has deleted it.
        require(when(any(as_operation(one, net, place) not in deleted for one in same), ALREADY))
        builder.add(as_operation(step.route, net, place))
        return
    found = next((one for one in net.routes if replace(one, valid_until=0) == step.route), None)
    found = found or next((one for one in net.routes if one == step.route), None)
    if found is None:
        raise CannotPlan([GONE])
    if (route := as_operation(found, net, place)) not in deleted:
        builder.add(DeleteRoute(route))


def _same_way(one: Route, other: Route) -> bool:
    return (one.family, one.dst, one.table, one.kind, one.nexthops) == (
        other.family, other.dst, other.table, other.kind, other.nexthops,
    )  # fmt: skip


@add_fix.register
def _(step: FixPolicyRule, builder: PlanBuilder) -> None:
    net, place = _find_net(step.ns, builder)
    rule = step.rule
    odd = [one for one in rule.more if one.partition(" ")[0] not in POLICY_SELECTORS]
    command = f"ip rule del priority {rule.priority}"
    reason = f"vnet-tui couldn't add the rule again ({', '.join(odd)}). Try: {command}"
    require(when(rule not in net.rules, GONE), when(odd, reason))
    values = {one.name: getattr(rule, one.name) for one in fields(rule)}
    builder.add(DeletePolicyRule(AddPolicyRule(**values, place=place)))


@add_fix.register
def _(step: FixNeighbour, builder: PlanBuilder) -> None:
    net, place = _find_net(step.ns, builder)
    wanted = step.neighbour
    same = (one for one in net.neighbours if (one.ifindex, one.address) == (wanted.ifindex, wanted.address))
    found, link = next(same, None), net.links.get(wanted.ifindex)
    if found is None or link is None:
        raise CannotPlan([GONE])
    require(when(found.proxy, "it is a proxy entry. Try: ip neigh del proxy"))
    mac = found.mac if found.state in _STATES else ""
    state = _STATES.get(found.state, "stale")
    builder.add(DeleteNeighbour(AddNeighbour(link.name, found.address, mac, place, state)))


@add_fix.register
def _(step: FixConnection, builder: PlanBuilder) -> None:
    _, place = _find_net(step.ns, builder)
    ends = (step.src, step.dst, step.l4_proto, step.sport, step.dport)
    builder.add(DeleteConnection(*ends, step.entry_id, place, step.zone))


_LINK_SETTING = re.compile(r"net\.ipv4\.conf\.([^.]+)\.(forwarding|rp_filter)")
_ALL_SETTINGS = {"net.ipv4.ip_forward": 4, "net.ipv6.conf.all.forwarding": 6}


@add_fix.register
def _(step: FixSysctl, builder: PlanBuilder) -> None:
    net, place = _find_net(step.ns, builder)
    before = _setting(step, net, builder)
    require(when(before == step.value, ALREADY))
    if step.key in _ALL_SETTINGS:
        # The kernel sets it for every link, also at the undo.
        builder.add(*_kept_forwarding(net, _ALL_SETTINGS[step.key], place))
    builder.add(SetSysctl(step.key, step.value, before, place))


def _setting(step: FixSysctl, net: NetState, builder: PlanBuilder) -> str:
    """Return the value of a setting in the snapshot, else that of the finding."""
    family, name, ifindex = _ALL_SETTINGS.get(step.key, 0), "forwarding", 0
    if found := _LINK_SETTING.fullmatch(step.key):
        link_name = found[1].replace("/", ".")
        link = next((one for one in net.links.values() if one.name == link_name), None)
        if link is None and link_name not in ("all", "default"):
            raise CannotPlan([f"the link {safe(link_name)} no longer exists"])
        family, name, ifindex = 4, found[2], link.ifindex if link else 0
    for one in net.settings:
        if (one.family, one.ifindex) == (family, ifindex):
            return str(int(getattr(one, name)))
    known = builder.snapshot.host.sysctls if step.ns == builder.topology.host else {}
    return known.get(step.key, step.before)


def _kept_forwarding(net: NetState, family: int, place: NetnsTarget) -> Iterator[SetSysctl]:
    """Yield steps whose undo restores links that forward although it is off for all."""
    for one in net.settings:
        link = net.links.get(one.ifindex)
        if one.family == family and link and one.forwarding:
            key = f"net.ipv{family}.conf.{link.name.replace('.', '/')}.forwarding"
            yield SetSysctl(key, "1", "1", place)
