"""Write files safely in folders of other users, and unpack files within limits.

No symbolic link of another user is followed, and no file is left half written."""

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

PRIVATE, PUBLIC = 0o600, 0o666  # before the umask
# Names of this process's open files, which the kernel shows as symbolic links.
_OPEN = re.compile(r"/dev/(?:(?P<name>stdin|stdout|stderr)|fd/(?P<dev>\d+))|/proc/self/fd/(?P<proc>\d+)")
_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2}
_MAX_LINKS = 40  # as path_resolution(7)
_KINDS = {stat.S_IFDIR: "it is a folder", stat.S_IFBLK: "it is a disk", stat.S_IFSOCK: "it is a socket"}


class WriteError(OSError):
    """A file can't be written: why, and what to try."""

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
    """Write a file atomically; return whether it replaced one. Raises WriteError.

    A regular file with that name is replaced, never overwritten in place. A symbolic link is refused; a pipe
    or device is written to. `durable` waits until it is on disk.
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
    """Create a file and return its descriptor for writing. Raises WriteError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with _folder_of(path) as folder:
            return os.open(path.name, flags, mode, dir_fd=folder)
    except FileExistsError as error:
        try_ = "give another FILE, or remove it first"
        raise WriteError(path, "it exists already", try_, errno.EEXIST) from error
    except OSError as error:
        raise _refused(path, error) from error


def remove_own(path: Path, status: os.stat_result) -> bool:
    """Remove a file, but only the one with this status; return whether it was removed."""
    with suppress(OSError), _folder_of(path) as folder:
        if os.path.samestat(status, os.stat(path.name, dir_fd=folder, follow_symlinks=False)):
            os.unlink(path.name, dir_fd=folder)
            return True
    return False


