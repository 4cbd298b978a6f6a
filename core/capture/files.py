"""Write packets to a pcapng file, a ring of files, or a pipe."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

from core.capture import CaptureError
from core.capture.encoder import Record
from core.files import WriteError, create_new, remove_own
from core.text import safe

STANDARD_OUTPUT = 1


class PacketFile:
    """One or several pcapng files of limited size.

    With `ring` files, a full one is followed by a new one, FILE-00001 and so on, and only the newest `ring`
    are kept. A file is never replaced, and only its owner can read it. When a disk is full, the file ends
    with its last whole block. `header` are the blocks that each file begins with, `trailer` returns those
    that it ends with; `close` writes them."""

    def __init__(
        self, path: Path | None, header: bytes, trailer: Callable[[], bytes], size: int, ring: int = 0
    ) -> None:
        """`path` None is standard output, without a limit. Raises CaptureError."""
        self.path, self.written, self.packets = path, 0, 0
        self._header, self._trailer, self._limit, self._ring = header, trailer, size, ring
        self._descriptor, self._size, self._number = -1, 0, 0
        self._files: deque[tuple[Path, os.stat_result]] = deque()
        self._reserved = len(trailer())
        self._open()

    @property
    def names(self) -> tuple[str, ...]:
        """The files that exist, oldest first."""
        return tuple(str(path) for path, _ in self._files)

    def _open(self) -> None:
        self._size, self._number = 0, self._number + 1
        if self.path is None:
            self._descriptor = os.dup(STANDARD_OUTPUT)
        else:
            path = self._numbered(self.path) if self._ring else self.path
            try:
                self._descriptor = create_new(path)
            except WriteError as error:
                raise CaptureError(str(error)) from None
            self._files.append((path, os.fstat(self._descriptor)))
        self._write([self._header])

    def _numbered(self, path: Path) -> Path:
        return path.with_name(f"{path.stem}-{self._number:05}{path.suffix}")

    def add(self, records: Sequence[Record]) -> str:
        """Write packets; return why the file is full, "" if it isn't. Raises CaptureError."""
        blocks = [block for _, block in records]
        while blocks:
            count = self._fitting(blocks)
            self._write(blocks[:count])
            self.packets += count
            blocks = blocks[count:]
            if blocks and not self._ring:
                return f"the size limit of {self._limit:,} bytes"
            if blocks:
                self._next()
        return ""

    def _fitting(self, blocks: Sequence[bytes]) -> int:
        """Return how many of the blocks fit; of a ring's new file at least one."""
        room = self._limit - self._size - self._reserved
        if self.path is None or sum(map(len, blocks)) <= room:
            return len(blocks)
        count = sum(size <= room for size in accumulate(map(len, blocks)))
        return max(count, int(self._ring > 0 and self._size == len(self._header)))

    def _next(self) -> None:
        """Go on with the ring's next file, and remove the oldest."""
        self.close()
        while len(self._files) >= self._ring:
            remove_own(*self._files.popleft())
        self._open()

    def _write(self, blocks: Sequence[bytes]) -> None:
        """Write blocks in one go; on an error, keep the whole ones. Raises CaptureError."""
        data = memoryview(b"".join(blocks))
        done = 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, data[done:])
        except OSError as error:
            whole = max((end for end in accumulate(map(len, blocks), initial=0) if end <= done), default=0)
            self._cut(whole)
            raise self._failed(error) from error
        self._size += len(data)
        self.written += len(data)

    def _cut(self, whole: int) -> None:
        self._size += whole
        self.written += whole
        if self.path is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
                os.lseek(self._descriptor, self._size, os.SEEK_SET)

    def _failed(self, error: OSError) -> CaptureError:
        name = safe(str(self._files[-1][0])) if self._files else "standard output"
        if isinstance(error, BrokenPipeError):
            return ReaderGone(f"can't write {name}: its reader has ended")
        return CaptureError(f"can't write {name}: {error.strerror or error}. Try: give another FILE")

    def close(self) -> None:
        """End the file with its trailer, as far as there is room."""
        if self._descriptor >= 0:
            with suppress(CaptureError):
                self._write([self._trailer()])
            os.close(self._descriptor)
            self._descriptor = -1


class ReaderGone(CaptureError):
    """The reader of a pipe has ended: no error of the capture."""
