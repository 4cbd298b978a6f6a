"""Plan the storm guard of networks and ports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from core.model import Link, StormLimits
from core.operations import Operation, SetBridge, SetLink, SetStormGuard
from core.plan.attachments import persist_guard
from core.plan.builder import CannotPlan, PlanBuilder, plan_steps, require, when
from core.plan.connectivity import is_critical_link
from core.plan.guarded_ports import forget, know, limits_of, without_xdp
from core.plan.requests import BlockPorts, GuardStorms
from core.plan.tags import ALIAS_BYTES, VnetMember, VnetNetwork
from core.text import quoted, safe


@plan_steps.register
def plan_guard(request: GuardStorms, builder: PlanBuilder) -> str:
    if request.limits:
        try:
            StormLimits.parse(request.limits)
        except ValueError:
            raise CannotPlan(["rates and burst must be 1 or more"]) from None
    network = _network(request.name, builder)
    if network is not None:
        _guard_network(network, request, builder)
    else:
        _guard_others(request, builder)
    if not builder.steps:
        raise CannotPlan([_nothing_to_do(request)])
    return f"{'guard' if request.limits else 'stop guarding'} {safe(request.name)} against storms"


@plan_steps.register
def plan_block(request: BlockPorts, builder: PlanBuilder) -> str:
    ports = [builder.snapshot.link(key) for key in request.keys]
    for port in ports:
        if port is None or port.port is None:
            raise CannotPlan(["the port no longer exists"])
        builder.guarded |= is_critical_link(port.key, builder)
        # Without STP the kernel makes a blocking port forward again at once.
        builder.add(SetLink(port.name, "up", "down", "up", builder.netns_target(port.ns)))
    return f"block {' and '.join(safe(port.name) for port in ports if port)}"


def _nothing_to_do(request: GuardStorms) -> str:
    return "it is already guarded so" if request.limits else "it isn't guarded"


def _network(name: str, builder: PlanBuilder) -> VnetNetwork | None:
    by_bridge = (one for one in builder.vnet.networks.values() if one.bridge == name)
    return builder.vnet.networks.get(name) or next(by_bridge, None)


def _guard_network(network: VnetNetwork, request: GuardStorms, builder: PlanBuilder) -> None:
    """Guard a network of vnet: its alias says so, for later containers."""
    require(when(network.kind == "ovs", "Open vSwitch has no storm guard. Try: RSTP of ovs-vsctl(8)"))
    bridge = builder.link(network.bridge)
    if bridge is None:
        raise CannotPlan([f"the bridge {network.bridge} doesn't exist yet"])
    after = replace(network, guard=request.limits)
    require(when(len(after.tag().encode()) > ALIAS_BYTES, "the names are too long for the tag of the bridge"))
    if after != network:
        builder.add(SetLink(bridge.name, "alias", after.tag(), network.tag()))
        builder.update_vnet(networks={**builder.vnet.networks, network.name: after})
    members = [one for one in builder.vnet.members if one.network == network.name]
    ours = {network.uplink, *(one.port for one in members)}
    for member in members:
        builder.add(*_switch_known(member, after, builder))
        persist_guard(member, after, builder)
    builder.add(*_switch_querier(bridge, after))
    ports = builder.topology.ports_of(bridge.key)
    _guard_ports(
        [one for one in ports if one.name in ours or request.all_ports or not request.limits],
        request.limits,
        network.uplink,
        builder,
    )
    if request.limits:
        _warn_of_unguarded(bridge, builder)


def _switch_querier(bridge: Link, network: VnetNetwork) -> Iterator[Operation]:
    """Yield the operation that begins or ends the bridge's group queries.

    With a querier it forwards neighbour solicitations only to ports of the solicited-node group (RFC 4541).
    Not in networks that share their segment with others, which may have a querier of their own.
    """
    has_ipv6 = any(":" in subnet for subnet in network.subnets)
    is_alone = network.kind != "overlay" and not network.uplink
    on = bool(network.guard)
    if has_ipv6 and is_alone and bridge.bridge and bridge.bridge.mcast_querier != on:
        yield SetBridge(bridge.name, "mcast_querier", int(on), int(not on))


def _guard_others(request: GuardStorms, builder: PlanBuilder) -> None:
    """Guard a single port, or with `all_ports` those of another bridge."""
    link = builder.link(request.name) or _bridge_of_network(request.name, builder)
    if link.kind != "bridge":
        is_port = link.port is not None or not request.limits
        require(when(not is_port, f"{safe(link.name)} isn't a port of a bridge"))
        _guard_port(link, request.limits, builder)
        return
    if request.limits and not request.all_ports:
        name = quoted(request.name)
        remedy = f"vnet-tui storm guard {name} on --all-ports, or the name of one port"
        raise CannotPlan([f"vnet-tui didn't make its ports. Try: {remedy}"])
    _guard_ports(builder.topology.ports_of(link.key), request.limits, "", builder)
    if request.limits:
        builder.warn("containers that join it later aren't guarded, as vnet-tui didn't make it")


def _bridge_of_network(name: str, builder: PlanBuilder) -> Link:
    found = builder.topology.bridges_named(name)
    require(
        when(not found, "the host has no network, bridge or port of that name"),
        when(len(found) > 1, "several networks have that name. Try: the name of the bridge"),
    )
    return found[0]


def _guard_ports(ports: Sequence[Link], limits: str, uplink: str, builder: PlanBuilder) -> None:
    """Guard ports, only NICs with XDP: on a veth pair it would copy each frame."""
    nics = {one.name for one in ports if not one.kind} | {uplink}
    is_xdp = bool(limits) and StormLimits.parse(limits).xdp
    absent = "none of its ports is a NIC, and only their drivers run XDP. Try: without --xdp"
    require(when(is_xdp and not any(one.name in nics for one in ports), absent))
    for port in ports:
        _guard_port(port, limits if port.name in nics else without_xdp(limits), builder)


def _guard_port(port: Link, limits: str, builder: PlanBuilder) -> None:
    before = limits_of(port, builder)
    if limits.endswith("/xdp") and before != limits:
        builder.warn(f"the driver of {safe(port.name)} may interrupt the link for a moment")
    if before != limits:
        builder.add(SetStormGuard(port.name, limits, before))


def _warn_of_unguarded(bridge: Link, builder: PlanBuilder) -> None:
    guarded = {step.name for step in builder.steps if isinstance(step, SetStormGuard)}
    others = [
        safe(port.name)
        for port in builder.topology.ports_of(bridge.key)
        if port.name not in guarded and not limits_of(port, builder)
    ]
    if others:
        text = ", ".join(others)
        builder.warn(f"not guarded, as vnet-tui didn't attach them: {text}. Try: --all-ports")


def _switch_known(member: VnetMember, network: VnetNetwork, builder: PlanBuilder) -> Iterator[Operation]:
    """Yield the operations by which the bridge knows a container, or forgets it."""
    port = builder.link(member.port)
    inner = builder.topology.peer(port) if port else None
    if port is None or port.port is None or inner is None:
        return
    if not network.guard:
        yield from forget(member, network, port, builder)
    elif not port.port.proxy_arp_wifi:
        yield from know(member, network, inner.mac)
