"""Create, change and delete links by rtnetlink(7).

The names and units are those of ip-link(8).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.netlink.netns import NamespaceGone
from core.operations.base import LinkOperation, Operation
from core.operations.executor import Executor
from core.operations.values import HOST, NetnsTarget, recorded
from core.text import quoted

VXLAN_PORT = 4789  # IANA
_NO_VLANS = (
    "this kernel has no VLAN filtering for bridges (CONFIG_BRIDGE_VLAN_FILTERING is off). "
    "Try: a network without VLAN filtering for each VLAN, or another kernel"
)


class _CreateLink(LinkOperation):
    """Create a link with an alias, by which an undo recognizes the link."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def alias(self) -> str: ...

    def target_exists(self, executor: Executor) -> bool:
        return _alias(self, executor) is not None

    def may_be_done(self, executor: Executor) -> bool:
        return not self.alias or _alias(self, executor) in ("", self.alias)

    def remaining(self, executor: Executor, was_interrupted: bool) -> Operation:
        if was_interrupted and _alias(self, executor) == "":
            return SetLink(self.name, "alias", self.alias, "", self.place)
        return self


@recorded()
@dataclass(frozen=True, slots=True)
class CreateBridge(_CreateLink):
    """Create a bridge, down and without addresses.

    For `mac` "" the kernel chooses one.
    """

    name: str
    place: NetnsTarget = HOST
    mac: str = ""
    mtu: int = 1500
    alias: str = ""
    stp: bool = False
    vlan_filtering: bool = False

    def command(self) -> str:
        mac = f" address {self.mac}" if self.mac else ""
        words = f"link add {quoted(self.name)} mtu {self.mtu}{mac} type bridge stp_state {int(self.stp)}"
        if self.vlan_filtering:
            words += " vlan_filtering 1"
        made = self.place.ip(words)
        return f"{made} && {_alias_command(self.place, self.name, self.alias)}" if self.alias else made

    def inverse(self) -> tuple[DeleteLink, ...]:
        return (DeleteLink(self.name, self.place, again=self),)

    def describe(self) -> str:
        return f"create the bridge {self.name} in {self.place}"

    def execute(self, executor: Executor) -> None:
        settings = {"br_stp_state": int(self.stp)}
        if self.vlan_filtering:
            settings["br_vlan_filtering"] = 1
        made = _attributes(self.name, self.mtu, self.mac)
        with vlans_needed(self.vlan_filtering), executor.rtnetlink(self.place) as iproute:
            iproute.link("add", kind="bridge", **made, **settings)
        if self.alias:
            _set_alias(self.name, self.alias, self.place, executor)


@recorded()
@dataclass(frozen=True, slots=True)
class CreateVeth(_CreateLink):
    """Create a veth pair, both ends down: `name` in `place`, `peer` in `peer_place`."""

    name: str
    peer: str
    place: NetnsTarget = HOST
    peer_place: NetnsTarget = HOST
    mtu: int = 1500
    mac: str = ""
    peer_mac: str = ""
    alias: str = ""

    def command(self) -> str:
        mac = f" address {self.mac}" if self.mac else ""
        peer_mac = f" address {self.peer_mac}" if self.peer_mac else ""
        elsewhere = f" netns {self.peer_place.netns_argument}" if self.peer_place != self.place else ""
        made = self.place.ip(
            f"link add {quoted(self.name)} mtu {self.mtu}{mac} type veth"
            f" peer name {quoted(self.peer)} mtu {self.mtu}{peer_mac}{elsewhere}"
        )
        return f"{made} && {_alias_command(self.place, self.name, self.alias)}" if self.alias else made

    def inverse(self) -> tuple[DeleteLink, ...]:
        return (DeleteLink(self.name, self.place, again=self),)

    def describe(self) -> str:
        return f"create the veth pair {self.name} in {self.place} and {self.peer} in {self.peer_place}"

    def affects(self) -> tuple[str, ...]:
        return self.place.link(self.name), self.peer_place.link(self.peer)

    def execute(self, executor: Executor) -> None:
        peer = _attributes(self.peer, self.mtu, self.peer_mac)
        if self.peer_place != self.place:
            peer["net_ns_fd"] = executor.descriptor(self.peer_place)
        made = _attributes(self.name, self.mtu, self.mac)
        with executor.rtnetlink(self.place) as iproute:
            iproute.link("add", kind="veth", **made, peer=peer)
        if self.alias:
            _set_alias(self.name, self.alias, self.place, executor)


@recorded()
@dataclass(frozen=True, slots=True)
class CreateVxlan(_CreateLink):
    """Create a VXLAN tunnel end (RFC 7348), down and without remote hosts.

    `vni` is the network's number, `local` this host's address in the underlay, `port` the UDP port. With
    `learning` the link learns from packets behind which remote host a MAC is; without it a routing engine
    fills its forwarding table. Over IPv4 the outer packets have no UDP checksum, as RFC 7348 recommends: the
    inner ones have their own.
    """

    name: str
    vni: int
    local: str
    place: NetnsTarget = HOST
    port: int = VXLAN_PORT
    mtu: int = 1450
    mac: str = ""
    alias: str = ""
    learning: bool = True

    def command(self) -> str:
        mac = f" address {self.mac}" if self.mac else ""
        more = f"{'' if self.learning else ' nolearning'}{'' if ':' in self.local else ' noudpcsum'}"
        made = self.place.ip(
            f"link add {quoted(self.name)} mtu {self.mtu}{mac} type vxlan"
            f" id {self.vni} local {self.local} dstport {self.port}{more}"
        )
        return f"{made} && {_alias_command(self.place, self.name, self.alias)}" if self.alias else made

    def inverse(self) -> tuple[DeleteLink, ...]:
        return (DeleteLink(self.name, self.place, again=self),)

    def describe(self) -> str:
        return f"create the tunnel end {self.name} of VNI {self.vni} in {self.place}"

    def execute(self, executor: Executor) -> None:
        local = "vxlan_local6" if ":" in self.local else "vxlan_local"
        settings = {"vxlan_id": self.vni, local: self.local, "vxlan_port": self.port}
        settings["vxlan_learning"] = int(self.learning)
        if ":" not in self.local:
            settings["vxlan_udp_csum"] = 0
        made = _attributes(self.name, self.mtu, self.mac)
        with executor.rtnetlink(self.place) as iproute:
            iproute.link("add", kind="vxlan", **made, **settings)
        if self.alias:
            _set_alias(self.name, self.alias, self.place, executor)


