"""Doing operations: each kind's one way into the kernel or the Docker Engine."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from functools import singledispatch
from pathlib import Path
from typing import Any

from core.apply.kernel import Kernel
from core.collect.netns import HOST_PATH, entered
from core.ops import (
    AddAddress,
    AddRoute,
    CreateBridge,
    CreateNamespace,
    CreateVeth,
    DeleteAddress,
    DeleteLink,
    DeleteNamespace,
    DeleteRoute,
    JoinNamespace,
    LeaveNamespace,
    Operation,
    Place,
    SetBridge,
    SetLink,
    SetPort,
    SetRules,
    SetSysctl,
)

_NETNS_DIRECTORY = Path("/run/netns")
_MS_BIND, _MNT_DETACH = 4096, 2
_NFT_TIMEOUT = 20.0
_IFA_F_NODAD = 0x02
_libc = ctypes.CDLL(None, use_errno=True)


@singledispatch
def execute(operation: Operation, kernel: Kernel) -> None:
    """Do one operation. Raises OSError, LookupError, NamespaceGone or what the engine's client raises."""
    raise TypeError(f"no way to do {operation!r}")


@execute.register
def _(operation: CreateNamespace, kernel: Kernel) -> None:
    path = _NETNS_DIRECTORY / operation.name
    done = subprocess.run(["ip", "netns", "add", operation.name], capture_output=True, text=True, check=False)
    if done.returncode:
        number = errno.EEXIST if path.exists() else errno.EPERM
        raise OSError(number, done.stderr.strip() or "ip netns add failed")


@execute.register
def _(operation: DeleteNamespace, kernel: Kernel) -> None:
    kernel.forget(Place(operation.name))
    _unmount(operation.name)


@execute.register
def _(operation: LeaveNamespace, kernel: Kernel) -> None:
    kernel.forget(Place(operation.name))
    _unmount(operation.name)


@execute.register
def _(operation: JoinNamespace, kernel: Kernel) -> None:
    path = _NETNS_DIRECTORY / operation.name
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    source = os.fsencode(_NETNS_DIRECTORY / operation.of)
    if _libc.mount(source, os.fsencode(path), b"none", _MS_BIND, None):
        number = ctypes.get_errno()
        path.unlink()
        raise OSError(number, f"mounting the namespace of {operation.of}: {os.strerror(number)}")


def _unmount(name: str) -> None:
    path = _NETNS_DIRECTORY / name
    if _libc.umount2(os.fsencode(path), _MNT_DETACH):
        number = ctypes.get_errno()
        if number != errno.EINVAL:  # EINVAL: the name is there, its mount is gone already
            raise OSError(number, f"{path}: {os.strerror(number)}")
    path.unlink()


@execute.register
def _(operation: CreateBridge, kernel: Kernel) -> None:
    attributes: dict[str, Any] = {"ifname": operation.name, "kind": "bridge", "mtu": operation.mtu}
    attributes["br_stp_state"] = int(operation.stp)
    if operation.vlan_filtering:
        attributes["br_vlan_filtering"] = 1
    if operation.mac:
        attributes["address"] = operation.mac
    if operation.alias:
        attributes["ifalias"] = operation.alias
    kernel.socket(operation.place).link("add", **attributes)


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
    if operation.alias:
        attributes["ifalias"] = operation.alias
    kernel.socket(operation.place).link("add", **attributes)


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
        case attribute:
            values = {attribute: operation.value}
    kernel.socket(operation.place).link("set", index=index, **values)


@execute.register
def _(operation: SetBridge, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.name)
    value = {f"br_{operation.setting}": operation.value}
    kernel.socket(operation.place).link("set", index=index, kind="bridge", **value)


@execute.register
def _(operation: SetPort, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.name)
    kernel.socket(operation.place).brport(
        "set", index=index, **{_PORT_FLAGS[operation.flag]: int(operation.on)}
    )


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
def _(operation: AddAddress, kernel: Kernel) -> None:
    _change_address("add", operation.place, operation.link, operation.address, kernel)


@execute.register
def _(operation: DeleteAddress, kernel: Kernel) -> None:
    _change_address("del", operation.place, operation.link, operation.address, kernel)


def _change_address(verb: str, place: Place, link: str, address: str, kernel: Kernel) -> None:
    host, _, length = address.partition("/")
    values: dict[str, Any] = {"index": kernel.index(place, link), "address": host, "prefixlen": int(length)}
    if ":" in host:
        values["family"] = 10
        if verb == "add":
            values["flags"] = _IFA_F_NODAD
    kernel.socket(place).addr(verb, **values)


@execute.register
def _(operation: AddRoute, kernel: Kernel) -> None:
    _change_route("add", operation, kernel)


@execute.register
def _(operation: DeleteRoute, kernel: Kernel) -> None:
    _change_route("del", operation.route, kernel)


def _change_route(verb: str, route: AddRoute, kernel: Kernel) -> None:
    values: dict[str, Any] = {"dst": route.dst, "oif": kernel.index(route.place, route.link)}
    values["family"] = 10 if route.family == 6 else 2
    optional = {"gateway": route.gateway, "priority": route.metric, "prefsrc": route.source}
    values |= {name: value for name, value in optional.items() if value}
    for name, value, words in (("proto", route.protocol, _PROTOCOLS), ("scope", route.scope, _SCOPES)):
        if value:
            values[name] = words[value] if value in words else int(value)
    kernel.socket(route.place).route(verb, **values)


# include/uapi/linux/rtnetlink.h
_PROTOCOLS = {"kernel": 2, "boot": 3, "static": 4, "ra": 9, "dhcp": 16}
_SCOPES = {"global": 0, "site": 200, "link": 253, "host": 254}


@execute.register
def _(operation: SetRules, kernel: Kernel) -> None:
    with entered(operation.place.path or HOST_PATH):
        done = subprocess.run(
            ["nft", "-f", "-"],
            input=operation.text,
            capture_output=True,
            text=True,
            timeout=_NFT_TIMEOUT,
            check=False,
        )
    if done.returncode:
        raise OSError(errno.EINVAL, f"nft: {done.stderr.strip()}")


@execute.register
def _(operation: SetSysctl, kernel: Kernel) -> None:
    # sysctl(8): dots part the key, and a slash stands for a dot within a part.
    parts = (part.replace("/", ".") for part in operation.key.split("."))
    with entered(operation.place.path or HOST_PATH):
        Path("/proc/sys", *parts).write_text(operation.value)
