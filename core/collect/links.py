"""Links of network namespaces, with all else that rtnetlink(7) tells of a namespace, read in one visit."""

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
from core.collect.names import scope
from core.collect.namespaces import entry_of
from core.collect.offloads import read_offloads
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
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
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
_FOR_EVER = 0xFFFFFFFF

# A link that did not change sends an equal message, and stays the same object from one look to the next.
_REMEMBERED = 2048
_ROUNDING = 2
_ends: dict[tuple[bytes | int | str, ...], int] = {}

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_GET_LINKS = _LINK.pack(0, 0, 0, 0, 0) + attribute(
    _IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS)
)
_GET_ADDRESSES = _ADDRESS.pack(0, 0, 0, 0, 0)
_NONE: Mapping[int, tuple[str, ...]] = {}
# Reads what is wanted of one namespace.
type _Dump = Callable[[Netlink, Namespace, NsidResolver], NetState]
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


def read_net(namespace: Namespace, known: Iterable[Namespace] = ()) -> NetState:
    """All that rtnetlink tells of one namespace. `known` are the namespaces among which those that its links
    lead to are looked for. Raises NamespaceGone; what the kernel refuses becomes a problem in the answer."""
    with NsidResolver(tuple(known)) as resolver:
        return _read_net(namespace, resolver, _dump)


def read_nets(
    namespaces: Iterable[Namespace], known: Iterable[Namespace] | None = None
) -> dict[int, NetState]:
    """The same of many namespaces by inode; those that vanished are left out. `known` are those among which
    peers are looked for (None: the same as `namespaces`)."""
    namespaces = tuple(namespaces)
    return _read_each(namespaces, namespaces if known is None else tuple(known), _dump)


def read_wiring(namespaces: Iterable[Namespace]) -> dict[int, NetState]:
    """What plans are made from: the same without offloads, forwarding tables and rules of others than the
    host."""
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
    """By its entry, or by another way that leads there still."""
    try:
        try:
            return _visit(namespace.entry, namespace, resolver, dump)
        except NamespaceGone:
            return _visit(entry_of(namespace), namespace, resolver, dump)
    except OSError as error:
        return NetState(namespace.inode, problems=(_problem(namespace, error),))


def _visit(entry: str, namespace: Namespace, resolver: NsidResolver, dump: _Dump) -> NetState:
    with netns.entered(entry, namespace.inode), Netlink() as sock:
        return dump(sock, namespace, resolver)


def _dump(sock: Netlink, namespace: Namespace, resolver: NsidResolver) -> NetState:
    with Netlink(GENERIC) as generic:
        offloads: Mapping[int, tuple[str, ...]] = _or_nothing(read_offloads, generic, {})
    links = _with_vlans(read_links(sock, namespace.inode, offloads), sock)
    fdb: tuple[FdbEntry, ...] = ()
    if {link.kind for link in links.values()} & {"bridge", "vxlan"}:
        tunnels = {ifindex for ifindex, link in links.items() if link.kind == "vxlan"}
        fdb = link_kinds.read_fdb(sock, tunnels)
    return _net(sock, namespace, resolver, links, fdb=fdb, rules=_read_rules(sock))


def _dump_wiring(sock: Netlink, namespace: Namespace, resolver: NsidResolver) -> NetState:
    links = _with_vlans(read_links(sock, namespace.inode), sock)
    rules = _read_rules(sock) if namespace.is_host else ()
    return _net(sock, namespace, resolver, links, rules=rules)


def _read_rules(sock: Netlink) -> tuple[PolicyRule, ...]:
    return _or_nothing(routes.read_rules, sock, ())


def _net(
    sock: Netlink, namespace: Namespace, resolver: NsidResolver, links: dict[int, Link], **more: Any
) -> NetState:
    return NetState(
        namespace.inode,
        links=links,
        routes=routes.read_routes(sock),
        neighbours=routes.read_neighbours(sock),
        nsids=resolver.resolve(sock, namespace, {link.lower_nsid for link in links.values()}),
        **more,
    )


