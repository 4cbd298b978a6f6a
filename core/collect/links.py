"""Read links, addresses, routes and rules of namespaces (rtnetlink(7)); counters."""

from __future__ import annotations

import errno
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from core.collect import link_kinds, routes
from core.collect.link_kinds import address, details
from core.collect.namespaces import find_entry
from core.collect.offloads import read_offloads
from core.collect.routes import scope_name
from core.model import (
    LONG_AGO,
    STATS_DTYPE,
    Address,
    FdbEntry,
    Link,
    LinkStats,
    Namespace,
    NetState,
    PacketSizes,
    PolicyRule,
    PortVlan,
    Problem,
)
from core.netlink import netns
from core.netlink.client import GENERIC, Netlink, attribute, attribute_list, attributes, s32, text, u32
from core.netlink.netns import NamespaceGone, NsidResolver

_RTM_GETLINK, _RTM_GETADDR = 18, 22
_RTEXT_FILTER_SKIP_STATS = 1 << 3
_IFF_UP, _IFF_NOARP, _IFF_LOWER_UP = 0x1, 0x80, 0x10000
_ARPHRD_LOOPBACK = 772
_MAC_LENGTHS = (6, 8, 20)
OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")

(
    _IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_QDISC, _IFLA_MASTER, _IFLA_OPERSTATE,
    _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_EXT_MASK, _IFLA_PROMISCUITY, _IFLA_LINK_NETNSID, _IFLA_PROP_LIST,
    _IFLA_ALT_IFNAME,
) = (1, 3, 4, 5, 6, 10, 16, 18, 20, 29, 30, 37, 52, 53)  # fmt: skip
_IFLA_GSO_MAX_SIZE, _IFLA_GRO_MAX_SIZE, _IFLA_TSO_MAX_SIZE = 41, 58, 59
_IFLA_GSO_IPV4_MAX_SIZE, _IFLA_GRO_IPV4_MAX_SIZE, _IFLA_AF_SPEC = 63, 64, 26
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_BROADCAST, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_RT_PRIORITY = (
    1, 2, 3, 4, 6, 8, 9,
)  # fmt: skip
_IFA_F_DEPRECATED, _IFA_F_PERMANENT, _IFA_F_NOPREFIXROUTE = 0x20, 0x80, 0x200
_CACHEINFO = struct.Struct("=IIII")
_INFINITY = 0xFFFFFFFF

# An unchanged link sends an equal message, and so stays the same object in the next snapshot.
_CACHE_SIZE = 2048
_ROUNDING = 2
_expiries: dict[tuple[bytes | int | str, ...], int] = {}

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_GET_LINKS = _LINK.pack(0, 0, 0, 0, 0) + attribute(
    _IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS)
)
_GET_ADDRESSES = _ADDRESS.pack(0, 0, 0, 0, 0)
_NONE: Mapping[int, tuple[str, ...]] = {}
# Reads one namespace, which the thread has entered.
type _Dump = Callable[[Netlink, Namespace, NsidResolver], NetState]
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


def read_nets(
    namespaces: Iterable[Namespace], known: Iterable[Namespace] | None = None
) -> dict[int, NetState]:
    """Read several namespaces, by inode; those that no longer exist are left out.

    Peers are looked up among `known` (None: `namespaces`). Errors become problems of the results.
    """
    namespaces = tuple(namespaces)
    return _read_each(namespaces, namespaces if known is None else tuple(known), _dump)


def read_wiring(namespaces: Iterable[Namespace]) -> dict[int, NetState]:
    """Read what plans need: no offloads and forwarding tables, rules of the host only."""
    namespaces = tuple(namespaces)
    return _read_each(namespaces, namespaces, _dump_wiring)


def _read_each(
    namespaces: tuple[Namespace, ...], known: tuple[Namespace, ...], dump: _Dump
) -> dict[int, NetState]:
    found = {}
    with NsidResolver(known) as resolver:
        for namespace in namespaces:
            with suppress(NamespaceGone):
                found[namespace.inode] = _read_net(namespace, resolver, dump)
    return found


