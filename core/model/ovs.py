"""Open vSwitch bridges, as their database tells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
