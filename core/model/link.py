"""Links, bridges, routes and neighbours (rtnetlink(7))."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from core.model.refs import LinkKey

Scalar = str | int | bool
LONG_AGO = 1
# The MAC of the entries of a VXLAN link's flood list.
ALL_ZERO = "00:00:00:00:00:00"


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a link.

    `family` is 4 or 6, `scope` as ip(8) names it; `prefix_route` is False if the kernel created no route for
    it (ip-address(8), "noprefixroute"), otherwise `metric` is that route's (0 for the kernel's default).
    `label` is IPv4's, by default the link's name. `valid_until` and `preferred_until` are in seconds since
    the epoch, 0 for ever, LONG_AGO if it is deprecated already."""

    family: int
    address: str
    prefixlen: int
    scope: str = "global"
    peer: str = ""
    broadcast: str = ""
    prefix_route: bool = True
    label: str = ""
    metric: int = 0
    valid_until: int = 0
    preferred_until: int = 0

    def __str__(self) -> str:
        return f"{self.address}/{self.prefixlen}"


@dataclass(frozen=True, slots=True)
class PortVlan:
    """One VLAN of a bridge port; `vid_end` differs from `vid` for a range."""

    vid: int
    vid_end: int
    pvid: bool = False
    untagged: bool = False


@dataclass(frozen=True, slots=True)
class BridgePort:
    """Bridge port settings of a link.

    `state` is STP's ("disabled", "listening", "learning", "forwarding", "blocking"); the flags are those of
    bridge(8) `link set`, and `proxy_arp_wifi` of ip-link(8)."""

    state: str
    cost: int = 0
    priority: int = 0
    learning: bool = True
    flood: bool = True
    mcast_flood: bool = True
    bcast_flood: bool = True
    isolated: bool = False
    locked: bool = False
    hairpin: bool = False
    neigh_suppress: bool = False
    proxy_arp_wifi: bool = False
    guard: bool = False
    root_block: bool = False
    fastleave: bool = False
    vlans: tuple[PortVlan, ...] = ()


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """Settings of a bridge; times in seconds, ids as `8000.02:42:...`.

    `route_localnet` is the sysctl of that name, which lets ports published on 127.0.0.1 reach containers."""

    stp: bool = False
    vlan_filtering: bool = False
    vlan_default_pvid: int = 1
    ageing_time: float = 300.0
    forward_delay: float = 15.0
    hello_time: float = 2.0
    max_age: float = 20.0
    priority: int = 32768
    bridge_id: str = ""
    root_id: str = ""
    root_port: int = 0
    mcast_snooping: bool = True
    mcast_querier: bool = False
    group_fwd_mask: int = 0
    nf_call_iptables: bool = False
    nf_call_ip6tables: bool = False
    route_localnet: bool = False
    vlans: tuple[PortVlan, ...] = ()


@dataclass(frozen=True, slots=True)
class PacketSizes:
    """Largest segmentation-offload packets of a link in bytes, 0 if unknown.

    `gso` and `gso_ipv4` limit sent packets, `gro` and `gro_ipv4` those merged on receive; `tso` is the
    device's maximum (ip-link(8), gso_max_size). Above 65536 they are called BIG TCP."""

    gso: int = 0
    gro: int = 0
    gso_ipv4: int = 0
    gro_ipv4: int = 0
    tso: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """One network interface.

    `kind` is "bridge", "veth", "vxlan", "macvlan", "ipvlan", "vlan", "bond", "tun", "wireguard", "dummy",
    "loopback", "physical", "ovs-bridge", "ovs-port" or the kernel's own word for another kind. `state` is the
    operational state in lower case (RFC 2863: "up", "down", "lowerlayerdown", "unknown", ...); `promiscuous`
    is IFLA_PROMISCUITY (also set on bridge ports). `lower` is the ifindex of IFLA_LINK (a veth's peer, a
    vlan's parent), for vxlan its underlay, and `lower_nsid` the namespace id that it is in, as seen from this
    link's namespace (None: the same one). `details` holds attributes of the kind (vni, vlan id, mode, ...).
    `offloads` names the enabled offloads: by ethtool(8)'s short name if it switches them as a group ("tso",
    "gso", "tx-checksumming", ...), otherwise by the kernel's name. `arp_off` is IFF_NOARP; `arp_ignore` and
    `ipv6_disabled` are sysctls of these names (ip-sysctl.rst). Counters are in LinkStats.
    """

    ns: int
    ifindex: int
    name: str
    kind: str
    state: str = "unknown"
    admin_up: bool = False
    carrier: bool = False
    promiscuous: bool = False
    mac: str = ""
    mtu: int = 0
    master: int | None = None
    lower: int | None = None
    lower_nsid: int | None = None
    alias: str = ""
    altnames: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()
    qdisc: str = ""
    offloads: tuple[str, ...] = ()
    details: Mapping[str, Scalar] = field(default_factory=dict)
    port: BridgePort | None = None
    bridge: BridgeSettings | None = None
    sizes: PacketSizes = PacketSizes()
    arp_off: bool = False
    arp_ignore: int = 0
    ipv6_disabled: bool = False

    @property
    def key(self) -> LinkKey:
        """The key that is unique among all links of the host."""
        return LinkKey(self.ns, self.ifindex)


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """One entry of a bridge's forwarding table (bridge(8) fdb).

    `port` and `bridge` are ifindexes; `state` is "permanent", "static" or "learned"; `flags` as bridge(8)
    prints them; `dst` is for vxlan."""

    mac: str
    port: int
    bridge: int | None
    vlan: int | None = None
    state: str = "learned"
    flags: tuple[str, ...] = ()
    dst: str = ""


