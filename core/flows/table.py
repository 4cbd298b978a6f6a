"""All flows of all namespaces at one moment: conntrack and the fast path merged, in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from core.flows.columns import FlowColumns
from core.flows.fast import NO_PATHS, joined
from core.flows.words import address_bytes
from core.model import Conntrack, FastFlows, Sockets

Column = np.ndarray[Any, Any]

# Numbers for sets of rows, each used once.
GENERATIONS = count(1)

UNKNOWN = np.float32("nan")


@dataclass(frozen=True, eq=False)
class FlowTable:
    """One row for each connection of each namespace, in the order of `tables`, row after row.

    `speeds` has shape (n, 4): bits a second of the original and the reply direction, then packets a second,
    averaged over the last seconds, NaN where not known. `packets` and `octets` have shape (n, 2), both paths
    together; `counted` tells where either counts. `path` is an index into core.flows.fast.PATHS. `born` is
    Unix time in seconds, NaN where not known. `taken_at` is monotonic, `at` Unix time, both in seconds.
    `generation` rises whenever the rows are others; between, only what was measured differs. `loose` tells
    how many rows at the end only the fast path knows. `sockets` are those of the namespaces, where they were
    read; `names` those of addresses that are nobody's here, by their 16 bytes.
    """

    tables: tuple[Conntrack, ...] = ()
    generation: int = 0
    taken_at: float = 0.0
    at: float = 0.0
    speeds: Column = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    packets: Column = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    octets: Column = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    counted: Column = field(default_factory=lambda: np.zeros(0, bool))
    path: Column = field(default_factory=lambda: np.zeros(0, np.uint8))
    fast_bytes: Column = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    born: Column = field(default_factory=lambda: np.zeros(0))
    loose: int = 0
    measured: bool = False
    sockets: Mapping[int, Sockets] = field(default_factory=dict)
    names: Mapping[bytes, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.counted)

    @cached_property
    def columns(self) -> FlowColumns:
        """The entries as columns, without names."""
        return FlowColumns(self.tables)

    @cached_property
    def bits(self) -> Column:
        """Bits a second, both directions together; NaN where not known."""
        return np.asarray(self.speeds[:, 0] + self.speeds[:, 1])

    def name_of(self, address: str) -> str:
        """What a foreign address is called, "" where that is not known."""
        return self.names.get(address_bytes(address), "")

    @cached_property
    def age(self) -> Column:
        """Seconds since it began, NaN where not known."""
        return np.maximum(self.at - self.born, 0)

    @cached_property
    def uncounted(self) -> tuple[int, ...]:
        """The namespaces whose kernel does not count, though they have connections."""
        return tuple(table.ns for table in self.tables if not table.accounting)


def counters_of(tables: Sequence[Conntrack]) -> Column:
    """What conntrack counted: shape (n, 4), packets of both directions, then bytes."""
    parts = [np.concatenate((one.entries["packets"], one.entries["bytes"]), axis=1) for one in tables]
    return np.concatenate(parts) if parts else np.zeros((0, 4), np.uint64)


def whole(name: str, tables: Sequence[Conntrack], default: Any) -> Column:
    """One field of all tables' entries."""
    parts = [one.entries[name] for one in tables]
    return np.concatenate(parts) if parts else np.zeros(0, default)


def table_of(tables: Mapping[int, Conntrack], fast: FastFlows | None = None, at: float = 0.0) -> FlowTable:
    """The flows of one single look, which knows no speeds."""
    kept = tuple(table for table in tables.values() if len(table.entries))
    paths = joined(kept, fast) if fast is not None and len(fast.entries) else NO_PATHS
    kept = (*kept, paths.loose) if paths.loose is not None else kept
    counters = counters_of(kept)
    size = len(counters)
    fast_bytes, path = np.zeros((size, 2), np.uint64), np.zeros(size, np.uint8)
    if paths.counters is not None and paths.path is not None:
        counters += paths.counters
        path, fast_bytes = paths.path, paths.counters[:, 2:]
    return FlowTable(
        kept,
        next(GENERATIONS),
        at=at,
        speeds=np.full((size, 4), UNKNOWN),
        packets=counters[:, :2],
        octets=counters[:, 2:],
        counted=whole("counted", kept, bool) | (path > 0),
        path=path,
        fast_bytes=fast_bytes,
        born=began(kept),
        loose=len(paths.loose.entries) if paths.loose is not None else 0,
    )


def began(tables: Sequence[Conntrack]) -> Column:
    """When each began by the kernel's own time stamp: Unix time in seconds, NaN where it keeps none."""
    start = whole("start", tables, np.uint64)
    return np.where(start > 0, start / 1e9, np.nan)
