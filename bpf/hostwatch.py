"""Hears that the host changed in what a firewall rule can look at beside the packet: a link's name, group and
master, routes, routing rules, forwarding and the reverse-path filter.

A connection that was let through before such a change must pass the rules once more: see
bpf/generation_chain.py. Containers' own addresses and MACs are not here: see bpf/reconcile.py. Layouts:
rtnetlink(7), netconf.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from core.netlink.client import ROUTE, Netlink, attributes, listener, walk

# RTNLGRP_* of linux/rtnetlink.h: links, IPv4 routes and rules, IPv6 routes and rules, settings of links by
# family, next hops.
_GROUPS = (1, 7, 8, 11, 19, 24, 25, 32)
_BUFFER = 4 << 20
_NEW_LINK, _DEL_LINK, _GET_LINK = 16, 17, 18
_ROUTES, _RULES, _NEXT_HOPS = (24, 25), (32, 33), (104, 105)
_NEW_NETCONF, _DEL_NETCONF, _GET_NETCONF = 80, 81, 82
_IFINFO = struct.Struct("=BxHiII")
_CARRIES = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_GROUP = 1, 3, 10, 27
_RTMSG, _RTA_DST = struct.Struct("=BBBBBBBBI"), 1
_NETCONF_IFINDEX = 1
_NETCONF_READ = (2, 3, 9)  # forwarding, rp_filter, force_forwarding
_NETCONFMSG_SIZE = 4  # one byte of family, aligned


@dataclass(frozen=True, slots=True)
class _Seen:
    """A link as it was when it last carried packets, up and with a carrier: what rules can tell it by (None:
    it never did), and whether it still does."""

    identity: tuple[bytes | int, ...] | None
    is_port: bool
    up: bool = True


class HostWatch:
    """A socket in the host's namespace that hears rtnetlink's events and takes them in one by one."""

    def __init__(self) -> None:
        self._socket = listener(ROUTE, _GROUPS, _BUFFER)
        self._read_all()

    def fileno(self) -> int:
        """What to wait for."""
        return self._socket.fileno()

    def heard(self) -> bool:
        """Whether any of it changed since the last call; never waits."""
        changed = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._read_all()
                changed = True
                continue
            for kind, _, _, payload in walk(data):
                changed |= self._take(kind, payload)

    def _read_all(self) -> None:
        self._links: dict[int, _Seen] = {}
        self._highest = 0
        self._settings: dict[tuple[int, bytes], dict[int, bytes]] = {}
        with Netlink(ROUTE) as kernel:
            for message in kernel.dump(_GET_LINK, _IFINFO.pack(0, 0, 0, 0, 0)):
                self._take_link(message.payload)
            for family in (socket.AF_INET, socket.AF_INET6):
                try:
                    messages = kernel.dump(_GET_NETCONF, struct.pack("=Bxxx", family))
                except OSError:
                    continue  # without IPv6
                for message in messages:
                    self._take_settings(message.payload)

    def _take(self, kind: int, payload: bytes) -> bool:
        """Take one event in; whether rules could judge otherwise now."""
        if kind == _NEW_LINK:
            return self._take_link(payload)
        if kind == _DEL_LINK:
            return self._lose_link(payload)
        if kind == _NEW_NETCONF:
            return self._take_settings(payload)
        if kind == _DEL_NETCONF:
            found = attributes(payload, _NETCONFMSG_SIZE)
            self._settings.pop((payload[0], found.get(_NETCONF_IFINDEX, b"")), None)
            return False
        if kind in _ROUTES:
            return _is_forwarded_to(payload)
        return kind in _RULES or kind in _NEXT_HOPS

    def _take_link(self, payload: bytes) -> bool:
        """A link that is down carries nothing, so it counts as it was when it last did: that a container's
        link is made, put on its bridge and comes up changes nothing for others."""
        family, _, ifindex, flags, _ = _IFINFO.unpack_from(payload)
        if family != socket.AF_UNSPEC:
            return False  # of a bridge port, told in the link's own event as well
        before = self._links.get(ifindex)
        is_used_again = before is None and ifindex <= self._highest
        self._highest = max(self._highest, ifindex)
        if flags & _CARRIES != _CARRIES:
            if before is None:
                self._links[ifindex] = _Seen(None, is_port=False, up=False)
                return is_used_again
            return self._goes_down(ifindex, before)
        now = self._links[ifindex] = _seen(payload)
        if before is None:
            return is_used_again
        if before.identity is None:
            return not now.is_port  # routes that wait for a carrier lead there from now on
        return before.identity != now.identity or not (before.up or now.is_port)

    def _goes_down(self, ifindex: int, before: _Seen) -> bool:
        """The routes by a link that goes down are gone, which IPv4 tells nobody; a bridge's port has none."""
        self._links[ifindex] = replace(before, up=False)
        return before.up and not before.is_port

    def _lose_link(self, payload: bytes) -> bool:
        family, _, ifindex, _, _ = _IFINFO.unpack_from(payload)
        if family != socket.AF_UNSPEC:
            return False
        before = self._links.pop(ifindex, None)
        return before is not None and before.up and not before.is_port

    def _take_settings(self, payload: bytes) -> bool:
        """Whether one differs. A change of force_forwarding (IPv6, Linux 6.17) comes without its value: see
        inet6_netconf_fill_devconf of net/ipv6/addrconf.c."""
        found = attributes(payload, _NETCONFMSG_SIZE)
        if found.keys() == {_NETCONF_IFINDEX}:
            return True
        known = self._settings.setdefault((payload[0], found.get(_NETCONF_IFINDEX, b"")), {})
        told = {key: found[key] for key in _NETCONF_READ if key in found}
        changed = any(known.get(key, value) != value for key, value in told.items())
        known.update(told)
        return changed

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def _seen(payload: bytes) -> _Seen:
    """A port's own MAC is seen by no rule; a routed link's decides what comes in."""
    found = attributes(payload, _IFINFO.size)
    is_port = _IFLA_MASTER in found
    link_type = _IFINFO.unpack_from(payload)[1]
    words: tuple[bytes | int, ...] = tuple(
        found.get(key, b"") for key in (_IFLA_IFNAME, _IFLA_GROUP, _IFLA_MASTER)
    )
    own = () if is_port else (found.get(_IFLA_ADDRESS, b""),)
    return _Seen((link_type, *words, *own), is_port)


