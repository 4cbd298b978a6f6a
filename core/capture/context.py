"""Read what comments need, while a capture runs: connections, sockets, processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from core.capture.comments import Annotator
from core.capture.packets import PacketTuple
from core.collect.conntrack import read_conntrack
from core.collect.namespaces import read_namespaces
from core.collect.snapshot import read_each
from core.collect.sockets import Holders, read_all
from core.model import Conntrack, Namespace, Sockets
from core.topology import Topology

_PAUSE = 0.1  # seconds between two readings at least, and this many times as long as one took:
_SHARE = 10
_SOON = 1.0  # seconds
_QUICK = 0.3  # seconds; packets wait in the ring for a reading that takes no longer
_MOST_SECONDS = 0.1  # of a second, for comments on new flows: a flood of flows stays without


class LiveComments:
    """Comment packets with what the host's tables hold now.

    `refresh` reads them again, at most as often as the time that it takes allows. Both are called by the
    thread of the capture, whose ring holds the packets meanwhile."""

    def __init__(self, topology: Topology, captured: Collection[int]) -> None:
        self._annotator, self._captured = Annotator(topology), frozenset(captured)
        self._namespaces: Mapping[int, Namespace] = topology.snapshot.namespaces
        self._holders = Holders()
        self._found: tuple[Mapping[int, Conntrack], Mapping[int, Sockets]] | None = None
        self._due = self._took = self._spent = 0.0
        self._second, self._is_reading = 0, False

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
        """Whether the tables may be read again, or a reading has ended."""
        return not self._is_reading and (self._found is not None or time.monotonic() >= self._due)

    @property
    def is_due_soon(self) -> bool:
        """Whether it is worth waiting for the next reading."""
        return not self.is_due and not self._is_reading and self._due - time.monotonic() < _SOON

    def refresh(self) -> bool:
        """Read connections and sockets again; return whether newer ones are in use.

        If the last reading was slow, this one is made by a thread, and a later call uses its result."""
        if self._found is None:
            self._is_reading = True
            if self._took > _QUICK:
                threading.Thread(target=self._read, name="capture-comments", daemon=True).start()
                return False
            self._read()
        found, self._found = self._found, None
        if found is not None:
            self._annotator.feed(*found)
        return found is not None

    def _read(self) -> None:
        """Read the tables; what can't be read is left out."""
        began = time.monotonic()
        try:
            with suppress(OSError):
                self._namespaces = read_namespaces(deep=False)[0]
            tracked = {ns: one for ns, one in self._namespaces.items() if one.is_host or ns in self._captured}
            sockets = read_all(self._namespaces, self._holders)
            self._found = read_each(read_conntrack, tracked), sockets
        finally:
            now = time.monotonic()
            self._took = now - began
            self._due = now + max(_PAUSE, self._took * _SHARE)
            self._is_reading = False
