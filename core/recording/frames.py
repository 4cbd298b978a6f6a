"""Read and write the frames of a recording file.

Each frame has its length and a checksum, so that a truncated file can be opened."""

from __future__ import annotations

import json
import math
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from core.codec import WrongValue
from core.files import SizeCounter, TooLarge, most_bytes
from core.model import FAST_PATHS, Change, FastFlows, LinkStats, Snapshot
from core.recording.delta import NOTHING, apply_delta, table_bytes
from core.serialize import SCHEMA, CorruptFile, check, check_always

MAGIC = b"\x89VNETREC\r\n\x1a\n"
VERSION = 1
START = struct.Struct(f"<{len(MAGIC)}sHHI")  # magic, version, schema of the model, checksum of these
# Length of the body, its checksum, number of the frame, kind, number of changes, wall and monotonic time.
_FRAME = struct.Struct("<IIIBHdd")
_CHECK = struct.Struct("<I")
HEAD = _FRAME.size + _CHECK.size
_PART = struct.Struct("<II")  # compressed length, uncompressed length

KEY, STEP, END = 1, 2, 3
_KINDS = (KEY, STEP, END)
# Limits of what a file can make this process hold.
MAX_FILE = 1 << 31
MAX_FRAMES = 1 << 18  # more than in a day
MAX_BODY = 1 << 28
MAX_JSON = 1 << 26
_MAX_VALUES = 1 << 23
_SLACK = 1 << 20
_MAX_CHANGES = (1 << 16) - 1
_MAX_WALL = 253_402_300_800.0  # the year 10000, in Unix time

NOT_OURS = "a file that `vnet-tui record` or R in the dashboard wrote"
_COPY_AGAIN = "copy it again from its source, or open it with the version of vnet-tui that wrote it"


@dataclass(frozen=True, slots=True)
class Frame:
    """The header of one complete frame.

    `offset` and `length` are those of its body, `check` its CRC-32, `wall` Unix time, `mono` monotonic
    seconds, `changes` the number of changes in it."""

    number: int
    kind: int
    wall: float
    mono: float
    changes: int
    offset: int
    length: int
    check: int


@dataclass(frozen=True, slots=True)
class Scan:
    """All complete frames of a file.

    `rest` is the number of bytes after the last one, `ended` why the recording ended, "" if it doesn't
    say."""

    frames: tuple[Frame, ...]
    rest: int
    ended: str


def start() -> bytes:
    """Return the start of a recording file."""
    head = MAGIC + VERSION.to_bytes(2, "little") + SCHEMA.to_bytes(2, "little")
    return head + _CHECK.pack(zlib.crc32(head))


def frame(number: int, kind: int, wall: float, mono: float, changes: int, body: bytes) -> bytes:
    """Encode one frame."""
    capped = min(changes, _MAX_CHANGES)
    head = _FRAME.pack(len(body), zlib.crc32(body), number, kind, capped, wall, mono)
    return head + _CHECK.pack(zlib.crc32(head)) + body


def text_of(value: Any) -> bytes:
    """Encode a frame's JSON."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def body(text: bytes, tables: Sequence[bytes] = ()) -> bytes:
    """Encode a frame's body: lengths, JSON and tables, each compressed separately."""
    parts = [text, *tables]
    compressed = [zlib.compress(part, 6 if number == 0 else 1) for number, part in enumerate(parts)]
    lengths = [_PART.pack(len(data), len(part)) for data, part in zip(compressed, parts, strict=True)]
    return b"".join([len(parts).to_bytes(4, "little"), *lengths, *compressed])


def too_large(text: bytes, tables: Sequence[bytes]) -> bool:
    """Return whether a reader would refuse a frame as too large."""
    return len(text) > MAX_JSON or len(text) + sum(map(len, tables)) > MAX_BODY


