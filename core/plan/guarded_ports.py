"""Find the storm guard of a bridge port, and what a new port needs.

A loop leads a container's own frames back by another port, and the bridge would send its packets there: a
sticky forwarding entry keeps its MAC address at its port. With ARP_FLAG the bridge answers ARP requests for
the container itself, from its neighbour table, and doesn't forward them to ports with this flag
(net/bridge/br_arp_nd_proxy.c). The neighbour is a stale one: the kernel still follows a changed MAC address.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from core.model import Link, StormLimits
from core.operations import (
    AddFdb,
    AddNeighbour,
    DeleteFdb,
    DeleteNeighbour,
    Operation,
    SetPort,
    SetStormGuard,
)
from core.plan.builder import PlanBuilder
from core.plan.tags import VnetMember, VnetNetwork

ARP_FLAG = "proxy_arp_wifi"
_STICKY = "sticky"
_KNOWN = ("reachable", "stale", "delay", "probe")


def limits_of(port: Link, builder: PlanBuilder) -> str:
    """Return the limits of a port's storm guard, "" for none."""
    found = (one for one in builder.snapshot.storm_guards if (one.ns, one.ifindex) == port.key)
    return next((str(one.limits) for one in found), "")


def without_xdp(limits: str) -> str:
    """Return limits as text for a port that isn't a NIC."""
    return str(replace(StormLimits.parse(limits), xdp=False)) if limits else ""


def guard_new_port(member: VnetMember, network: VnetNetwork, mac: str) -> Iterator[Operation]:
    """Yield the operations that guard a new port, before it is set up."""
    if network.guard:
        yield from know(member, network, mac)
        # It takes over which MAC addresses the bridge knows there.
        yield SetStormGuard(member.port, without_xdp(network.guard), "")


def know(member: VnetMember, network: VnetNetwork, mac: str) -> Iterator[Operation]:
    """Yield the operations that make the bridge know the container at a port."""
    if network.evpn:
        return  # it does: FRRouting announces what it knows
    yield AddFdb(member.port, mac, True, flags=(_STICKY,))
    yield SetPort(member.port, ARP_FLAG, True, False)
    for address in member.addresses:
        if ":" not in address:
            ip = address.partition("/")[0]
            yield AddNeighbour(network.bridge, ip, mac, state="stale", extern_learn=True)


def forget(member: VnetMember, network: VnetNetwork, port: Link, builder: PlanBuilder) -> Iterator[Operation]:
    """Yield the operations that undo `know` for an attached container."""
    if port.port is None or not port.port.proxy_arp_wifi:
        return
    bridge, inner = builder.link(network.bridge), builder.topology.peer(port)
    addresses = {address.partition("/")[0] for address in member.addresses if ":" not in address}
    for one in builder.host.neighbours if bridge else ():
        is_ours = bridge and one.ifindex == bridge.ifindex and one.address in addresses
        if is_ours and one.mac and one.state in _KNOWN:
            added = AddNeighbour(network.bridge, one.address, one.mac, state="stale", extern_learn=True)
            yield DeleteNeighbour(added)
    yield SetPort(port.name, ARP_FLAG, False, True)
    sticky = {one.mac for one in builder.host.fdb if one.port == port.ifindex and _STICKY in one.flags}
    for mac in sorted(sticky or ({inner.mac} if inner else ())):
        yield DeleteFdb(AddFdb(port.name, mac, True, flags=(_STICKY,)))
