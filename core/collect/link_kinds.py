"""What is special to each kind of link: decodes IFLA_INFO_DATA (linux/if_link.h) into `Link.details`."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from core.model.link import Scalar
from core.netlink.client import attributes, u16, u32

Attributes = Mapping[int, bytes]

MACVLAN_MODES = {1: "private", 2: "vepa", 4: "bridge", 8: "passthru", 16: "source"}
IPVLAN_MODES = {0: "l2", 1: "l3", 2: "l3s"}
IPVLAN_FLAGS = {0: "bridge", 1: "private", 2: "vepa"}
VLAN_PROTOCOLS = {0x8100: "802.1Q", 0x88A8: "802.1ad"}
BOND_MODES = (
    "balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb",
)  # fmt: skip


def details(kind: str, data: bytes) -> dict[str, Scalar]:
    """The details of a link of that kind, for bridges none: `core.collect.bridges` has them.

    vxlan: vni, remote (or the multicast group), local, link (the underlay's ifindex), port, learning, proxy,
    external; macvlan, macvtap, ipvlan: mode, for ipvlan also flag; vlan: id, protocol; bond: mode,
    active_slave (ifindex), miimon (ms); tun: mode ("tun" or "tap"), owner, group, persist, multi_queue;
    vrf: table. What the kernel does not tell is left out.
    """
    decode = _DECODERS.get(kind)
    return decode(attributes(data)) if decode else {}


def address(value: bytes) -> str:
    """An IPv4 or IPv6 address in text form."""
    return socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)


def _vxlan(data: Attributes) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    if 1 in data:
        found["vni"] = u32(data[1])
    for name, numbers in (("remote", (2, 16)), ("local", (4, 17))):
        for number in numbers:
            if any(data.get(number, b"")):
                found[name] = address(data[number])
    if 3 in data and u32(data[3]):
        found["link"] = u32(data[3])
    if 15 in data:
        found["port"] = int.from_bytes(data[15], "big")
    return found | _flags(data, {"learning": 7, "proxy": 11, "external": 25})


def _macvlan(data: Attributes) -> dict[str, Scalar]:
    return {"mode": _word(MACVLAN_MODES, u32(data[1]))} if 1 in data else {}


def _ipvlan(data: Attributes) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    if 1 in data:
        found["mode"] = _word(IPVLAN_MODES, u16(data[1]))
    if 2 in data:
        found["flag"] = _word(IPVLAN_FLAGS, u16(data[2]))
    return found


def _vlan(data: Attributes) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    if 1 in data:
        found["id"] = u16(data[1])
    if 5 in data:
        found["protocol"] = _word(VLAN_PROTOCOLS, int.from_bytes(data[5], "big"))
    return found


def _bond(data: Attributes) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    if 1 in data:
        found["mode"] = _word(dict(enumerate(BOND_MODES)), data[1][0])
    for name, number in (("active_slave", 2), ("miimon", 3)):
        if number in data:
            found[name] = u32(data[number])
    return found


def _tun(data: Attributes) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    if 3 in data:
        found["mode"] = _word({1: "tun", 2: "tap"}, data[3][0])
    for name, number in (("owner", 1), ("group", 2)):
        if number in data:
            found[name] = u32(data[number])
    return found | _flags(data, {"persist": 6, "multi_queue": 7})


def _vrf(data: Attributes) -> dict[str, Scalar]:
    return {"table": u32(data[1])} if 1 in data else {}


def _flags(data: Attributes, numbers: Mapping[str, int]) -> dict[str, Scalar]:
    return {name: bool(data[number][0]) for name, number in numbers.items() if data.get(number)}


def _word(words: Mapping[int, str], number: int) -> str:
    return words.get(number, str(number))


_DECODERS: Mapping[str, Callable[[Attributes], dict[str, Scalar]]] = {
    "vxlan": _vxlan,
    "macvlan": _macvlan,
    "macvtap": _macvlan,
    "ipvlan": _ipvlan,
    "vlan": _vlan,
    "bond": _bond,
    "tun": _tun,
    "vrf": _vrf,
}
