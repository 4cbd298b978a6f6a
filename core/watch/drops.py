"""Count dropped packets while they are demanded, and publish their rates."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

from core.drops import DropMeter, DropsUnavailable, HeavyDropWatch
from core.model import Drop, DroppedPacket, Drops, Part, Problem, Snapshot
from core.topology import Topology
from core.topology.drops import KnownNamespaces, container_of_drop
from core.watch.store import SnapshotStore

REPORT_SECONDS = 10.0  # of a request for single packets
MAX_PACKETS = 200  # the last ones are kept


class DropReader(Protocol):
    """Count dropped packets in the kernel until it is closed; `bpf.drops.DropCounter`."""

    since: float

    def read(self) -> tuple[tuple[Drop, ...], int]:
        """Return the counters, and how many packets weren't counted."""
        ...

    def set_owners(self, places: Collection[tuple[int, str]]) -> None:
        """Set the addresses of containers by namespace."""
        ...

    def keep_namespaces(self, inodes: Collection[int]) -> None:
        """Delete counters of other namespaces if they take much room."""
        ...

    def report(self, on: bool) -> None:
        """Begin to report single packets, or end that."""
        ...

    def packets(self) -> list[DroppedPacket]:
        """Return the reported packets since the last call."""
        ...

    def close(self) -> None:
        """End counting."""
        ...


OpenDrops = Callable[[], DropReader]


class DropWatch:
    """Count drops from the first demand until `close`.

    `poll` is called from one thread. `open_reader` raises DropsUnavailable if this machine or user can't
    count; None: no reader exists.
    """

    def __init__(self, store: SnapshotStore, open_reader: OpenDrops | None) -> None:
        self._store, self._open = store, open_reader
        self._lock = threading.Lock()
        self._reader: DropReader | None = None
        self._wanted = self._closed = False
        self._report_until = 0.0
        self._meter, self._heavy = DropMeter(), HeavyDropWatch()
        self._packets: deque[DroppedPacket] = deque(maxlen=MAX_PACKETS)
        self._polled = 0.0
        self._owners: Snapshot | None = None
        self._topology: Topology | None = None
        self._known = KnownNamespaces()

    @property
    def is_open(self) -> bool:
        """Whether drops are being counted."""
        return self._reader is not None

    def demand(self, report: bool) -> None:
        """Count from the next poll on; with `report` also list single packets for a while."""
        self._wanted = True
        if report:
            self._report_until = time.monotonic() + REPORT_SECONDS

    def poll(self) -> None:
        """Read the counters, and publish what differs from before."""
        with self._lock:
            if self._closed or not self._open or not (self._wanted or self._reader):
                return
            try:
                if self._reader is None:
                    self._wanted = False  # tried again only with the next demand
                    self._reader = self._open()
                self._read(self._reader)
            except DropsUnavailable as error:
                problem = Problem(Part.DROPS, "can't count dropped packets", error.why, error.try_)
                self._store.put(Part.DROPS, problems=(problem,))
                return
        self._store.put(Part.DROPS, problems=())

    def _read(self, reader: DropReader) -> None:
        now, topology = time.monotonic(), self._topology_of(self._store.snapshot)
        self._set_owners(reader, topology)
        reporting = now < self._report_until
        self._known.add(topology)
        reader.report(reporting)
        self._packets.extend(one for one in reader.packets() if list(self._known.of([one.where])))
        counters, uncounted = reader.read()
        reader.keep_namespaces(topology.snapshot.namespaces)
        drops = self._meter.feed(self._known.of(counters), now)
        if self._polled:
            named = ((one, _uid(topology, one)) for one in drops)
            heavy = self._heavy.feed(named, self._polled, now)
            self._store.put(Part.DROPS, heavy_drops=heavy)
        self._polled = now
        self._store.put_drops(
            Drops(reader.since, time.time(), drops, uncounted, tuple(self._packets), reporting)
        )

    def _topology_of(self, snapshot: Snapshot) -> Topology:
        if self._topology is None or self._topology.snapshot is not snapshot:
            self._topology = Topology(snapshot)
        return self._topology

    def _set_owners(self, reader: DropReader, topology: Topology) -> None:
        snapshot, old = topology.snapshot, self._owners
        if old is None or snapshot.nets is not old.nets or snapshot.engines is not old.engines:
            reader.set_owners(topology.reachable_addresses())
            self._owners = snapshot

    def close(self) -> None:
        """End counting."""
        with self._lock:
            self._closed = True
            if self._reader is not None:
                self._reader.close()
                self._reader = None


def _uid(topology: Topology, drop: Drop) -> str:
    container = container_of_drop(topology, drop)
    return container.uid if container else ""
