"""Counts the broadcast frames that come in on bridges, without a copy of any: packet(7) with a filter."""

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

MOST = 256  # bridges: each takes a descriptor
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_IGNORE_OUTGOING = 263, 6, 23
_SO_ATTACH_FILTER = 26
_ETH_P_ALL = 3
# struct sock_filter (linux/filter.h): keep one byte where the destination is all ones, else none.
_FILTER = (
    (0x20, 0, 0, 0),  # ld [0]
    (0x15, 0, 3, 0xFFFFFFFF),  # jeq, else to the end
    (0x28, 0, 0, 4),  # ldh [4]
    (0x15, 0, 1, 0xFFFF),
    (0x06, 0, 0, 1),  # ret 1
    (0x06, 0, 0, 0),  # ret 0
)


class Broadcasts:
    """One packet socket for each bridge of the host's own namespace; every method may be called from any
    thread.

    The socket is never read: once its small buffer is full the kernel only counts, and PACKET_STATISTICS
    tells how many frames passed the filter. What the host itself sends is not seen, nor are frames of VLANs
    that the bridge itself is not in, nor other namespaces' bridges: a socket there would hold the
    namespace.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: dict[int, socket.socket] = {}
        self._counts: dict[int, int] = {}
        self._bridges: Mapping[int, str] = {}
        self._closed = False
        self.problems: tuple[Problem, ...] = ()

    def follow(self, bridges: Mapping[int, str]) -> None:
        """Count on exactly these bridges, names by ifindex; `problems` says what stands in the way."""
        with self._lock:
            if self._closed or bridges == self._bridges:
                return
            self._bridges = dict(bridges)
            _close([self._sockets.pop(one) for one in [*self._sockets] if not self._is_on(one)])
            self._counts = {one: count for one, count in self._counts.items() if one in self._sockets}
            self.problems = self._open([one for one in bridges if one not in self._sockets])

    def _is_on(self, ifindex: int) -> bool:
        """Whether the socket counts on the bridge of that number still: the kernel unties it from one that
        was removed."""
        try:
            return bool(self._sockets[ifindex].getsockname()[0] == self._bridges.get(ifindex))
        except OSError:
            return False

    def _open(self, wanted: list[int]) -> tuple[Problem, ...]:
        room = max(0, MOST - len(self._sockets))
        with netns.entered(netns.HOST_PATH):
            for ifindex in wanted[:room]:
                try:
                    self._sockets[ifindex] = _counting(self._bridges[ifindex])
                except PermissionError:
                    return (_problem("counting them takes CAP_NET_RAW", "run it as root"),)
                except OSError as error:
                    if error.errno != errno.ENODEV:
                        return (_problem(error.strerror or str(error), ""),)
                    continue  # gone again: the next look knows
                self._counts[ifindex] = 0
        if len(wanted) > room:
            return (_problem(f"there are more than {MOST} bridges: the others are not watched", ""),)
        return ()

    def read(self) -> dict[int, int]:
        """How many broadcast frames came in on each bridge since it was followed, by its ifindex."""
        with self._lock:
            for ifindex, sock in self._sockets.items():
                answer = sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)  # which starts again at zero
                self._counts[ifindex] += struct.unpack("=II", answer)[0]
            return dict(self._counts)

    def close(self) -> None:
        """Count no more, for good."""
        with self._lock:
            self._closed = True
            _close(self._sockets.values())
            self._sockets, self._counts, self._bridges = {}, {}, {}


def _close(sockets: Collection[socket.socket]) -> None:
    """Close them side by side: each waits for the kernel to be done with it on all CPUs, some 10 ms."""
    if sockets:
        with ThreadPoolExecutor(min(len(sockets), 64)) as pool:
            list(pool.map(socket.socket.close, sockets))


def _counting(bridge: str) -> socket.socket:
    """A socket bound to a bridge, its filter set before the first frame can come."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        code = b"".join(struct.pack("=HBBI", *step) for step in _FILTER)
        place = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HP", len(_FILTER), ctypes.addressof(place))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        # Else the kernel would clone each frame that the host sends out by the bridge, to show it to us.
        sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the kernel makes it the least there is
        sock.bind((bridge, _ETH_P_ALL))
    except BaseException:
        sock.close()
        raise
    return sock


def _problem(why: str, try_: str) -> Problem:
    return Problem("storms", "broadcast frames are not counted", why, try_)
