"""What FRRouting knows: BGP sessions, and the MACs, addresses and hosts of EVPN."""

from __future__ import annotations

from dataclasses import dataclass, field

# The state of a BGP session that exchanges routes (RFC 4271).
ESTABLISHED = "Established"


@dataclass(frozen=True, slots=True)
class EvpnGroup:
    """The BGP peer group `vnet-tui`.

    `source` is this host's address of the sessions, `peers` those of the other hosts, sorted. A `reflector`
    passes on what one peer announces to the others. With a `router_id`, vnet-tui created the BGP instance
    too, and it contains nothing else."""

    asn: int
    source: str
    peers: tuple[str, ...]
    reflector: bool = False
    router_id: str = ""


@dataclass(frozen=True, slots=True)
class BgpConfig:
    """What the running configuration says about BGP in the default VRF.

    `asn` is 0 without an instance. `neighbors` are configured outside vnet-tui's group. `evpn` names what
    else exchanges EVPN routes or announces VNIs, in FRR's words."""

    asn: int = 0
    group: EvpnGroup | None = None
    neighbors: tuple[str, ...] = ()
    evpn: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BgpPeer:
    """A BGP session.

    `state` is that of RFC 4271 ("Established", "Active"), `up_since` when it was established, in seconds
    since the epoch; FRR rounds it, so it isn't compared. `prefixes` are the EVPN
    routes received. `error` is why it was last closed."""

    address: str
    asn: int
    state: str
    group: str = ""
    hostname: str = ""
    up_since: int = field(default=0, compare=False)
    prefixes: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Vni:
    """A VXLAN segment as zebra knows it.

    `link` is its VXLAN link, `vtep` this host's address ("0.0.0.0" if FRR can't use the link's), `remotes`
    the hosts to which broadcasts are sent, sorted."""

    vni: int
    link: str
    bridge: str
    vtep: str
    remotes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvpnMac:
    """A MAC of a VNI: behind the host `vtep`, or behind the link `link` of this host.

    `sequence` counts its moves between hosts (RFC 7432, 7.7); `duplicate` if it moves too often."""

    vni: int
    mac: str
    vtep: str = ""
    link: str = ""
    sequence: int = 0
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class EvpnNeighbor:
    """An IP address of a VNI with its MAC.

    It is that of a neighbour entry of this host's bridge if `vtep` is "", and announced while `active`: while
    its MAC is known too."""

    vni: int
    address: str
    mac: str
    vtep: str = ""
    active: bool = True


@dataclass(frozen=True, slots=True)
class Frr:
    """FRRouting on this host.

    `version` is "" if no daemon answers; `daemons` are those that answer. `router_id` is the one in use."""

    installed: bool = False
    version: str = ""
    daemons: tuple[str, ...] = ()
    router_id: str = ""
    config: BgpConfig = BgpConfig()
    peers: tuple[BgpPeer, ...] = ()
    vnis: tuple[Vni, ...] = ()
    macs: tuple[EvpnMac, ...] = ()
    neighbors: tuple[EvpnNeighbor, ...] = ()
