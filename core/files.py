"""Writing files where other users may write too: no link of theirs is followed, no file is half written."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.text import safe

PRIVATE, PUBLIC = 0o600, 0o666  # the latter less what the umask takes away
# Names of what this process has open already, which the kernel shows as symbolic links.
_OPEN = re.compile(r"/dev/(?:(?P<name>stdin|stdout|stderr)|fd/(?P<dev>\d+))|/proc/self/fd/(?P<proc>\d+)")
_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2}
_MOST_LINKS = 40  # as path_resolution(7)
_KINDS = {stat.S_IFDIR: "it is a folder", stat.S_IFBLK: "it is a disk", stat.S_IFSOCK: "it is a socket"}


class WriteError(OSError):
    """A file cannot be written; the text says why and what to try."""

    def __init__(self, path: str | Path, why: str, try_: str = "give another FILE", code: int = 0) -> None:
        super().__init__(code, why)
        self.path, self.try_ = path, try_

    def __str__(self) -> str:
        return f"can't write {safe(str(self.path))}: {self.strerror}. Try: {self.try_}"


def _refused(path: Path, error: OSError) -> WriteError:
    if isinstance(error, WriteError):
        return error
    denied = error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0
    try_ = "run it with sudo, or give another FILE" if denied else "give another FILE"
    return WriteError(path, error.strerror or str(error), try_, error.errno or 0)


def write_whole(path: Path, content: bytes, mode: int = PRIVATE, durable: bool = False) -> bool:
    """Write a file whole or not at all; whether it took the place of one. Raises CannotWrite.

    A regular file of that name is replaced, never written into. A symbolic link is refused; a pipe or device
    is written into. `durable` waits until the disk has it.
    """
    try:
        if found := _OPEN.fullmatch(str(path)):
            number = _NUMBERS.get(found["name"]) or int(found["dev"] or found["proc"] or 0)
            _write_all(os.dup(number), content)
            return False
        with _folder_of(path) as folder:
            return _write_in(folder, path, content, mode, durable)
    except OSError as error:
        raise _refused(path, error) from error


def create_new(path: Path, mode: int = PRIVATE) -> int:
    """The descriptor of a file that was not there before, open for writing. Raises CannotWrite."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with _folder_of(path) as folder:
            return os.open(path.name, flags, mode, dir_fd=folder)
    except FileExistsError as error:
        try_ = "give another FILE, or remove it first"
        raise WriteError(path, "it is there already", try_, errno.EEXIST) from error
    except OSError as error:
        raise _refused(path, error) from error


