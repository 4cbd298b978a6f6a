"""Does what traffic would do in the kernel, did it go there: keeps neighbours and forwarding tables fresh."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from bpf import layout, syscall
from bpf.clock import jiffies_ago
from bpf.loader import Loaded
from bpf.neighbours import Neighbours, refresh_fdb
from bpf.tables import Tables

_RECENT = 30  # seconds
_FDB_EVERY = 60.0


class Upkeep:
    """Called every few seconds; reads the flows only where something needs to be kept."""

    def __init__(self, loaded: Loaded, tables: Tables, neighbours: Neighbours) -> None:
        self._maps = loaded.maps
        self._tables = tables
        self._neighbours = neighbours
        self._fdb_at = time.monotonic() + _FDB_EVERY

    def run(self) -> None:
        """Keep what flows use."""
        fdb_due = time.monotonic() >= self._fdb_at and bool(self._tables.behind)
        l3 = {link.l3_ifindex for link in self._tables.links.values()}
        if not (self._neighbours.has_stale(l3) or fdb_due):
            return
        there, here = self._macs_in_use()
        self._neighbours.use(there)
        if fdb_due:
            self._fdb_at = time.monotonic() + _FDB_EVERY
            refresh_fdb([(port, mac) for port, mac in self._tables.behind if mac in there | here])

    def _flows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Keys and flows of each family."""
        for name, key in (("flows4", layout.KEY4), ("flows6", layout.KEY6)):
            there = self._maps[name]
            yield syscall.read_all(there, key, layout.FLOW, syscall.room_of(there))

    def _macs_in_use(self) -> tuple[set[bytes], set[bytes]]:
        """The MACs that flows of late went to, and came from."""
        now, recent = self._tables.clock.now(), _RECENT * self._tables.clock.hz
        there: set[bytes] = set()
        here: set[bytes] = set()
        for _, flows in self._flows():
            is_recent = jiffies_ago(flows["last_seen"], now) < recent
            used = flows[is_recent & (flows["action"] >= layout.ACTION_PEER)]
            there |= {row.tobytes() for row in np.unique(used["eth_out"][:, :6], axis=0)}
            here |= {row.tobytes() for row in np.unique(used["eth_in"][:, 6:], axis=0)}
        return there, here
