"""Receive packets of a link in a memory-mapped ring (packet(7), TPACKET_V3)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

from core.capture.filter import Filter
from core.model import LinkKey
from core.netlink.netns import entered

# linux/if_packet.h
_SOL_PACKET = 263
_ADD_MEMBERSHIP, _RX_RING, _STATISTICS, _VERSION = 1, 5, 6, 10
_TPACKET_V3, _PROMISCUOUS = 2, 1
_STATUS_AT = 8  # of block_status in struct tpacket_block_desc
_LENGTH_AT = 20  # of blk_len
_KERNEL, _USER = 0, 1
_ALL_PROTOCOLS = 0x0003  # ETH_P_ALL

RETIRE_MS = 100  # a block that isn't full is handed over after so many milliseconds
# Blocks must hold a packet of the largest size; the rings of all links share the memory.
_BLOCK_SIZE = 1 << 20
_MEMORY = 64 << 20
_LEAST_BLOCKS, _MOST_BLOCKS = 2, 32
_FRAME_SIZE = 1 << 11
_SIOCGIFNAME, _SIOCGIFHWADDR = 0x8910, 0x8927  # linux/sockios.h

_libc = ctypes.CDLL(None, use_errno=True)


class Ring:
    """A packet socket with its ring, bound to one link in its namespace.

    The socket is opened inside the namespace and keeps it alive, so `close` it when the capture ends."""

    def __init__(self, entry: str, key: LinkKey, shares: int = 1) -> None:
        """`entry` is a path of the link's namespace; `shares` rings share the memory.

        Raises NamespaceGone, PermissionError, and other OSErrors of the kernel."""
        self.key, self.received, self.dropped = key, 0, 0
        self._next = 0
        self._memory: mmap.mmap | None = None
        blocks = max(_LEAST_BLOCKS, min(_MOST_BLOCKS, _MEMORY // _BLOCK_SIZE // max(1, shares)))
        self._blocks = blocks
        with entered(entry, key.ns):
            # Without a protocol it receives nothing before the filter is attached.
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self.name, self.hardware_type, self.mac = self._link()
            self._map(blocks)
        except BaseException:
            self.close()
            raise

    def _link(self) -> tuple[str, int, bytes]:
        """Return name, hardware type (ARPHRD_*) and address of the link (netdevice(7))."""
        name = self._ioctl(_SIOCGIFNAME, struct.pack("=16si20x", b"", self.key.ifindex))[:16]
        answer = self._ioctl(_SIOCGIFHWADDR, struct.pack("=16s24x", name))
        (hardware_type,) = struct.unpack_from("=H", answer, 16)
        text = name.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        return text, hardware_type, answer[18:24]

    def _ioctl(self, request: int, argument: bytes) -> bytes:
        return fcntl.ioctl(self.socket, request, argument)

    def _map(self, blocks: int) -> None:
        frames = blocks * (_BLOCK_SIZE // _FRAME_SIZE)
        self.socket.setsockopt(_SOL_PACKET, _VERSION, _TPACKET_V3)
        request = struct.pack("=7I", _BLOCK_SIZE, blocks, _FRAME_SIZE, frames, RETIRE_MS, 0, 0)
        self.socket.setsockopt(_SOL_PACKET, _RX_RING, request)
        self._memory = mmap.mmap(self.socket.fileno(), _BLOCK_SIZE * blocks)

    def start(self, accepted: Filter, promiscuous: bool = True) -> None:
        """Begin to receive what the filter accepts."""
        accepted.attach(self.socket)
        if promiscuous:
            member = struct.pack("=iHH8s", self.key.ifindex, _PROMISCUOUS, 0, b"")
            self.socket.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, member)
        address = struct.pack("=HHi12x", socket.AF_PACKET, socket.htons(_ALL_PROTOCOLS), self.key.ifindex)
        if _libc.bind(self.socket.fileno(), address, len(address)):  # Python binds by name only
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def blocks(self) -> Iterator[bytes]:
        """Yield copies of the blocks that the kernel has filled, and give them back."""
        memory = self._memory
        if memory is None:
            return
        for _ in range(self._blocks):
            start = self._next * _BLOCK_SIZE
            (status,) = struct.unpack_from("=I", memory, start + _STATUS_AT)
            if not status & _USER:
                return
            (length,) = struct.unpack_from("=I", memory, start + _LENGTH_AT)
            block = memory[start : start + length]
            struct.pack_into("=I", memory, start + _STATUS_AT, _KERNEL)
            self._next = (self._next + 1) % self._blocks
            yield block

    def count(self) -> None:
        """Add the kernel's counters, which restart at each reading."""
        with suppress(OSError):
            answer = self.socket.getsockopt(_SOL_PACKET, _STATISTICS, 12)
            received, dropped, _ = struct.unpack("=3I", answer)  # struct tpacket_stats_v3
            self.received += received
            self.dropped += dropped

    def is_gone(self) -> bool:
        """Return whether the link has disappeared; one that is down may come up again."""
        self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # clears ENETDOWN
        try:
            self._link()
        except OSError as error:
            return error.errno in (errno.ENODEV, errno.ENXIO)
        return False

    def close(self) -> None:
        """Release the ring, the link's promiscuous mode, and the namespace."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        self.socket.close()
