"""Define the update that sources publish to the dashboard and the recorder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from core.flows.merge import FlowTable
from core.model import Change, Conntrack, Drops, FastFlows, Snapshot
from core.rates import Rates


class TrackedConnections(NamedTuple):
    """Conntrack tables by namespace inode, with the fast path's counters then."""

    tables: Mapping[int, Conntrack]
    fast: FastFlows | None


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One new state of everything that is shown.

    `rates` is None where nothing counts (a dump file), `flows` where none are measured. `changes` are those
    since the update before, or with `replaces_log` all until now. `fast` holds the fast path's counters that
    were read with conntrack. `previous` is an earlier reading of the connections, from which speeds follow
    where no flows are measured (a recording). `drops` is None while dropped packets aren't counted.
    """

    snapshot: Snapshot
    rates: Rates | None = None
    changes: tuple[Change, ...] = ()
    flows: FlowTable | None = None
    fast: FastFlows | None = None
    replaces_log: bool = False
    previous: TrackedConnections | None = None
    drops: Drops | None = None