def read_links(sock: Netlink, ns: int, offloads: Mapping[int, tuple[str, ...]] = _NONE) -> dict[int, Link]:
    """The links of the namespace of `sock`, whose inode is `ns`, with addresses, by ifindex."""
    messages = sock.dump(_RTM_GETLINK, _GET_LINKS)
    addresses = read_addresses(sock)
    found = {}
    for message in messages:
        ifindex = _LINK.unpack_from(message.payload)[2]
        found[ifindex] = link(message.payload, ns, addresses.get(ifindex, ()), offloads.get(ifindex, ()))
    return found


@lru_cache(maxsize=_REMEMBERED)
def link(
    payload: bytes, ns: int, addresses: tuple[Address, ...] = (), offloads: tuple[str, ...] = ()
) -> Link:
    """One RTM_NEWLINK message."""
    _, hardware, ifindex, flags, _ = _LINK.unpack_from(payload)
    found = attributes(payload, 16)
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    kind = _kind(text(info.get(_INFO_KIND, b"")), hardware)
    special = details(kind, info.get(_INFO_DATA, b""))
    lower = u32(found.get(_IFLA_LINK, b"")) or special.get("link")
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
        details=special,
        port=link_kinds.port(info[_INFO_SLAVE_DATA]) if _is_port(info) else None,
        bridge=link_kinds.settings(info.get(_INFO_DATA, b""), per_family) if kind == "bridge" else None,
        sizes=_sizes(found),
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
    """The kernel's word for the kind; it has none for loopback and for hardware. Every device of an Open
    vSwitch datapath is a port of it, the bridge's own device too."""
    if kernel_kind == "openvswitch":
        return "ovs-port"
    return kernel_kind or ("loopback" if hardware == _ARPHRD_LOOPBACK else "physical")


def _is_port(info: Mapping[int, bytes]) -> bool:
    return text(info.get(_INFO_SLAVE_KIND, b"")) == "bridge" and _INFO_SLAVE_DATA in info


def _altnames(properties: bytes) -> tuple[str, ...]:
    return tuple(text(value) for number, value in attribute_list(properties) if number == _IFLA_ALT_IFNAME)


def read_addresses(sock: Netlink) -> dict[int, tuple[Address, ...]]:
    """IPv4 and IPv6 addresses by ifindex, in the kernel's order, IPv4 first."""
    found: defaultdict[int, tuple[Address, ...]] = defaultdict(tuple)
    for message in sock.dump(_RTM_GETADDR, _GET_ADDRESSES):
        family, prefixlen, _, scope_number, ifindex = _ADDRESS.unpack_from(message.payload)
        if family not in (2, 10):
            continue
        given = attributes(message.payload, 8)
        far = given.get(_IFA_ADDRESS, b"")
        own = given.get(_IFA_LOCAL) or far
        flags = u32(given.get(_IFA_FLAGS, b"\0"))
        valid, preferred = _lifetimes(own, given.get(_IFA_CACHEINFO, b""), flags)
        found[ifindex] += (
            Address(
                4 if family == 2 else 6,
                address(own),
                prefixlen,
                scope(scope_number),
                peer=address(far) if far and far != own else "",
                broadcast=address(given[_IFA_BROADCAST]) if _IFA_BROADCAST in given else "",
                prefix_route=not flags & _IFA_F_NOPREFIXROUTE,
                label=text(given.get(_IFA_LABEL, b"")),
                metric=u32(given.get(_IFA_RT_PRIORITY, b"")),
                valid_until=valid,
                preferred_until=preferred,
            ),
        )
    return found