def _read_net(namespace: Namespace, resolver: NsidResolver, dump: _Dump) -> NetState:
    """Enter the namespace by its entry, or any other valid reference, and read it."""
    try:
        try:
            return _enter_and_dump(namespace.entry, namespace, resolver, dump)
        except NamespaceGone:
            return _enter_and_dump(find_entry(namespace), namespace, resolver, dump)
    except OSError as error:
        return NetState(namespace.inode, problems=(_problem(namespace, error),))


def _enter_and_dump(entry: str, namespace: Namespace, resolver: NsidResolver, dump: _Dump) -> NetState:
    with netns.entered(entry, namespace.inode), Netlink() as sock:
        return dump(sock, namespace, resolver)


def _dump(sock: Netlink, namespace: Namespace, resolver: NsidResolver) -> NetState:
    with Netlink(GENERIC) as generic:
        offloads: Mapping[int, tuple[str, ...]] = _if_supported(read_offloads, generic, {})
    links = _with_vlans(read_links(sock, namespace.inode, offloads), sock)
    fdb: tuple[FdbEntry, ...] = ()
    if {link.kind for link in links.values()} & {"bridge", "vxlan"}:
        tunnels = {ifindex for ifindex, link in links.items() if link.kind == "vxlan"}
        fdb = link_kinds.read_fdb(sock, tunnels)
    return _net_state(
        sock, namespace, resolver, links, fdb=fdb, rules=_read_rules(sock), sysctls=routes.read_sysctls()
    )


def _dump_wiring(sock: Netlink, namespace: Namespace, resolver: NsidResolver) -> NetState:
    links = _with_vlans(read_links(sock, namespace.inode), sock)
    if not namespace.is_host:
        return _net_state(sock, namespace, resolver, links)
    tunnels = {ifindex for ifindex, link in links.items() if link.kind == "vxlan"}
    fdb = link_kinds.read_fdb(sock, tunnels) if tunnels else ()  # only overlays need it
    return _net_state(sock, namespace, resolver, links, fdb=fdb, rules=_read_rules(sock))


def _read_rules(sock: Netlink) -> tuple[PolicyRule, ...]:
    return _if_supported(routes.read_rules, sock, ())


def _net_state(
    sock: Netlink, namespace: Namespace, resolver: NsidResolver, links: dict[int, Link], **parts: Any
) -> NetState:
    return NetState(
        namespace.inode,
        links=links,
        routes=routes.read_routes(sock),
        neighbours=routes.read_neighbours(sock),
        nsids=resolver.resolve(sock, namespace, {link.lower_nsid for link in links.values()}),
        settings=_if_supported(routes.read_ip_settings, sock, ()),
        **parts,
    )


def read_links(sock: Netlink, ns: int, offloads: Mapping[int, tuple[str, ...]] = _NONE) -> dict[int, Link]:
    """Return the links, with addresses, of the namespace `ns` of `sock`, by ifindex."""
    messages = sock.dump(_RTM_GETLINK, _GET_LINKS)
    addresses = read_addresses(sock)
    found = {}
    for message in messages:
        ifindex = _LINK.unpack_from(message.payload)[2]
        found[ifindex] = link(message.payload, ns, addresses.get(ifindex, ()), offloads.get(ifindex, ()))
    return found


