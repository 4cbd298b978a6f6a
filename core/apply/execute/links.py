"""Links, bridges and bridge ports, by rtnetlink(7)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from core.apply import route
from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel
from core.operations import (
    AddVlan,
    CreateBridge,
    CreateVeth,
    DeleteLink,
    DeleteVlan,
    SetBridge,
    SetLink,
    SetPort,
)

_NO_VLANS = (
    "the bridges of this kernel know no VLANs: it was built without CONFIG_BRIDGE_VLAN_FILTERING "
    "(make it without VLAN filtering, a network for each VLAN, or boot another kernel)"
)


@execute.register
def _(operation: CreateBridge, kernel: Kernel) -> None:
    settings = {"stp_state": int(operation.stp)}
    if operation.vlan_filtering:
        settings["vlan_filtering"] = 1
    wanted = route.make_bridge(operation.name, operation.mtu, operation.mac, settings)
    with _vlans_needed(operation.vlan_filtering):
        kernel.request(operation.place, wanted)
    _tag(operation, kernel)


@contextmanager
def _vlans_needed(needed: bool) -> Iterator[None]:
    """Say what a kernel lacks that refuses because of VLANs."""
    try:
        yield
    except OSError as error:
        if needed and error.errno == errno.EOPNOTSUPP:
            raise OSError(error.errno, _NO_VLANS) from error
        raise


@execute.register
def _(operation: CreateVeth, kernel: Kernel) -> None:
    elsewhere = operation.peer_place != operation.place
    wanted = route.make_veth(
        operation.name,
        operation.peer,
        operation.mtu,
        operation.mac,
        operation.peer_mac,
        kernel.descriptor(operation.peer_place) if elsewhere else None,
    )
    kernel.request(operation.place, wanted)
    _tag(operation, kernel)


def _tag(operation: CreateBridge | CreateVeth, kernel: Kernel) -> None:
    """Give a new link its alias: the message that makes a link does not carry it (rtnl_create_link)."""
    if operation.alias:
        index = kernel.index(operation.place, operation.name)
        kernel.request(operation.place, route.set_alias(index, operation.alias))


@execute.register
def _(operation: DeleteLink, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.name)
    kernel.request(operation.place, route.delete_link(index))


@execute.register
def _(operation: SetLink, kernel: Kernel) -> None:
    kernel.request(operation.place, _setting(operation, kernel))


def _setting(operation: SetLink, kernel: Kernel) -> route.Request:
    index, value = kernel.index(operation.place, operation.name), operation.value
    match operation.attribute:
        case "up":
            return route.set_up(index, value == "up")
        case "mtu":
            return route.set_mtu(index, int(value))
        case "master":
            return route.set_master(index, kernel.index(operation.place, value) if value else 0)
        case "alias":
            return route.set_alias(index, value)
        case "name":
            return route.set_name(index, value)
        case "address":
            return route.set_mac(index, value)
        case unknown:
            raise ValueError(f"links have no attribute {unknown!r} to set")


@execute.register
def _(operation: SetBridge, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.name)
    with _vlans_needed("vlan" in operation.setting):
        kernel.request(operation.place, route.set_bridge(index, operation.setting, operation.value))


@execute.register
def _(operation: SetPort, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.name)
    kernel.request(operation.place, route.set_port(index, operation.flag, operation.on))


@execute.register
def _(operation: AddVlan, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.name)
    kernel.request(operation.place, route.set_vlan(index, operation, there=True))


@execute.register
def _(operation: DeleteVlan, kernel: Kernel) -> None:
    gone = operation.vlan
    index = kernel.index(gone.place, gone.name)
    kernel.request(gone.place, route.set_vlan(index, gone, there=False))