def _lifetimes(own: bytes, cacheinfo: bytes, flags: int) -> tuple[int, int]:
    """Until when an address is valid and preferred (struct ifa_cacheinfo of linux/if_addr.h)."""
    if len(cacheinfo) < _CACHEINFO.size or flags & (_IFA_F_PERMANENT | _IFA_F_DEPRECATED) == _IFA_F_PERMANENT:
        return 0, 0
    preferred, valid, _, changed = _CACHEINFO.unpack_from(cacheinfo)
    deprecated = flags & _IFA_F_DEPRECATED or not preferred
    return _end((own, changed, "valid"), valid), LONG_AGO if deprecated else _end((own, changed), preferred)


def _end(which: tuple[bytes | int | str, ...], left: int) -> int:
    """When the seconds left will be over. The kernel tells whole seconds: what one look made of them, the
    next one keeps, as long as the address was not changed."""
    if left == _FOR_EVER:
        return 0
    told = round(time.time() + left)
    if abs(told - _ends.get(which, 0)) > _ROUNDING:
        if len(_ends) >= _REMEMBERED:
            _ends.clear()
        _ends[which] = told
    return _ends[which]


def _with_vlans(links: dict[int, Link], sock: Netlink) -> dict[int, Link]:
    """The links with the VLANs of those that are bridges or ports."""
    if not any(link.kind == "bridge" for link in links.values()):
        return links
    vlans: Mapping[int, tuple[PortVlan, ...]] = _or_nothing(link_kinds.read_vlans, sock, {})
    found = dict(links)
    for ifindex, entries in vlans.items():
        old = links.get(ifindex)
        if old and old.port:
            found[ifindex] = replace(old, port=replace(old.port, vlans=entries))
        elif old and old.bridge:
            found[ifindex] = replace(old, bridge=replace(old.bridge, vlans=entries))
    return found


def _or_nothing[Answer](read: Callable[[Netlink], Answer], sock: Netlink, nothing: Answer) -> Answer:
    """What a dump tells, or `nothing` where this kernel was built without what it dumps."""
    try:
        return read(sock)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return nothing
        raise


def _problem(namespace: Namespace, error: OSError) -> Problem:
    name = namespace.names[0] if namespace.names else str(namespace.inode)
    what = f"the links of namespace {name} cannot be read"
    if isinstance(error, PermissionError):
        why = f"entering a namespace needs CAP_SYS_ADMIN ({error.strerror})"
        return Problem("links", what, why, "run it as root", namespace.inode)
    return Problem("links", what, f"the kernel refused: {error.strerror}", "read again", namespace.inode)


_RTM_GETSTATS = 94
_IFLA_STATS_LINK_64 = 1
_STATS_MESSAGE = struct.Struct("=BxxxII")
_GET_STATS = _STATS_MESSAGE.pack(0, 0, 1 << (_IFLA_STATS_LINK_64 - 1))
# The first nine counters of struct rtnl_link_stats64, in the order of STATS_DTYPE.
_COUNTERS = struct.Struct("=9Q")


def read_stats(namespaces: Iterable[Namespace]) -> LinkStats:
    """The counters of every link in those namespaces, as far as they exist and may be entered."""
    taken_at = time.monotonic()
    rows = [row for namespace in namespaces for row in _read(namespace)]
    return LinkStats(taken_at, np.array(rows, STATS_DTYPE))


def _read(namespace: Namespace) -> list[tuple[int, ...]]:
    try:
        with netns.entered(namespace.entry, namespace.inode), Netlink() as sock:
            return list(_rows(sock, namespace.inode))
    except (NamespaceGone, PermissionError):
        return []


def _rows(sock: Netlink, ns: int) -> Iterator[tuple[int, ...]]:
    for message in sock.dump(_RTM_GETSTATS, _GET_STATS):
        _, ifindex, _ = _STATS_MESSAGE.unpack_from(message.payload)
        counters = attributes(message.payload, _STATS_MESSAGE.size).get(_IFLA_STATS_LINK_64)
        if counters:
            yield (ns, ifindex, *_COUNTERS.unpack_from(counters))