@contextmanager
def _folder_of(path: Path) -> Iterator[int]:
    """Open the folder of a file, without following symbolic links of other users.

    Links of root and of the own user are followed: others may change theirs a moment later."""
    remaining, links = [*path.parent.parts], 0
    current = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while remaining:
            part = remaining.pop(0)
            entry = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            status = os.fstat(entry)
            if stat.S_ISLNK(status.st_mode) and status.st_dev == Path("/proc").stat().st_dev:
                os.close(entry)  # such as /proc/PID/root: its text isn't its target
                remaining.insert(0, f"{part}/.")
            elif stat.S_ISLNK(status.st_mode):
                target = Path(_link_target(path, part, entry, status))
                remaining, links = [*target.parts, *remaining], links + 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            else:
                os.close(current)
                current = entry
        if not stat.S_ISDIR(os.fstat(current).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        yield current
    finally:
        os.close(current)


def _link_target(path: Path, part: str, entry: int, status: os.stat_result) -> str:
    """Return the target of a symbolic link, and close its descriptor `entry`."""
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
        existing = os.stat(name or ".", dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(existing.st_mode):
            _write_into(folder, path, existing, content)
            return False
        _replace(folder, path, content, mode, durable)
        return True
    _replace(folder, path, content, mode, durable)
    return False


def _replace(folder: int, path: Path, content: bytes, mode: int, durable: bool) -> None:
    """Write a temporary file with a random name beside it, and rename that."""
    temporary = f".vnet-tui.{secrets.token_hex(12)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, mode, dir_fd=folder)
    written = os.fstat(descriptor)
    try:
        _write_all(descriptor, content, durable)
        os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    if not os.path.samestat(written, os.stat(path.name, dir_fd=folder, follow_symlinks=False)):
        raise WriteError(path, "another user replaced it meanwhile", "give a FILE in a folder of your own")
    if durable:
        _sync(folder)


def _write_into(folder: int, path: Path, existing: os.stat_result, content: bytes) -> None:
    """Write to a pipe or a device such as /dev/null, unless another user created it."""
    kind = stat.S_IFMT(existing.st_mode)
    if kind == stat.S_IFLNK:
        target = os.readlink(path.name, dir_fd=folder)
        raise WriteError(path, "it is a symbolic link", f"give its target, {safe(target)}")
    if kind not in (stat.S_IFIFO, stat.S_IFCHR):
        raise WriteError(path, _KINDS.get(kind, "it isn't a regular file"))
    if not (_is_trusted(existing) or _is_private(os.fstat(folder))):
        raise WriteError(path, "it belongs to another user")
    descriptor = os.open(path.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder)
    if not os.path.samestat(existing, os.fstat(descriptor)):
        os.close(descriptor)
        raise WriteError(path, "another user replaced it meanwhile", "give a FILE in a folder of your own")
    _write_all(descriptor, content)


def _is_private(folder: os.stat_result) -> bool:
    return _is_trusted(folder) and not folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _write_all(descriptor: int, content: bytes, durable: bool = False) -> None:
    """Write the content and close the descriptor."""
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
_CHUNK = 1 << 18
_BLOCK = 512


class UnpackError(Exception):
    """A file can't be unpacked: `what` is wrong, and `where` ("" for the whole file)."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(what)
        self.what, self.where = what, where


class TooLarge(UnpackError):
    """A file would take more memory than any real one."""


def most_bytes(packed: int, slack: int = _SLACK) -> int:
    """Return the most bytes that a file of `packed` bytes may unpack to."""
    return min(MAX_BYTES, slack + _RATIO * packed)


class SizeCounter:
    """Counts values in chunks of JSON; raises TooLarge as soon as there are too many."""

    def __init__(self, most_values: int = MAX_VALUES) -> None:
        self._values, self._brackets, self._most_values = 0, 0, most_values

    def add(self, chunk: bytes | bytearray) -> None:
        """Count the next chunk."""
        self._values += chunk.count(b",") + chunk.count(b":")
        self._brackets += chunk.count(b"[") + chunk.count(b"{")
        if self._values > self._most_values or self._brackets > MAX_BRACKETS:
            raise TooLarge("it holds too many values")


class UnpackedFile:
    """Sequential reader of a file, gzip-compressed or not. Raises UnpackError."""

    def __init__(self, data: bytes) -> None:
        self._data, self._offset = memoryview(data), 0
        self._stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if data[:2] == _GZIP_MAGIC else None
        self._left = most_bytes(len(data))
        self._peeked = b""
        self.position = 0  # of the next unpacked byte

    def peek(self, size: int) -> bytes:
        """Return the first bytes without consuming them; only before the first read."""
        self._peeked, self.position = self.read(size), 0
        return self._peeked

    def read(self, size: int) -> bytes:
        """Read `size` bytes, fewer at the end."""
        chunks, missing = [self._peeked[:size]], size - len(self._peeked)
        self._peeked = self._peeked[size:]
        while missing > 0 and (chunk := self._next(min(missing, _CHUNK))):
            chunks.append(chunk)
            missing -= len(chunk)
        data = b"".join(chunks)
        self.position += len(data)
        return data

    def chunks(self, size: int = MAX_BYTES) -> Iterator[bytes]:
        """Read the next `size` bytes in chunks."""
        while size > 0 and (chunk := self.read(min(size, _CHUNK))):
            yield chunk
            size -= len(chunk)

    def end(self) -> None:
        """Read to the end, and check that the file is complete."""
        for _ in self.chunks():
            pass
        if self._stream and not self._stream.eof:
            raise UnpackError("the dump ends too early")
        if self._stream and (self._stream.unused_data or self._offset < len(self._data)):
            raise UnpackError("there is more data after the end of the dump")

    def _next(self, size: int) -> bytes:
        chunk = self._plain(size) if self._stream is None else self._inflated(self._stream, size)
        self._left -= len(chunk)
        if self._left < 0:
            raise TooLarge("it unpacks to too many bytes")
        return chunk

    def _plain(self, size: int) -> bytes:
        chunk = bytes(self._data[self._offset : self._offset + size])
        self._offset += len(chunk)
        return chunk

    def _inflated(self, stream: zlib._Decompress, size: int) -> bytes:
        chunk = b""
        while not chunk and not stream.eof and (stream.unconsumed_tail or self._offset < len(self._data)):
            packed: bytes | memoryview = stream.unconsumed_tail
            if not packed:
                packed = self._data[self._offset : self._offset + _CHUNK]
                self._offset += len(packed)
            try:
                chunk = stream.decompress(packed, size)
            except zlib.error:
                raise UnpackError("the dump is damaged: it can't be decompressed") from None
        return chunk


def json_text(source: UnpackedFile, size: int = MAX_BYTES) -> bytearray:
    """Read the next `size` bytes as JSON; raise TooLarge before they take much memory."""
    text, counter = bytearray(), SizeCounter()
    for chunk in source.chunks(size):
        counter.add(chunk)
        text += chunk
    return text


def archived(source: UnpackedFile) -> Iterator[tuple[bytes, int]]:
    """Iterate over name and size of the files in a tar archive (tar(5), "ustar").

    The caller may read a file's content from `source`, all of it or nothing, before the next step."""
    offset = 0
    for _ in range(MAX_FILES):
        header = source.read(_BLOCK)
        name, digits = header[:100].rstrip(b"\0"), header[124:136].strip(b" \0")
        if len(header) < _BLOCK or (not name and not digits):
            return
        if not digits or digits.strip(b"01234567"):
            raise UnpackError("the archive is damaged", f"byte {offset}")
        size = int(digits, 8)
        padded = -(-size // _BLOCK) * _BLOCK
        is_file = header[156:157] in (b"0", b"\0")
        before = source.position
        yield (name.split(b"/")[-1] if is_file else b""), size
        for _ in source.chunks(padded - (source.position - before)):
            pass
        offset += _BLOCK + padded
    raise TooLarge("the archive holds too many files")
