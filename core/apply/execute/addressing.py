"""Addresses, routes and neighbours, by rtnetlink(7)."""

from __future__ import annotations

from typing import Any

from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel
from core.ops import AddAddress, AddNeighbour, AddRoute, DeleteAddress, DeleteNeighbour, DeleteRoute

# include/uapi/linux/if_addr.h, rtnetlink.h
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_FAMILIES = {4: 2, 6: 10}
_PROTOCOLS = {"unspec": 0, "kernel": 2, "boot": 3, "static": 4, "ra": 9, "dhcp": 16}
_SCOPES = {"global": 0, "site": 200, "link": 253, "host": 254, "nowhere": 255}


@execute.register
def _(operation: AddAddress, kernel: Kernel) -> None:
    values = _address(operation, kernel)
    flags = 0 if operation.prefix_route else _IFA_F_NOPREFIXROUTE
    flags |= _IFA_F_NODAD if ":" in operation.address else 0
    values |= {"flags": flags} if flags else {}
    kernel.socket(operation.place).addr("add", **values)


@execute.register
def _(operation: DeleteAddress, kernel: Kernel) -> None:
    kernel.socket(operation.place).addr("del", **_address(operation, kernel))


def _address(operation: AddAddress | DeleteAddress, kernel: Kernel) -> dict[str, Any]:
    host, _, length = operation.address.partition("/")
    values: dict[str, Any] = {"index": kernel.index(operation.place, operation.link)}
    values |= {"address": host, "prefixlen": int(length), "family": 10 if ":" in host else 2}
    if isinstance(operation, AddAddress):
        values |= {"broadcast": operation.broadcast} if operation.broadcast else {}
        values |= {"scope": _number(operation.scope, _SCOPES)} if operation.scope else {}
    return values


@execute.register
def _(operation: AddRoute, kernel: Kernel) -> None:
    # What ip-route(8) fills in: routes to the link itself, IPv4's, are of scope link.
    scope = "link" if operation.family == 4 and not operation.gateway else "global"
    protocol = _number(operation.protocol or "boot", _PROTOCOLS)
    values = _route(operation, kernel) | {
        "proto": protocol,
        "scope": _number(operation.scope or scope, _SCOPES),
    }
    kernel.socket(operation.place).route("add", **values)


@execute.register
def _(operation: DeleteRoute, kernel: Kernel) -> None:
    route = operation.route
    protocol = _number(route.protocol or "unspec", _PROTOCOLS)
    values = _route(route, kernel) | {"proto": protocol, "scope": _number(route.scope or "nowhere", _SCOPES)}
    kernel.socket(route.place).route("del", **values)


def _route(route: AddRoute, kernel: Kernel) -> dict[str, Any]:
    values: dict[str, Any] = {"dst": route.dst, "oif": kernel.index(route.place, route.link)}
    values["family"] = _FAMILIES[route.family]
    optional = {"gateway": route.gateway, "priority": route.metric, "prefsrc": route.source}
    values |= {name: value for name, value in optional.items() if value}
    return values


def _number(word: str, words: dict[str, int]) -> int:
    return words[word] if word in words else int(word)


@execute.register
def _(operation: AddNeighbour, kernel: Kernel) -> None:
    values = {"lladdr": operation.mac, "state": operation.state}
    kernel.socket(operation.place).neigh("replace", **_neighbour(operation, kernel), **values)


@execute.register
def _(operation: DeleteNeighbour, kernel: Kernel) -> None:
    neighbour = operation.neighbour
    kernel.socket(neighbour.place).neigh("del", **_neighbour(neighbour, kernel))


def _neighbour(neighbour: AddNeighbour, kernel: Kernel) -> dict[str, Any]:
    return {
        "dst": neighbour.address,
        "ifindex": kernel.index(neighbour.place, neighbour.link),
        "family": 10 if ":" in neighbour.address else 2,
    }
