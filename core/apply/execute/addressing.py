"""Addresses, routes and neighbours, by rtnetlink(7)."""

from __future__ import annotations

from typing import Any

from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel
from core.ops import AddAddress, AddNeighbour, AddRoute, DeleteAddress, DeleteNeighbour, DeleteRoute

# include/uapi/linux/if_addr.h, rtnetlink.h
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_FAMILIES = {4: 2, 6: 10}
_PROTOCOLS = {"kernel": 2, "boot": 3, "static": 4, "ra": 9, "dhcp": 16}
_SCOPES = {"global": 0, "site": 200, "link": 253, "host": 254}


@execute.register
def _(operation: AddAddress, kernel: Kernel) -> None:
    values = _address(operation, kernel)
    six = ":" in operation.address
    values["flags"] = (_IFA_F_NODAD if six else 0) | (0 if operation.prefix_route else _IFA_F_NOPREFIXROUTE)
    if operation.broadcast:
        values["broadcast"] = operation.broadcast
    if operation.lifetime:
        preferred = min(operation.lifetime, operation.preferred or operation.lifetime)
        values["cacheinfo"] = {"ifa_preferred": preferred, "ifa_valid": operation.lifetime}
    kernel.socket(operation.place).addr("add", **values)


@execute.register
def _(operation: DeleteAddress, kernel: Kernel) -> None:
    kernel.socket(operation.address.place).addr("del", **_address(operation.address, kernel))