# One row per link; counters of struct rtnl_link_stats64 (linux/if_link.h), since the link was created.
STATS_DTYPE = np.dtype(
    [
        ("ns", "u8"),
        ("ifindex", "u4"),
        ("rx_packets", "u8"),
        ("tx_packets", "u8"),
        ("rx_bytes", "u8"),
        ("tx_bytes", "u8"),
        ("rx_errors", "u8"),
        ("tx_errors", "u8"),
        ("rx_dropped", "u8"),
        ("tx_dropped", "u8"),
        ("multicast", "u8"),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class LinkStats:
    """Counters of many links at `taken_at` (monotonic seconds), of dtype STATS_DTYPE."""

    taken_at: float
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, STATS_DTYPE))


@dataclass(frozen=True, slots=True)
class LinkTuning:
    """Offloads and receive steering of a link.

    `changeable` and `wanted` are offloads by the kernel's name ("tx-tcp-segmentation", ...): those that can
    be switched, and those requested, whether they are on or wait for another one (ethtool(8), -K).
    `rps_cpus` are the CPUs that process the packets of each receive queue, as the kernel writes them: a
    hexadecimal mask, "0" for none (Documentation/networking/scaling.rst)."""

    changeable: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    rps_cpus: tuple[str, ...] = ()


# RTAX_* of linux/rtnetlink.h by ip-route(8)'s keywords; times in the kernel's units, as ip takes them bare.
# RTO_MIN is always locked, so ip has no lock keyword for it.
METRICS = {
    2: "mtu", 3: "window", 4: "rtt", 5: "rttvar", 6: "ssthresh", 7: "cwnd", 8: "advmss", 9: "reordering",
    10: "hoplimit", 11: "initcwnd", 12: "features", 13: "rto_min", 14: "initrwnd", 15: "quickack",
    16: "congctl", 17: "fastopen_no_cookie",
}  # fmt: skip
RTO_MIN = 13


@dataclass(frozen=True, slots=True)
class NextHop:
    """One next hop of a route.

    `gateway` is "" if the destination is on the link itself; `onlink` treats the gateway as reachable
    regardless of its address."""

    gateway: str
    ifindex: int | None
    weight: int = 1
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """One route (ip-route(8)).

    `dst` is "default" or a prefix, `kind` "unicast", "local", "broadcast", "blackhole", "unreachable", ...;
    `table`, `protocol` and `scope` as iproute2 names them; `options` everything else in ip-route's syntax
    ("mtu lock 1400", "congctl bbr", "pref high", "nhid 5", ...), including `mtu`. `valid_until` is in seconds
    since the epoch, 0 for ever."""

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
    """One routing policy rule (ip-rule(8)); empty text and None mean "any".

    `goto` is the priority that action "goto" jumps to; `suppress_prefixlen` rejects routes with a prefix of
    that length or shorter; `more` holds rarer selectors in ip-rule's syntax ("ipproto 6", "dport 53",
    "l3mdev", ...). `protocol` is who made it, as in a route, "" if unknown."""

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
    protocol: str = ""

    def __str__(self) -> str:
        return " ".join([f"{self.priority}:", *self.selector_words(), *self.action_words()])

    def selector_words(self) -> list[str]:
        """Return what the rule matches, in the words of ip-rule(8)."""
        words = ["not"] if self.inverted else []
        words += ["from", self.src or "all"]
        for name, value in (("to", self.dst), ("iif", self.iif), ("oif", self.oif)):
            words += [name, value] if value else []
        if self.fwmark is not None:
            mask = f"/{self.fwmask:#x}" if self.fwmask not in (None, 0xFFFFFFFF) else ""
            words += ["fwmark", f"{self.fwmark:#x}{mask}"]
        return words + [word for selector in self.more for word in selector.split()]

    def action_words(self) -> list[str]:
        """Return what happens to matching packets, in the words of ip-rule(8)."""
        if self.action == "goto":
            return ["goto", str(self.goto)]
        if self.action != "lookup":
            return [self.action]
        words = [] if "l3mdev" in self.more else ["lookup", self.table]
        if self.suppress_prefixlen is not None:
            words += ["suppress_prefixlength", str(self.suppress_prefixlen)]
        return words


@dataclass(frozen=True, slots=True)
class IpSettings:
    """Settings of one address family of a link, or of all links (`ifindex` 0).

    `forwarding`, `rp_filter` (IPv4 only) and `proxy` (proxy_arp, proxy_ndp) as in the kernel's
    Documentation/networking/ip-sysctl.rst. For `rp_filter` the larger of a link's and that of all links
    counts; IPv6 is forwarded only if it is on for all links."""

    family: int
    ifindex: int
    forwarding: bool = False
    rp_filter: int = 0
    proxy: bool = False


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One neighbour entry (ARP or NDP); `state` as in ip-neighbour(8), in lower case."""

    family: int
    address: str
    mac: str
    ifindex: int
    state: str
    proxy: bool = False
    router: bool = False
