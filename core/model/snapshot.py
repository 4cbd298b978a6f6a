"""The snapshot of a host at one moment, made of parts that are read as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum, auto

from core.model.conntrack import Conntrack
from core.model.container import Container, Engine
from core.model.drops import HeavyDrop
from core.model.fastpath import FastPath, FastPathHealth
from core.model.firewall import Firewall
from core.model.link import FdbEntry, IpSettings, Link, LinkTuning, Neighbour, PolicyRule, Route
from core.model.overlay import Frr
from core.model.ovs import OvsBridge
from core.model.refs import LinkKey, Problem, Ref
from core.model.storm import Storm, StormGuard


@dataclass(frozen=True, slots=True)
class Namespace:
    """One network namespace (network_namespaces(7)).

    `inode` is that of its nsfs file; `names` are its names under /run/netns; `pids` the processes inside,
    ascending (a thread that left its process's namespace is listed by its own id); `mounts` every nsfs mount
    that holds it, in another mount namespace as /proc/PID/root/PATH; `held_fds` (pid, fd) pairs that hold it
    open; `nsid` its id as seen from the host namespace; `unit` the systemd unit and `command` the name of its
    first process; `entry` a path that setns(2) can use now, "" if there is none.
    """

    inode: int
    is_host: bool = False
    names: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    mounts: tuple[str, ...] = ()
    held_fds: tuple[tuple[int, int], ...] = ()
    nsid: int | None = None
    unit: str = ""
    command: str = ""
    entry: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One event: `action` is "added", "removed" or "changed"; `sentence` describes it."""

    at: float
    action: str
    ref: Ref
    sentence: str


class Part(StrEnum):
    """Identify a piece of a snapshot that is read as a whole.

    Dumps and recordings contain these names.
    """

    NAMESPACES = "namespaces"
    LINKS = "links"
    FIREWALL = "firewall"
    CONNTRACK = "conntrack"
    CONTAINERS = "containers"
    OVS = "ovs"
    FRR = "frr"
    # Read by a watcher beside the snapshot's own parts.
    EVENTS = "events"
    FLOWS = "flows"
    SOCKETS = "sockets"
    STATS = "stats"
    STORMS = "storms"
    DROPS = "drops"
    # Read for plans: ports of the host that processes listen on, offloads and steering, links without
    # counters and forwarding tables, all rules of the host, and those of tables that may drop.
    LISTENERS = "listeners"
    TUNING = "tuning"
    WIRING = "wiring"
    HOST_FIREWALL = "host firewall"
    # Read for answers and lists: whether bridges of Open vSwitch have other flows than usual.
    OVS_FLOWS = "ovs flows"
    FILTERS = "filters"


# The parts of a watched snapshot; each is pending until it was read for the first time.
WATCHED_PARTS = frozenset(
    {Part.NAMESPACES, Part.LINKS, Part.FIREWALL, Part.CONNTRACK, Part.CONTAINERS, Part.OVS, Part.FRR}
)


class Demand(Enum):
    """Readings that cost too much to be made often while nothing uses them."""

    CONNTRACK = auto()  # the tables, every second
    CONNECTION_COUNT = auto()  # the tables, now and then: only the number of connections shows
    FLOWS = auto()  # flows with their speeds and sockets
    NAT_RATES = auto()  # speeds of the connections that rules translate
    RULE_COUNTERS = auto()
    RATES = auto()  # speeds of links
    FAST_FLOWS = auto()  # the fast path's counters with each conntrack table
    DROPS = auto()  # dropped packets; once demanded, they are counted until the watcher ends
    DROP_PACKETS = auto()  # single dropped packets, for some seconds after it was demanded


RECORDING_DEMAND = frozenset({Demand.CONNTRACK, Demand.RULE_COUNTERS, Demand.RATES, Demand.FAST_FLOWS})


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening port of a namespace.

    `address` "0.0.0.0" means any address of IPv4, "::" any of both families, unless it is `ipv6_only`."""

    l4_proto: str
    address: str
    port: int
    ipv6_only: bool = False


@dataclass(frozen=True, slots=True)
class ChecksumErrors:
    """Packets that a namespace dropped because their checksum is wrong.

    `l4_proto` is "tcp", "udp" or "icmp"; `wrong` of `received` packets since the namespace exists, `recent`
    of them in the last `seconds`."""

    l4_proto: str
    received: int
    wrong: int
    recent: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Host:
    """The machine, and the capabilities of this process.

    `netns` is the inode of the host namespace; `namespaces` maps each of NAMESPACE_KINDS to the host's
    inode; `missing_capabilities` are those this process lacks ("CAP_NET_ADMIN", ...); `sysctls` those that
    control forwarding ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables", ...), as text;
    `listening` the ports that processes in the host namespace listen on; `cpus` the online CPUs, as the
    kernel lists them ("0-3,8")."""

    hostname: str = ""
    kernel: str = ""
    netns: int = 0
    namespaces: Mapping[str, int] = field(default_factory=dict)
    missing_capabilities: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    listening: tuple[Listener, ...] = ()
    cpus: str = ""


@dataclass(frozen=True, slots=True)
class NetState:
    """Hold everything that rtnetlink reports about one namespace.

    `nsids` maps the namespace ids that links here refer to, as seen from here, to inodes; `settings` are
    those of each address family and link, `sysctls` those of the namespace that differ from the kernel's
    defaults ("net.ipv4.ip_default_ttl", ...), as text."""

    ns: int
    links: Mapping[int, Link] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    rules: tuple[PolicyRule, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    fdb: tuple[FdbEntry, ...] = ()
    nsids: Mapping[int, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    settings: tuple[IpSettings, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)

    def route_text(self, route: Route) -> str:
        """Return one of the routes as ip-route(8) prints it, without its options."""
        words = [] if route.kind in ("unicast", "") else [route.kind]
        words.append(route.dst)
        for hop in route.nexthops:
            link = self.links.get(hop.ifindex or 0)
            words += ["via", hop.gateway] if hop.gateway else []
            words += ["dev", link.name] if link else []
        words += ["table", route.table] if route.table not in ("main", "") else []
        return " ".join([*words, *(["metric", str(route.metric)] if route.metric else [])])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An immutable snapshot of the host.

    Parts are replaced as a whole when read again, so that an unchanged part stays the same object from one
    snapshot to the next. `pending` names parts that were not read yet. `tuning`, by namespace and ifindex, is
    read only for plans that change it. `listeners` are the listening ports of each namespace; one that is
    missing was not read. `storm_guards` are those of the host's links. `fast_path` is read by `doctor` and
    the dashboard, `checksum_errors` by `doctor`, of namespaces that have any."""

    taken_at: float = 0.0
    host: Host = field(default_factory=Host)
    namespaces: Mapping[int, Namespace] = field(default_factory=dict)
    nets: Mapping[int, NetState] = field(default_factory=dict)
    firewalls: Mapping[int, Firewall] = field(default_factory=dict)
    conntracks: Mapping[int, Conntrack] = field(default_factory=dict)
    engines: Mapping[str, Engine] = field(default_factory=dict)
    ovs: tuple[OvsBridge, ...] = ()
    frr: Frr = field(default_factory=Frr)
    storms: tuple[Storm, ...] = ()
    storm_guards: tuple[StormGuard, ...] = ()
    heavy_drops: tuple[HeavyDrop, ...] = ()
    fast_path: FastPathHealth = field(default_factory=FastPathHealth)
    checksum_errors: Mapping[int, tuple[ChecksumErrors, ...]] = field(default_factory=dict)
    tuning: Mapping[int, Mapping[int, LinkTuning]] = field(default_factory=dict)
    listeners: Mapping[int, tuple[Listener, ...]] = field(default_factory=dict)
    part_problems: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)
    pending: frozenset[str] = frozenset()

    def link(self, key: LinkKey | tuple[int, int]) -> Link | None:
        """Return the link with that key, None if there is none."""
        net = self.nets.get(key[0])
        return net.links.get(key[1]) if net else None

    def links(self) -> Iterator[Link]:
        """Iterate over all links of all namespaces."""
        for net in self.nets.values():
            yield from net.links.values()

    def with_fast_path(self, fast: FastPath) -> Snapshot:
        """Return the snapshot with the state of the fast path, if that is known."""
        if fast.state in ("hidden", "unknown") or self.fast_path == fast.health:
            return self
        return replace(self, fast_path=fast.health)

    def containers(self) -> Iterator[Container]:
        """Iterate over all containers of all runtimes."""
        for engine in self.engines.values():
            yield from engine.containers

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems of all parts."""
        groups = [*self.part_problems.values()]
        for parts in (self.nets, self.firewalls, self.conntracks, self.engines):
            groups += [part.problems for part in parts.values()]
        return tuple(problem for group in groups for problem in group)
