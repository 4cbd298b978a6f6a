"""Define requests: the changes that a form, a command or a file asks for."""

from __future__ import annotations

from dataclasses import dataclass

from core.model import LinkKey, Ref
from core.model.fix import Step

KINDS = ("nat", "internal", "routed", "nic-bridged", "ovs", "overlay")
DATAPATHS = ("system", "netdev")
MODELS = ("closed", "bridged", "joined", "open")
PROTOCOLS = ("tcp", "udp", "sctp")


@dataclass(frozen=True, slots=True)
class CreateNetwork:
    """Create a network.

    `kind` is one of KINDS. `subnets`: at most one of IPv4 and one of IPv6; without any, a free IPv4 subnet
    is chosen, and with `ipv6` a free IPv6 subnet as well. `gateways` are in the order of `subnets`; the
    default is the first address. `mtu` 0 takes the MTU of the default route's link. `bridge` "" is "br-NAME".
    `uplink` is the link that becomes the port of a NIC-bridged network. `engine` is "vnet" or "docker".
    `datapath` is one of DATAPATHS for an OVS network, "" for "system".

    Of an overlay: `vni` is its number and `subnets` are the same on all hosts (0 and none: both follow from
    the name). `remotes` are the addresses of the other hosts, `local` that of this host ("": the one that it
    uses to reach them), `ranges` the parts of the subnets that this host assigns (none: they follow from
    `local`). With `evpn` the hosts find each other by BGP, and `peers` are those that this host has a session
    with, in the AS `asn` (0: FRRouting's, else 65000); a `reflector` passes on what one peer announces.

    With `etcd` (URLs, separated by commas) the hosts and all that they agree on come from there, and this
    host leases addresses of the whole subnets.
    """

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
    vni: int = 0
    remotes: tuple[str, ...] = ()
    local: str = ""
    ranges: tuple[str, ...] = ()
    evpn: bool = False
    peers: tuple[str, ...] = ()
    asn: int = 0
    reflector: bool = False
    datapath: str = ""
    etcd: str = ""

    @property
    def other_hosts(self) -> tuple[str, ...]:
        """Return the addresses of an overlay's other hosts that are given."""
        return self.peers if self.evpn else self.remotes


@dataclass(frozen=True, slots=True)
class JoinOverlay:
    """Join an overlay network that another host has.

    `network` describes it, of the kind "overlay". If this host has joined it already, the remote hosts or
    peers are added.
    """

    network: CreateNetwork


@dataclass(frozen=True, slots=True)
class LeaveOverlay:
    """Leave an overlay network.

    It is removed from this host. With `remotes` or `peers` only the tunnels to these hosts are, or the
    sessions with them.
    """

    name: str
    remotes: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangeMtu:
    """Change the MTU of a network (not NIC-bridged).

    This includes its bridge, its ports and the links in containers.
    """

    name: str
    mtu: int


@dataclass(frozen=True, slots=True)
class RemoveNetwork:
    """Remove a network, and detach its containers."""

    name: str


@dataclass(frozen=True, slots=True)
class Attach:
    """Attach a container (name, "runtime:name" or id) to a network.

    `addresses`: at most one of each family, without prefix length; missing ones are chosen. `link` "" is the
    first free "ethN". `vlan` is its VLAN on an OVS network, 0 for none.
    """

    container: str
    network: str
    addresses: tuple[str, ...] = ()
    link: str = ""
    vlan: int = 0


@dataclass(frozen=True, slots=True)
class Detach:
    """Detach a container from a network."""

    container: str
    network: str


