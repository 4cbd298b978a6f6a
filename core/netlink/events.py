"""Hears that something changed in the network of any namespace; what it is now, a dump must tell.

pyroute2 (0.9) can't read these sockets: it receives with recvfrom(), which drops the ancillary data that
names the namespace of an event (NETLINK_LISTEN_ALL_NSID), it asks for its receive buffer without
SO_RCVBUFFORCE, and after one overrun (ENOBUFS) its socket is unusable.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress

from core.model import Namespace
from core.netlink import netns
from core.netlink.client import (
    NETFILTER,
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_LISTEN_ALL_NSID,
    ROUTE,
    SOL_NETLINK,
    Netlink,
    set_recv_buffer,
)

RECV_BUFFER = 16 << 20
# What stands for "events were lost: look at everything again".
EVERYTHING = (None, "everything")

# (namespace id as the host knows it, None for the host itself; what may have changed there)
Event = tuple[int | None, str]

# RTNLGRP_* of linux/rtnetlink.h: link, neighbours (forwarding tables too), queueing disciplines, IPv4 and
# IPv6 addresses, routes and rules, namespace ids, next hops, bridge VLANs.
_ROUTE_GROUPS = (1, 3, 4, 5, 7, 8, 9, 11, 19, 28, 32, 33)
_NFNLGRP_NFTABLES = 7
# RTM_* by their group of four: RTM_NEWLINK is 16, RTM_NEWADDR 20, ...
_PARTS = {
    4: "links", 5: "links", 6: "routes", 7: "neighbours", 8: "routes", 9: "links", 22: "nsid", 26: "routes",
    28: "links",
}  # fmt: skip
_HEADER = struct.Struct("=IHHII")
# No more than the first header is read of an event: a multicast datagram holds messages of one kind.
_PEEK = 64
_CMSG = socket.CMSG_SPACE(4)
_BURST = 4096


class EventSocket:
    """Netlink sockets in the host namespace that hear the events of every namespace that the host has an id
    for (see `assign_nsids`): of links, addresses, neighbours, routes, rules and nftables rule sets.

    Without CAP_NET_BROADCAST only the host's own events are heard. Raises OSError where netlink is refused.
    """

    def __init__(self, recv_buffer: int = RECV_BUFFER) -> None:
        self.overruns = 0
        with netns.entered(netns.HOST_PATH):
            self._route = _listener(ROUTE, _ROUTE_GROUPS, recv_buffer)
            self._nft = _listener(NETFILTER, (_NFNLGRP_NFTABLES,), recv_buffer)

    def filenos(self) -> tuple[int, ...]:
        """The descriptors to wait for, as selectors take them."""
        return self._route.fileno(), self._nft.fileno()

    def read(self) -> set[Event]:
        """Where what may have changed since the last call, as (nsid, part); never waits, and takes in a flood
        piece by piece.

        The nsid is None for the host itself; the part is "links" (addresses and bridge VLANs too), "routes"
        (rules too), "neighbours" (forwarding tables too), "nsid" (an id was given or taken) or "nft". An
        overrun counts in `overruns`, and the answer then contains EVERYTHING.
        """
        return self._drain(self._route) | self._drain(self._nft)

    def close(self) -> None:
        """Close both sockets."""
        self._route.close()
        self._nft.close()

    def _drain(self, sock: socket.socket) -> set[Event]:
        """After an overrun the kernel drops silently until the queue is empty, so all of it is read: only
        what is looked at later is sure to be complete."""
        found: set[Event] = set()
        left = _BURST
        while left > 0 or EVERYTHING in found:
            left -= 1
            try:
                data, ancillary, _, _ = sock.recvmsg(_PEEK, _CMSG)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                found.add(EVERYTHING)
                continue
            part = "nft" if sock is self._nft else _PARTS.get(_HEADER.unpack_from(data)[1] // 4)
            if part:
                found.add((_nsid(ancillary), part))
        return found


def assign_nsids(namespaces: Iterable[Namespace]) -> None:
    """Give an id in the host namespace to every namespace that has none yet.

    The kernel hands a namespace's events to a listener elsewhere only where the listener's namespace has an
    id for it (NETLINK_LISTEN_ALL_NSID, netlink(7)), and it makes ids by itself only for namespaces that a
    link leads to. An id is a number in a table of the host namespace that vanishes with either; it changes
    nothing else. Without CAP_NET_ADMIN none is given.
    """
    unknown = [(ns.inode, ns.entry) for ns in namespaces if ns.nsid is None and not ns.is_host]
    if unknown:
        with netns.entered(netns.HOST_PATH), Netlink() as sock:
            netns.assign_nsids(sock, unknown)


def _listener(protocol: int, groups: Iterable[int], recv_buffer: int) -> socket.socket:
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol
    )
    set_recv_buffer(sock, recv_buffer)
    # A socket without an address of its own is passed over (do_one_broadcast, net/netlink/af_netlink.c).
    sock.bind((0, 0))
    with suppress(PermissionError):
        sock.setsockopt(SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1)
    for group in groups:  # one that this kernel lacks, or does not grant, is not heard
        with suppress(OSError):
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    return sock


def _nsid(ancillary: Iterable[tuple[int, int, bytes]]) -> int | None:
    """The namespace id that the kernel adds to another namespace's event."""
    for level, kind, value in ancillary:
        if (level, kind) == (SOL_NETLINK, NETLINK_LISTEN_ALL_NSID):
            return int.from_bytes(value[:4], sys.byteorder, signed=True)
    return None