@lru_cache(maxsize=_CACHE_SIZE)
def link(
    payload: bytes, ns: int, addresses: tuple[Address, ...] = (), offloads: tuple[str, ...] = ()
) -> Link:
    """Decode an RTM_NEWLINK message."""
    _, hardware, ifindex, flags, _ = _LINK.unpack_from(payload)
    found = attributes(payload, 16)
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    kind = _kind(text(info.get(_INFO_KIND, b"")), hardware)
    kind_details = details(kind, info.get(_INFO_DATA, b""))
    lower = u32(found.get(_IFLA_LINK, b"")) or kind_details.get("link")
    operstate = found.get(_IFLA_OPERSTATE, b"\0")[0]
    mac = found.get(_IFLA_ADDRESS, b"")
    per_family = found.get(_IFLA_AF_SPEC, b"")
    return Link(
        ns=ns,
        ifindex=ifindex,
        name=text(found.get(_IFLA_IFNAME, b"")),
        kind=kind,
        state=OPERSTATES[operstate] if operstate < len(OPERSTATES) else str(operstate),
        admin_up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        promiscuous=u32(found.get(_IFLA_PROMISCUITY, b"")) > 0,
        mac=mac.hex(":") if len(mac) in _MAC_LENGTHS else "",
        mtu=u32(found.get(_IFLA_MTU, b"")),
        master=u32(found[_IFLA_MASTER]) if _IFLA_MASTER in found else None,
        lower=int(lower) if lower else None,
        lower_nsid=s32(found[_IFLA_LINK_NETNSID]) if _IFLA_LINK_NETNSID in found else None,
        alias=text(found.get(_IFLA_IFALIAS, b"")),
        altnames=_altnames(found.get(_IFLA_PROP_LIST, b"")),
        addresses=addresses,
        qdisc=text(found.get(_IFLA_QDISC, b"")),
        offloads=offloads,
        details=kind_details,
        port=link_kinds.bridge_port(info[_INFO_SLAVE_DATA]) if _is_port(info) else None,
        bridge=link_kinds.bridge_settings(info.get(_INFO_DATA, b""), per_family)
        if kind == "bridge"
        else None,
        sizes=_sizes(found),
        arp_off=bool(flags & _IFF_NOARP),
        arp_ignore=link_kinds.ipv4_setting(per_family, link_kinds.ARP_IGNORE),
        ipv6_disabled=link_kinds.is_ipv6_disabled(per_family),
    )


def _sizes(found: Mapping[int, bytes]) -> PacketSizes:
    return PacketSizes(
        gso=u32(found.get(_IFLA_GSO_MAX_SIZE, b"")),
        gro=u32(found.get(_IFLA_GRO_MAX_SIZE, b"")),
        gso_ipv4=u32(found.get(_IFLA_GSO_IPV4_MAX_SIZE, b"")),
        gro_ipv4=u32(found.get(_IFLA_GRO_IPV4_MAX_SIZE, b"")),
        tso=u32(found.get(_IFLA_TSO_MAX_SIZE, b"")),
    )


def _kind(kernel_kind: str, hardware: int) -> str:
    """Return the kind of a link; the kernel names none for loopback and hardware.

    Every device of an Open vSwitch datapath is a port, also the bridge's own device.
    """
    if kernel_kind == "openvswitch":
        return "ovs-port"
    return kernel_kind or ("loopback" if hardware == _ARPHRD_LOOPBACK else "physical")


def _is_port(info: Mapping[int, bytes]) -> bool:
    return text(info.get(_INFO_SLAVE_KIND, b"")) == "bridge" and _INFO_SLAVE_DATA in info


def _altnames(properties: bytes) -> tuple[str, ...]:
    return tuple(text(value) for number, value in attribute_list(properties) if number == _IFLA_ALT_IFNAME)


def read_addresses(sock: Netlink) -> dict[int, tuple[Address, ...]]:
    """Return IPv4 and IPv6 addresses by ifindex, in the kernel's order, IPv4 first."""
    found: defaultdict[int, tuple[Address, ...]] = defaultdict(tuple)
    for message in sock.dump(_RTM_GETADDR, _GET_ADDRESSES):
        family, prefixlen, _, scope_number, ifindex = _ADDRESS.unpack_from(message.payload)
        if family not in (2, 10):
            continue
        values = attributes(message.payload, 8)
        peer = values.get(_IFA_ADDRESS, b"")
        own = values.get(_IFA_LOCAL) or peer
        flags = u32(values.get(_IFA_FLAGS, b"\0"))
        valid, preferred = _lifetimes(own, values.get(_IFA_CACHEINFO, b""), flags)
        found[ifindex] += (
            Address(
                4 if family == 2 else 6,
                address(own),
                prefixlen,
                scope_name(scope_number),
                peer=address(peer) if peer and peer != own else "",
                broadcast=address(values[_IFA_BROADCAST]) if _IFA_BROADCAST in values else "",
                prefix_route=not flags & _IFA_F_NOPREFIXROUTE,
                label=text(values.get(_IFA_LABEL, b"")),
                metric=u32(values.get(_IFA_RT_PRIORITY, b"")),
                valid_until=valid,
                preferred_until=preferred,
            ),
        )
    return found


