"""Receive netlink events of all namespaces: which part changed, not its new state.

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
# Reported when events were lost: everything must be read again.
EVERYTHING = (None, "everything")

# (namespace id in the host namespace, None for the host itself; the part that may have changed)
Event = tuple[int | None, str]

# RTNLGRP_* of linux/rtnetlink.h: link, neighbours (forwarding tables too), queueing disciplines, IPv4 and
# IPv6 addresses, routes and rules, settings such as forwarding (netconf), namespace ids, next hops, bridge
# VLANs.
_ROUTE_GROUPS = (1, 3, 4, 5, 7, 8, 9, 11, 19, 24, 25, 28, 32, 33)
_NFNLGRP_NFTABLES = 7
# RTM_* by their group of four: RTM_NEWLINK is 16, RTM_NEWADDR 20, ...
_PARTS = {
    4: "links", 5: "links", 6: "routes", 7: "neighbours", 8: "routes", 9: "links", 20: "links", 22: "nsid",
    26: "routes", 28: "links",
}  # fmt: skip
_HEADER = struct.Struct("=IHHII")
# Only the first header of an event is read: a multicast datagram holds messages of one kind.
_PEEK = 64
_CMSG = socket.CMSG_SPACE(4)
_BURST = 4096


class EventSocket:
    """Receives events about links, addresses, neighbours, routes, rules and nftables.

    Its sockets are in the host namespace and receive the events of every namespace that has an id there (see
    `assign_nsids`). Without CAP_NET_BROADCAST only the host's own events arrive. Raises OSError if the kernel
    refuses netlink.
    """

    def __init__(self, recv_buffer: int = RECV_BUFFER) -> None:
        self.overruns = 0
        with netns.entered(netns.HOST_PATH):
            self._route = _listener(ROUTE, _ROUTE_GROUPS, recv_buffer)
            self._nft = _listener(NETFILTER, (_NFNLGRP_NFTABLES,), recv_buffer)

    def filenos(self) -> tuple[int, ...]:
        """Return the descriptors to poll."""
        return self._route.fileno(), self._nft.fileno()

    def read(self) -> set[Event]:
        """Return (nsid, part) for what may have changed, without blocking.

        The nsid is None for the host itself; the part is "links" (addresses and bridge VLANs too), "routes"
        (rules too), "neighbours" (forwarding tables too), "nsid" (an id was assigned or removed) or "nft".
        A call reads a limited number of events. After an overrun, which `overruns` counts, the result
        contains EVERYTHING.
        """
        return self._drain(self._route) | self._drain(self._nft)

    def close(self) -> None:
        """Close both sockets."""
        self._route.close()
        self._nft.close()

    def _drain(self, sock: socket.socket) -> set[Event]:
        """Read pending events; after an overrun, until the queue is empty.

        Until then the kernel drops further events silently, so a dump made earlier might miss a change.
        """
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
    """Assign an id in the host namespace to every namespace that has none.

    The kernel delivers a namespace's events to another namespace only if that one has an id for it
    (NETLINK_LISTEN_ALL_NSID, netlink(7)), and it assigns ids by itself only to namespaces at the other end of
    a link. An id is an entry in a table of the host namespace, removed with either namespace; it has no other
    effect. Without CAP_NET_ADMIN nothing is assigned.
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
    # The kernel skips sockets without an address (do_one_broadcast, net/netlink/af_netlink.c).
    sock.bind((0, 0))
    with suppress(PermissionError):
        sock.setsockopt(SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1)
    for group in groups:  # the kernel may lack a group, or refuse it
        with suppress(OSError):
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    return sock


def _nsid(ancillary: Iterable[tuple[int, int, bytes]]) -> int | None:
    """Return the namespace id that the kernel adds to events of other namespaces."""
    for level, kind, value in ancillary:
        if (level, kind) == (SOL_NETLINK, NETLINK_LISTEN_ALL_NSID):
            return int.from_bytes(value[:4], sys.byteorder, signed=True)
    return None
