"""Requests of rtnetlink(7): what changes links, addresses, routes and neighbours, as messages."""

from __future__ import annotations

import ipaddress
import os
import struct
from typing import NamedTuple

from core.netlink.client import attribute
from core.operations import AddAddress, AddVlan

_NEW_LINK, _DELETE_LINK, _GET_LINK, _SET_LINK = 16, 17, 18, 19
_NEW_ADDRESS, _DELETE_ADDRESS = 20, 21
_NEW_ROUTE, _DELETE_ROUTE = 24, 25
_NEW_NEIGHBOUR, _DELETE_NEIGHBOUR = 28, 29
_REPLACE, _EXCLUSIVE, _CREATE, _APPEND = 0x100, 0x200, 0x400, 0x800
_NEW = _CREATE | _EXCLUSIVE

# linux/if_link.h
IFLA_IFALIAS = 20
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 10, 18, 28
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER = 1
_IFF_UP = 0x1
# linux/if_bridge.h
_PF_BRIDGE, _IFLA_AF_SPEC, _IFLA_BRIDGE_FLAGS, _IFLA_BRIDGE_VLAN_INFO, _BRIDGE_FLAGS_SELF = 7, 26, 0, 2, 2
_VLAN_PVID, _VLAN_UNTAGGED, _VLAN_RANGE_BEGIN, _VLAN_RANGE_END = 1 << 1, 1 << 2, 1 << 3, 1 << 4
# ip-link(8)'s words for IFLA_BR_*: the number and how the value is packed.
_BRIDGE_SETTINGS = {
    "forward_delay": (1, "=I"), "hello_time": (2, "=I"), "max_age": (3, "=I"), "ageing_time": (4, "=I"),
    "stp_state": (5, "=I"), "priority": (6, "=H"), "vlan_filtering": (7, "=B"), "group_fwd_mask": (9, "=H"),
    "mcast_snooping": (23, "=B"), "nf_call_iptables": (36, "=B"), "nf_call_ip6tables": (37, "=B"),
    "vlan_default_pvid": (39, "=H"),
}  # fmt: skip
# ip-link(8)'s words for IFLA_*: the largest packets of a link.
_SIZES = {"gso_max_size": 41, "gro_max_size": 58, "gso_ipv4_max_size": 63, "gro_ipv4_max_size": 64}
# bridge(8)'s words for IFLA_BRPORT_*.
_PORT_FLAGS = {
    "hairpin": 4, "guard": 5, "root_block": 6, "fastleave": 7, "learning": 8, "flood": 9, "mcast_flood": 27,
    "bcast_flood": 30, "neigh_suppress": 32, "isolated": 33,
}  # fmt: skip

# linux/if_addr.h, rtnetlink.h, neighbour.h
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_BROADCAST, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_RT_PRIORITY = (
    1, 2, 3, 4, 6, 8, 9,
)  # fmt: skip
FOR_EVER = 0xFFFFFFFF
_NDA_DST, _NDA_LLADDR = 1, 2
_STATES = {"reachable": 0x02, "stale": 0x04, "permanent": 0x80}

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_CACHEINFO = struct.Struct("=IIII")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
LINK_HEADER = _LINK.size
FAMILIES = {4: 2, 6: 10}


class Request(NamedTuple):
    """One message to the kernel: its type, what follows the header, and its flags."""

    msg_type: int
    body: bytes
    flags: int = 0


def make_bridge(name: str, mtu: int, mac: str, settings: dict[str, int]) -> Request:
    """A new bridge; `mac` "" lets the kernel choose."""
    body = _LINK.pack(0, 0, 0, 0, 0) + _named(name, mtu, mac) + _bridge_info(settings)
    return Request(_NEW_LINK, body, _NEW)


def make_veth(name: str, peer: str, mtu: int, mac: str, peer_mac: str, peer_namespace: int | None) -> Request:
    """A new veth pair; `peer_namespace` is a descriptor of the namespace for its other end, None for the
    same one."""
    far = _LINK.pack(0, 0, 0, 0, 0) + _named(peer, mtu, peer_mac)
    if peer_namespace is not None:
        far += u32_attribute(_IFLA_NET_NS_FD, peer_namespace)
    info = attribute(_INFO_KIND, b"veth") + attribute(_INFO_DATA, attribute(_VETH_INFO_PEER, far))
    body = _LINK.pack(0, 0, 0, 0, 0) + _named(name, mtu, mac) + attribute(_IFLA_LINKINFO, info)
    return Request(_NEW_LINK, body, _NEW)


def delete_link(index: int) -> Request:
    """The end of a link."""
    return Request(_DELETE_LINK, _LINK.pack(0, 0, index, 0, 0))


def get_link(index: int) -> Request:
    """What the kernel knows of a link."""
    return Request(_GET_LINK, _LINK.pack(0, 0, index, 0, 0))


def set_up(index: int, up: bool) -> Request:
    """A link set up or down."""
    return Request(_NEW_LINK, _LINK.pack(0, 0, index, _IFF_UP if up else 0, _IFF_UP))


def set_mtu(index: int, mtu: int) -> Request:
    """A link's greatest packet."""
    return _set(index, u32_attribute(_IFLA_MTU, mtu))


def set_master(index: int, master: int) -> Request:
    """The bridge that a link is a port of, 0 for none."""
    return _set(index, u32_attribute(_IFLA_MASTER, master))


def set_alias(index: int, alias: str) -> Request:
    """A link's alias, "" for none."""
    return _set(index, attribute(IFLA_IFALIAS, os.fsencode(alias)))


