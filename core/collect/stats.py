"""Link counters of many namespaces, read without anything else of the links."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator

import numpy as np

from core.collect import netns
from core.collect.netlink import Netlink, attributes
from core.collect.netns import NamespaceGone
from core.model import STATS_DTYPE, LinkStats, Namespace

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
