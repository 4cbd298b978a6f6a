"""Read routes, policy rules and neighbours of a namespace by rtnetlink(7)."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

from core.collect.link_kinds import address
from core.model import IpSettings, Neighbour, NextHop, PolicyRule, Route
from core.model.link import METRICS, RTO_MIN
from core.netlink.client import Netlink, attributes, s32, text, u16, u32
from core.text import range_text

# In the order in which iproute2 reads them; later entries win.
_FOLDERS = ("/usr/share/iproute2", "/usr/lib/iproute2", "/etc/iproute2")
_TABLES = {253: "default", 254: "main", 255: "local"}
_PROTOCOLS = {
    0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra", 10: "mrt",
    11: "zebra", 12: "bird", 13: "dnrouted", 14: "xorp", 15: "ntk", 16: "dhcp", 18: "keepalived", 42: "babel",
    186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}


def table_name(number: int) -> str:
    """Return the name of a routing table, or its number as text."""
    return _read_names("rt_tables").get(number) or str(number)


def protocol_name(number: int) -> str:
    """Return the name of a route's protocol, or its number as text."""
    return _read_names("rt_protos").get(number) or str(number)


def scope_name(number: int) -> str:
    """Return the name of a scope, or its number as text."""
    return _read_names("rt_scopes").get(number) or str(number)


def table_number(text: str) -> int:
    """Return the number of a routing table given by name or number; raises ValueError."""
    return _number("rt_tables", text)


def protocol_number(text: str) -> int:
    """Return the number of a protocol given by name or number; raises ValueError."""
    return _number("rt_protos", text)


def scope_number(text: str) -> int:
    """Return the number of a scope given by name or number; raises ValueError."""
    return _number("rt_scopes", text)


def _number(file: str, text: str) -> int:
    for number, name in _read_names(file).items():
        if name == text:
            return number
    return int(text, 0)


@cache
def _read_names(file: str) -> dict[int, str]:
    """Return built-in names by number, overridden by files `file` and `file.d/*.conf`."""
    names = dict({"rt_tables": _TABLES, "rt_protos": _PROTOCOLS, "rt_scopes": _SCOPES}[file])
    for folder in map(Path, _FOLDERS):
        for path in (folder / file, *sorted((folder / f"{file}.d").glob("*.conf"))):
            names |= _read_file(path)
    return names


def _read_file(path: Path) -> dict[int, str]:
    """Parse `NUMBER NAME` lines; numbers may be hexadecimal, `#` starts a comment."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        fields = line.split("#", 1)[0].split()
        try:
            found[int(fields[0], 0)] = fields[1]
        except (ValueError, IndexError):
            continue
    return found


_RTM_GETNEIGH, _RTM_GETROUTE, _RTM_GETRULE = 30, 26, 34
_FAMILIES = {2: 4, 10: 6}
_RTM_F_CLONED = 0x200
_NTF_PROXY, _NTF_ROUTER = 0x08, 0x80
_FIB_RULE_INVERT = 2
_RTNH_F_ONLINK = 4
_RTA_CACHEINFO, _RTA_METRICS = 12, 8
_PREFERENCES = {1: "pref high", 3: "pref low"}

ROUTE_KINDS = (
    "unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit",
    "throw", "nat", "xresolve",
)  # fmt: skip
RULE_ACTIONS = {1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
NEIGHBOUR_STATES = {
    0x00: "none", 0x01: "incomplete", 0x02: "reachable", 0x04: "stale", 0x08: "delay", 0x10: "probe",
    0x20: "failed", 0x40: "noarp", 0x80: "permanent",
}  # fmt: skip

# Most namespaces have the same few routes and rules: equal messages are decoded only once.
_CACHE_SIZE = 8192

_ROUTE = struct.Struct("=BBBBBBBBI")
_RULE = struct.Struct("=BBBBBBBBI")
_NUD_NOARP, _NTF_EXT_LEARNED = 0x40, 0x10
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_NEXTHOP = struct.Struct("=HBBi")
_GET_ROUTES = _ROUTE.pack(*[0] * 9)
_GET_RULES = _RULE.pack(*[0] * 9)
_GET_NEIGHBOURS = _NEIGHBOUR.pack(0, 0, 0, 0, 0)
_GET_PROXIES = _NEIGHBOUR.pack(0, 0, 0, _NTF_PROXY, 0)


def read_routes(sock: Netlink) -> tuple[Route, ...]:
    """Return all IPv4 and IPv6 routes of all tables, in the kernel's order."""
    found = (_route(message.payload) for message in sock.dump(_RTM_GETROUTE, _GET_ROUTES))
    return tuple(_with_expiry(entry, left) for entry, left in found if entry)