def set_name(index: int, name: str) -> Request:
    """A link's name."""
    return _set(index, attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0"))


def set_mac(index: int, mac: str) -> Request:
    """A link's MAC."""
    return _set(index, attribute(_IFLA_ADDRESS, _mac(mac)))


def set_sizes(index: int, sizes: tuple[tuple[str, int], ...]) -> Request:
    """The largest packets of a link, in ip-link(8)'s words and bytes."""
    return _set(index, b"".join(u32_attribute(_SIZES[word], size) for word, size in sizes))


def set_bridge(index: int, setting: str, value: int) -> Request:
    """One setting of a bridge, in ip-link(8)'s words and units."""
    return _set(index, _bridge_info({setting: value}))


def set_port(index: int, flag: str, on: bool) -> Request:
    """One flag of a bridge port, in bridge(8)'s words."""
    data = attribute(_PORT_FLAGS[flag], struct.pack("=B", on))
    info = attribute(_INFO_SLAVE_KIND, b"bridge") + attribute(_INFO_SLAVE_DATA, data)
    return _set(index, attribute(_IFLA_LINKINFO, info))


def set_vlan(index: int, vlan: AddVlan, there: bool) -> Request:
    """A VLAN, or a range, of a bridge port or of the bridge itself; `there` False takes it away."""
    flags = _VLAN_PVID * vlan.pvid | _VLAN_UNTAGGED * vlan.untagged if there else 0
    ends = [(vlan.vid, 0)]
    if vlan.vid_end != vlan.vid:
        ends = [(vlan.vid, _VLAN_RANGE_BEGIN), (vlan.vid_end, _VLAN_RANGE_END)]
    spec = attribute(_IFLA_BRIDGE_FLAGS, struct.pack("=H", _BRIDGE_FLAGS_SELF)) if vlan.own else b""
    for vid, which in ends:
        spec += attribute(_IFLA_BRIDGE_VLAN_INFO, struct.pack("=HH", flags | which, vid))
    body = _LINK.pack(_PF_BRIDGE, 0, index, 0, 0) + attribute(_IFLA_AF_SPEC, spec)
    return Request(_SET_LINK if there else _DELETE_LINK, body)


def add_address(
    wanted: AddAddress, index: int, scope: int, flags: int, lifetimes: tuple[int, int]
) -> Request:
    """An address for a link; `flags` are IFA_F_*, `lifetimes` the seconds that it is valid and preferred."""
    body = _address(index, wanted.address, wanted.peer, scope)
    body += attribute(_IFA_BROADCAST, packed(wanted.broadcast)) if wanted.broadcast else b""
    body += attribute(_IFA_LABEL, os.fsencode(wanted.label) + b"\0") if wanted.label else b""
    body += u32_attribute(_IFA_RT_PRIORITY, wanted.metric) if wanted.metric else b""
    body += u32_attribute(_IFA_FLAGS, flags) if flags else b""
    valid, preferred = lifetimes
    if (valid, preferred) != (FOR_EVER, FOR_EVER):
        body += attribute(_IFA_CACHEINFO, _CACHEINFO.pack(preferred, valid, 0, 0))
    return Request(_NEW_ADDRESS, body, _NEW)


def delete_address(index: int, address: str, peer: str) -> Request:
    """The end of an address with its prefix length, which is the peer's where there is one."""
    return Request(_DELETE_ADDRESS, _address(index, address, peer, 0))


def add_route(body: bytes, beside: bool) -> Request:
    """A new route, as `core.apply.ways.body` tells it; `beside` also where another one goes there."""
    return Request(_NEW_ROUTE, body, _CREATE | _APPEND if beside else _NEW)


def delete_route(body: bytes) -> Request:
    """The end of a route, as `core.apply.ways.body` tells it."""
    return Request(_DELETE_ROUTE, body)


def set_neighbour(index: int, address: str, mac: str, state: str) -> Request:
    """The MAC of a neighbour, whether it was known or not."""
    body = _neighbour(index, address, _STATES[state]) + attribute(_NDA_LLADDR, _mac(mac))
    return Request(_NEW_NEIGHBOUR, body, _CREATE | _REPLACE)


def delete_neighbour(index: int, address: str) -> Request:
    """A neighbour forgotten."""
    return Request(_DELETE_NEIGHBOUR, _neighbour(index, address, 0))


def _set(index: int, attributes: bytes) -> Request:
    return Request(_NEW_LINK, _LINK.pack(0, 0, index, 0, 0) + attributes)


def _named(name: str, mtu: int, mac: str) -> bytes:
    body = attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0") + u32_attribute(_IFLA_MTU, mtu)
    return body + (attribute(_IFLA_ADDRESS, _mac(mac)) if mac else b"")


def _bridge_info(settings: dict[str, int]) -> bytes:
    data = b""
    for name, value in settings.items():
        number, form = _BRIDGE_SETTINGS[name]
        data += attribute(number, struct.pack(form, value))
    return attribute(_IFLA_LINKINFO, attribute(_INFO_KIND, b"bridge") + attribute(_INFO_DATA, data))


def _address(index: int, address: str, peer: str, scope: int) -> bytes:
    host = ipaddress.ip_interface(address)
    body = _ADDRESS.pack(FAMILIES[host.version], host.network.prefixlen, 0, scope, index)
    far = packed(peer) if peer else host.packed
    return body + attribute(_IFA_LOCAL, host.packed) + attribute(_IFA_ADDRESS, far)


def _neighbour(index: int, address: str, state: int) -> bytes:
    host = ipaddress.ip_address(address)
    return _NEIGHBOUR.pack(FAMILIES[host.version], index, state, 0, 0) + attribute(_NDA_DST, host.packed)


def packed(address: str) -> bytes:
    """An address as the kernel takes it."""
    return ipaddress.ip_address(address).packed


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def u32_attribute(number: int, value: int) -> bytes:
    """An attribute of 32 bits."""
    return attribute(number, struct.pack("=I", value))