@dataclass(frozen=True, slots=True)
class Move:
    """Move a container from one network to another, with the same link name."""

    container: str
    network: str
    to: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish a port, or a range "8000-8010", of a running container.

    `host_ip` "" is every address of the host, `container_ports` "" the same as `host_ports`, `network` "" the
    first one that works.
    """

    container: str
    host_ports: str
    container_ports: str = ""
    l4_proto: str = "tcp"
    host_ip: str = ""
    network: str = ""


@dataclass(frozen=True, slots=True)
class Unpublish:
    """Remove a published port, or a range."""

    host_ports: str
    l4_proto: str = "tcp"
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class CreateContainer:
    """Create an unmanaged container: a named namespace.

    `model` is one of MODELS: "bridged" needs a `network`, "joined" the container `joined_with`, "open" shares
    the host's namespace.
    """

    name: str
    model: str = "closed"
    network: str = ""
    addresses: tuple[str, ...] = ()
    joined_with: str = ""


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    """Delete an unmanaged container: a named namespace."""

    name: str


@dataclass(frozen=True, slots=True)
class ChangeLink:
    """Change settings of a link; None leaves a setting unchanged."""

    key: LinkKey
    up: bool | None = None
    mtu: int | None = None
    name: str | None = None
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class ChangeBridge:
    """Change one setting of a bridge, with the name and unit of ip-link(8)."""

    key: LinkKey
    setting: str
    value: int


@dataclass(frozen=True, slots=True)
class ChangePort:
    """Switch one flag of a bridge port, named as in bridge(8)."""

    key: LinkKey
    flag: str
    on: bool


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the object that a reference points at."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class DeleteFlow:
    """Delete a conntrack entry: `entry_id` in the table of the namespace `ns` (inode).

    Addresses and ports are those of the original direction. Addresses are text, ports in host order as in
    conntrack's columns: for ICMP the echo id, and type << 8 | code. `sentence` describes the connection for
    the preview; `translated`: NAT applies to it. `core.plan.containers.delete_flow` makes one of an entry.
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
    """Switch on traffic counters of connections (conntrack accounting).

    `namespaces` are inodes.
    """

    namespaces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tune:
    """Tune a bridge, its ports and their peers; None leaves a setting unchanged.

    `big_tcp`: size of the largest packets in bytes, 65536 without BIG TCP. `offloads`: TSO, GSO, GRO and
    transmit checksums. `br_netfilter`: bridged packets pass the host's firewall. `rps`: "all", "off" or a
    hexadecimal mask of the CPUs that process received packets. `no_track_dns`: Docker's DNS works without
    conntrack in the bridge's containers, or only in those named in `only`.
    """

    key: LinkKey
    big_tcp: int | None = None
    offloads: bool | None = None
    br_netfilter: bool | None = None
    rps: str | None = None
    no_track_dns: bool | None = None
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Join:
    """Route between two networks of vnet, without NAT."""

    network: str
    other: str


@dataclass(frozen=True, slots=True)
class Separate:
    """Stop routing between two networks of vnet."""

    network: str
    other: str


@dataclass(frozen=True, slots=True)
class GuardStorms:
    """Limit the broadcast and multicast frames of a network, bridge or port.

    `limits` are StormLimits as text, "" ends it; with XDP only the NICs among the ports have it. `all_ports`:
    also ports that vnet-tui didn't attach.
    """

    name: str
    limits: str
    all_ports: bool = False


@dataclass(frozen=True, slots=True)
class BlockPorts:
    """Set bridge ports down that are part of a loop."""

    keys: tuple[LinkKey, ...]


@dataclass(frozen=True, slots=True)
class Repair:
    """Apply the steps of a fix (core.model.fix); `sentence` is what they do."""

    sentence: str
    steps: tuple[Step, ...]


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
    | Separate
    | JoinOverlay
    | LeaveOverlay
    | GuardStorms
    | BlockPorts
    | Repair
)

# What each request does, with its fields in braces; `key` and `ref` stand for the name of the object.
PHRASES: dict[type, str] = {
    CreateNetwork: "create the network {name}",
    RemoveNetwork: "remove the network {name}",
    ChangeMtu: "change the MTU of the network {name}",
    Attach: "attach {container} to {network}",
    Detach: "detach {container} from {network}",
    Move: "move {container} from {network} to {to}",
    Publish: "publish port {host_ports} of {container}",
    Unpublish: "unpublish port {host_ports}",
    CreateContainer: "create the container {name}",
    RemoveContainer: "delete the container {name}",
    ChangeLink: "change {key}",
    ChangeBridge: "set {setting} of {key}",
    ChangePort: "switch {flag} of {key}",
    Delete: "delete {ref}",
    DeleteFlow: "delete the connection {sentence}",
    CountTraffic: "count the traffic of connections",
    Tune: "tune {key}",
    Join: "join {network} and {other}",
    Separate: "separate {network} from {other}",
    JoinOverlay: "join the network {network}",
    LeaveOverlay: "leave the network {name}",
    GuardStorms: "guard {name} against storms",
    BlockPorts: "block the loop",
    Repair: "{sentence}",
}