# Settings of a namespace, with the kernel's defaults (Documentation/networking/ip-sysctl.rst).
_SYSCTLS = {
    "net.ipv4.ip_default_ttl": "64",
    "net.ipv4.ip_local_port_range": "32768 60999",
    "net.ipv4.ip_local_reserved_ports": "",
    "net.ipv4.icmp_echo_ignore_all": "0",
    "net.ipv6.icmp.echo_ignore_all": "0",
}


def read_sysctls() -> dict[str, str]:
    """Return the settings of the thread's namespace that aren't the defaults."""
    found = {}
    for name, usual in _SYSCTLS.items():
        with suppress(OSError), open(f"/proc/sys/{name.replace('.', '/')}") as file:
            value = " ".join(file.read().split())
            if value != usual:
                found[name] = value
    return found


_RTM_GETNETCONF, _IFINDEX_ALL = 82, -1
_NETCONFA_IFINDEX, _NETCONFA_FORWARDING, _NETCONFA_RP_FILTER, _NETCONFA_PROXY_NEIGH = 1, 2, 3, 5


def read_ip_settings(sock: Netlink) -> tuple[IpSettings, ...]:
    """Return the settings of each family and link (linux/netconf.h)."""
    found = [
        entry
        for family in _FAMILIES
        for message in sock.dump(_RTM_GETNETCONF, bytes((family, 0, 0, 0)))
        if (entry := _ip_settings(message.payload))
    ]
    return tuple(sorted(found, key=lambda one: (one.family, one.ifindex)))


@lru_cache(maxsize=_CACHE_SIZE)
def _ip_settings(payload: bytes) -> IpSettings | None:
    """Decode an RTM_NEWNETCONF message; None for the defaults of new links."""
    family, found = _FAMILIES.get(payload[0]), attributes(payload, 4)
    ifindex = s32(found.get(_NETCONFA_IFINDEX, b"\0\0\0\0"))
    if family is None or (ifindex <= 0 and ifindex != _IFINDEX_ALL):
        return None
    values = [
        s32(found.get(one, b"\0\0\0\0"))
        for one in (_NETCONFA_FORWARDING, _NETCONFA_RP_FILTER, _NETCONFA_PROXY_NEIGH)
    ]
    return IpSettings(family, max(ifindex, 0), values[0] > 0, values[1], values[2] > 0)


def _with_expiry(entry: Route, left: int) -> Route:
    """Set the time at which the route expires; `left` is in 1/100 s, 0 for ever."""
    return replace(entry, valid_until=round(time.time() + left / 100)) if left else entry


def read_rules(sock: Netlink) -> tuple[PolicyRule, ...]:
    """Return all IPv4 and IPv6 policy rules in the order in which they apply."""
    found = (rule(message.payload) for message in sock.dump(_RTM_GETRULE, _GET_RULES))
    return tuple(entry for entry in found if entry)


def read_neighbours(sock: Netlink) -> tuple[Neighbour, ...]:
    """Return ARP and NDP entries including proxies.

    Like ip-neighbour(8) it leaves out entries that need no resolution (multicast, loopback), unless a routing
    daemon made them. The result is sorted, so that equal tables compare equal.
    """
    messages = sock.dump(_RTM_GETNEIGH, _GET_NEIGHBOURS) + sock.dump(_RTM_GETNEIGH, _GET_PROXIES)
    payloads = [message.payload for message in messages]
    found = (neighbour(one) for one in payloads if not _needs_no_resolution(one))
    entries = (entry for entry in found if entry)
    return tuple(sorted(entries, key=lambda e: (e.ifindex, e.family, e.address, e.proxy)))


