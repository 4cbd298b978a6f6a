"""Define a fault of the demo lab as a value: its commands, probe and culprit."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

from core.lab.blueprint import CONTAINERS

HOST = "host"  # as a place: the lab's own network namespace

# The kind of object that is wrong. "rule" is one of a packet filter, "policy rule" one of `ip rule`.
CulpritKind = Literal[
    "link", "address", "route", "policy rule", "neighbour", "fdb entry", "sysctl", "rule", "conntrack entry",
    "container",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Probe:
    """One attempt to reach `target` from `source`, which the fault makes fail.

    `source` is a container, `HOST` or `internet`; `target` is a container's name or an address. A "tcp" probe
    is an HTTP request, "udp" expects an echo, "icmp" is ping(8); each has `size` bytes of data. `origin` and
    `origin_port` are the source address and port ("" and 0: the kernel's choice).
    """

    source: str
    target: str
    protocol: Literal["tcp", "udp", "icmp"] = "tcp"
    port: int = 0
    size: int = 60
    origin: str = ""
    origin_port: int = 0

    @property
    def address(self) -> str:
        """Return the target's address, in a network of the source if it has one."""
        addresses = _addresses(self.target)
        if not addresses:
            return self.target
        subnets = [one.network for one in _addresses(self.source)]
        return str(next((one.ip for one in addresses if one.network in subnets), addresses[0].ip))


@dataclass(frozen=True, slots=True)
class Culprit:
    """The object that diagnosis must name.

    `place` is `HOST` or the container whose namespace has it. `name` is that of a link, sysctl or container;
    of an address, route, policy rule or neighbour its text in `ip`; of a packet filter's rule its family,
    table and chain (a table that is gone: family and table); of an fdb entry the MAC address; of a
    conntrack entry its original tuple.
    """

    kind: CulpritKind
    name: str
    place: str = HOST


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that can be injected into the running lab and undone.

    `steps` are commands on the lab's host, without a shell (see `core.lab.inject`, also for `lab ...`). nft
    rules, nft tables and sysctls are undone by themselves, everything else by `undo`. `ipv6`: it needs IPv6.
    """

    name: str
    sentence: str
    steps: tuple[str, ...]
    probe: Probe
    culprit: Culprit
    undo: tuple[str, ...] = ()
    ipv6: bool = False


def _addresses(name: str) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    """Return the addresses of a container, [] if none has that name."""
    found = [one for one in CONTAINERS if one.name == name]
    return [ipaddress.ip_interface(each) for one in found for port in one.ports for each in port.addresses]
