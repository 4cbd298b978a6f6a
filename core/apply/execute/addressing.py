"""Addresses, routes and neighbours, by rtnetlink(7)."""

from __future__ import annotations

from core.apply import route
from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel
from core.ops import AddAddress, AddNeighbour, AddRoute, DeleteAddress, DeleteNeighbour, DeleteRoute

# include/uapi/linux/if_addr.h, rtnetlink.h
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_PROTOCOLS = {"unspec": 0, "kernel": 2, "boot": 3, "static": 4, "ra": 9, "dhcp": 16}
_SCOPES = {"global": 0, "site": 200, "link": 253, "host": 254, "nowhere": 255}


@execute.register
def _(operation: AddAddress, kernel: Kernel) -> None:
    flags = 0 if operation.prefix_route else _IFA_F_NOPREFIXROUTE
    flags |= _IFA_F_NODAD if ":" in operation.address else 0
    scope = _number(operation.scope or "global", _SCOPES)
    index = kernel.index(operation.place, operation.link)
    wanted = route.add_address(index, operation.address, operation.broadcast, scope, flags)
    kernel.request(operation.place, wanted)


@execute.register
def _(operation: DeleteAddress, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.link)
    kernel.request(operation.place, route.delete_address(index, operation.address))


@execute.register
def _(operation: AddRoute, kernel: Kernel) -> None:
    # What ip-route(8) fills in: routes to the link itself, IPv4's, are of scope link.
    scope = "link" if operation.family == 4 and not operation.gateway else "global"
    body = _route(operation, kernel, operation.protocol or "boot", operation.scope or scope)
    kernel.request(operation.place, route.add_route(body))


@execute.register
def _(operation: DeleteRoute, kernel: Kernel) -> None:
    gone = operation.route
    body = _route(gone, kernel, gone.protocol or "unspec", gone.scope or "nowhere")
    kernel.request(gone.place, route.delete_route(body))


def _route(operation: AddRoute, kernel: Kernel, protocol: str, scope: str) -> bytes:
    return route.route_body(
        kernel.index(operation.place, operation.link),
        operation.family,
        operation.dst,
        operation.gateway,
        operation.metric,
        operation.source,
        _number(protocol, _PROTOCOLS),
        _number(scope, _SCOPES),
    )


def _number(word: str, words: dict[str, int]) -> int:
    return words[word] if word in words else int(word)


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