def _needs_no_resolution(payload: bytes) -> bool:
    """Return whether it is a NOARP entry that the kernel made itself."""
    _, _, state, flags, _ = _NEIGHBOUR.unpack_from(payload)
    return bool(state == _NUD_NOARP and not flags & _NTF_EXT_LEARNED)


def route(payload: bytes) -> Route | None:
    """Decode an RTM_NEWROUTE message; None for clones, multicast routing and MPLS."""
    return _route(payload)[0]


@lru_cache(maxsize=_CACHE_SIZE)
def _route(payload: bytes) -> tuple[Route | None, int]:
    """Return the route, and in how many 1/100 s it expires (0: never)."""
    family, dst_len, src_len, tos, table, protocol, scope, kind, flags = _ROUTE.unpack_from(payload)
    if family not in _FAMILIES or flags & _RTM_F_CLONED:
        return None, 0
    found = attributes(payload, 12)
    left = s32(found[_RTA_CACHEINFO][8:12]) if _RTA_CACHEINFO in found else 0
    decoded = Route(
        family=_FAMILIES[family],
        dst=f"{_address_or_any(found.get(1), family)}/{dst_len}" if dst_len else "default",
        kind=ROUTE_KINDS[kind] if kind < len(ROUTE_KINDS) else str(kind),
        nexthops=_nexthops(found, flags),
        source=address(found[7]) if 7 in found else "",
        metric=u32(found[6]) if 6 in found else 0,
        table=table_name(u32(found[15]) if 15 in found else table),
        protocol=protocol_name(protocol),
        scope=scope_name(scope),
        mtu=_mtu(found[_RTA_METRICS]) if _RTA_METRICS in found else 0,
        options=tuple(_options(found, family, tos, src_len)),
    )
    return decoded, max(left, 0)


def _options(found: Mapping[int, bytes], family: int, tos: int, src_len: int) -> Iterator[str]:
    """Yield the rarer properties as ip-route(8) prints them."""
    if tos:
        yield f"tos 0x{tos:02x}"
    if src_len:
        yield f"from {_prefix(found.get(2), src_len, family)}"
    if 30 in found:
        yield f"nhid {u32(found[30])}"
    if 21 in found:
        yield f"encap {u16(found[21])}"
    if 11 in found:
        yield f"realms {u32(found[11]) >> 16}/{u32(found[11]) & 0xFFFF}"
    if 20 in found and found[20][0] in _PREFERENCES:
        yield _PREFERENCES[found[20][0]]
    yield from _metrics(attributes(found.get(_RTA_METRICS, b"")))


def _metrics(found: Mapping[int, bytes]) -> Iterator[str]:
    locked = u32(found.get(1, b"")) & ~(1 << RTO_MIN)
    for number, value in found.items():
        if name := METRICS.get(number):
            lock = "lock " if locked >> number & 1 else ""
            yield f"{name} {lock}{text(value) if name == 'congctl' else _metric(name, u32(value))}"


def _metric(name: str, value: int) -> str:
    return "ecn" if name == "features" and value == 1 else str(value)


def _nexthops(found: Mapping[int, bytes], flags: int) -> tuple[NextHop, ...]:
    """Return RTA_MULTIPATH, or one next hop of RTA_GATEWAY or RTA_VIA and RTA_OIF."""
    if 9 in found:
        return tuple(_multipath(found[9]))
    ifindex = u32(found[4]) if 4 in found else None
    gateway = _gateway(found)
    onlink = bool(flags & _RTNH_F_ONLINK)
    return (NextHop(gateway, ifindex, onlink=onlink),) if gateway or ifindex is not None else ()


def _multipath(data: bytes) -> list[NextHop]:
    hops = []
    offset = 0
    while offset + 8 <= len(data):
        length, flags, weight_minus_one, ifindex = _NEXTHOP.unpack_from(data, offset)
        if length < 8:
            break
        found = attributes(data[offset : offset + length], 8)
        hops.append(NextHop(_gateway(found), ifindex, weight_minus_one + 1, bool(flags & _RTNH_F_ONLINK)))
        offset += (length + 3) & ~3
    return hops


