"""Read what findings need besides the parts of a snapshot."""

from __future__ import annotations

import time
from dataclasses import replace

from core.collect.checksums import read_checksum_errors
from core.model import Snapshot, StormGuard
from core.storms import GuardWatch
from tui.cli.fastpath_agent import read_fast_path


def with_health(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot of this host with its fast path and its wrong checksums."""
    known = snapshot.with_fast_path(read_fast_path())
    checksum_errors = read_checksum_errors(snapshot.namespaces)
    return replace(known, checksum_errors=checksum_errors, storm_guards=_storm_guards(snapshot))


def _storm_guards(snapshot: Snapshot) -> tuple[StormGuard, ...]:
    """Return the storm guards, none without the rights to read their counters."""
    if not snapshot.storm_guards:
        return ()
    from bpf.storm_guard import read_counters

    try:
        return GuardWatch().feed(snapshot.host.netns, read_counters(), time.monotonic())
    except OSError:
        return ()
