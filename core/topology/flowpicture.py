"""The flows of one moment as they are presented: what was measured, and whose they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from core.flows.table import FlowTable
from core.topology.flowindex import FlowIndex
from core.topology.flowsockets import SocketEnds

if TYPE_CHECKING:
    from core.topology.index import Topology

Column = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class FlowPicture:
    """A table of flows and the index over its rows."""

    table: FlowTable
    index: FlowIndex

    @classmethod
    def of(cls, topology: Topology, table: FlowTable, before: FlowPicture | None = None) -> FlowPicture:
        """The picture of a table; the index of the picture before serves on, where it holds for both."""
        if before is not None and before.table is table and before.index.topology is topology:
            return before
        index = before.index if before is not None else None
        if index is None or index.generation != table.generation:
            index = FlowIndex(topology, table)
        elif not index.serving(topology):
            index = FlowIndex(topology, table, index)
        return cls(table, index)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def ends(self) -> SocketEnds:
        """What sockets tell of the ends."""
        return self.index.process_columns(self.table.sockets)

    def command(self, row: int, end: int) -> str:
        """The process that holds the socket at an end (0 the opener, 1 the server), "" where not known."""
        pid = int(self.ends.pids[row, end])
        name = self.ends.commands.get(pid, "")
        return f"{name}[{pid}]" if pid else ""

    def row_of(self, ns: int, number: int) -> int | None:
        """The row of a conntrack entry, None where it is gone."""
        rows = np.flatnonzero(self.index.columns.column("id") == number).tolist()
        return next((row for row in rows if self.index.columns.place(row)[0].ns == ns), None)
