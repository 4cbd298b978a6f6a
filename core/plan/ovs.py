"""Plan networks on bridges of Open vSwitch: create, connect, change and delete.

An OVS network has the rules of a NAT network. Its containers may be in VLANs: those with a VLAN only reach
others with the same one, as the host's own link is in none.
"""

from __future__ import annotations

from collections.abc import Iterator

from core.model import Link, OvsBridge, OvsPort
from core.operations import (
    NetnsTarget,
    Operation,
    OvsAddBridge,
    OvsAddPort,
    OvsDeleteBridge,
    OvsDeletePort,
    OvsSetMtu,
    SetLink,
    SetOffloads,
)
from core.plan.builder import CannotPlan, PlanBuilder, require, when
from core.plan.requests import DATAPATHS, CreateNetwork
from core.plan.tags import VnetMember, VnetNetwork
from core.text import safe

KIND = "ovs"
MOST_VLAN = 4094
# Ports in user space get packets as they are, and the kernel leaves their checksums to a network card.
_CHECKSUM = "tx-checksum-ip-generic"
# The kinds of interfaces that OvsAddPort can add again.
_PLAIN = ("system",)


def check_request(request: CreateNetwork, builder: PlanBuilder) -> None:
    """Check what only OVS networks have. Raises CannotPlan."""
    if request.kind != KIND:
        require(when(request.datapath, "only an OVS network has a datapath. Try: --kind ovs"))
        return
    names = {port.name for bridge in builder.snapshot.ovs for port in bridge.ports}
    require(
        unreadable(builder),
        when(request.datapath not in ("", *DATAPATHS), f'unknown datapath "{safe(request.datapath)}"'),
        when(request.vlan_filtering, "Open vSwitch always filters VLANs. Try: no --vlan-filtering"),
        when(request.bridge in names, f"Open vSwitch already has a port {safe(request.bridge)}"),
    )


def unreadable(builder: PlanBuilder) -> str:
    """Return why Open vSwitch can't be used, "" if it was read."""
    problem = next((one for one in builder.snapshot.problems if one.part == "ovs"), None)
    if problem is None:
        return ""
    if "connection failed" in problem.why:
        return "Open vSwitch isn't running. Try: systemctl start openvswitch-switch"
    return f"Open vSwitch can't be read: {safe(problem.why)}. Try: {problem.try_}"


def create_bridge(network: VnetNetwork, mac: str) -> OvsAddBridge:
    """Return the operation that creates a network's bridge."""
    return OvsAddBridge(network.bridge, network.tag(), network.datapath or "system", mac, network.mtu)


def connect_port(network: VnetNetwork, port: str, vlan: int = 0) -> Operation:
    """Return the operation that makes a link a port of a network's bridge."""
    if network.kind == KIND:
        return OvsAddPort(network.bridge, port, vlan)
    return SetLink(port, "master", network.bridge, "")


def vlan_fault(vlan: int, network: VnetNetwork) -> str:
    """Return why a container can't be in a VLAN of the network, or ""."""
    if not vlan:
        return ""
    if network.kind != KIND:
        return "only containers on an OVS network have a VLAN. Try: vnet-tui network create NAME --kind ovs"
    return "" if 0 < vlan <= MOST_VLAN else f"the VLAN {vlan} is out of range (1 to {MOST_VLAN})"


def inner_steps(network: VnetNetwork, inner: str, place: NetnsTarget) -> Iterator[Operation]:
    """Yield the steps that a container's link needs for a datapath in user space."""
    if network.kind == KIND and network.datapath == "netdev":
        yield SetOffloads(inner, ((_CHECKSUM, False),), ((_CHECKSUM, True),), place)


def disconnect_steps(member: VnetMember, place: NetnsTarget, builder: PlanBuilder) -> Iterator[Operation]:
    """Yield the steps whose undo restores what `inner_steps` does."""
    network = builder.before.networks.get(member.network)
    for step in inner_steps(network, member.link, place) if network else ():
        yield from step.inverse()