def _is_forwarded_to(payload: bytes) -> bool:
    """Whether a route may lead forwarded unicast packets: every port of a bridge has routes of its own to
    link-local and multicast addresses of IPv6, which come and go with it."""
    family, length = payload[:2]
    destination = attributes(payload, _RTMSG.size).get(_RTA_DST, b"")
    if family == socket.AF_INET:
        return not (length >= 4 and destination[0] >> 4 == 0xE)
    if family != socket.AF_INET6:
        return False
    if length >= 8 and destination[0] == 0xFF:
        return False
    return not (length >= 10 and destination[0] == 0xFE and destination[1] & 0xC0 == 0x80)


FORWARD_PRIORITY = "net.ipv4.ip_forward_update_priority"
_TCP_TIMEOUT = "net.netfilter.nf_conntrack_tcp_timeout_established"
_TCP_UNANSWERED = "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged"
_UDP_TIMEOUT = "net.netfilter.nf_conntrack_udp_timeout_stream"


def _path(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def read(name: str) -> str:
    """A sysctl of this network namespace, "" where this kernel has none of that name."""
    try:
        return _path(name).read_text().strip()
    except OSError:
        return ""


def timeouts() -> dict[str, int]:
    """How long conntrack keeps an idle TCP connection, one that waits for an acknowledgement, and a UDP
    stream, in ms, by the names that layout.CONFIG has for them."""
    tcp, udp = _milliseconds(_TCP_TIMEOUT, 432_000), _milliseconds(_UDP_TIMEOUT, 120)
    unanswered = min(tcp, _milliseconds(_TCP_UNANSWERED, 300))
    return {"tcp_timeout": tcp, "tcp_unanswered": unanswered, "udp_timeout": udp}


def _milliseconds(name: str, default: int) -> int:
    return min(int(read(name) or default) * 1000, 0xFFFFFFFF)


def calls_iptables() -> tuple[bool, bool]:
    """Whether br_netfilter shows bridged IPv4 and IPv6 to iptables, on every bridge."""
    found = (read(f"net.bridge.bridge-nf-call-{name}") == "1" for name in ("iptables", "ip6tables"))
    return next(found), next(found)
