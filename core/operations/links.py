"""Change links, bridges and bridge ports by rtnetlink(7).

The names and units are those of ip-link(8) and bridge(8).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.netlink.client import NLA_NESTED, Netlink, attribute
from core.netlink.netns import NamespaceGone
from core.operations.base import LinkOperation, Operation
from core.operations.executor import Executor, inside
from core.operations.values import HOST, NetnsTarget, recorded
from core.text import quoted

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
        with _vlans_needed(self.vlan_filtering), executor.rtnetlink(self.place) as iproute:
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
class DeleteLink(Operation):
    """Delete a link, with its peer if it is a veth; `again` is its undo.

    Operations before it remove its addresses, routes and master, so that an undo restores them.
    """

    name: str
    place: NetnsTarget = HOST
    again: CreateBridge | CreateVeth | None = None

    def command(self) -> str:
        return self.place.ip(f"link del {quoted(self.name)}")

    def inverse(self) -> tuple[CreateBridge | CreateVeth, ...]:
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


@recorded()
@dataclass(frozen=True, slots=True)
class SetBridge(LinkOperation):
    """Set one setting of a bridge.

    Names and units are those of ip-link(8) ("ageing_time" in 1/100 s).
    """

    name: str
    setting: str
    value: int
    before: int
    place: NetnsTarget = HOST

    def command(self) -> str:
        return self.place.ip(f"link set {quoted(self.name)} type bridge {self.setting} {self.value}")

    def inverse(self) -> tuple[SetBridge, ...]:
        return (replace(self, value=self.before, before=self.value),)

    def describe(self) -> str:
        return f"set {self.setting} of the bridge {self.name} to {self.value}"

    def execute(self, executor: Executor) -> None:
        index = executor.index(self.place, self.name)
        with _vlans_needed("vlan" in self.setting), executor.rtnetlink(self.place) as iproute:
            iproute.link("set", index=index, kind="bridge", **{f"br_{self.setting}": self.value})


# IFLA_BRPORT_* by the names of bridge(8).
_PORT_FLAGS = {
    "hairpin": "MODE", "guard": "GUARD", "root_block": "PROTECT", "fastleave": "FAST_LEAVE",
    "learning": "LEARNING", "flood": "UNICAST_FLOOD", "mcast_flood": "MCAST_FLOOD",
    "bcast_flood": "BCAST_FLOOD", "neigh_suppress": "NEIGH_SUPPRESS", "isolated": "ISOLATED",
    "locked": "LOCKED",
}  # fmt: skip


@recorded()
@dataclass(frozen=True, slots=True)
class SetPort(LinkOperation):
    """Set one flag of a bridge port.

    The names are those of bridge(8) ("isolated", "hairpin", "learning").
    """

    name: str
    flag: str
    on: bool
    before: bool
    place: NetnsTarget = HOST

    def command(self) -> str:
        return self.place.bridge(f"link set dev {quoted(self.name)} {self.flag} {'on' if self.on else 'off'}")

    def inverse(self) -> tuple[SetPort, ...]:
        return (replace(self, on=self.before, before=self.on),)

    def describe(self) -> str:
        return f"switch {self.flag} of the port {self.name} {'on' if self.on else 'off'}"

    def execute(self, executor: Executor) -> None:
        flag = f"IFLA_BRPORT_{_PORT_FLAGS[self.flag]}", int(self.on)
        port = [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", {"attrs": [flag]})]
        index = executor.index(self.place, self.name)
        with executor.rtnetlink(self.place) as iproute:
            iproute.link("set", index=index, linkinfo={"attrs": port})


# BR_STATE_* of linux/if_bridge.h by their places.
PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
# RTM_SETLINK, IFLA_PROTINFO, IFLA_BRPORT_STATE; family and index of struct ifinfomsg.
_SET_LINK, _PORT_SETTINGS, _PORT_STATE = 19, 12, 1
_LINK = struct.Struct("=Bxxxi8x")


@recorded()
@dataclass(frozen=True, slots=True)
class SetPortState(LinkOperation):
    """Set the STP state of a bridge port, one of PORT_STATES.

    The kernel refuses it while the bridge runs STP, and for a port without carrier.
    """

    name: str
    state: str
    before: str
    place: NetnsTarget = HOST

    def command(self) -> str:
        number = PORT_STATES.index(self.state)
        return self.place.bridge(f"link set dev {quoted(self.name)} state {number}")

    def inverse(self) -> tuple[SetPortState, ...]:
        return (replace(self, state=self.before, before=self.state),)

    def describe(self) -> str:
        return f"set the port {self.name} from {self.before} to {self.state}"

    def execute(self, executor: Executor) -> None:
        # As bridge(8) does: after a change by rtnetlink's usual message the kernel enables the port again.
        header = _LINK.pack(socket.AF_BRIDGE, executor.index(self.place, self.name))
        state = attribute(_PORT_STATE, bytes([PORT_STATES.index(self.state)]))
        with inside(self.place):
            netlink = Netlink()
        with netlink:
            netlink.request(_SET_LINK, header + attribute(_PORT_SETTINGS | NLA_NESTED, state))


_IFF_NOARP = 0x80  # linux/if.h
# linux/if_bridge.h
_BRIDGE_FLAGS_SELF = 2
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 1 << 1, 1 << 2, 1 << 3, 1 << 4


@recorded()
@dataclass(frozen=True, slots=True)
class AddVlan(Operation):
    """Add a bridge port to a VLAN or to a range of VLANs.

    `own`: the link is the bridge itself. `pvid` and `untagged` are those of bridge(8).
    """

    name: str
    vid: int
    vid_end: int
    pvid: bool = False
    untagged: bool = False
    own: bool = False
    place: NetnsTarget = HOST

    def command(self) -> str:
        words = [self._words("add"), *(["pvid"] if self.pvid else [])]
        words += ["untagged"] if self.untagged else []
        return self.place.bridge(" ".join([*words, *self._end()]))

    def inverse(self) -> tuple[DeleteVlan, ...]:
        return (DeleteVlan(self),)

    def describe(self) -> str:
        return f"add {self.name} to {self.vlan_ids}"

    @property
    def vlan_ids(self) -> str:
        """Return the VLANs as text."""
        return f"VLAN {self.vid}" if self.vid == self.vid_end else f"VLANs {self.vid}-{self.vid_end}"

    def _words(self, verb: str) -> str:
        vids = str(self.vid) if self.vid == self.vid_end else f"{self.vid}-{self.vid_end}"
        return f"vlan {verb} dev {quoted(self.name)} vid {vids}"

    def _end(self) -> list[str]:
        return ["self"] if self.own else []

    def affects(self) -> tuple[str, ...]:
        return (self.place.link(self.name),)

    def execute(self, executor: Executor) -> None:
        self._request("add", _PVID * self.pvid | _UNTAGGED * self.untagged, executor)

    def _request(self, command: str, flags: int, executor: Executor) -> None:
        index = executor.index(self.place, self.name)
        with executor.rtnetlink(self.place) as iproute:
            iproute.vlan_filter(command, index=index, IFLA_AF_SPEC={"attrs": self._attributes(flags)})

    def _attributes(self, flags: int) -> list[tuple[str, Any]]:
        """Return IFLA_AF_SPEC.

        pyroute2's `vlan_info` can't express the flags of a range.
        """
        ends = [(self.vid, 0)]
        if self.vid_end != self.vid:
            ends = [(self.vid, _RANGE_BEGIN), (self.vid_end, _RANGE_END)]
        found: list[tuple[str, Any]] = [("IFLA_BRIDGE_FLAGS", _BRIDGE_FLAGS_SELF)] if self.own else []
        return found + [("IFLA_BRIDGE_VLAN_INFO", {"vid": vid, "flags": flags | end}) for vid, end in ends]


@recorded()
@dataclass(frozen=True, slots=True)
class DeleteVlan(Operation):
    """Remove a bridge port, or a bridge, from a VLAN or a range; `vlan` is its undo."""

    vlan: AddVlan

    def command(self) -> str:
        return self.vlan.place.bridge(" ".join([self.vlan._words("del"), *self.vlan._end()]))

    def inverse(self) -> tuple[AddVlan, ...]:
        return (self.vlan,)

    def describe(self) -> str:
        return f"remove {self.vlan.name} from {self.vlan.vlan_ids}"

    def affects(self) -> tuple[str, ...]:
        return self.vlan.affects()

    def execute(self, executor: Executor) -> None:
        self.vlan._request("del", 0, executor)


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
def _vlans_needed(needed: bool) -> Iterator[None]:
    """Explain the error of a kernel without VLAN filtering."""
    try:
        yield
    except OSError as error:
        if needed and error.errno == errno.EOPNOTSUPP:
            raise OSError(error.errno, _NO_VLANS) from error
        raise
