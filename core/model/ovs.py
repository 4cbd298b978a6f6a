"""Open vSwitch bridges, as its database describes them (ovs-vswitchd.conf.db(5))."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class OvsInterface:
    """One interface of an OVS port.

    `kind` is "system" (a link that exists without it), "internal", "tap", "patch", "vxlan", "geneve", ...;
    `ifindex` its link in ovs-vswitchd's namespace, None if it has none (patches): the tunnels of one type
    share a link of the kernel's datapath. `error` is why it could not be opened; `options` are the tunnel's
    or the patch's."""

    name: str
    kind: str = "system"
    ifindex: int | None = None
    ofport: int | None = None
    mac: str = ""
    admin_up: bool = False
    carrier: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def remote(self) -> str:
        """The other end of a tunnel ("flow" if flows choose it), "" for other kinds."""
        return self.options.get("remote_ip", "")


@dataclass(frozen=True, slots=True)
class OvsPort:
    """One OVS port; a bond has several interfaces.

    `tag` is its access VLAN, `trunks` the VLANs that it trunks (empty without a tag: all); `vlan_mode`,
    `bond_mode` and `lacp` as in ovs-vswitchd.conf.db(5). `bond_active` is the interface that a bond sends
    by, "" if it has none."""

    name: str
    tag: int | None = None
    trunks: tuple[int, ...] = ()
    vlan_mode: str = ""
    bond_mode: str = ""
    interfaces: tuple[OvsInterface, ...] = ()
    lacp: str = ""
    bond_active: str = ""
    external_ids: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_bond(self) -> bool:
        """Whether it has several interfaces."""
        return len(self.interfaces) > 1

    @property
    def error(self) -> str:
        """Why the first broken interface could not be opened, "" if none is broken."""
        return next((one.error for one in self.interfaces if one.error), "")


@dataclass(frozen=True, slots=True)
class OvsController:
    """One OpenFlow controller; `role` is "master", "slave", "other" or ""."""

    target: str
    is_connected: bool = False
    role: str = ""


@dataclass(frozen=True, slots=True)
class OvsBridge:
    """One OVS bridge; `datapath` is "system" (kernel) or "netdev" (user space).

    Its own link is the port with its name. `protocols` are the OpenFlow versions that it allows, by default
    all. `normal`: it switches as a bridge of the kernel does, as no flow and no setting says otherwise; None
    if that wasn't read."""

    name: str
    datapath: str = "system"
    fail_mode: str = ""
    stp: bool = False
    rstp: bool = False
    ports: tuple[OvsPort, ...] = ()
    controllers: tuple[OvsController, ...] = ()
    protocols: tuple[str, ...] = ()
    external_ids: Mapping[str, str] = field(default_factory=dict)
    normal: bool | None = None

    def port(self, name: str) -> OvsPort | None:
        """Return the port of that name."""
        return next((port for port in self.ports if port.name == name), None)


@dataclass(frozen=True, slots=True)
class OvsFlow:
    """One OpenFlow flow with its counters; `match` is "" for all packets.

    `duration` is in seconds."""

    table: int
    priority: int
    match: str
    actions: str
    packets: int = 0
    bytes: int = 0
    duration: float = 0.0
    cookie: str = ""
