"""Links, bridge ports and bridges of one namespace, as rtnetlink(7) tells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from core.model.refs import LinkKey

Scalar = str | int | bool
LONG_AGO = 1


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a link: `address` in text form, `prefixlen`, `family` 4 or 6, `scope` as ip(8) names it;
    `prefix_route` False where the kernel made no route for it (ip-address(8), "noprefixroute"), else `metric`
    is that route's (0 for the kernel's own choice). `label` is IPv4's, by default the link's name.
    `valid_until` and `preferred_until` are in seconds since the epoch, 0 for ever, LONG_AGO where it is
    deprecated already."""

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
    """The bridge's side of a link that is a port: STP `state` ("disabled", "listening", "learning",
    "forwarding", "blocking") and the flags of bridge(8) `link set`."""

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
    guard: bool = False
    root_block: bool = False
    fastleave: bool = False
    vlans: tuple[PortVlan, ...] = ()


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """A bridge's own settings; times in seconds, ids as `8000.02:42:...`; `route_localnet` is the sysctl of
    that name, by which the host's 127.0.0.1 is led to containers."""

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
    group_fwd_mask: int = 0
    nf_call_iptables: bool = False
    nf_call_ip6tables: bool = False
    route_localnet: bool = False
    vlans: tuple[PortVlan, ...] = ()


@dataclass(frozen=True, slots=True)
class PacketSizes:
    """The largest packets, in bytes, that are handed to a link in one piece (`gso`; of IPv4 `gso_ipv4`), and
    that it puts together from those it receives (`gro`, `gro_ipv4`); `tso` is the most that its device allows
    (ip-link(8), gso_max_size). Beyond 65536 they are called BIG TCP. 0 where the kernel does not tell."""

    gso: int = 0
    gro: int = 0
    gso_ipv4: int = 0
    gro_ipv4: int = 0
    tso: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """One link. `kind` is "bridge", "veth", "vxlan", "macvlan", "ipvlan", "vlan", "bond", "tun", "wireguard",
    "dummy", "loopback", "physical", "ovs-bridge", "ovs-port" or the kernel's own word for another kind.

    `state` is the operational state in lower case (RFC 2863: "up", "down", "lowerlayerdown", "unknown", ...);
    `promiscuous` whether it takes in every frame, as bridge ports do too (IFLA_PROMISCUITY). `lower` is the
    ifindex of IFLA_LINK (a veth's peer, a vlan's parent), for vxlan its underlay, and `lower_nsid` the
    namespace id it lies in, as seen from this link's namespace (None: this same namespace). `details`
    holds what is special to the kind (vni, vlan id, mode, ...). `offloads` names the offloads that are on:
    those that ethtool(8) switches as a group by its short words ("tso", "gso", "tx-checksumming", ...),
    others by the kernel's names. Counters are not here: see `core.model.link`.
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

    @property
    def key(self) -> LinkKey:
        """The key of this link among all links of the host."""
        return LinkKey(self.ns, self.ifindex)


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """One entry of a bridge's forwarding table (bridge(8) fdb): `port` is the port's ifindex, `bridge`
    the bridge's; `state` "permanent", "static" or "learned"; `flags` as bridge(8) prints them; `dst` for
    vxlan."""

    mac: str
    port: int
    bridge: int | None
    vlan: int | None = None
    state: str = "learned"
    flags: tuple[str, ...] = ()
    dst: str = ""


# One row a link; counters as struct rtnl_link_stats64 (linux/if_link.h) has them, since the link was made.
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
    """Counters of many links, read at `taken_at` (monotonic seconds); `rows` has dtype STATS_DTYPE."""

    taken_at: float
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, STATS_DTYPE))


@dataclass(frozen=True, slots=True)
class LinkTuning:
    """`changeable` and `wanted` name offloads as the kernel does ("tx-tcp-segmentation", ...): those that can
    be switched, and those that are wanted on, whether they are or wait for another one (ethtool(8), -K).
    `rps_cpus` are the CPUs that take over the packets of each receive queue, as the kernel writes them: a
    hexadecimal mask, "0" for none (Documentation/networking/scaling.rst)."""

    changeable: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    rps_cpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OvsInterface:
    """One interface of a port: `kind` is "system" (a link that exists without it), "internal", "tap",
    "patch", "vxlan", "geneve", ...; `ifindex` its link in the namespace of ovs-vswitchd, None where it has
    none (patches); `error` says why it could not be opened; `options` are the tunnel's or the patch's."""

    name: str
    kind: str = "system"
    ifindex: int | None = None
    ofport: int | None = None
    mac: str = ""
    admin_up: bool = False
    carrier: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class OvsPort:
    """One port: `tag` its access VLAN, `trunks` the VLANs that it trunks (empty with no tag: all),
    `vlan_mode` and `bond_mode` as ovs-vswitchd.conf.db(5) names them; a bond has several interfaces."""

    name: str
    tag: int | None = None
    trunks: tuple[int, ...] = ()
    vlan_mode: str = ""
    bond_mode: str = ""
    interfaces: tuple[OvsInterface, ...] = ()


@dataclass(frozen=True, slots=True)
class OvsBridge:
    """One bridge; `datapath` is "system" (the kernel's) or "netdev" (in user space). Its own link is the port
    of its name."""

    name: str
    datapath: str = "system"
    fail_mode: str = ""
    stp: bool = False
    rstp: bool = False
    ports: tuple[OvsPort, ...] = ()
    external_ids: Mapping[str, str] = field(default_factory=dict)


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
