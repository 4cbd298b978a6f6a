"""Truncated recordings open up to the last frame; changed ones are refused."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.recording import frames
from core.serialize import CorruptFile
from tests.support.host_builder import HOST
from tests.support.recordings import (
    WALL,
    frame_offsets,
    join_frames,
    opened,
    record,
    same,
    sample_updates,
    split_frames,
)
from tui.cli.record import open_recording as open_recording
from tui.command import CommandError

UPDATES = sample_updates()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("recording") / "story.vnetrec"
    record(path, UPDATES)
    return path.read_bytes()


# ---- truncated


def test_truncated_at_and_around_every_frame(tmp_path: Path, whole: bytes) -> None:
    ends = frame_offsets(whole)
    for number, end in enumerate(ends):
        for length in {end - 1, end, end + 1, (end + ends[min(number + 1, len(ends) - 1)]) // 2}:
            expect_the_first(tmp_path, whole, length)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(part=st.floats(0, 1))
def test_truncated_anywhere(tmp_path: Path, whole: bytes, part: float) -> None:
    expect_the_first(tmp_path, whole, int(len(whole) * part))


def expect_the_first(tmp_path: Path, whole: bytes, length: int) -> None:
    """Check that a truncated file opens up to its last complete frame, with a notice."""
    moments = sum(end <= length for end in frame_offsets(whole)[1:-1])
    if not moments:
        with pytest.raises(CorruptFile, match=r"truncated before its first moment|isn't a recording"):
            opened(tmp_path, whole[:length])
        return
    recording = opened(tmp_path, whole[:length])
    assert len(recording.frames) == moments
    same(recording.moment(moments - 1), UPDATES[moments - 1])
    assert bool(recording.notice) == (length < len(whole))
    recording.close()


def test_allocated_space_without_data(tmp_path: Path, whole: bytes) -> None:
    at = frame_offsets(whole)[3]
    recording = opened(tmp_path, whole[:at] + bytes(4096))
    assert len(recording.frames) == 3 and "4096 bytes" in recording.notice


# ---- changed


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(part=st.floats(0, 0.999999), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_ends_the_recording_there(
    tmp_path: Path, whole: bytes, part: float, bit: int
) -> None:
    broken = bytearray(whole)
    broken[int(len(whole) * part)] ^= 1 << bit
    try:
        recording = opened(tmp_path, bytes(broken))
    except CorruptFile as error:
        assert error.what and error.try_
        return
    assert len(recording.frames) == len(UPDATES) and recording.notice  # only the end frame can be missing
    same(recording.moment(5), UPDATES[5])


def test_a_newer_version_and_another_schema(tmp_path: Path, whole: bytes) -> None:
    for place, words in ((len(frames.MAGIC), "version 2"), (len(frames.MAGIC) + 2, "schema 2")):
        head = bytearray(whole[: frames.START.size - 4])
        head[place] = 2
        with pytest.raises(CorruptFile, match=words):
            opened(
                tmp_path, bytes(head) + zlib.crc32(head).to_bytes(4, "little") + whole[frames.START.size :]
            )


@pytest.mark.parametrize(
    "data", [b"", b"\x89", b"hello", b"\x1f\x8b\x08", b"{}", bytes(100), b"\x89PNG\r\n\x1a\n"]
)
def test_other_files(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CorruptFile):
        opened(tmp_path, data)


def rebuilt(whole: bytes, number: int, change: Callable[[Any, list[bytes]], Any]) -> bytes:
    """Return the file with other JSON or tables in one frame, and valid checksums."""
    parts = list(split_frames(whole))
    body = frames.Body(parts[number][-1])
    tables = [body.part(place) for place in range(1, len(body._parts))]
    text = change(body.json(), tables)
    parts[number] = (*parts[number][:-1], frames.body(frames.text_of(text), tables))
    return join_frames(parts)


def read_all(tmp_path: Path, data: bytes) -> None:
    recording = opened(tmp_path, data)
    for place in range(len(recording.frames)):
        recording.moment(place)
    list(recording.stats(0, len(recording.frames)))
    list(recording.changes())


def inside(text: Any, *path: str) -> Any:
    """Return the delta of a nested field."""
    for step in path:
        text = text[1][step]
    return text


def conntrack_in(text: Any) -> Any:
    """Return the delta of the host's conntrack table."""
    return inside(text, "snapshot", "conntracks", str(HOST))[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda text, tables: [],
        lambda text, tables: ["=", {}],
        lambda text, tables: ["~", {}, 7],
        lambda text, tables: ["~", {"more": ["=", 1]}, []],
        lambda text, tables: ["#", 1],
        lambda text, tables: inside(text, "snapshot")[1].update(taken_at=["=", "now"]) or text,
        lambda text, tables: inside(text, "snapshot")[1].update(taken_at=["=", 1e18]) or text,
        lambda text, tables: inside(text, "snapshot")[1].update(nets=["=", []]) or text,
        lambda text, tables: inside(text, "snapshot")[1].update(pending=["/", 0, 1, []]) or text,
        lambda text, tables: inside(text, "snapshot", "nets")[1].update(x=["=", {}]) or text,
        lambda text, tables: conntrack_in(text).update(entries=["#", 77]) or text,
        lambda text, tables: conntrack_in(text).update(ns=["=", 8]) or text,
        lambda text, tables: text[1].update(changes=["/", 9, 3, []]) or text,
        lambda text, tables: tables.__setitem__(0, tables[0][:-1]) or text,
        lambda text, tables: tables.__setitem__(0, b"") or text,
        lambda text, tables: tables.__setitem__(0, b"\xff\xff\xff\xff" + tables[0][4:]) or text,
        lambda text, tables: tables.__setitem__(0, tables[0][:4] + b"\x07" + tables[0][5:]) or text,
        lambda text, tables: tables.__setitem__(slice(None), [each + b"x" for each in tables]) or text,
    ],
)  # fmt: skip
@pytest.mark.parametrize("number", [0, 2])
def test_values_that_no_recorder_writes(tmp_path: Path, whole: bytes, number: int, change: Any) -> None:
    with pytest.raises(CorruptFile) as caught:
        read_all(tmp_path, rebuilt(whole, number, change))
    assert caught.value.what and caught.value.try_ and not caught.value.try_.endswith(".")


