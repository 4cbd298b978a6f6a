"""Recordings for tests: written by the recorder, split into frames and joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from core.diff import changes
from core.model import FASTFLOW_DTYPE, STATS_DTYPE, FastFlows, LinkStats, Snapshot
from core.rates import RateMeter
from core.recording import Limits, Moment, Recorder, Recording, frames
from core.recording.frames import HEAD, START
from core.update import Update
from tests.support.host_builder import HOST
from tests.support.snapshots import small_host
from tests.support.waiting import PATIENCE, wait_until

WALL = 1_700_000_000.0


def fast_flows(count: int, packets: int = 0) -> FastFlows:
    """Return fast flows, each with so many packets more than its number."""
    entries = np.zeros(count, FASTFLOW_DTYPE)
    entries["family"], entries["path"], entries["sport"] = 4, 3, np.arange(count) % 60_000
    entries["packets"] = np.arange(count) + packets
    entries.flags.writeable = False
    return FastFlows(HOST, entries, WALL)


def sample_updates(count: int = 6) -> list[Update]:
    """Iterate over the updates of a small host.

    Each second counters and timers change, every other second the MTU of a link; in the fourth a link is
    added."""
    first = small_host()
    snapshots = [_second(first, second) for second in range(count)]
    meter = RateMeter()
    story = [Update(snapshots[0], meter.feed(_counted(first, 0)), (), fast=fast_flows(3))]
    for second, (old, new) in enumerate(pairwise(snapshots), 1):
        found = changes(old, new, WALL + second)
        story.append(
            Update(new, meter.feed(_counted(first, second)), found, fast=fast_flows(3 + second, second))
        )
    return story


def _counted(host: Snapshot, second: int) -> LinkStats:
    """Return counters after so many seconds of 1,000 bytes times a link's ifindex."""
    keys = [link.key for link in host.links()]
    rows = np.zeros(len(keys), STATS_DTYPE)
    rows["ns"], rows["ifindex"] = [key.ns for key in keys], [key.ifindex for key in keys]
    rows["rx_bytes"] = rows["ifindex"] * 1000 * second
    return LinkStats(1000.0 + second, rows)


def _second(first: Snapshot, second: int) -> Snapshot:
    net, table = first.nets[HOST], first.conntracks[HOST]
    entries = table.entries.copy()
    entries["timeout"] -= second
    links = dict(net.links)
    eth0 = next(link for link in links.values() if link.name == "eth0")
    links[eth0.ifindex] = replace(eth0, mtu=1400 + second // 2)
    if second >= 3:
        links[900] = replace(eth0, ifindex=900, name="late0")
    return replace(
        first, taken_at=WALL + second, nets={**first.nets, HOST: replace(net, links=links)},
        conntracks={HOST: replace(table, entries=entries, taken_at=WALL + second)},
    )  # fmt: skip


def record(
    path: Path, story: Sequence[Update], steps: Sequence[tuple[float, float]] = (), **limits: Any
) -> Recorder:
    """Record updates as one moment each.

    They are a second apart, or at `steps` (wall and monotonic time)."""
    times = iter(steps or [(WALL + second, 1000.0 + second) for second in range(len(story))])
    recorder = Recorder(path, Limits(**limits), clock=lambda: next(times), pace=0.0)
    recorder.start()
    for number, seen in enumerate(story, 1):
        recorder.put(seen)
        wait_until(lambda wanted=number: recorder.progress.moments >= wanted or recorder.progress.ended)
        if recorder.progress.ended:
            break
    recorder.stop()
    recorder.join(PATIENCE)
    assert not recorder.is_alive()
    return recorder


def frame_offsets(data: bytes) -> list[int]:
    """Return the offset of each frame, and of the end of the last."""
    found = [START.size]
    while found[-1] < len(data):
        found.append(found[-1] + HEAD + int.from_bytes(data[found[-1] : found[-1] + 4], "little"))
    return found


def split_frames(data: bytes) -> Iterator[tuple[int, int, float, float, int, bytes]]:
    """Iterate over number, kind, times, changes and body of the frames."""
    for start, end in pairwise(frame_offsets(data)):
        _, _, number, kind, count, wall, mono = frames._FRAME.unpack_from(data, start)
        yield number, kind, wall, mono, count, data[start + HEAD : end]


def join_frames(parts: Sequence[tuple[int, int, float, float, int, bytes]]) -> bytes:
    """Return a file of those frames, with valid checksums."""
    return frames.start() + b"".join(frames.frame(*part) for part in parts)


def same(one: Moment, seen: Update) -> None:
    """Compare a moment with an update, tables by their values."""
    assert seen.rates is not None and seen.rates.counters is not None and one.stats is not None
    assert seen.fast is not None and one.fast is not None
    assert np.array_equal(one.stats.rows, seen.rates.counters.rows)
    assert np.array_equal(one.fast.entries, seen.fast.entries)
    assert one.changes == seen.changes
    same_snapshot(one.snapshot, seen.snapshot)


def same_snapshot(one: Snapshot, other: Snapshot) -> None:
    for key, table in other.conntracks.items():
        assert np.array_equal(one.conntracks[key].entries, table.entries)
        assert not one.conntracks[key].entries.flags.writeable
    assert one.conntracks.keys() == other.conntracks.keys()
    assert replace(one, conntracks={}) == replace(other, conntracks={})


def opened(tmp_path: Path, data: bytes) -> Recording:
    path = tmp_path / "some.vnetrec"
    path.write_bytes(data)
    return Recording(path)