def port_release(builder: PlanBuilder, link: Link) -> OvsDeletePort | None:
    """Return the operation that detaches a link from Open vSwitch, if it is a port.

    Raises CannotPlan if an undo couldn't restore the port, and if it may be one but wasn't read.
    """
    places = builder.topology.ovs_ports_of(link)
    found = [(bridge, port) for bridge, port in places if port.name != bridge.name]
    if not places:
        master = builder.snapshot.link((link.ns, link.master)) if link.master is not None else None
        if master is not None and master.kind == "ovs-port":
            why = unreadable(builder) or "its entry in the database is missing. Try: ovs-vsctl show"
            raise CannotPlan([f"{safe(link.name)} is a port of Open vSwitch: {why}"])
    if not found:
        return None
    bridge, port = found[0]
    if len(found) > 1 or not _can_restore(port):
        raise CannotPlan([_irreplaceable(bridge, port)])
    return OvsDeletePort(bridge.name, port.name, _again(bridge, port))


def _can_restore(port: OvsPort) -> bool:
    kinds = {one.kind for one in port.interfaces}
    return not port.is_bond and not port.vlan_mode and kinds <= set(_PLAIN)


def _irreplaceable(bridge: OvsBridge, port: OvsPort) -> str:
    name, kind = safe(port.name), "bond" if port.is_bond else safe(port.interfaces[0].kind)
    return (
        f"{safe(bridge.name)} has the port {name} ({kind}), which an undo couldn't restore. "
        f"Try: ovs-vsctl del-port {safe(bridge.name)} {name}"
    )


def _again(bridge: OvsBridge, port: OvsPort) -> OvsAddPort:
    return OvsAddPort(bridge.name, port.name, port.tag or 0, port.trunks)


def lost_ports(network: VnetNetwork, builder: PlanBuilder) -> set[str]:
    """Return the ports of an OVS network's bridge that lost their links."""
    bridge = _bridge(network.bridge, builder)
    used = {member.port for member in builder.vnet.members}
    return {port.name for port in (bridge.ports if bridge else ()) if is_lost(port)} - used


def replaced_port(network: VnetNetwork, port: str) -> tuple[Operation, ...]:
    """Return the operation that removes a port's entry, which outlives its link.

    ovs-vswitchd would send by the old link, so it must not be replaced in one transaction.
    """
    return (OvsDeletePort(network.bridge, port),) if network.kind == KIND else ()


def is_lost(port: OvsPort) -> bool:
    """Return whether the link of a port is gone, such as that of an ended container."""
    return all(one.kind in _PLAIN and one.ifindex is None for one in port.interfaces)


def release_others(network: VnetNetwork, builder: PlanBuilder) -> None:
    """Plan to detach the ports of a network's bridge that vnet didn't attach."""
    bridge = _bridge(network.bridge, builder)
    ports = {member.port for member in builder.before.members}
    for port in bridge.ports if bridge else ():
        if bridge is None or port.name in (network.bridge, *ports):
            continue
        if not _can_restore(port):
            raise CannotPlan([_irreplaceable(bridge, port)])
        if not is_lost(port):
            builder.add_side_effect(
                f"{safe(port.name)}, which vnet-tui didn't attach, is detached from {network.bridge}"
            )
            builder.add(OvsDeletePort(bridge.name, port.name, _again(bridge, port)))


def delete_bridge(builder: PlanBuilder, link: Link) -> None:
    """Plan to delete an OVS bridge without ports, whose own link is empty."""
    bridge = builder.topology.ovs_bridge(link)
    if bridge is None:
        raise CannotPlan([unreadable(builder) or f"{safe(link.name)} is no bridge of Open vSwitch"])
    if bridge.controllers or bridge.fail_mode or bridge.stp or bridge.rstp:
        builder.add_side_effect("its OpenFlow controllers and settings, which an undo doesn't restore")
    again = OvsAddBridge(link.name, bridge.external_ids.get("vnet", ""), bridge.datapath, link.mac, link.mtu)
    builder.add(OvsDeleteBridge(link.name, again))


def _bridge(name: str, builder: PlanBuilder) -> OvsBridge | None:
    return next((one for one in builder.snapshot.ovs if one.name == name), None)


def mtu_step(link: Link, mtu: int, place: NetnsTarget, builder: PlanBuilder) -> Operation:
    """Return the operation that sets the MTU of a link or an OVS bridge."""
    if builder.topology.ovs_bridge(link) is not None:
        return OvsSetMtu(link.name, mtu, link.mtu)
    return SetLink(link.name, "mtu", str(mtu), str(link.mtu), place)