class Body:
    """A frame's body, whose parts are decompressed on demand. Raises CorruptFile."""

    def __init__(self, data: bytes) -> None:
        count = int.from_bytes(data[:4], "little")
        offset = 4 + count * _PART.size
        if not count or offset > len(data):
            raise damaged("a frame's list of parts is wrong")
        self._data, self._parts = data, []
        for number in range(count):
            length, unpacked = _PART.unpack_from(data, 4 + number * _PART.size)
            self._parts.append((offset, length, unpacked))
            offset += length
        if offset != len(data):
            raise damaged("a frame's list of parts is wrong")
        max_json = min(MAX_JSON, most_bytes(self._parts[0][1], _SLACK))
        if sum(unpacked for _, _, unpacked in self._parts) > MAX_BODY or self._parts[0][2] > max_json:
            raise CorruptFile("a frame of the recording is too large", try_=NOT_OURS)

    @property
    def json_length(self) -> int:
        """The bytes of the JSON."""
        return int(self._parts[0][2])

    def json(self) -> Any:
        """Decode the JSON."""
        text = self.part(0)
        try:
            SizeCounter(_MAX_VALUES).add(text)
        except TooLarge:
            raise CorruptFile("a frame of the recording holds too many values", try_=NOT_OURS) from None
        try:
            return json.loads(text.decode("ascii"), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise damaged("a frame doesn't contain valid JSON") from None

    def part(self, number: int) -> bytes:
        """Decompress a part; number 0 is the JSON."""
        if not 0 <= number < len(self._parts):
            raise damaged("a frame refers to a part that it doesn't have")
        offset, length, unpacked = self._parts[number]
        stream = zlib.decompressobj()
        try:
            data = stream.decompress(self._data[offset : offset + length], unpacked + 1)
        except zlib.error:
            raise damaged("a frame can't be decompressed") from None
        if len(data) != unpacked or not stream.eof or stream.unused_data:
            raise damaged("a part of a frame has the wrong size")
        return data


def damaged(what: str, where: str = "") -> CorruptFile:
    """Return the error for a recording that was changed after it was written."""
    return CorruptFile(f"the recording is damaged: {what}", where, _COPY_AGAIN)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def scan(file: BinaryIO, size: int) -> Scan:
    """Find and check every frame of a file of that size.

    A truncated file has the frames before the end. Raises CorruptFile for one that was changed, isn't a
    recording or is of a newer version."""
    _check_start(file.read(START.size), size)
    frames: list[Frame] = []
    offset, ended = START.size, ""
    while not ended and offset + HEAD <= size:
        head = file.read(HEAD)
        if not any(head) and _is_empty(file):
            break  # space that was allocated but never written, after a power failure
        one = _frame_of(head, offset, frames[-1] if frames else None)
        if one.offset + one.length > size:
            break
        data = file.read(one.length)
        if zlib.crc32(data) != one.check:
            if one.offset + one.length == size:
                break
            raise damaged(f"the checksum of frame {one.number} is wrong", f"byte {one.offset}")
        offset = one.offset + one.length
        if one.kind == END:
            ended = _ending(data)
        else:
            frames.append(one)
        if len(frames) > MAX_FRAMES:
            raise CorruptFile("the recording has too many frames", try_=NOT_OURS)
    if ended and offset != size:
        raise damaged("there is more data after its end", f"byte {offset}")
    return Scan(tuple(frames), size - offset, ended)


def _check_start(head: bytes, size: int) -> None:
    if head[: len(MAGIC)] != MAGIC[: len(head)] or not head:
        raise CorruptFile("this isn't a recording of vnet-tui", try_=NOT_OURS)
    if len(head) < START.size:
        raise CorruptFile("the recording is truncated before its first moment", try_=_COPY_AGAIN)
    if size > MAX_FILE:
        raise CorruptFile("the recording is too large", try_=NOT_OURS)
    _, version, schema, check = START.unpack(head)
    if check != zlib.crc32(head[: -_CHECK.size]):
        raise damaged("the checksum of its start is wrong")
    for name, found, supported in (("version", version, VERSION), ("schema", schema, SCHEMA)):
        if found != supported:
            raise CorruptFile(
                f"the recording has {name} {found}, this version of vnet-tui reads {name} {supported}",
                try_="open it with the version of vnet-tui that wrote it",
            )


def _frame_of(head: bytes, offset: int, before: Frame | None) -> Frame:
    if _CHECK.unpack_from(head, _FRAME.size)[0] != zlib.crc32(head[: _FRAME.size]):
        raise damaged("the checksum of a frame's header is wrong", f"byte {offset}")
    length, check, number, kind, changes, wall, mono = _FRAME.unpack_from(head)
    expected = before.number + 1 if before else 0
    earliest = before.mono if before else 0.0
    is_time_valid = math.isfinite(mono) and mono >= earliest and 0 <= wall < _MAX_WALL
    if kind not in _KINDS or number != expected or not is_time_valid or (before is None and kind == STEP):
        raise damaged("a frame is out of order", f"byte {offset}")
    return Frame(number, kind, wall, mono, changes, offset + HEAD, length, check)


def _is_empty(file: BinaryIO) -> bool:
    while data := file.read(1 << 20):
        if any(data):
            return False
    return True


def _ending(data: bytes) -> str:
    reason = Body(data).json()
    if not isinstance(reason, str) or not reason:
        raise damaged("its end has no reason")
    return reason[:200]


_MAX_TIME = 1e15  # seconds; the limit of the C library's calendar


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """Everything recorded at one time, and the changes since the previous moment.

    `stats` and `fast` are None if they were not read."""

    snapshot: Snapshot = field(default_factory=Snapshot)
    stats: LinkStats | None = None
    fast: FastFlows | None = None
    changes: tuple[Change, ...] = ()


def check_moment(moment: Moment) -> None:
    """Check a decoded moment. Raises CorruptFile."""
    check(moment.snapshot)
    times = [moment.snapshot.taken_at, *(change.at for change in moment.changes)]
    if any(abs(at) > _MAX_TIME for at in times):
        raise CorruptFile("a time in the recording is out of range", "moment")
    if moment.fast is not None and (moment.fast.entries["path"] >= len(FAST_PATHS)).any():
        raise CorruptFile("a flow in the recording has an unknown path", "moment.fast")


_STATS: Any = LinkStats | None
_MAX_TABLES = 1 << 28  # bytes of all tables of one moment
_MAX_GROUP_JSON = 1 << 28  # bytes of JSON from one key frame to the next
_MAX_CACHED_MOMENTS = 64
_MAX_CACHED_TABLES = 1 << 27  # bytes of tables in cached moments
_MAX_CACHED_STATS = 512


@dataclass(frozen=True, slots=True)
class _CachedMoment:
    """A moment, the bytes of JSON since its key frame, and those of its tables."""

    moment: Moment
    text: int
    tables: int


class Recording:
    """An opened and checked recording file; not thread-safe.

    `frames` are the headers of its moments; `notice` is a sentence about an incomplete file, else "". Methods
    raise OSError and CorruptFile."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            size = self._file.seek(0, 2)
            self._file.seek(0)
            found = scan(self._file, size)
            if not found.frames:
                raise CorruptFile(
                    "the recording is truncated before its first moment", try_="record for longer"
                )
        except BaseException:
            self._file.close()
            raise
        self.frames, self.ended = found.frames, found.ended
        self.notice = _notice(found)
        self._moments: dict[int, _CachedMoment] = {}
        self._stats: dict[int, LinkStats | None] = {}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def moment(self, index: int) -> Moment:
        """Return the moment of a frame; unchanged parts are the previous one's objects."""
        first = self._key_frame(index)
        newest = max((each for each in self._moments if first <= each <= index), default=first - 1)
        cached = self._moments.get(newest)
        for number in range(newest + 1, index + 1):
            cached = self._read(number, cached)
            self._cache(number, cached)
        assert cached is not None
        return cached.moment

    def _cache(self, index: int, moment: _CachedMoment) -> None:
        """Cache a moment for steps backwards, and drop the oldest ones."""
        self._moments.pop(index, None)
        self._moments[index] = moment
        size = sum(each.tables for each in self._moments.values())
        while len(self._moments) > _MAX_CACHED_MOMENTS or (
            size > _MAX_CACHED_TABLES and len(self._moments) > 1
        ):
            size -= self._moments.pop(next(iter(self._moments))).tables

    def stats(self, first: int, end: int) -> Iterator[LinkStats]:
        """Iterate over the links' counters in the frames from `first` to before `end`."""
        start = self._key_frame(first)
        newest = max((each for each in self._stats if start <= each < first), default=start - 1)
        latest = self._stats.get(newest)
        for index in range(newest + 1, end):
            before, latest = latest, self._stats_of(index, latest)
            if latest is not None and latest is not before and index >= first:
                yield latest

    def _stats_of(self, index: int, before: LinkStats | None) -> LinkStats | None:
        if index not in self._stats:
            frame = self.frames[index]
            body, document = self._body(frame)
            delta = _delta_of(document, "stats")
            old = NOTHING if frame.kind == KEY else before
            self._stats[index] = before if delta is None else _apply(_STATS, old, delta, body, frame)
            if len(self._stats) > _MAX_CACHED_STATS:
                self._stats.pop(next(iter(self._stats)))
        return self._stats[index]

    def changes(self) -> Iterator[tuple[Change, ...]]:
        """Iterate over the changes of each frame."""
        for frame in self.frames:
            if not frame.changes:
                yield ()
                continue
            body, document = self._body(frame)
            delta = _delta_of(document, "changes")
            yield () if delta is None else _apply(tuple[Change, ...], (), delta, body, frame)

    def _key_frame(self, index: int) -> int:
        while self.frames[index].kind != KEY:
            index -= 1
        return index

    def _read(self, index: int, before: _CachedMoment | None) -> _CachedMoment:
        frame = self.frames[index]
        body, document = self._body(frame)
        text = body.json_length
        old = NOTHING
        if frame.kind != KEY and before is not None:
            text += before.text
            old = replace(before.moment, changes=())
        if text > _MAX_GROUP_JSON:
            raise CorruptFile("the recording is too large between two key frames", try_=NOT_OURS)
        if not isinstance(document, list):
            raise damaged("a frame doesn't contain a moment", _where(frame))
        if frame.kind == KEY:
            _check_key_frame(document, frame)
        moment: Moment = _apply(Moment, old, document, body, frame)
        tables = table_bytes(Moment, moment)
        if tables > _MAX_TABLES:
            raise CorruptFile("a moment of the recording is too large", try_=NOT_OURS)
        check_moment(moment)
        return _CachedMoment(moment, text, tables)

    def _body(self, frame: Frame) -> tuple[Body, Any]:
        self._file.seek(frame.offset)
        body = Body(self._file.read(frame.length))
        return body, body.json()


def _delta_of(document: Any, field: str) -> Any:
    """Return the delta of one field of the moment, None if it is unchanged."""
    return (
        document[1].get(field)
        if isinstance(document, list) and len(document) > 1 and isinstance(document[1], dict)
        else None
    )


def _check_key_frame(document: Any, frame: Frame) -> None:
    """Check that a key frame has the fields that every version wrote."""
    delta = _delta_of(document, "snapshot")
    try:
        check_always(delta[1] if isinstance(delta, list) and len(delta) > 1 else {})
    except WrongValue as error:
        raise damaged(str(error), f"{_where(frame)}, .snapshot") from None


def _apply(hint: Any, old: Any, delta: Any, body: Body, frame: Frame) -> Any:
    try:
        return apply_delta(hint, old, delta, body.part)
    except WrongValue as error:
        raise damaged(str(error), f"{_where(frame)}, {''.join(error.path)}") from None


def _where(frame: Frame) -> str:
    return f"frame {frame.number}"


def _notice(found: Scan) -> str:
    if found.ended:
        return ""
    last = time.strftime("%H:%M:%S", time.localtime(found.frames[-1].wall)) if found.frames else ""
    if found.rest:
        return f"The recording is truncated: the {found.rest} bytes after {last} are incomplete."
    return f"The recording has no end: nothing was written after {last}, or it is still being written."
