"""Read what comments need, while a capture runs: connections, sockets, processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from core.capture.comments import Annotator
from core.capture.packets import PacketTuple
from core.collect.conntrack import read_conntrack
from core.collect.namespaces import read_namespaces
from core.collect.snapshot import read_each
from core.collect.sockets import Holders, read_all
from core.model import Namespace
from core.topology import Topology

_PAUSE = 0.5  # seconds between two readings at least, and this many times as long as one took:
_SHARE = 10
_MOST_SECONDS = 0.1  # of a second, for comments on new flows: a flood of flows stays without


class LiveComments:
    """Comment packets with what the host's tables hold now.

    `refresh` reads them again, at most as often as the time that it takes allows. Both run on the thread of
    the capture, whose ring holds the packets meanwhile."""

    def __init__(self, topology: Topology, captured: Collection[int]) -> None:
        self._annotator, self._captured = Annotator(topology), frozenset(captured)
        self._namespaces: Mapping[int, Namespace] = topology.snapshot.namespaces
        self._holders = Holders()
        self._due, self._second, self._spent = 0.0, 0, 0.0

    @property
    def annotator(self) -> Annotator:
        """What names the ends of packets."""
        return self._annotator

    def commenter(self, ns: int) -> Callable[[PacketTuple], tuple[str, bool]]:
        """Return what comments packets of a namespace."""
        return lambda ends: self._comment(ns, ends)

    def _comment(self, ns: int, ends: PacketTuple) -> tuple[str, bool]:
        """Comment a packet, unless comments have taken their share of this second."""
        began = time.monotonic()
        if int(began) != self._second:
            self._second, self._spent = int(began), 0.0
        if self._spent > _MOST_SECONDS:
            return "", False
        text = self._annotator.comment(ns, ends)
        self._spent += time.monotonic() - began
        return text

    @property
    def is_due(self) -> bool:
        """Whether the tables may be read again."""
        return time.monotonic() >= self._due

    def refresh(self) -> None:
        """Read connections and sockets again; what can't be read is left out."""
        began = time.monotonic()
        with suppress(OSError):
            self._namespaces = read_namespaces(deep=False)[0]
        host = {inode for inode, one in self._namespaces.items() if one.is_host}
        tracked = {ns: one for ns, one in self._namespaces.items() if ns in self._captured | host}
        sockets = read_all(self._namespaces, self._holders)
        self._annotator.feed(read_each(read_conntrack, tracked), sockets)
        now = time.monotonic()
        self._due = now + max(_PAUSE, (now - began) * _SHARE)
