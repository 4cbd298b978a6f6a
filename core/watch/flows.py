"""Sample flows: all as often as a share of a core allows, active ones each second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from core.collect import conntrack
from core.collect import sockets as reading
from core.collect.conntrack import lookup, lookup_mask
from core.collect.host import PeerNames
from core.flows.merge import FlowTable
from core.flows.meter import FlowMeter, Reading
from core.model import Conntrack, FastFlows, Namespace, Sockets
from core.netlink.netns import NamespaceGone

EVERY = 1.0
_SHARE_OF_ALL = 0.04  # of a core, for reading whole tables
_NAMED = 32  # the fastest flows, whose peers' names may be asked for
_SHARE_OF_SOME = 0.025  # of a core, for reading active entries again
_FORGOTTEN_AFTER = 15.0  # seconds after which an earlier sample says nothing about the last seconds

ReadFastFlows = Callable[[], FastFlows]


class FlowSampler:
    """Sample all flows; call `read` about once a second, from one thread."""

    def __init__(self, fast: ReadFastFlows | None = None) -> None:
        self._fast = fast
        self.fast: FastFlows | None = None  # of the last whole sample
        self.sockets: Mapping[int, Sockets] = {}  # given with each table
        self._names = PeerNames()
        self._meter = FlowMeter()
        self._next_whole = 0.0
        self._looked = -np.inf
        self._most = 256  # entries to read again at once

    def read(
        self, namespaces: Mapping[int, Namespace], whole: bool = False
    ) -> tuple[FlowTable, dict[int, Conntrack] | None]:
        """Return the current flows, and the tables if these were read whole.

        `whole` forces that.
        """
        began = time.monotonic()
        if began - self._looked > _FORGOTTEN_AFTER:
            self._meter.rest()
            whole = True
        self._looked = began
        if not whole and began < self._next_whole:
            return self._completed(self._some(namespaces)), None
        spent = time.thread_time()
        readings = read_timed(namespaces)
        self.fast = self._read_fast()
        table = self._meter.feed(readings, self.fast, time.monotonic(), time.time())
        spent = time.thread_time() - spent
        self._next_whole = began + max(EVERY * 0.9, spent / _SHARE_OF_ALL)
        return self._completed(table), {one.table.ns: one.table for one in readings}

    def _completed(self, table: FlowTable) -> FlowTable:
        """Add sockets and DNS names; the addresses of the fastest flows are resolved."""
        if self._names.reverse:
            self._names.ask(self._meter.ends(_NAMED))
        return replace(table, sockets=self.sockets, names=self._names.known())

    def _read_fast(self) -> FastFlows | None:
        return self._fast() if self._fast is not None else None

    def _some(self, namespaces: Mapping[int, Namespace]) -> FlowTable:
        """Read those again that move: the fastest, as many as the share allows."""
        spent = time.thread_time()
        rows = self._meter.active(time.monotonic(), self._most)
        parts, wanted, start = {}, [], 0
        for table in self._meter.table.tables:
            mine = rows[(rows >= start) & (rows < start + len(table.entries))]
            mine = mine[lookup_mask(table.entries[mine - start])]
            if len(mine) and table.ns in namespaces and table.ns not in parts:
                try:
                    parts[table.ns] = lookup(namespaces[table.ns], table.entries[mine - start])
                    wanted.append(mine)
                except (NamespaceGone, OSError):
                    pass
            start += len(table.entries)
        asked = np.concatenate(wanted) if wanted else np.zeros(0, np.intp)
        flows = self._meter.touch(parts, asked, self._read_fast(), time.monotonic(), time.time())
        self._adapt(time.thread_time() - spent, len(asked))
        return flows

    def _adapt(self, spent: float, count: int) -> None:
        """Ask for so many the next time that the share is kept."""
        allowed = EVERY * _SHARE_OF_SOME
        if spent > allowed:
            self._most = max(64, int(self._most * allowed / spent))
        elif count == self._most:
            self._most = min(65536, self._most * 2)


def read_timed(namespaces: Mapping[int, Namespace]) -> list[Reading]:
    """Read the tables of all namespaces with the times of reading.

    Namespaces that vanish meanwhile are left out.
    """
    readings = []
    for namespace in namespaces.values():
        began = time.monotonic()
        try:
            table = conntrack.read_conntrack(namespace)
        except NamespaceGone:
            continue
        readings.append(Reading(table, began, time.monotonic()))
    return readings


class SocketReader:
    """Read sockets and their processes; descriptors of processes are cached."""

    def __init__(self) -> None:
        self._holders = reading.Holders()

    def read(self, namespaces: Mapping[int, Namespace]) -> dict[int, Sockets]:
        """The sockets of all namespaces."""
        return reading.read_all(namespaces, self._holders)
