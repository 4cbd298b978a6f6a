"""Links, bridges and bridge ports, by rtnetlink(7)."""

from __future__ import annotations

from typing import Any

from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel
from core.ops import CreateBridge, CreateVeth, DeleteLink, SetBridge, SetLink, SetPort

# ip-link(8)'s and bridge(8)'s words for linux/if_link.h's IFLA_BRPORT_*, as pyroute2 names them.
_PORT_FLAGS = {
    "isolated": "isolated",
    "hairpin": "mode",
    "learning": "learning",
    "flood": "unicast_flood",
    "mcast_flood": "mcast_flood",
    "bcast_flood": "bcast_flood",
    "neigh_suppress": "neigh_suppress",
    "guard": "guard",
    "root_block": "protect",
    "fastleave": "fast_leave",
}


@execute.register
def _(operation: CreateBridge, kernel: Kernel) -> None:
    attributes: dict[str, Any] = {"ifname": operation.name, "kind": "bridge", "mtu": operation.mtu}
    attributes["br_stp_state"] = int(operation.stp)
    if operation.vlan_filtering:
        attributes["br_vlan_filtering"] = 1
    if operation.mac:
        attributes["address"] = operation.mac
    kernel.socket(operation.place).link("add", **attributes)
    _tag(operation, kernel)


@execute.register
def _(operation: CreateVeth, kernel: Kernel) -> None:
    peer: dict[str, Any] = {"ifname": operation.peer, "mtu": operation.mtu}
    if operation.peer_place != operation.place:
        peer["net_ns_fd"] = kernel.descriptor(operation.peer_place)
    if operation.peer_mac:
        peer["address"] = operation.peer_mac
    attributes: dict[str, Any] = {
        "ifname": operation.name,
        "kind": "veth",
        "mtu": operation.mtu,
        "peer": peer,
    }
    if operation.mac:
        attributes["address"] = operation.mac
    kernel.socket(operation.place).link("add", **attributes)
    _tag(operation, kernel)


def _tag(operation: CreateBridge | CreateVeth, kernel: Kernel) -> None:
    """Give a new link its alias: the message that makes a link does not carry it (rtnl_create_link)."""
    if operation.alias:
        index = kernel.index(operation.place, operation.name)
        kernel.socket(operation.place).link("set", index=index, ifalias=operation.alias)


@execute.register
def _(operation: DeleteLink, kernel: Kernel) -> None:
    kernel.socket(operation.place).link("del", index=kernel.index(operation.place, operation.name))


@execute.register
def _(operation: SetLink, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.name)
    values: dict[str, Any]
    match operation.attribute:
        case "up":
            values = {"state": operation.value}
        case "mtu":
            values = {"mtu": int(operation.value)}
        case "master":
            values = {"master": kernel.index(operation.place, operation.value) if operation.value else 0}
        case "alias":
            values = {"ifalias": operation.value}
        case "name":
            values = {"ifname": operation.value}
        case "address":
            values = {"address": operation.value}
        case unknown:
            raise ValueError(f"links have no attribute {unknown!r} to set")
    kernel.socket(operation.place).link("set", index=index, **values)


@execute.register
def _(operation: SetBridge, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.name)
    value = {f"br_{operation.setting}": operation.value}
    kernel.socket(operation.place).link("set", index=index, kind="bridge", **value)


@execute.register
def _(operation: SetPort, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.name)
    flag = {_PORT_FLAGS[operation.flag]: int(operation.on)}
    kernel.socket(operation.place).brport("set", index=index, **flag)
