"""Files made to take much memory or time are refused early, with little memory."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterable
from itertools import repeat
from pathlib import Path

import pytest

from core.recording import frames
from core.recording.frames import KEY
from core.serialize import CorruptFile, from_json, unpack
from tests.support.recordings import opened

MOST_MEMORY = 230_000  # kB: what was read until then, the interpreter, its libraries, and compiling them
MILLION = bytes(1_000_000)
# ru_maxrss (getrusage(2)) includes the parent of a fork, the own high-water mark doesn't.
PRINT_PEAK = (
    "import atexit; status = lambda: open('/proc/self/status').read(); "
    "atexit.register(lambda: print(status().split('VmHWM:')[1].split()[0])); "
)
READ = PRINT_PEAK + "import sys; from core.serialize import unpack; unpack(open(sys.argv[1], 'rb').read())"
REPLAY = (
    PRINT_PEAK
    + "import sys; from tui.cli.record import open_recording, Path; open_recording(Path(sys.argv[1]))"
)


def packed(path: Path, pieces: Iterable[bytes]) -> Path:
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0) as file:
        for piece in pieces:
            file.write(piece)
    return path


def headers(path: Path) -> Path:
    member = tarfile.TarInfo("x/some.txt").tobuf(tarfile.USTAR_FORMAT)
    return packed(path, repeat(member * 1000, 1000))


def frame_of(text: Iterable[bytes], tables: int = 0) -> bytes:
    """Return a valid recording of one frame with that JSON and a table of zeros."""
    stream = zlib.compressobj(1)
    length, made = 0, b""
    for piece in text:
        made += stream.compress(piece)
        length += len(piece)
    parts = [(made + stream.flush(), length)]
    parts += [(zlib.compress(bytes(tables), 1), tables)] if tables else []
    lengths = b"".join(frames._PART.pack(len(some), whole) for some, whole in parts)
    body = len(parts).to_bytes(4, "little") + lengths + b"".join(some for some, _ in parts)
    return frames.start() + frames.frame(0, KEY, 1.7e9, 1.0, 0, body)


def recording(path: Path, text: Iterable[bytes]) -> Path:
    path.write_bytes(frame_of(text))
    return path


HOSTILE = {
    "lists in lists": lambda path: packed(
        path, [b'{"schema":1,"snapshot":[', *repeat(b"[]," * 330_000, 100)]
    ),
    "deep": lambda path: packed(path, [b'{"schema":1,"snapshot":', *repeat(b"[" * 1_000_000, 30)]),
    "zeros": lambda path: packed(path, repeat(MILLION, 600)),
    "spaces": lambda path: packed(path, [b"{", *repeat(b" " * 1_000_000, 600)]),
    "members": headers,
}
HOSTILE_RECORDINGS = {
    "lists in lists": lambda path: recording(path, [b"[", *repeat(b"[]," * 330_000, 20)]),
    "spaces": lambda path: recording(path, repeat(b" " * 1_000_000, 60)),
}


def refused_by(code: str, path: Path) -> str:
    """Return the last error line of a process that refuses a file with little memory."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    error = done.stderr
    assert done.returncode == 1 and int(done.stdout) < MOST_MEMORY, (error, done.stdout)
    return error.splitlines()[-1]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_dump_is_refused_with_little_memory(tmp_path: Path, name: str) -> None:
    error = refused_by(READ, HOSTILE[name](tmp_path / "bad.vnet"))
    assert error.startswith("core.serialize.CorruptFile: ") and "Try: a file that" in error


@pytest.mark.parametrize("name", HOSTILE_RECORDINGS)
def test_a_hostile_recording_is_refused_with_little_memory(tmp_path: Path, name: str) -> None:
    error = refused_by(REPLAY, HOSTILE_RECORDINGS[name](tmp_path / "bad.vnetrec"))
    assert error.startswith("tui.command.CommandError: can") and "too" in error


def test_too_many_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAMES", 3)
    many = (frames.frame(number, KEY, 1.7e9, 1.0, 0, b"") for number in range(5))
    with pytest.raises(CorruptFile, match="too many frames"):
        opened(tmp_path, frames.start() + b"".join(many))


@pytest.mark.parametrize("text", [b'{"a":' * 100_000, b"[" * 100_000, b'{"schema":1e999999,"snapshot":{}}'])
def test_deep_or_endless_numbers(text: bytes) -> None:
    with pytest.raises(CorruptFile):
        from_json(text)


def test_a_truncated_archive_or_a_wrong_size_is_refused() -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo("x/snapshot.json")
        member.size = 8_589_934_591
        archive.fileobj.write(member.tobuf(tarfile.USTAR_FORMAT))  # type: ignore[union-attr]
    with pytest.raises(CorruptFile, match="ends too early"):
        unpack(gzip.compress(made.getvalue()))