def _gateway(found: Mapping[int, bytes]) -> str:
    if 5 in found:
        return address(found[5])
    return address(found[18][2:]) if 18 in found else ""


def _mtu(metrics: bytes) -> int:
    found = attributes(metrics)
    return u32(found[2]) if 2 in found else 0


@lru_cache(maxsize=_CACHE_SIZE)
def rule(payload: bytes) -> PolicyRule | None:
    """Decode an RTM_NEWRULE message; None for families other than IPv4 and IPv6."""
    family, dst_len, src_len, tos, table, _, _, action, flags = _RULE.unpack_from(payload)
    if family not in _FAMILIES:
        return None
    found = attributes(payload, 12)
    return PolicyRule(
        family=_FAMILIES[family],
        priority=u32(found[6]) if 6 in found else 0,
        src=_prefix(found.get(2), src_len, family),
        dst=_prefix(found.get(1), dst_len, family),
        iif=text(found.get(3, b"")),
        oif=text(found.get(17, b"")),
        fwmark=u32(found[10]) if 10 in found else None,
        fwmask=u32(found[16]) if 16 in found else None,
        table=table_name(u32(found[15]) if 15 in found else table),
        action=RULE_ACTIONS.get(action, str(action)),
        inverted=bool(flags & _FIB_RULE_INVERT),
        goto=u32(found[4]) if 4 in found else None,
        suppress_prefixlen=_suppress_prefixlen(found.get(14)),
        more=tuple(_selectors(found, tos)),
        protocol=_maker(found.get(21)),
    )


def _maker(protocol: bytes | None) -> str:
    return protocol_name(protocol[0]) if protocol and protocol[0] else ""


def _suppress_prefixlen(value: bytes | None) -> int | None:
    number = u32(value) if value else 0xFFFFFFFF
    return None if number == 0xFFFFFFFF else number


def _selectors(found: Mapping[int, bytes], tos: int) -> list[str]:
    """Return the rarer selectors as ip-rule(8) prints them."""
    selectors = [f"tos 0x{tos:02x}"] if tos else []
    if found.get(19, b"\0")[0]:
        selectors.append("l3mdev")
    if 20 in found:
        selectors.append("uidrange {}-{}".format(*struct.unpack("=II", found[20])))
    if 22 in found:
        selectors.append(f"ipproto {found[22][0]}")
    for name, number in (("sport", 23), ("dport", 24)):
        if number in found:
            first, last = struct.unpack("=HH", found[number])
            selectors.append(f"{name} {range_text(first, last)}")
    if 12 in found and any(found[12]):
        selectors.append(f"tun_id {int.from_bytes(found[12], 'big')}")
    if 13 in found and u16(found[13][:2]) != 0xFFFF:
        selectors.append(f"suppress_ifgroup {u32(found[13])}")
    return selectors


def neighbour(payload: bytes) -> Neighbour | None:
    """Decode an RTM_NEWNEIGH message; None for families other than IPv4 and IPv6."""
    family, ifindex, state, flags, _ = _NEIGHBOUR.unpack_from(payload)
    if family not in _FAMILIES:
        return None
    found = attributes(payload, _NEIGHBOUR.size)
    return Neighbour(
        family=_FAMILIES[family],
        address=_address_or_any(found.get(1), family),
        mac=found.get(2, b"").hex(":"),
        ifindex=ifindex,
        state=NEIGHBOUR_STATES.get(state, str(state)),
        proxy=bool(flags & _NTF_PROXY),
        router=bool(flags & _NTF_ROUTER),
    )


def _prefix(value: bytes | None, length: int, family: int) -> str:
    return f"{_address_or_any(value, family)}/{length}" if length else ""


def _address_or_any(value: bytes | None, family: int) -> str:
    if value:
        return address(value)
    return "0.0.0.0" if family == 2 else "::"
