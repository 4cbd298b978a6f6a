"""Which port and MAC stand behind each address of the containers, under one generation of the rules.

A rule may look at the source MAC or the bridge port, which are not in a connection's tuple: where an address
or a MAC moves to another port, its connections must pass the rules again. And where two ports claim one
address, the first keeps it: a container must not send in another's connections (the kernel decides about the
second).
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from dataclasses import dataclass, field

from bpf.ports import OWNER_KEY, Contents

_MOST = 1 << 16  # remembered, gone ones among them

# Family and address; ifindex of the port and MAC.
Address = tuple[int, bytes]
Place = tuple[int, bytes]


@dataclass(slots=True)
class Bindings:
    """Where each address, and each MAC of a bridge, was seen last, for as long as this generation lasts."""

    addresses: dict[Address, Place] = field(default_factory=dict)
    macs: dict[bytes, int] = field(default_factory=dict)

    def settle_claims(self, found: Contents) -> None:
        """Take from `found.owners` every claim of an address that another port had before, or that several
        ports make at once; `found.refused` names those ports."""
        claims: dict[Address, list[tuple[bytes, int]]] = {}
        for key in found.owners:
            ifindex, family, address = OWNER_KEY.unpack(key)
            claims.setdefault((family, address), []).append((key, ifindex))
        for address, claimed in claims.items():
            if len(claimed) == 1:
                continue
            first = self.addresses.get(address, (0, b""))[0]
            for key, ifindex in claimed:
                if ifindex != first:
                    del found.owners[key]
                    found.refused[found.links[ifindex].name] = _why(address)

    def take(self, found: Contents) -> bool:
        """Note where addresses and MACs are now; whether one is elsewhere than before, or too many were
        seen."""
        moved = len(self.addresses) > _MOST
        for key, mac in found.owners.items():
            ifindex, family, address = OWNER_KEY.unpack(key)
            place = (ifindex, mac)
            moved |= self.addresses.get((family, address), place) != place
            self.addresses[family, address] = place
        for key, value in found.macs.items():
            port = int.from_bytes(value[:4], sys.byteorder)
            moved |= self.macs.get(key, port) != port
            self.macs[key] = port
        return moved

    def begin(self, found: Contents) -> None:
        """A new generation: only what is there now counts."""
        self.addresses, self.macs = {}, {}
        self.take(found)


def _why(address: Address) -> str:
    packed = address[1][: 4 if address[0] == socket.AF_INET else 16]
    return f"its address {ipaddress.ip_address(packed)} is another port's as well: the kernel decides"
