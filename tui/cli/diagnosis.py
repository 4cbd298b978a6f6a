"""Read what findings need besides the parts of a snapshot."""

from __future__ import annotations

from dataclasses import replace

from core.collect.checksums import read_checksum_errors
from core.model import Snapshot
from tui.cli.fastpath_agent import read_fast_path


def with_health(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot of this host with its fast path and its wrong checksums."""
    known = snapshot.with_fast_path(read_fast_path())
    return replace(known, checksum_errors=read_checksum_errors(snapshot.namespaces))
