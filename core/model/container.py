"""Containers and networks, as their engines tell them, and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.model.problem import Problem

NAMESPACE_KINDS = ("user", "mnt", "pid", "uts", "net", "ipc")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A container's attachment to the network of that name; addresses as "172.18.0.2/16".

    The rest is what was asked for when it was made: `aliases` its further names in the engine's DNS, `chosen`
    those of its addresses that somebody chose, `mac_chosen` likewise (where the engine says so), `link_local`
    further addresses, `links` containers and the names they have for this one alone ("db:database"),
    `gateway_priority` the highest of which has the default route.
    """

    network: str
    ipv4: str = ""
    ipv6: str = ""
    gateway: str = ""
    mac: str = ""
    aliases: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    mac_chosen: bool = False
    link_local: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    driver_options: Mapping[str, str] = field(default_factory=dict)
    gateway_priority: int = 0


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A published port; `host_ip` "" means every address, "0.0.0.0" and "::" every one of that family; ports
    are whole numbers in host order."""

    l4_proto: str
    host_ip: str
    host_port: int
    container_port: int


@dataclass(frozen=True, slots=True)
class Container:
    """One container. `runtime` is "docker", "podman", "netns" (a plain named namespace) or "process" (a
    process in namespaces of its own); `state` "running", "paused", "exited", "created", ...; `pid` its first
    process; `namespaces` maps each of NAMESPACE_KINDS to the inode of that process's namespace.

    `network_mode` is what was asked for: "host", "none", "container:ID" or a network's name. `labels` and
    names are text from outside.
    """

    runtime: str
    id: str
    name: str
    state: str = "running"
    image: str = ""
    pid: int | None = None
    network_mode: str = ""
    namespaces: Mapping[str, int] = field(default_factory=dict)
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    command: str = ""

    @property
    def uid(self) -> str:
        """The container's id among all runtimes: "runtime:id"."""
        return f"{self.runtime}:{self.id}"

    @property
    def netns(self) -> int | None:
        """The inode of its network namespace, None where it has none now."""
        return self.namespaces.get("net")


@dataclass(frozen=True, slots=True)
class Network:
    """One network. `engine` is "docker", "podman" or "kernel" (a bridge that no engine owns); `driver` as the
    engine names it; `bridge` the bridge's link name in namespace `ns` ("" where there is none).

    `kind` is "nat" (what leaves it is translated), "internal" (nothing leaves it), "routed", "nic-bridged" (a
    network card is a port), "switched" (a bridge without an address: the host takes no part), "host", "none",
    "macvlan", "ipvlan", "overlay" or "" where it is not known (an engine's raw answer, or rules that were not
    read): `core.networks` decides it from links and rules. `parent`
    names the link that a macvlan or ipvlan network sits on. `options` are the driver's, as given when it was
    made; `ip_ranges` the parts of its subnets that addresses are taken from, `reserved` addresses that are
    not ("router=10.1.0.9"), `ipam` whose addresses are managed by another driver than the engine's own.

    Of a bridge of Docker's: `gateway_mode` is its mode by family ("ipv4", "ipv6"): "nat", "nat-unprotected",
    "routed" or "isolated"; `masquerade` is False where what leaves keeps its source; `trusted_links` names
    the host's links that may reach containers directly.
    """

    engine: str
    id: str
    name: str
    driver: str = "bridge"
    kind: str = ""
    ns: int | None = None
    bridge: str = ""
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    mtu: int = 0
    internal: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    parent: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    attachable: bool = False
    has_ipv4: bool = True
    ip_ranges: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ()
    ipam: str = ""
    ipam_options: Mapping[str, str] = field(default_factory=dict)
    gateway_mode: Mapping[str, str] = field(default_factory=dict)
    masquerade: bool = True
    trusted_links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Engine:
    """What one container engine answered; `state` is "ok", "absent", "stopped", "denied" or "error"."""

    name: str
    state: str
    version: str = ""
    containers: tuple[Container, ...] = ()
    networks: tuple[Network, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class NamespaceUse:
    """One of a container's six namespaces: its inode (0 where unknown), whether it is the host's, and, where
    it is not, the uids of the other containers in it."""

    kind: str
    inode: int
    with_host: bool
    with_containers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A container's network model: "closed" (loopback only), "bridged", "routed" (wired, but to no bridge),
    "joined", "open" (the host's own) or "unknown"; `joined_with` the uids of those it shares a namespace
    with; `joined_dead` where the namespace that it joined is no longer that of the container it meant; `why`
    says it in a sentence."""

    container: str
    model: str
    why: str
    joined_with: tuple[str, ...] = ()
    joined_dead: bool = False
    namespaces: tuple[NamespaceUse, ...] = ()
