"""Addresses, routes and neighbours, by rtnetlink(7)."""

from __future__ import annotations

import time

from core.apply import route, ways
from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel
from core.collect import names
from core.model import LONG_AGO
from core.operations import AddAddress, AddNeighbour, AddRoute, DeleteAddress, DeleteNeighbour, DeleteRoute

# include/uapi/linux/if_addr.h, rtnetlink.h
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200


@execute.register
def _(operation: AddAddress, kernel: Kernel) -> None:
    flags = 0 if operation.prefix_route else _IFA_F_NOPREFIXROUTE
    flags |= _IFA_F_NODAD if ":" in operation.address else 0
    scope = names.scope_number(operation.scope or "global")
    index = kernel.index(operation.place, operation.link)
    lifetimes = _left(operation.valid_until, 1), _left(operation.preferred_until, 0)
    kernel.request(operation.place, route.add_address(operation, index, scope, flags, lifetimes))


def _left(until: int, least: int) -> int:
    """The seconds left until a time of an address."""
    if until == LONG_AGO:
        return 0
    return max(least, round(until - time.time())) if until else route.FOR_EVER


@execute.register
def _(operation: DeleteAddress, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.link)
    kernel.request(operation.place, route.delete_address(index, operation.address, operation.peer))


@execute.register
def _(operation: AddRoute, kernel: Kernel) -> None:
    body = _route(operation, kernel, operation.protocol or "boot", operation.scope or _usual_scope(operation))
    kernel.request(operation.place, route.add_route(body, operation.beside))


@execute.register
def _(operation: DeleteRoute, kernel: Kernel) -> None:
    gone = operation.route
    body = _route(gone, kernel, gone.protocol or "unspec", gone.scope or "nowhere")
    kernel.request(gone.place, route.delete_route(body))


def _usual_scope(operation: AddRoute) -> str:
    """What ip-route(8) fills in: IPv4's routes to the link itself are of scope link."""
    if operation.family == 4 and operation.kind == "local":
        return "host"
    near = operation.family == 4 and not operation.gateway and not operation.hops
    return "link" if near else "global"


def _route(operation: AddRoute, kernel: Kernel, protocol: str, scope: str) -> bytes:
    return ways.body(
        operation,
        lambda link: kernel.index(operation.place, link),
        names.protocol_number(protocol),
        names.scope_number(scope),
    )


@execute.register
def _(operation: AddNeighbour, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.link)
    wanted = route.set_neighbour(index, operation.address, operation.mac, operation.state)
    kernel.request(operation.place, wanted)


@execute.register
def _(operation: DeleteNeighbour, kernel: Kernel) -> None:
    gone = operation.neighbour
    index = kernel.index(gone.place, gone.link)
    kernel.request(gone.place, route.delete_neighbour(index, gone.address))
