"""Reads a BPF ring buffer (Documentation/bpf/ringbuf.rst): records that a program wrote, in their order.

Its pages are mapped: one with how far we have read, which we write, one with how far the kernel has written,
and the records, twice in a row, so that none is ever cut.
"""

from __future__ import annotations

import mmap
import struct

_POSITION = struct.Struct("=Q")
_LENGTH = struct.Struct("=I")
_HEADER = 8
_BUSY, _DISCARDED = 1 << 31, 1 << 30


class RingBuffer:
    """The ring buffer `map_fd` of `size` bytes; becomes readable when there is something to read. The caller
    keeps the descriptor."""

    def __init__(self, map_fd: int, size: int) -> None:
        self._map_fd, self._size = map_fd, size
        page = mmap.PAGESIZE
        self._ours = mmap.mmap(map_fd, page)
        self._kernels = mmap.mmap(map_fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)

    def fileno(self) -> int:
        """What to wait for."""
        return self._map_fd

    def read(self) -> list[bytes]:
        """The records since the last call; never waits. One that is still being written ends the list."""
        found = []
        (at,) = _POSITION.unpack_from(self._ours)
        (end,) = _POSITION.unpack_from(self._kernels)
        while at < end:
            place = mmap.PAGESIZE + at % self._size
            (word,) = _LENGTH.unpack_from(self._kernels, place)
            if word & _BUSY:
                break
            length = word & ~_DISCARDED
            if not word & _DISCARDED:
                found.append(self._kernels[place + _HEADER : place + _HEADER + length])
            at += (_HEADER + length + 7) & ~7
        _POSITION.pack_into(self._ours, 0, at)
        return found

    def close(self) -> None:
        """Unmap it."""
        self._ours.close()
        self._kernels.close()
