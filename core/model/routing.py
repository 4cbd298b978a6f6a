"""Routes, policy rules and neighbours of one namespace."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NextHop:
    """One way on: `gateway` ("" when the destination is on the link itself) and the `ifindex` to leave by."""

    gateway: str
    ifindex: int | None
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Route:
    """One route (ip-route(8)); `dst` is "default" or a prefix, `kind` "unicast", "local", "broadcast",
    "blackhole", "unreachable", ...; `table`, `protocol` and `scope` in iproute2's words."""

    family: int
    dst: str
    kind: str = "unicast"
    nexthops: tuple[NextHop, ...] = ()
    source: str = ""
    metric: int = 0
    table: str = "main"
    protocol: str = ""
    scope: str = "global"
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One routing policy rule (ip-rule(8)); empty text and None mean "any". `goto` is the priority that
    action "goto" jumps to; `suppress_prefixlen` refuses what the table finds with a prefix that short or
    shorter; `more` holds rarer selectors in ip-rule's words ("ipproto 6", "dport 53", "l3mdev", ...)."""

    family: int
    priority: int
    src: str = ""
    dst: str = ""
    iif: str = ""
    oif: str = ""
    fwmark: int | None = None
    fwmask: int | None = None
    table: str = "main"
    action: str = "lookup"
    inverted: bool = False
    goto: int | None = None
    suppress_prefixlen: int | None = None
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One neighbour entry (ARP or NDP); `state` as ip-neighbour(8) names it, in lower case."""

    family: int
    address: str
    mac: str
    ifindex: int
    state: str
    proxy: bool = False
    router: bool = False
