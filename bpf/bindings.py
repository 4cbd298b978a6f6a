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
_NOWHERE = (0, b"")  # the place of what was at several
# Seconds from one generation to the next: each costs every connection of all others a packet each way, so a
# container that moves its address again and again must not begin one each time.
REST = 0.25

# Family and address; ifindex of the port and MAC.
Address = tuple[int, bytes]
Place = tuple[int, bytes]


@dataclass(slots=True)
class Bindings:
    """Where each address, and each MAC of a bridge, was seen last, for as long as this generation lasts;
    `waits` are the seconds until what moved meanwhile may be taken in, 0 where nothing waits."""

    addresses: dict[Address, Place] = field(default_factory=dict)
    macs: dict[bytes, int] = field(default_factory=dict)
    waits: float = 0.0
    _rests_until: float = 0.0

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
            first = self.addresses.get(address, _NOWHERE)[0]
            for key, ifindex in claimed:
                if ifindex != first:
                    del found.owners[key]
                    found.refused[found.links[ifindex].name] = _why(address)

    def take(self, found: Contents, now: float) -> bool:
        """Note where addresses and MACs are now; whether a new generation must begin, because one is
        elsewhere than before or too many were seen. Soon after the last one it need not: ports that something
        moved to are taken from `found` instead, so that the kernel alone serves them for that long."""
        moved = self._moved(found)
        may_begin = now >= self._rests_until
        if may_begin and (moved or len(self.addresses) > _MOST):
            self.addresses, self.macs = {}, {}
            self._rests_until = now + REST
            self.waits = 0.0
            self._note(found)
            return True
        _leave_out(found, moved)
        self.waits = self._rests_until - now if moved else 0.0
        self._note(found)
        return False

    def _moved(self, found: Contents) -> set[int]:
        """The ports with an address or a MAC that was elsewhere before. That stays so when it goes back where
        it was: its connections may have passed the rules from elsewhere meanwhile."""
        moved = set()
        for key, mac in found.owners.items():
            ifindex, family, address = OWNER_KEY.unpack(key)
            if self.addresses.get((family, address), (ifindex, mac)) != (ifindex, mac):
                moved.add(ifindex)
                self.addresses[family, address] = _NOWHERE
        for key, value in found.macs.items():
            if self.macs.get(key, _port(value)) != _port(value):
                moved.add(_port(value))
                self.macs[key] = _NOWHERE[0]
        return moved

    def _note(self, found: Contents) -> None:
        for key, mac in found.owners.items():
            ifindex, family, address = OWNER_KEY.unpack(key)
            self.addresses[family, address] = (ifindex, mac)
        self.macs |= {key: _port(value) for key, value in found.macs.items()}


def _leave_out(found: Contents, moved: set[int]) -> None:
    """Nobody is known behind these ports."""
    if not moved:
        return
    found.owners = {key: mac for key, mac in found.owners.items() if OWNER_KEY.unpack(key)[0] not in moved}
    found.macs = {key: value for key, value in found.macs.items() if _port(value) not in moved}
    found.behind = [each for each in found.behind if each[0] not in moved]


def _port(value: bytes) -> int:
    """The ifindex in a value of the map `macs`."""
    return int.from_bytes(value[:4], sys.byteorder)


def _why(address: Address) -> str:
    packed = address[1][: 4 if address[0] == socket.AF_INET else 16]
    return f"its address {ipaddress.ip_address(packed)} is another port's as well: the kernel decides"
