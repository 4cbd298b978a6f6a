"""Change bridges, their ports and VLANs by rtnetlink(7).

The names and units are those of ip-link(8) and bridge(8).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, replace
from typing import Any

from core.netlink.client import NLA_NESTED, Netlink, attribute
from core.operations.base import LinkOperation, Operation
from core.operations.executor import Executor, inside
from core.operations.links import vlans_needed
from core.operations.values import HOST, NetnsTarget, recorded
from core.text import quoted


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
        with vlans_needed("vlan" in self.setting), executor.rtnetlink(self.place) as iproute:
            iproute.link("set", index=index, kind="bridge", **{f"br_{self.setting}": self.value})


# IFLA_BRPORT_* by the names of bridge(8).
_PORT_FLAGS = {
    "hairpin": "MODE", "guard": "GUARD", "root_block": "PROTECT", "fastleave": "FAST_LEAVE",
    "learning": "LEARNING", "flood": "UNICAST_FLOOD", "mcast_flood": "MCAST_FLOOD",
    "bcast_flood": "BCAST_FLOOD", "neigh_suppress": "NEIGH_SUPPRESS", "isolated": "ISOLATED",
    "locked": "LOCKED", "proxy_arp_wifi": "PROXYARP_WIFI",
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
        words = f"{self.flag} {'on' if self.on else 'off'}"
        if self.flag == "proxy_arp_wifi":  # which bridge(8) doesn't know
            return self.place.ip(f"link set {quoted(self.name)} type bridge_slave {words}")
        return self.place.bridge(f"link set dev {quoted(self.name)} {words}")

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
