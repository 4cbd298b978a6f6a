"""Routes, policy rules and neighbours of one namespace."""

from __future__ import annotations

from dataclasses import dataclass

# RTAX_* of linux/rtnetlink.h in ip-route(8)'s words; times as the kernel keeps them, which ip takes bare.
# RTO_MIN is always locked: ip has no word for it.
METRICS = {
    2: "mtu", 3: "window", 4: "rtt", 5: "rttvar", 6: "ssthresh", 7: "cwnd", 8: "advmss", 9: "reordering",
    10: "hoplimit", 11: "initcwnd", 12: "features", 13: "rto_min", 14: "initrwnd", 15: "quickack",
    16: "congctl", 17: "fastopen_no_cookie",
}  # fmt: skip
RTO_MIN = 13


@dataclass(frozen=True, slots=True)
class NextHop:
    """One way on: `gateway` ("" when the destination is on the link itself) and the `ifindex` to leave by;
    `onlink` where the gateway counts as reachable whatever its address."""

    gateway: str
    ifindex: int | None
    weight: int = 1
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """One route (ip-route(8)); `dst` is "default" or a prefix, `kind` "unicast", "local", "broadcast",
    "blackhole", "unreachable", ...; `table`, `protocol` and `scope` in iproute2's words; `options` all else
    in ip-route's words ("mtu lock 1400", "congctl bbr", "pref high", "nhid 5", ...), `mtu` among it.
    `valid_until` in seconds since the epoch, 0 for ever."""

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
    options: tuple[str, ...] = ()
    valid_until: int = 0


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
