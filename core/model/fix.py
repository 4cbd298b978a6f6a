"""Repairs of a finding as values; `core.plan.repair` turns them into operations."""

from __future__ import annotations

from dataclasses import dataclass

from core.model.link import Address, FdbEntry, Neighbour, PolicyRule, PortVlan, Route
from core.model.refs import LinkKey


@dataclass(frozen=True, slots=True)
class FixLink:
    """Set an attribute of a link: "up", "mtu", "master" (a name), "address", "arp"."""

    key: LinkKey
    attribute: str
    value: str


@dataclass(frozen=True, slots=True)
class FixPort:
    """Switch a flag of a bridge port, or set its "state" to forwarding."""

    key: LinkKey
    flag: str
    on: bool


@dataclass(frozen=True, slots=True)
class FixBridge:
    """Switch STP of a bridge off."""

    key: LinkKey


@dataclass(frozen=True, slots=True)
class FixVlan:
    """Add a VLAN to a bridge port, or remove it."""

    key: LinkKey
    vlan: PortVlan
    add: bool


@dataclass(frozen=True, slots=True)
class FixSysctl:
    """Set a kernel setting in a namespace (inode); `key` as in SetSysctl."""

    ns: int
    key: str
    value: str
    before: str


@dataclass(frozen=True, slots=True)
class FixAddress:
    """Add an address to a link, or delete it."""

    key: LinkKey
    address: Address
    add: bool


@dataclass(frozen=True, slots=True)
class FixRoute:
    """Add a route in a namespace (inode), or delete it."""

    ns: int
    route: Route
    add: bool


@dataclass(frozen=True, slots=True)
class FixPolicyRule:
    """Delete a routing policy rule of a namespace (inode)."""

    ns: int
    rule: PolicyRule


@dataclass(frozen=True, slots=True)
class FixNeighbour:
    """Delete a neighbour entry of a namespace (inode)."""

    ns: int
    neighbour: Neighbour


@dataclass(frozen=True, slots=True)
class FixFdb:
    """Delete an entry of a bridge's forwarding table in a namespace (inode)."""

    ns: int
    entry: FdbEntry


@dataclass(frozen=True, slots=True)
class FixFirewall:
    """Delete a firewall rule of a namespace (inode), by its `rule_id`."""

    ns: int
    rule_id: str


@dataclass(frozen=True, slots=True)
class FixAccept:
    """Append a rule to a chain that accepts what only its policy drops.

    `ns` is the inode of its namespace; the other fields are those of core.model.FirewallRule.
    """

    ns: int
    backend: str
    family: str
    table: str
    chain: str
    text: str


@dataclass(frozen=True, slots=True)
class FixMasquerade:
    """Masquerade packets from `subnet` that leave by another link than `bridge`."""

    ns: int
    subnet: str
    bridge: str


@dataclass(frozen=True, slots=True)
class FixConnection:
    """Delete a conntrack entry of a namespace (inode).

    The other fields are those of core.operations.DeleteConnection."""

    ns: int
    src: str
    dst: str
    l4_proto: int
    sport: int
    dport: int
    entry_id: int
    zone: int = 0


Step = (
    FixLink
    | FixPort
    | FixBridge
    | FixVlan
    | FixSysctl
    | FixAddress
    | FixRoute
    | FixPolicyRule
    | FixNeighbour
    | FixFdb
    | FixFirewall
    | FixAccept
    | FixMasquerade
    | FixConnection
)


@dataclass(frozen=True, slots=True)
class Fix:
    """A repair that can be previewed, applied and undone.

    `sentence` is an imperative phrase without a full stop, `steps` what to change, in order; without steps it
    is only an advice. `command` is what a person would type, "" if the steps say it.
    """

    sentence: str
    steps: tuple[Step, ...] = ()
    command: str = ""