def _lifetimes(own: bytes, cacheinfo: bytes, flags: int) -> tuple[int, int]:
    """Return until when an address is valid and preferred (struct ifa_cacheinfo)."""
    if len(cacheinfo) < _CACHEINFO.size or flags & (_IFA_F_PERMANENT | _IFA_F_DEPRECATED) == _IFA_F_PERMANENT:
        return 0, 0
    preferred, valid, _, changed = _CACHEINFO.unpack_from(cacheinfo)
    deprecated = flags & _IFA_F_DEPRECATED or not preferred
    preferred_until = LONG_AGO if deprecated else _expiry((own, changed), preferred)
    return _expiry((own, changed, "valid"), valid), preferred_until


def _expiry(key: tuple[bytes | int | str, ...], left: int) -> int:
    """Return the time at which `left` seconds are over, 0 for never.

    The kernel rounds to seconds. The same result is returned until the address changes.
    """
    if left == _INFINITY:
        return 0
    expiry = round(time.time() + left)
    if abs(expiry - _expiries.get(key, 0)) > _ROUNDING:
        if len(_expiries) >= _CACHE_SIZE:
            _expiries.clear()
        _expiries[key] = expiry
    return _expiries[key]


def _with_vlans(links: dict[int, Link], sock: Netlink) -> dict[int, Link]:
    """Add the VLANs of bridges and ports."""
    if not any(link.kind == "bridge" for link in links.values()):
        return links
    vlans: Mapping[int, tuple[PortVlan, ...]] = _if_supported(link_kinds.read_vlans, sock, {})
    found = dict(links)
    for ifindex, entries in vlans.items():
        old = links.get(ifindex)
        if old and old.port:
            found[ifindex] = replace(old, port=replace(old.port, vlans=entries))
        elif old and old.bridge:
            found[ifindex] = replace(old, bridge=replace(old.bridge, vlans=entries))
    return found


def _if_supported[Result](read: Callable[[Netlink], Result], sock: Netlink, default: Result) -> Result:
    """Call `read`; return `default` if this kernel was built without the feature."""
    try:
        return read(sock)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return default
        raise


def _problem(namespace: Namespace, error: OSError) -> Problem:
    what = "can't read the links of this namespace"
    if isinstance(error, PermissionError):
        why = f"entering it needs CAP_SYS_ADMIN ({error.strerror})"
        return Problem("links", what, why, "run it as root", namespace.inode)
    return Problem("links", what, f"kernel error: {error.strerror}", "read again", namespace.inode)


_RTM_GETSTATS = 94
_IFLA_STATS_LINK_64 = 1
_STATS_MESSAGE = struct.Struct("=BxxxII")
_GET_STATS = _STATS_MESSAGE.pack(0, 0, 1 << (_IFLA_STATS_LINK_64 - 1))
# The first nine counters of struct rtnl_link_stats64, in the order of STATS_DTYPE.
_COUNTERS = struct.Struct("=9Q")


def read_stats(namespaces: Iterable[Namespace]) -> LinkStats:
    """Read the counters of every link in the namespaces that exist and can be entered."""
    taken_at = time.monotonic()
    rows = [row for namespace in namespaces for row in _read_counters(namespace)]
    return LinkStats(taken_at, np.array(rows, STATS_DTYPE))


def _read_counters(namespace: Namespace) -> list[tuple[int, ...]]:
    try:
        with netns.entered(namespace.entry, namespace.inode), Netlink() as sock:
            return list(_counter_rows(sock, namespace.inode))
    except (NamespaceGone, PermissionError):
        return []


def _counter_rows(sock: Netlink, ns: int) -> Iterator[tuple[int, ...]]:
    for message in sock.dump(_RTM_GETSTATS, _GET_STATS):
        _, ifindex, _ = _STATS_MESSAGE.unpack_from(message.payload)
        counters = attributes(message.payload, _STATS_MESSAGE.size).get(_IFLA_STATS_LINK_64)
        if counters:
            yield (ns, ifindex, *_COUNTERS.unpack_from(counters))
