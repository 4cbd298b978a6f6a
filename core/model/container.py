"""Containers and networks as their engines report them, and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.model.refs import Problem

NAMESPACE_KINDS = ("user", "mnt", "pid", "uts", "net", "ipc")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A container's attachment to a network; addresses as "172.18.0.2/16".

    The rest was requested when the container was created: `aliases` are further names in the engine's DNS,
    `chosen` the addresses that the user chose (`mac_chosen` likewise, if the engine reports it), `link_local`
    further addresses, `links` other containers and their names for this one alone ("db:database"); the
    endpoint with the highest `gateway_priority` has the default route.
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
    """A published port.

    `host_ip` "" means any address, "0.0.0.0" and "::" any of that family."""

    l4_proto: str
    host_ip: str
    host_port: int
    container_port: int


@dataclass(frozen=True, slots=True)
class Container:
    """A container of an engine, or an unmanaged one.

    `runtime` is "docker", "podman", "netns" (a named namespace) or "process" (a process in namespaces of its
    own); `state` "running", "paused", "exited", "created", ...; `pid` its first process; `namespaces` maps
    each of NAMESPACE_KINDS to the inode of that process's namespace. `network_mode` is the requested one:
    "host", "none", "container:ID" or a network's name. `labels` and names are untrusted text.
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
        """The id that is unique among all runtimes: "runtime:id"."""
        return f"{self.runtime}:{self.id}"

    @property
    def netns(self) -> int | None:
        """The inode of its network namespace, None if it has none now."""
        return self.namespaces.get("net")

    def endpoints_of(self, network: Network) -> tuple[Endpoint, ...]:
        """Return its attachments to a network, which engines give by name or id."""
        return tuple(end for end in self.endpoints if end.network in (network.name, network.id))


@dataclass(frozen=True, slots=True)
class Network:
    """An engine's network, or a bridge that no engine created.

    `engine` is "docker", "podman" or "kernel" (no engine); `driver` as the engine names it; `bridge` the
    bridge's link name in namespace `ns`, "" if there is none.

    `kind` is "nat" (outgoing packets are translated), "internal" (no packets leave it), "routed",
    "nic-bridged" (a network card is a port), "switched" (a bridge without an address), "host", "none",
    "macvlan", "ipvlan", "overlay" or "" if unknown (an engine's raw answer, or rules were not read):
    `core.networks` derives it from links and rules. `parent` names the lower link of a macvlan or ipvlan
    network. `options` are the driver's, as given at creation; `ip_ranges` the parts of its subnets that
    addresses are taken from, `reserved` addresses that are excluded ("router=10.1.0.9"), `ipam` the driver
    that manages addresses, "" for the engine's own.

    For a Docker bridge: `gateway_mode` is its mode by family ("ipv4", "ipv6"): "nat", "nat-unprotected",
    "routed" or "isolated"; `masquerade` is False if outgoing packets keep their source; `trusted_links` names
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
    """Containers and networks of one engine.

    `state` is "ok", "absent", "stopped", "denied" or "error"."""

    name: str
    state: str
    version: str = ""
    containers: tuple[Container, ...] = ()
    networks: tuple[Network, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class NamespaceUse:
    """One of a container's six namespaces and who shares it.

    `inode` is 0 if unknown; `with_host` is True for the host's own; otherwise `with_containers` are the uids
    of the other containers in it."""

    kind: str
    inode: int
    with_host: bool
    with_containers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Describe how a container is connected.

    `model` is "closed" (loopback only), "bridged", "routed" (connected, but not to a bridge), "joined",
    "open" (the host's namespace) or "unknown"; `joined_with` are the uids of those in the same namespace;
    `joined_dead` is True if the joined namespace no longer belongs to the requested container; `why` is the
    reason as a sentence."""

    container: str
    model: str
    why: str
    joined_with: tuple[str, ...] = ()
    joined_dead: bool = False
    namespaces: tuple[NamespaceUse, ...] = ()
