"""The snapshot: what is, at one moment, put together from parts that are each read whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from core.model.conntrack import Conntrack
from core.model.container import Container, Engine
from core.model.firewall import Firewall
from core.model.link import FdbEntry, Link, LinkTuning, Neighbour, OvsBridge, PolicyRule, Route
from core.model.problem import Problem
from core.model.refs import LinkKey, Ref


@dataclass(frozen=True, slots=True)
class Storm:
    """Too many frames to everybody on one bridge (`ns`, `ifindex`): `kind` is "broadcast" or "multicast",
    `rate` about how many frames a second, `share` of all frames that enter the bridge (0 to 1). `ports` are
    the ifindexes of the ports that they come in by, the foremost first, none where the ports' counters do not
    tell."""

    ns: int
    ifindex: int
    kind: str
    rate: float
    share: float
    ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Namespace:
    """One network namespace (network_namespaces(7)), identified by the inode of its nsfs file.

    `names` are its names under /run/netns; `pids` the processes inside, ascending, a thread that left the
    namespace of its process by its own id; `mounts` every nsfs mount that holds it, one in another mount
    namespace as /proc/PID/root/PATH; `held_fds` (pid, fd) pairs that hold it open; `nsid` its id as seen from
    the host namespace; `unit` the systemd unit and `command` the name of its first process; `entry` a path by
    which it can be entered now ("" where there is none).
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
    """One difference: `action` is "added", "removed" or "changed"; `sentence` says it for a person."""

    at: float
    action: str
    ref: Ref
    sentence: str


PARTS = frozenset({"namespaces", "links", "firewall", "conntrack", "containers", "ovs"})


@dataclass(frozen=True, slots=True)
class Listener:
    """A port of the host that a process listens on; `address` "0.0.0.0" or "::" means every one."""

    l4_proto: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Host:
    """The machine and the viewer's rights. `netns` is the inode of the namespace that plays the host;
    `namespaces` maps each kind of core.model.container.NAMESPACE_KINDS to the host's own inode;
    `missing_capabilities` names what this process lacks ("CAP_NET_ADMIN", ...); `sysctls` holds those that
    decide about forwarding ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables", ...), as text;
    `listening` the ports that its own processes listen on; `cpus` those that are at work, as the kernel lists
    them ("0-3,8")."""

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
    """All that rtnetlink tells of one namespace. `nsids` maps a namespace id, as seen from here, to the
    inode of that namespace, for the ids that links here refer to."""

    ns: int
    links: Mapping[int, Link] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    rules: tuple[PolicyRule, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    fdb: tuple[FdbEntry, ...] = ()
    nsids: Mapping[int, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One immutable picture. Each part is replaced whole when it is read anew, so that an unchanged part
    stays the same object from one snapshot to the next. `pending` names parts that were never read yet.
    `tuning` is read for plans that change it alone, by namespace and ifindex."""

    taken_at: float = 0.0
    host: Host = field(default_factory=Host)
    namespaces: Mapping[int, Namespace] = field(default_factory=dict)
    nets: Mapping[int, NetState] = field(default_factory=dict)
    firewalls: Mapping[int, Firewall] = field(default_factory=dict)
    conntracks: Mapping[int, Conntrack] = field(default_factory=dict)
    engines: Mapping[str, Engine] = field(default_factory=dict)
    ovs: tuple[OvsBridge, ...] = ()
    storms: tuple[Storm, ...] = ()
    tuning: Mapping[int, Mapping[int, LinkTuning]] = field(default_factory=dict)
    part_problems: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)
    pending: frozenset[str] = frozenset()

    def link(self, key: LinkKey | tuple[int, int]) -> Link | None:
        """The link of that key, None where it is gone."""
        net = self.nets.get(key[0])
        return net.links.get(key[1]) if net else None

    def links(self) -> Iterator[Link]:
        """Every link of every namespace."""
        for net in self.nets.values():
            yield from net.links.values()

    def containers(self) -> Iterator[Container]:
        """Every container of every runtime."""
        for engine in self.engines.values():
            yield from engine.containers

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems of all parts."""
        groups = [*self.part_problems.values()]
        for parts in (self.nets, self.firewalls, self.conntracks, self.engines):
            groups += [part.problems for part in parts.values()]
        return tuple(problem for group in groups for problem in group)
