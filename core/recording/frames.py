"""The frames of a recording file: each tells its length and is checked, so that a file cut short opens."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

from core.files import SizeCounter, TooLarge, most_bytes
from core.model import FAST_PATHS, Change, FastFlows, LinkStats, Snapshot
from core.serialize import SCHEMA, CorruptFile, check

MAGIC = b"\x89VNETREC\r\n\x1a\n"
VERSION = 1
START = struct.Struct(f"<{len(MAGIC)}sHHI")  # magic, version, schema of the model, check of these
# Length of the body, its check, number of the frame, kind, number of changes, wall and monotonic time.
_FRAME = struct.Struct("<IIIBHdd")
_CHECK = struct.Struct("<I")
HEAD = _FRAME.size + _CHECK.size
_PART = struct.Struct("<II")  # length packed, length unpacked

KEY, STEP, END = 1, 2, 3
_KINDS = (KEY, STEP, END)
# What a file can make this process hold is bounded: the file, its frames, one frame unpacked, its JSON.
MAX_FILE = 1 << 31
MAX_FRAMES = 1 << 18  # more than come in a day
MAX_BODY = 1 << 28
MAX_JSON = 1 << 26
_MAX_VALUES = 1 << 23
_SLACK = 1 << 20
_MAX_CHANGES = (1 << 16) - 1
_LATEST = 253_402_300_800.0  # the year 10000, in Unix time

NOT_OURS = "Give a file that `vnet-tui record` or R in the dashboard wrote."
_RECORD_AGAIN = "Copy it again from where it was written, or open it with the vnet-tui that wrote it."


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole frame: where its body lies in the file, its kind, and when it was written: `wall` in Unix
    time, `mono` in monotonic seconds; `changes` is how many it tells."""

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
    """All whole frames of a file; `rest` is how many bytes after the last one are none, `ended` why the
    recording ended, "" where it does not say."""

    frames: tuple[Frame, ...]
    rest: int
    ended: str


def start() -> bytes:
    """How a recording file begins."""
    head = MAGIC + VERSION.to_bytes(2, "little") + SCHEMA.to_bytes(2, "little")
    return head + _CHECK.pack(zlib.crc32(head))


def frame(number: int, kind: int, wall: float, mono: float, changes: int, body: bytes) -> bytes:
    """One frame as it stands in the file."""
    told = min(changes, _MAX_CHANGES)
    head = _FRAME.pack(len(body), zlib.crc32(body), number, kind, told, wall, mono)
    return head + _CHECK.pack(zlib.crc32(head)) + body


def text_of(whole: Any) -> bytes:
    """The JSON of a frame."""
    return json.dumps(whole, separators=(",", ":")).encode("ascii")


def body(text: bytes, tables: Sequence[bytes] = ()) -> bytes:
    """A frame's body: JSON first, then its tables, each compressed for itself, their lengths before all."""
    parts = [text, *tables]
    packed = [zlib.compress(part, 6 if number == 0 else 1) for number, part in enumerate(parts)]
    lengths = [_PART.pack(len(some), len(part)) for some, part in zip(packed, parts, strict=True)]
    return b"".join([len(parts).to_bytes(4, "little"), *lengths, *packed])


def too_large(text: bytes, tables: Sequence[bytes]) -> bool:
    """Whether a frame of these would be refused by who reads it."""
    return len(text) > MAX_JSON or len(text) + sum(map(len, tables)) > MAX_BODY