@contextmanager
def _folder_of(path: Path) -> Iterator[int]:
    """A descriptor of the folder that the file is in. Symbolic links that lead to it are followed where they
    are root's or our own: those of other users may lead elsewhere a moment later."""
    todo, links = [*path.parent.parts], 0
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while todo:
            part = todo.pop(0)
            entry = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            status = os.fstat(entry)
            if stat.S_ISLNK(status.st_mode) and status.st_dev == Path("/proc").stat().st_dev:
                os.close(entry)  # such as /proc/PID/root: its text is not where it leads
                todo.insert(0, f"{part}/.")
            elif stat.S_ISLNK(status.st_mode):
                todo, links = [*Path(_leads_to(path, part, entry, status)).parts, *todo], links + 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            else:
                os.close(here)
                here = entry
        if not stat.S_ISDIR(os.fstat(here).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        yield here
    finally:
        os.close(here)


def _leads_to(path: Path, part: str, entry: int, status: os.stat_result) -> str:
    """Where a symbolic link leads; closes the descriptor `entry` of it."""
    try:
        if not _is_trusted(status):
            raise WriteError(path, f"{safe(part)} is another user's symbolic link")
        return os.readlink("", dir_fd=entry)
    finally:
        os.close(entry)


def _is_trusted(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


def _write_in(folder: int, path: Path, content: bytes, mode: int, durable: bool) -> bool:
    name = path.name
    with suppress(FileNotFoundError):
        there = os.stat(name or ".", dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(there.st_mode):
            _write_into(folder, path, there, content)
            return False
        _replace(folder, path, content, mode, durable)
        return True
    _replace(folder, path, content, mode, durable)
    return False


def _replace(folder: int, path: Path, content: bytes, mode: int, durable: bool) -> None:
    """Write beside it under a name that nobody can know before, and give that file its name."""
    beside = f".vnet-tui.{secrets.token_hex(12)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(beside, flags, mode, dir_fd=folder)
    written = os.fstat(descriptor)
    try:
        _write_all(descriptor, content, durable)
        os.rename(beside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside, dir_fd=folder)
        raise
    if not os.path.samestat(written, os.stat(path.name, dir_fd=folder, follow_symlinks=False)):
        raise WriteError(path, "another user replaced it meanwhile", "give a FILE in a folder of your own")
    if durable:
        _sync(folder)


def _write_into(folder: int, path: Path, there: os.stat_result, content: bytes) -> None:
    """Write into a pipe or a device such as /dev/null, where no other user put it there."""
    kind = stat.S_IFMT(there.st_mode)
    if kind == stat.S_IFLNK:
        target = os.readlink(path.name, dir_fd=folder)
        raise WriteError(path, "it is a symbolic link", f"give the file that it leads to, {safe(target)}")
    if kind not in (stat.S_IFIFO, stat.S_IFCHR):
        raise WriteError(path, _KINDS.get(kind, "it is no regular file"))
    if not (_is_trusted(there) or _is_ours_alone(os.fstat(folder))):
        raise WriteError(path, "it belongs to another user")
    descriptor = os.open(path.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder)
    if not os.path.samestat(there, os.fstat(descriptor)):
        os.close(descriptor)
        raise WriteError(path, "another user replaced it meanwhile", "give a FILE in a folder of your own")
    _write_all(descriptor, content)


def _is_ours_alone(folder: os.stat_result) -> bool:
    return _is_trusted(folder) and not folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _write_all(descriptor: int, content: bytes, durable: bool = False) -> None:
    """Write it and close the descriptor."""
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(folder: int) -> None:
    """Wait until the names in a folder are on disk (fsync(2))."""
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# A conntrack entry takes about 220 bytes and 18 numbers, a link 1,000 bytes, 60 numbers and 16 brackets; a
# real dump unpacks to at most 35 times its size.
MAX_BYTES = 1 << 29
MAX_VALUES = 1 << 25
MAX_BRACKETS = 1 << 20  # lists and objects: an empty one takes as much memory as ten numbers
_SLACK, _RATIO = 1 << 25, 50
MAX_FILES = 1 << 14  # in an archive
_GZIP_MAGIC = b"\x1f\x8b"
_PIECE = 1 << 18
_BLOCK = 512


class UnpackError(Exception):
    """A file cannot be unpacked: what is wrong with it, and where ("" for the whole)."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(what)
        self.what, self.where = what, where


class TooLarge(UnpackError):
    """It would take more room than any real file does."""


def most_bytes(packed: int, slack: int = _SLACK) -> int:
    """How many bytes so many packed ones may become."""
    return min(MAX_BYTES, slack + _RATIO * packed)


class SizeCounter:
    """Counts what the pieces of a JSON text would become; raises TooLarge as soon as that is too much."""

    def __init__(self, most_values: int = MAX_VALUES) -> None:
        self._values, self._brackets, self._most_values = 0, 0, most_values

    def add(self, piece: bytes | bytearray) -> None:
        """Take in the next piece."""
        self._values += piece.count(b",") + piece.count(b":")
        self._brackets += piece.count(b"[") + piece.count(b"{")
        if self._values > self._most_values or self._brackets > MAX_BRACKETS:
            raise TooLarge("it holds too many values")


class UnpackedFile:
    """What a file holds, gzip-compressed or not, read from the start on. Raises Unfit."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0
        self._stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if data[:2] == _GZIP_MAGIC else None
        self._left = most_bytes(len(data))
        self._held = b""
        self.position = 0  # of what is read next

    def start(self, size: int) -> bytes:
        """The first bytes, which are read again afterwards; for the beginning only."""
        self._held, self.position = self.read(size), 0
        return self._held

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end."""
        pieces, wanted = [self._held[:size]], size - len(self._held)
        self._held = self._held[size:]
        while wanted > 0 and (piece := self._next(min(wanted, _PIECE))):
            pieces.append(piece)
            wanted -= len(piece)
        whole = b"".join(pieces)
        self.position += len(whole)
        return whole

    def pieces(self, size: int = MAX_BYTES) -> Iterator[bytes]:
        """The next `size` bytes, piece by piece."""
        while size > 0 and (piece := self.read(min(size, _PIECE))):
            yield piece
            size -= len(piece)

    def end(self) -> None:
        """Read to the end, and see that it is whole."""
        for _ in self.pieces():
            pass
        if self._stream and not self._stream.eof:
            raise UnpackError("the dump ends too early")
        if self._stream and (self._stream.unused_data or self._at < len(self._data)):
            raise UnpackError("something follows the end of the dump")

    def _next(self, size: int) -> bytes:
        piece = self._plain(size) if self._stream is None else self._inflated(self._stream, size)
        self._left -= len(piece)
        if self._left < 0:
            raise TooLarge("it unpacks to too much")
        return piece

    def _plain(self, size: int) -> bytes:
        piece = bytes(self._data[self._at : self._at + size])
        self._at += len(piece)
        return piece

    def _inflated(self, stream: zlib._Decompress, size: int) -> bytes:
        piece = b""
        while not piece and not stream.eof and (stream.unconsumed_tail or self._at < len(self._data)):
            given: bytes | memoryview = stream.unconsumed_tail
            if not given:
                given = self._data[self._at : self._at + _PIECE]
                self._at += len(given)
            try:
                piece = stream.decompress(given, size)
            except zlib.error:
                raise UnpackError("the dump is damaged: it does not unpack") from None
        return piece


def json_text(source: UnpackedFile, size: int = MAX_BYTES) -> bytearray:
    """The JSON that the next `size` bytes are; raises TooLarge before it takes much memory."""
    text, counted = bytearray(), SizeCounter()
    for piece in source.pieces(size):
        counted.add(piece)
        text += piece
    return text


def archived(source: UnpackedFile) -> Iterator[tuple[bytes, int]]:
    """Name and size of each file in a tar archive (tar(5), "ustar"), whose content may be read from `source`
    meanwhile: whole or not at all."""
    at = 0
    for _ in range(MAX_FILES):
        head = source.read(_BLOCK)
        name, digits = head[:100].rstrip(b"\0"), head[124:136].strip(b" \0")
        if len(head) < _BLOCK or (not name and not digits):
            return
        if not digits or digits.strip(b"01234567"):
            raise UnpackError("the archive is damaged", f"byte {at}")
        size = int(digits, 8)
        padded = -(-size // _BLOCK) * _BLOCK
        is_file = head[156:157] in (b"0", b"\0")
        before = source.position
        yield (name.split(b"/")[-1] if is_file else b""), size
        for _ in source.pieces(padded - (source.position - before)):
            pass
        at += _BLOCK + padded
    raise TooLarge("the archive holds too many files")