@recorded()
@dataclass(frozen=True, slots=True)
class DeleteLink(Operation):
    """Delete a link, with its peer if it is a veth; `again` is its undo.

    Operations before it remove its addresses, routes and master, so that an undo restores them.
    """

    name: str
    place: NetnsTarget = HOST
    again: CreateBridge | CreateVeth | CreateVxlan | None = None

    def command(self) -> str:
        return self.place.ip(f"link del {quoted(self.name)}")

    def inverse(self) -> tuple[CreateBridge | CreateVeth | CreateVxlan, ...]:
        return (self.again,) if self.again else ()

    def describe(self) -> str:
        return f"delete the link {self.name} in {self.place}"

    def affects(self) -> tuple[str, ...]:
        return self.again.affects() if self.again else (self.place.link(self.name),)

    def changed_link(self) -> tuple[str, NetnsTarget]:
        return self.name, self.place

    def execute(self, executor: Executor) -> None:
        index = executor.index(self.place, self.name)
        with executor.rtnetlink(self.place) as iproute:
            iproute.link("del", index=index)


@recorded()
@dataclass(frozen=True, slots=True)
class SetLink(Operation):
    """Set one attribute of a link; `before` is its current value.

    `attribute` is "up" (values "up", "down"), "mtu", "alias", "master" ("" for none), "address" (the MAC),
    "arp" ("on", "off") or "name".
    """

    name: str
    attribute: str
    value: str
    before: str
    place: NetnsTarget = HOST

    def command(self) -> str:
        name = quoted(self.name)
        if self.attribute == "up":
            return self.place.ip(f"link set {name} {self.value}")
        if self.attribute == "master" and not self.value:
            return self.place.ip(f"link set {name} nomaster")
        return self.place.ip(f"link set {name} {self.attribute} {quoted(self.value)}")

    def inverse(self) -> tuple[SetLink, ...]:
        name = self.value if self.attribute == "name" else self.name
        return (replace(self, name=name, value=self.before, before=self.value),)

    def describe(self) -> str:
        if self.attribute == "up":
            return f"set {self.name} in {self.place} {self.value}"
        if self.attribute == "master":
            return (
                f"make {self.name} a port of {self.value}"
                if self.value
                else f"detach {self.name} from {self.before}"
            )
        return f"set the {self.attribute} of {self.name} in {self.place} to {self.value}"

    def affects(self) -> tuple[str, ...]:
        names = {"name": (self.value,), "master": (self.value, self.before)}.get(self.attribute, ())
        return tuple(self.place.link(name) for name in (self.name, *names) if name)

    def changed_link(self) -> tuple[str, NetnsTarget]:
        return self.name, self.place

    def execute(self, executor: Executor) -> None:
        if self.attribute == "alias":
            _set_alias(self.name, self.value, self.place, executor)
            return
        index, setting = executor.index(self.place, self.name), self._setting(executor)
        with executor.rtnetlink(self.place) as iproute:
            iproute.link("set", index=index, **setting)

    def _setting(self, executor: Executor) -> dict[str, Any]:
        match self.attribute:
            case "up":
                return {"state": self.value}
            case "mtu":
                return {"mtu": int(self.value)}
            case "master":
                return {"master": executor.index(self.place, self.value) if self.value else 0}
            case "name":
                return {"ifname": os.fsencode(self.value)}
            case "address":
                return {"address": self.value}
            case "arp":
                return {"flags": 0 if self.value == "on" else _IFF_NOARP, "change": _IFF_NOARP}
            case unknown:
                raise ValueError(f"links have no attribute {unknown!r} to set")


_IFF_NOARP = 0x80  # linux/if.h


def _alias_command(place: NetnsTarget, name: str, alias: str) -> str:
    return place.ip(f"link set {quoted(name)} alias {quoted(alias)}")


def _attributes(name: str, mtu: int, mac: str) -> dict[str, Any]:
    """Return the attributes that every new link has."""
    return {"ifname": os.fsencode(name), "mtu": mtu, **({"address": mac} if mac else {})}


def _set_alias(name: str, alias: str, place: NetnsTarget, executor: Executor) -> None:
    """Set an alias.

    The message that creates a link can't contain it (rtnl_create_link).
    """
    from core.operations.rtnetlink import set_link

    index = executor.index(place, name)
    with executor.rtnetlink(place) as iproute:
        set_link(iproute, index, [("IFLA_IFALIAS", os.fsencode(alias))])


def _alias(step: _CreateLink, executor: Executor) -> str | None:
    """Return the alias of the link of that name, None if there is no such link."""
    try:
        return executor.alias(step.place, step.name)
    except (LookupError, NamespaceGone):
        return None


@contextmanager
def vlans_needed(needed: bool) -> Iterator[None]:
    """Explain the error of a kernel without VLAN filtering."""
    try:
        yield
    except OSError as error:
        if needed and error.errno == errno.EOPNOTSUPP:
            raise OSError(error.errno, _NO_VLANS) from error
        raise