leaves = st.none() | st.booleans() | st.integers(-9, 2**70) | st.text(max_size=3)
names = st.sampled_from(["snapshot", "stats", "fast", "changes", "entries", "rows", "nets", "0", "x"])
values = st.recursive(
    leaves | st.sampled_from(["=", "~", "/", "#"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)
steps = st.builds(
    lambda name, value: ["~", {name: value}, []],
    st.sampled_from(["snapshot", "stats", "fast", "changes"]), values,
)  # fmt: skip


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=values | steps, number=st.sampled_from([0, 1]))
def test_any_json_in_a_frame(tmp_path: Path, whole: bytes, text: Any, number: int) -> None:
    try:
        read_all(tmp_path, rebuilt(whole, number, lambda *_: text))
    except CorruptFile as error:
        assert error.what


def test_a_recording_from_before_a_field_opens_with_its_default(tmp_path: Path, whole: bytes) -> None:
    recording = opened(tmp_path, rebuilt(whole, 0, lambda text, _: text[1].pop("fast") and text))
    assert recording.moment(0).fast is None
    assert recording.moment(0).snapshot.nets == UPDATES[0].snapshot.nets


@pytest.mark.parametrize("name", ["nets", "host", "engines"])
def test_a_key_frame_without_a_host_is_refused(tmp_path: Path, whole: bytes, name: str) -> None:
    broken = rebuilt(whole, 0, lambda text, _: inside(text, "snapshot")[1].pop(name) and text)
    with pytest.raises(CorruptFile, match=f'"{name}" is missing'):
        opened(tmp_path, broken).moment(0)
    path = tmp_path / "broken.vnetrec"
    path.write_bytes(broken)
    with pytest.raises(CommandError, match=f'"{name}" is missing'):
        open_recording(path)


def test_frames_out_of_order_or_missing(tmp_path: Path, whole: bytes) -> None:
    parts = list(split_frames(whole))
    for mixed in (
        parts[1:],
        [parts[0], parts[2]],
        [parts[0], *parts],
        [parts[0], parts[2], parts[1]],
        [*parts, parts[-1]],
    ):
        with pytest.raises(CorruptFile):
            opened(tmp_path, join_frames(mixed))
    for number, wall, mono in (
        (1, 1e300, 2000.0),
        (1, float("nan"), 2000.0),
        (1, WALL, float("nan")),
        (1, WALL, 1.0),
    ):
        odd = [*parts]
        odd[number] = (number, frames.STEP, wall, mono, 0, parts[number][-1])
        with pytest.raises(CorruptFile):
            opened(tmp_path, join_frames(odd))


def test_a_decompression_bomb_is_refused_with_bounded_memory(tmp_path: Path, whole: bytes) -> None:
    parts = list(split_frames(whole))
    bomb = zlib.compress(bytes(256 << 20))
    for length in (1 << 20, (1 << 32) - 1):
        body = (
            (1).to_bytes(4, "little") + len(bomb).to_bytes(4, "little") + length.to_bytes(4, "little") + bomb
        )
        data = join_frames([(*parts[0][:-1], body)])
        tracemalloc.start()
        try:
            with pytest.raises(CorruptFile):
                read_all(tmp_path, data)
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "body", [b"", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\1\0\0\0" + b"\xff" * 8, b"\1\0\0\0" + bytes(8)]
)
def test_parts_with_wrong_sizes(tmp_path: Path, whole: bytes, body: bytes) -> None:
    first = next(iter(split_frames(whole)))
    with pytest.raises(CorruptFile):
        read_all(tmp_path, join_frames([(*first[:-1], body)]))
