"""Decode what is specific to a kind of link (IFLA_INFO_DATA of linux/if_link.h)."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Mapping

from core.model import BridgePort, BridgeSettings, FdbEntry, PortVlan
from core.model.link import Scalar
from core.netlink.client import Netlink, attribute, attribute_list, attributes, u16, u32

Attributes = Mapping[int, bytes]

MACVLAN_MODES = {1: "private", 2: "vepa", 4: "bridge", 8: "passthru", 16: "source"}
IPVLAN_MODES = {0: "l2", 1: "l3", 2: "l3s"}
IPVLAN_FLAGS = {0: "bridge", 1: "private", 2: "vepa"}
VLAN_PROTOCOLS = {0x8100: "802.1Q", 0x88A8: "802.1ad"}
BOND_MODES = (
    "balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb",
)  # fmt: skip


def details(kind: str, data: bytes) -> dict[str, Scalar]:
    """Decode IFLA_INFO_DATA into `Link.details`; for bridges see `bridge_settings`.

    vxlan: vni, remote (or the multicast group), local, link (the underlay's ifindex), port, learning, proxy,
    external; macvlan, macvtap, ipvlan: mode, for ipvlan also flag; vlan: id, protocol; bond: mode,
    active_slave (ifindex), miimon (ms); tun: mode ("tun" or "tap"), owner, group, persist, multi_queue;
    vrf: table. Missing attributes are left out.
    """
    decode = _DECODERS.get(kind)
    return decode(attributes(data)) if decode else {}


def address(value: bytes) -> str:
    """Format an IPv4 or IPv6 address."""
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
    return {"mode": _enum_name(MACVLAN_MODES, u32(data[1]))} if 1 in data else {}


def _ipvlan(data: Attributes) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    if 1 in data:
        found["mode"] = _enum_name(IPVLAN_MODES, u16(data[1]))
    if 2 in data:
        found["flag"] = _enum_name(IPVLAN_FLAGS, u16(data[2]))
    return found


def _vlan(data: Attributes) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    if 1 in data:
        found["id"] = u16(data[1])
    if 5 in data:
        found["protocol"] = _enum_name(VLAN_PROTOCOLS, int.from_bytes(data[5], "big"))
    return found


def _bond(data: Attributes) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    if 1 in data:
        found["mode"] = _enum_name(dict(enumerate(BOND_MODES)), data[1][0])
    for name, number in (("active_slave", 2), ("miimon", 3)):
        if number in data:
            found[name] = u32(data[number])
    return found


def _tun(data: Attributes) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    if 3 in data:
        found["mode"] = _enum_name({1: "tun", 2: "tap"}, data[3][0])
    for name, number in (("owner", 1), ("group", 2)):
        if number in data:
            found[name] = u32(data[number])
    return found | _flags(data, {"persist": 6, "multi_queue": 7})


def _vrf(data: Attributes) -> dict[str, Scalar]:
    return {"table": u32(data[1])} if 1 in data else {}


def _flags(data: Attributes, numbers: Mapping[str, int]) -> dict[str, Scalar]:
    return {name: bool(data[number][0]) for name, number in numbers.items() if data.get(number)}


def _enum_name(names: Mapping[int, str], number: int) -> str:
    return names.get(number, str(number))


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


_RTM_GETLINK, _RTM_GETNEIGH = 18, 30
_IFLA_AF_SPEC, _IFLA_EXT_MASK = 26, 29
_PF_BRIDGE = 7
# linux/if_link.h, and the places of sysctls in their arrays (linux/ip.h, linux/ipv6.h).
_AF_INET, _INET_CONF, _AF_INET6, _INET6_CONF = 2, 1, 10, 2
_ROUTE_LOCALNET, ARP_IGNORE, _DISABLE_IPV6 = 26, 19, 26
_RTEXT_FILTER_BRVLAN_COMPRESSED = 1 << 2
_IFLA_BRIDGE_VLAN_INFO = 2
_VLAN_PVID, _VLAN_UNTAGGED, _VLAN_RANGE_BEGIN, _VLAN_RANGE_END = 1 << 1, 1 << 2, 1 << 3, 1 << 4

_NDA_DST, _NDA_LLADDR, _NDA_VLAN, _NDA_MASTER, _NDA_FLAGS_EXT = 1, 2, 5, 9, 15
_NUD_NOARP, _NUD_PERMANENT = 0x40, 0x80
_NTF_SELF = 0x02
_FDB_FLAGS = {_NTF_SELF: "self", 0x04: "master", 0x10: "extern_learn", 0x20: "offload", 0x40: "sticky"}
_NTF_EXT_LOCKED = 1 << 1

_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
_VLAN = struct.Struct("=HH")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_USER_HZ = 100.0

_GET_VLANS = struct.pack("=BxHiII", _PF_BRIDGE, 0, 0, 0, 0) + attribute(
    _IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_BRVLAN_COMPRESSED)
)
# All kernels accept an ifinfomsg for a dump of all forwarding tables, unlike an ndmsg (rtnl_fdb_dump).
_GET_FDB = struct.pack("=BxHiII", _PF_BRIDGE, 0, 0, 0, 0)


def bridge_settings(data: bytes, families: bytes = b"") -> BridgeSettings:
    """Decode a bridge's IFLA_INFO_DATA (IFLA_BR_*) and IFLA_AF_SPEC."""
    found = attributes(data)

    def number(attr_type: int, default: int) -> int:
        value = found.get(attr_type)
        return int.from_bytes(value[:4], sys.byteorder) if value else default

    return BridgeSettings(
        stp=number(5, 0) != 0,
        vlan_filtering=number(7, 0) != 0,
        vlan_default_pvid=number(39, 1),
        ageing_time=number(4, 30000) / _USER_HZ,
        forward_delay=number(1, 1500) / _USER_HZ,
        hello_time=number(2, 200) / _USER_HZ,
        max_age=number(3, 2000) / _USER_HZ,
        priority=number(6, 32768),
        bridge_id=_bridge_id(found.get(11, b"")),
        root_id=_bridge_id(found.get(10, b"")),
        root_port=number(12, 0),
        mcast_snooping=number(23, 1) != 0,
        mcast_querier=number(25, 0) != 0,
        group_fwd_mask=number(9, 0),
        nf_call_iptables=number(36, 0) != 0,
        nf_call_ip6tables=number(37, 0) != 0,
        route_localnet=ipv4_setting(families, _ROUTE_LOCALNET) != 0,
    )


def ipv4_setting(families: bytes, place: int) -> int:
    """Read an IPv4 sysctl of a link from IFLA_AF_SPEC, 0 if it is missing."""
    conf = attributes(attributes(families).get(_AF_INET, b"")).get(_INET_CONF, b"")
    return u32(conf[4 * (place - 1) : 4 * place]) if len(conf) >= 4 * place else 0


def is_ipv6_disabled(families: bytes) -> bool:
    """Read disable_ipv6 of a link from IFLA_AF_SPEC."""
    conf = attributes(attributes(families).get(_AF_INET6, b"")).get(_INET6_CONF, b"")
    return (
        u32(conf[4 * _DISABLE_IPV6 : 4 * _DISABLE_IPV6 + 4]) != 0 if len(conf) > 4 * _DISABLE_IPV6 else False
    )


def bridge_port(data: bytes) -> BridgePort:
    """Decode a bridge port's IFLA_INFO_SLAVE_DATA (IFLA_BRPORT_*)."""
    found = attributes(data)

    def flag(attr_type: int, default: bool = False) -> bool:
        value = found.get(attr_type)
        return bool(value[0]) if value else default

    state = found.get(1, b"\0")[0]
    return BridgePort(
        state=_STATES[state] if state < len(_STATES) else str(state),
        cost=u32(found.get(3, b"\0")),
        priority=u16(found.get(2, b"\0")),
        learning=flag(8, True),
        flood=flag(9, True),
        mcast_flood=flag(27, True),
        bcast_flood=flag(30, True),
        isolated=flag(33),
        locked=flag(39),
        hairpin=flag(4),
        neigh_suppress=flag(32),
        proxy_arp_wifi=flag(12),
        guard=flag(5),
        root_block=flag(6),
        fastleave=flag(7),
    )


def read_vlans(sock: Netlink) -> dict[int, tuple[PortVlan, ...]]:
    """Return the VLANs of bridge ports and bridges by ifindex (bridge(8) `vlan`)."""
    found = {}
    for message in sock.dump(_RTM_GETLINK, _GET_VLANS):
        spec = attributes(message.payload, 16).get(_IFLA_AF_SPEC)
        if spec:
            found[struct.unpack_from("=i", message.payload, 4)[0]] = port_vlans(spec)
    return {ifindex: entries for ifindex, entries in found.items() if entries}


def port_vlans(spec: bytes) -> tuple[PortVlan, ...]:
    """Decode a port's IFLA_AF_SPEC, VLANs and VLAN ranges (bridge_vlan_info)."""
    found = []
    begin = 0
    for attr_type, value in attribute_list(spec):
        if attr_type != _IFLA_BRIDGE_VLAN_INFO:
            continue
        flags, vid = _VLAN.unpack_from(value)
        if flags & _VLAN_RANGE_BEGIN:
            begin = vid
            continue
        first = begin if flags & _VLAN_RANGE_END else vid
        found.append(PortVlan(first, vid, bool(flags & _VLAN_PVID), bool(flags & _VLAN_UNTAGGED)))
    return tuple(found)


def read_fdb(sock: Netlink, tunnels: set[int]) -> tuple[FdbEntry, ...]:
    """Return the forwarding tables of all bridges and of the vxlan links `tunnels`.

    `tunnels` are ifindexes. The entries are sorted, so that equal tables compare equal. Address filters of
    NICs are left out.
    """
    found = []
    for message in sock.dump(_RTM_GETNEIGH, _GET_FDB):
        entry = fdb_entry(message.payload)
        if entry.bridge is not None or entry.port in tunnels:
            found.append(entry)
    return tuple(sorted(found, key=lambda e: (e.bridge or 0, e.port, e.mac, e.vlan or 0, e.dst)))


def fdb_entry(payload: bytes) -> FdbEntry:
    """Decode an RTM_NEWNEIGH message of family PF_BRIDGE."""
    _, ifindex, state, flags, _ = _NEIGHBOUR.unpack_from(payload)
    found = attributes(payload, _NEIGHBOUR.size)
    names = [name for bit, name in _FDB_FLAGS.items() if flags & bit]
    if _NDA_FLAGS_EXT in found and u32(found[_NDA_FLAGS_EXT]) & _NTF_EXT_LOCKED:
        names.append("locked")
    return FdbEntry(
        mac=found.get(_NDA_LLADDR, b"").hex(":"),
        port=ifindex,
        bridge=u32(found[_NDA_MASTER]) if _NDA_MASTER in found else None,
        vlan=u16(found[_NDA_VLAN]) if _NDA_VLAN in found else None,
        state=_fdb_state(state),
        flags=tuple(names),
        dst=address(found[_NDA_DST]) if _NDA_DST in found else "",
    )


def _fdb_state(state: int) -> str:
    if state & _NUD_PERMANENT:
        return "permanent"
    return "static" if state & _NUD_NOARP else "learned"


def _bridge_id(value: bytes) -> str:
    return f"{value[:2].hex()}.{value[2:].hex(':')}" if value else ""
