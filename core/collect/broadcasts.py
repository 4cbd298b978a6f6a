"""Count broadcast frames on bridges without copying them: packet(7) with a filter."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

from core.model import Problem
from core.netlink import netns

MAX_BRIDGES = 256  # each needs a descriptor
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_IGNORE_OUTGOING = 263, 6, 23
_SO_ATTACH_FILTER = 26
_ETH_P_ALL = 3
# struct sock_filter (linux/filter.h): pass one byte if the destination is all ones, else drop.
_FILTER = (
    (0x20, 0, 0, 0),  # ld [0]
    (0x15, 0, 3, 0xFFFFFFFF),  # jeq, else drop
    (0x28, 0, 0, 4),  # ldh [4]
    (0x15, 0, 1, 0xFFFF),
    (0x06, 0, 0, 1),  # ret 1
    (0x06, 0, 0, 0),  # ret 0
)


class Broadcasts:
    """Count broadcasts with a packet socket per bridge of the host; thread-safe.

    The sockets are never read: once a small buffer is full the kernel only counts, and PACKET_STATISTICS
    returns how many frames passed the filter. It doesn't count frames that the host sends, nor those of VLANs
    that the bridge itself isn't in, nor bridges of other namespaces: a socket there would keep the namespace
    alive.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: dict[int, socket.socket] = {}
        self._counts: dict[int, int] = {}
        self._bridges: Mapping[int, str] = {}
        self._closed = False
        self.problems: tuple[Problem, ...] = ()

    def follow(self, bridges: Mapping[int, str]) -> None:
        """Count on exactly these bridges, names by ifindex; failures go to `problems`."""
        with self._lock:
            if self._closed or bridges == self._bridges:
                return
            self._bridges = dict(bridges)
            _close([self._sockets.pop(one) for one in [*self._sockets] if not self._is_bound(one)])
            self._counts = {one: count for one, count in self._counts.items() if one in self._sockets}
            self.problems = self._open([one for one in bridges if one not in self._sockets])

    def _is_bound(self, ifindex: int) -> bool:
        """Return whether the socket is still bound; removing the bridge unbinds it."""
        try:
            return bool(self._sockets[ifindex].getsockname()[0] == self._bridges.get(ifindex))
        except OSError:
            return False

    def _open(self, wanted: list[int]) -> tuple[Problem, ...]:
        free = max(0, MAX_BRIDGES - len(self._sockets))
        with netns.entered(netns.HOST_PATH):
            for ifindex in wanted[:free]:
                try:
                    self._sockets[ifindex] = _open_socket(self._bridges[ifindex])
                except PermissionError:
                    return (_problem("needs CAP_NET_RAW", "run it as root"),)
                except OSError as error:
                    if error.errno != errno.ENODEV:
                        return (_problem(error.strerror or str(error), ""),)
                    continue  # removed meanwhile: the next snapshot shows it
                self._counts[ifindex] = 0
        if len(wanted) > free:
            return (_problem(f"there are more than {MAX_BRIDGES} bridges: the others aren't counted", ""),)
        return ()

    def read(self) -> dict[int, int]:
        """Return the broadcast frames received on each bridge since `follow`, by ifindex."""
        with self._lock:
            for ifindex, sock in self._sockets.items():
                statistics = sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)  # reading resets them
                self._counts[ifindex] += struct.unpack("=II", statistics)[0]
            return dict(self._counts)

    def close(self) -> None:
        """Close all sockets; later calls of `follow` do nothing."""
        with self._lock:
            self._closed = True
            _close(self._sockets.values())
            self._sockets, self._counts, self._bridges = {}, {}, {}


def _close(sockets: Collection[socket.socket]) -> None:
    """Close sockets in parallel: each close waits about 10 ms for all CPUs."""
    if sockets:
        with ThreadPoolExecutor(min(len(sockets), 64)) as pool:
            list(pool.map(socket.socket.close, sockets))


def _open_socket(bridge: str) -> socket.socket:
    """Return a socket bound to a bridge, with the filter set before the first frame."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _FILTER)
        buffer = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HP", len(_FILTER), ctypes.addressof(buffer))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        # Otherwise the kernel would clone each frame that the host sends through the bridge.
        sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the kernel raises it to its minimum
        sock.bind((bridge, _ETH_P_ALL))
    except BaseException:
        sock.close()
        raise
    return sock


def _problem(why: str, try_: str) -> Problem:
    return Problem("storms", "can't count broadcast frames", why, try_)
