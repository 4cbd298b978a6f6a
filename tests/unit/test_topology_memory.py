"""A topology's large tables are freed with it, without the garbage collector."""

from __future__ import annotations

import gc
import weakref

from core.topology import Topology
from tests.ui.test_conntrack_rows import snapshot
from tui.views.conntrack import conntrack_rows


def test_a_topology_whose_connections_were_shown_is_freed_with_its_last_user() -> None:
    gc.disable()
    try:
        topology = Topology(snapshot())
        rows = conntrack_rows(topology).sorted_by("inside", False)
        assert rows.row(0).cells and topology.flows.names(topology.host) is not None
        past = weakref.ref(topology)
        del topology, rows
        assert past() is None
    finally:
        gc.enable()
