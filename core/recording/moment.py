"""One moment of a recording."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.model import FAST_PATHS, Change, FastFlows, LinkStats, Snapshot
from core.serialize import CorruptFile, check

_FARTHEST = 1e15  # seconds: what the C library's calendar can still tell


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """What was known at one time: the snapshot, the links' counters and the fast path's flows (None where
    they were not read), and the changes since the moment before."""

    snapshot: Snapshot = field(default_factory=Snapshot)
    stats: LinkStats | None = None
    fast: FastFlows | None = None
    changes: tuple[Change, ...] = ()


def check_moment(moment: Moment) -> None:
    """Refuse what no host can be: raises CorruptFile."""
    check(moment.snapshot)
    times = [moment.snapshot.taken_at, *(change.at for change in moment.changes)]
    if any(abs(at) > _FARTHEST for at in times):
        raise CorruptFile("a time in the recording is none", "moment")
    if moment.fast is not None and (moment.fast.entries["path"] >= len(FAST_PATHS)).any():
        raise CorruptFile("a flow in the recording takes a way that is none", "moment.fast")
