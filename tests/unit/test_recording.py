"""Recordings are read back in any order; size and time are limited."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.model import CONNTRACK_DTYPE, FASTFLOW_DTYPE, STATS_DTYPE, LinkStats, Snapshot
from core.recording import Recording, delta, frames
from core.recording.delta import NOTHING, apply_delta, encode_delta
from core.update import Update
from tests.support.host_builder import HOST
from tests.support.recordings import (
    WALL,
    fast_flows,
    opened,
    record,
    same,
    same_snapshot,
    sample_updates,
    split_frames,
)
from tests.support.snapshots import hostile_host, many_namespaces, rates_of
from tests.support.waiting import wait_until

UPDATES = sample_updates()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "story.vnetrec"
    recorder = record(path, UPDATES)
    assert not recorder.progress.failed
    return path


@pytest.fixture(scope="module")
def whole(file: Path) -> bytes:
    return file.read_bytes()


# ---- written and read back


@pytest.mark.parametrize("order", [range(6), range(5, -1, -1), (3, 0, 5, 5, 1)])
def test_every_moment_in_any_order(file: Path, order: Any) -> None:
    recording = Recording(file)
    assert (len(recording.frames), recording.notice) == (6, "")
    for place in order:
        same(recording.moment(place), UPDATES[place])
    recording.close()


def test_the_time_line_marks_moments_with_changes(file: Path) -> None:
    recording = Recording(file)
    assert [frame.changes for frame in recording.frames] == [len(seen.changes) for seen in UPDATES]
    assert list(recording.changes()) == [seen.changes for seen in UPDATES]
    assert [frame.wall - WALL for frame in recording.frames] == [0, 1, 2, 3, 4, 5]


def test_reading_only_the_counters(file: Path) -> None:
    recording = Recording(file)
    for first, end in ((0, 6), (2, 5), (4, 6), (1, 3)):
        read = list(recording.stats(first, end))
        wanted = [seen.rates.counters for seen in UPDATES[first:end] if seen.rates and seen.rates.counters]
        assert [each.rows.tolist() for each in read] == [each.rows.tolist() for each in wanted]


def test_unchanged_parts_are_the_same_objects_and_need_no_space(tmp_path: Path, whole: bytes) -> None:
    recording = opened(tmp_path, whole)
    first, second = recording.moment(0).snapshot, recording.moment(1).snapshot
    assert first.engines is second.engines
    assert all(first.nets[ns] is second.nets[ns] for ns in first.nets if ns != HOST)
    sizes = [len(body) for *_, body in split_frames(whole)]
    assert max(sizes[1:]) < sizes[0] / 4


@pytest.mark.parametrize("snapshot", [hostile_host(), many_namespaces(20), Snapshot()])
def test_other_hosts(tmp_path: Path, snapshot: Snapshot) -> None:
    path = tmp_path / "a.vnetrec"
    record(path, [Update(snapshot), Update(UPDATES[0].snapshot), Update(snapshot)])
    recording = Recording(path)
    for place, wanted in enumerate((snapshot, UPDATES[0].snapshot, snapshot)):
        same_snapshot(recording.moment(place).snapshot, wanted)
        assert recording.moment(place).stats is None


def test_key_frames_are_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.recording.recorder._MAX_STEPS", 2)
    path = tmp_path / "a.vnetrec"
    record(path, UPDATES)
    recording = Recording(path)
    assert [frame.kind for frame in recording.frames] == [frames.KEY, frames.STEP] * 3
    for place in (5, 0, 4, 3):
        same(recording.moment(place), UPDATES[place])


def test_a_step_of_the_clock_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a.vnetrec"
    record(path, UPDATES[:3], [(WALL, 50.0), (WALL - 7200, 51.0), (WALL - 7199, 52.0)])
    times = [(frame.wall - WALL, frame.mono) for frame in Recording(path).frames]
    assert times == [(0, 50.0), (-7200, 51.0), (-7199, 52.0)]


rows = st.binary(max_size=6 * FASTFLOW_DTYPE.itemsize)


@settings(deadline=None)
@given(st.sampled_from([CONNTRACK_DTYPE, STATS_DTYPE, FASTFLOW_DTYPE]), rows, rows, st.booleans())
def test_any_table_after_any_other(dtype: Any, before: bytes, after: bytes, grown: bool) -> None:
    old, new = table(before, dtype), table(after, dtype)
    new = np.concatenate([old[::-1], new]) if grown else new
    back = delta.unpack(old, delta.pack(old, new), dtype)
    assert back.tobytes() == new.tobytes()
    assert delta.unpack(None, delta.pack(None, new), dtype).tobytes() == new.tobytes()


def table(raw: bytes, dtype: Any) -> np.ndarray:
    """Return rows of those bytes, with valid booleans."""
    made = np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype).copy()
    for name in dtype.names:
        if dtype[name] == np.bool_:
            made[name] = made[name].view("u1") & 1
    return made


lists = st.lists(st.sampled_from([seen.changes[0] for seen in UPDATES if seen.changes]), max_size=6).map(
    tuple
)


@settings(deadline=None)
@given(lists, lists)
def test_any_list_after_any_other(old: tuple[Any, ...], new: tuple[Any, ...]) -> None:
    hint = tuple[type(UPDATES[2].changes[0]), ...]
    found = json.loads(json.dumps(encode_delta(hint, old, new, lambda _: 0)))
    assert (old if found is None else apply_delta(hint, old, found, lambda _: b"")) == new
    whole = json.loads(json.dumps(encode_delta(hint, NOTHING, new, lambda _: 0)))
    assert apply_delta(hint, NOTHING, whole, lambda _: b"") == new


# ---- limits


def test_the_size_is_limited_and_reported(tmp_path: Path) -> None:
    noise = np.random.default_rng(3)
    path = tmp_path / "a.vnetrec"
    story = [Update(UPDATES[0].snapshot, rates_of(UPDATES[0].snapshot), fast=fast_flows(9))]
    for _ in range(40):
        stats = LinkStats(1.0, np.frombuffer(noise.bytes(STATS_DTYPE.itemsize * 50), STATS_DTYPE))
        rates = dataclasses.replace(story[0].rates, counters=stats)  # type: ignore[type-var]
        story.append(Update(UPDATES[0].snapshot, rates))
    made = record(path, story, size=40_000).progress
    assert path.stat().st_size == made.size <= 40_000
    assert "size" in made.ended and not made.failed
    recording = Recording(path)
    assert 0 < len(recording.frames) == made.moments < len(story)
    assert recording.ended == made.ended and not recording.notice


def test_the_time_is_limited_and_reported(tmp_path: Path) -> None:
    from core.recording import Limits, Recorder

    path = tmp_path / "a.vnetrec"
    recorder = Recorder(path, Limits(seconds=0.3), pace=0.0)
    recorder.put(UPDATES[0])
    recorder.start()
    wait_until(lambda: recorder.progress.ended)
    recorder.join(20)
    assert "time" in recorder.progress.ended
    assert "time" in Recording(path).ended


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.vnetrec"
    path.write_text("mine")
    made = record(path, UPDATES[:1]).progress
    assert made.failed and made.ended.startswith("it exists already. Try: ")
    assert path.read_text() == "mine"


def test_a_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = os.write
    left = [9000]

    def write(descriptor: int, data: Any) -> int:
        if len(data) > left[0]:
            if left[0] <= 0:
                raise OSError(28, os.strerror(28))
            data = data[: left[0]]
        left[0] -= len(data)
        return written(descriptor, data)

    monkeypatch.setattr("core.recording.recorder.os.write", write)
    path = tmp_path / "a.vnetrec"
    story = [Update(hostile_host() if number % 2 else UPDATES[0].snapshot) for number in range(12)]
    made = record(path, story).progress
    assert made.failed and made.ended == os.strerror(28)
    recording = Recording(path)
    assert len(recording.frames) == made.moments > 0
    assert path.stat().st_size == made.size


def test_a_burst_becomes_one_moment_with_all_changes(tmp_path: Path) -> None:
    from core.recording import Limits, Recorder

    path = tmp_path / "a.vnetrec"
    recorder = Recorder(path, Limits(), pace=3600.0)
    recorder.start()
    recorder.put(UPDATES[0])
    wait_until(lambda: recorder.progress.moments == 1)
    for seen in UPDATES[1:]:
        recorder.put(seen)
    recorder.stop()
    recorder.join(20)
    recording = Recording(path)
    assert len(recording.frames) == 2
    last = recording.moment(1)
    assert last.changes == tuple(change for seen in UPDATES[1:] for change in seen.changes)
    same_snapshot(last.snapshot, UPDATES[-1].snapshot)