class Body:
    """A frame's body, taken apart; parts are unpacked when they are asked for. Raises CorruptFile."""

    def __init__(self, data: bytes) -> None:
        count = int.from_bytes(data[:4], "little")
        offset = 4 + count * _PART.size
        if not count or offset > len(data):
            raise damaged("a frame lies about its parts")
        self._data, self._parts = data, []
        for number in range(count):
            length, whole = _PART.unpack_from(data, 4 + number * _PART.size)
            self._parts.append((offset, length, whole))
            offset += length
        if offset != len(data):
            raise damaged("a frame lies about its parts")
        most_json = min(MAX_JSON, most_bytes(self._parts[0][1], _SLACK))
        if sum(whole for _, _, whole in self._parts) > MAX_BODY or self._parts[0][2] > most_json:
            raise CorruptFile("a frame of the recording is too large to be read", try_=NOT_OURS)

    @property
    def json_length(self) -> int:
        """The bytes of its JSON."""
        return int(self._parts[0][2])

    def json(self) -> Any:
        """Its JSON."""
        text = self.part(0)
        try:
            SizeCounter(_MAX_VALUES).add(text)
        except TooLarge:
            raise CorruptFile("a frame of the recording holds too many values", try_=NOT_OURS) from None
        try:
            return json.loads(text.decode("ascii"), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise damaged("a frame holds no JSON of ours") from None

    def part(self, number: int) -> bytes:
        """One of its parts, 0 the JSON."""
        if not 0 <= number < len(self._parts):
            raise damaged("a frame names a part that it does not have")
        offset, length, whole = self._parts[number]
        stream = zlib.decompressobj()
        try:
            made = stream.decompress(self._data[offset : offset + length], whole + 1)
        except zlib.error:
            raise damaged("a frame does not unpack") from None
        if len(made) != whole or not stream.eof or stream.unused_data:
            raise damaged("a part of a frame is not of the size that it tells")
        return made


def damaged(what: str, where: str = "") -> CorruptFile:
    """A recording that was changed after it was written."""
    return CorruptFile(f"the recording is damaged: {what}", where, _RECORD_AGAIN)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def scan(file: BinaryIO, size: int) -> Scan:
    """Find and check every frame of a file of that size. A file cut short gives the frames before; one that
    was changed, that is none of ours or of a newer version raises CorruptFile."""
    _check_start(file.read(START.size), size)
    frames: list[Frame] = []
    offset, ended = START.size, ""
    while not ended and offset + HEAD <= size:
        head = file.read(HEAD)
        if not any(head) and _is_empty(file):
            break  # room that was given to the file, but never written: the power went
        one = _frame_of(head, offset, frames[-1] if frames else None)
        if one.offset + one.length > size:
            break
        data = file.read(one.length)
        if zlib.crc32(data) != one.check:
            if one.offset + one.length == size:
                break
            raise damaged(f"frame {one.number} is not as it was written", f"byte {one.offset}")
        offset = one.offset + one.length
        if one.kind == END:
            ended = _ending(data)
        else:
            frames.append(one)
        if len(frames) > MAX_FRAMES:
            raise CorruptFile("the recording has too many frames to be read", try_=NOT_OURS)
    if ended and offset != size:
        raise damaged("something follows its end", f"byte {offset}")
    return Scan(tuple(frames), size - offset, ended)


def _check_start(head: bytes, size: int) -> None:
    if head[: len(MAGIC)] != MAGIC[: len(head)] or not head:
        raise CorruptFile("this is not a recording of vnet-tui", try_=NOT_OURS)
    if len(head) < START.size:
        raise CorruptFile("the recording was cut off before its first moment", try_=_RECORD_AGAIN)
    if size > MAX_FILE:
        raise CorruptFile("the recording is too large to be read", try_=NOT_OURS)
    _, version, schema, check = START.unpack(head)
    if check != zlib.crc32(head[: -_CHECK.size]):
        raise damaged("its start is not as it was written")
    for what, found, known in (("version", version, VERSION), ("schema", schema, SCHEMA)):
        if found != known:
            raise CorruptFile(
                f"the recording has {what} {found}, this program reads {what} {known}",
                try_="Open it with the version of vnet-tui that wrote it.",
            )


def _frame_of(head: bytes, offset: int, before: Frame | None) -> Frame:
    if _CHECK.unpack_from(head, _FRAME.size)[0] != zlib.crc32(head[: _FRAME.size]):
        raise damaged("the head of a frame is not as it was written", f"byte {offset}")
    length, check, number, kind, changes, wall, mono = _FRAME.unpack_from(head)
    made = Frame(number, kind, wall, mono, changes, offset + HEAD, length, check)
    expected = before.number + 1 if before else 0
    earliest = before.mono if before else 0.0
    right_time = math.isfinite(mono) and mono >= earliest and 0 <= wall < _LATEST
    if kind not in _KINDS or number != expected or not right_time or (before is None and kind == STEP):
        raise damaged("a frame does not follow the one before it", f"byte {offset}")
    return made


def _is_empty(file: BinaryIO) -> bool:
    while data := file.read(1 << 20):
        if any(data):
            return False
    return True


def _ending(data: bytes) -> str:
    why = Body(data).json()
    if not isinstance(why, str) or not why:
        raise damaged("its end says nothing")
    return why[:200]


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
