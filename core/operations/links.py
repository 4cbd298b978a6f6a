"""Operations on links (ip-link(8))."""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.operations.target import HOST, NetnsTarget
from core.text import quoted


@dataclass(frozen=True, slots=True)
class CreateBridge:
    """Make a bridge, down and without addresses; `mac` "" lets the kernel choose."""

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
        return f"{made} && {_set_alias(self.place, self.name, self.alias)}" if self.alias else made

    def inverse(self) -> tuple[DeleteLink, ...]:
        return (DeleteLink(self.name, self.place, again=self),)

    def describe(self) -> str:
        return f"make the bridge {self.name} in {self.place}"


@dataclass(frozen=True, slots=True)
class CreateVeth:
    """Make a veth pair, both ends down: `name` at `place`, `peer` at `peer_place`."""

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
        return f"{made} && {_set_alias(self.place, self.name, self.alias)}" if self.alias else made

    def inverse(self) -> tuple[DeleteLink, ...]:
        return (DeleteLink(self.name, self.place, again=self),)

    def describe(self) -> str:
        return f"make the veth pair {self.name} in {self.place} and {self.peer} in {self.peer_place}"


@dataclass(frozen=True, slots=True)
class DeleteLink:
    """Delete a link (a veth's other end goes with it). `again` makes it anew; its addresses, master and
    routes are taken away by operations of their own before."""

    name: str
    place: NetnsTarget = HOST
    again: CreateBridge | CreateVeth | None = None

    def command(self) -> str:
        return self.place.ip(f"link del {quoted(self.name)}")

    def inverse(self) -> tuple[CreateBridge | CreateVeth, ...]:
        return (self.again,) if self.again else ()

    def describe(self) -> str:
        return f"delete the link {self.name} in {self.place}"


@dataclass(frozen=True, slots=True)
class SetLink:
    """Set one attribute of a link: `attribute` is "up" (values "up", "down"), "mtu", "alias", "master" (""
    for none), "address" (the MAC) or "name"; `before` is the value until now."""

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
                else f"take {self.name} off {self.before}"
            )
        return f"set the {self.attribute} of {self.name} in {self.place} to {self.value}"


@dataclass(frozen=True, slots=True)
class SetBridge:
    """Set one setting of a bridge, in ip-link(8)'s words ("stp_state", "ageing_time" in 1/100 s, ...)."""

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


@dataclass(frozen=True, slots=True)
class SetPort:
    """Set one flag of a bridge port, in bridge(8)'s words ("isolated", "hairpin", "learning", ...)."""

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


@dataclass(frozen=True, slots=True)
class AddVlan:
    """Let a bridge port take part in a VLAN, or in those of a range; `own` where the link is the bridge
    itself. `pvid` and `untagged` as bridge(8) has them."""

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
        return f"let {self.name} take part in {self.which}"

    @property
    def which(self) -> str:
        """The VLANs for a person."""
        return f"VLAN {self.vid}" if self.vid == self.vid_end else f"the VLANs {self.vid}-{self.vid_end}"

    def _words(self, verb: str) -> str:
        vids = str(self.vid) if self.vid == self.vid_end else f"{self.vid}-{self.vid_end}"
        return f"vlan {verb} dev {quoted(self.name)} vid {vids}"

    def _end(self) -> list[str]:
        return ["self"] if self.own else []


@dataclass(frozen=True, slots=True)
class DeleteVlan:
    """Let a bridge port, or a bridge, take part in a VLAN no longer; `vlan` lets it anew."""

    vlan: AddVlan

    def command(self) -> str:
        return self.vlan.place.bridge(" ".join([self.vlan._words("del"), *self.vlan._end()]))

    def inverse(self) -> tuple[AddVlan, ...]:
        return (self.vlan,)

    def describe(self) -> str:
        return f"let {self.vlan.name} take part in {self.vlan.which} no longer"


def _set_alias(place: NetnsTarget, name: str, alias: str) -> str:
    return place.ip(f"link set {quoted(name)} alias {quoted(alias)}")
