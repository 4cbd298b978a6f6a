"""Requests: what a person wants changed, as a form, a command or a file puts it."""

from __future__ import annotations

from dataclasses import dataclass

from core.model import LinkKey, Ref

KINDS = ("nat", "internal", "routed", "nic-bridged")
MODELS = ("closed", "bridged", "joined", "open")
PROTOCOLS = ("tcp", "udp", "sctp")


@dataclass(frozen=True, slots=True)
class CreateNetwork:
    """Make a network. `kind` is one of KINDS; `subnets` are at most one of IPv4 and one of IPv6, none of them
    has one of IPv4 chosen, and one of IPv6 as well where `ipv6` is set; `gateways` belong to the subnets in
    order, missing ones are the first address. `mtu` 0 is that of the way out. `bridge` "" is "br-NAME".
    `uplink` names the link that a NIC-bridged network takes as its port. `engine` is "vnet" or "docker"."""

    name: str
    kind: str = "nat"
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    ipv6: bool = False
    mtu: int = 0
    bridge: str = ""
    uplink: str = ""
    nat66: bool = False
    vlan_filtering: bool = False
    engine: str = "vnet"


@dataclass(frozen=True, slots=True)
class ChangeMtu:
    """Give a network, not a NIC-bridged one, another MTU: its bridge, its ports and the links inside."""

    name: str
    mtu: int


@dataclass(frozen=True, slots=True)
class RemoveNetwork:
    """Remove a network and detach what is on it."""

    name: str


@dataclass(frozen=True, slots=True)
class Attach:
    """Attach a container (its name, "runtime:name" or id) to a network. `addresses` are at most one of each
    family, without prefix length; free ones are chosen for the rest. `link` "" is the first free "ethN"."""

    container: str
    network: str
    addresses: tuple[str, ...] = ()
    link: str = ""


@dataclass(frozen=True, slots=True)
class Detach:
    """Take a container off a network."""

    container: str
    network: str


@dataclass(frozen=True, slots=True)
class Move:
    """Take a container off one network and attach it to another by the same link name."""

    container: str
    network: str
    to: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish a port, or a range "8000-8010", of a running container: `host_ip` "" on every address of the
    host, `container_ports` "" as on the host. `network` "" is the first that can."""

    container: str
    host_ports: str
    container_ports: str = ""
    l4_proto: str = "tcp"
    host_ip: str = ""
    network: str = ""


@dataclass(frozen=True, slots=True)
class Unpublish:
    """Withdraw a published port, or range."""

    host_ports: str
    l4_proto: str = "tcp"
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class CreateContainer:
    """Make a plain container: a named namespace. `model` is one of MODELS: "bridged" needs a `network`,
    "joined" the container `joined_with`, "open" gets the host's own namespace."""

    name: str
    model: str = "closed"
    network: str = ""
    addresses: tuple[str, ...] = ()
    joined_with: str = ""


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    """Delete a plain container."""

    name: str


@dataclass(frozen=True, slots=True)
class ChangeLink:
    """Change settings of a link; None leaves one as it is."""

    key: LinkKey
    up: bool | None = None
    mtu: int | None = None
    name: str | None = None
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class ChangeBridge:
    """Change one setting of a bridge, named and counted as by ip-link(8)."""

    key: LinkKey
    setting: str
    value: int


@dataclass(frozen=True, slots=True)
class ChangePort:
    """Switch one flag of a bridge port, named as by bridge(8)."""

    key: LinkKey
    flag: str
    on: bool


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete what a reference points at."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class DeleteFlow:
    """Have the kernel forget a tracked connection: the entry `entry_id` in the table of the namespace `ns`
    (its inode), whose original direction is this. Addresses in text, ports in host order as conntrack's
    columns have them: for ICMP the echo id, and type << 8 | code. `core.plan.containers.delete_flow` makes
    one of an entry.

    `sentence` says who talks to whom, for the preview; `translated` tells that NAT is at work.
    """

    ns: int
    entry_id: int
    l4_proto: int
    src: str
    dst: str
    sport: int = 0
    dport: int = 0
    zone: int = 0
    sentence: str = ""
    translated: bool = False


@dataclass(frozen=True, slots=True)
class CountTraffic:
    """Have the kernel count the traffic of connections in these namespaces (their inodes)."""

    namespaces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tune:
    """Tune a bridge, its ports and the other ends of these; None leaves one thing as it is. `big_tcp` is the
    size of the largest packets in bytes, 65536 without BIG TCP; `offloads` is about TSO, GSO, GRO and
    transmit checksums; `br_netfilter` about whether what it forwards passes the host's firewall; `rps` is
    "all", "off" or a hexadecimal mask of the CPUs that take over received packets. `no_track_dns` is about
    whether Docker's DNS does without conntrack inside its containers, or inside those named in `only`."""

    key: LinkKey
    big_tcp: int | None = None
    offloads: bool | None = None
    br_netfilter: bool | None = None
    rps: str | None = None
    no_track_dns: bool | None = None
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Join:
    """Let two networks of ours reach each other, routed, without translation."""

    network: str
    other: str


@dataclass(frozen=True, slots=True)
class Part:
    """Keep two networks of ours apart again."""

    network: str
    other: str


Request = (
    CreateNetwork
    | RemoveNetwork
    | Attach
    | Detach
    | Move
    | Publish
    | Unpublish
    | CreateContainer
    | RemoveContainer
    | ChangeLink
    | ChangeMtu
    | ChangeBridge
    | ChangePort
    | Delete
    | DeleteFlow
    | CountTraffic
    | Tune
    | Join
    | Part
)
