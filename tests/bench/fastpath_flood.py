"""Send small datagrams as fast as a CPU can.

`receive PORT CPU`, `send ADDRESS PORT SECONDS CPU PID`: PID is the receiver's; prints how many arrived a
second. sendmmsg(2) keeps Python's share small.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
import time

from tests.bench.fastpath_lab import read_udp_arrivals

SIZE, BATCH = 64, 256
QUESTION = b"?"
_WARM_UP = 0.5  # seconds of questions and answers, so that both directions are known
_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32), ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int), ("padding", ctypes.c_uint32), ("done", ctypes.c_uint32),
    )  # fmt: skip  # struct mmsghdr; msghdr in it ends with padding


class Batch:
    """Hold many messages of `size` bytes in `buffer` for one system call."""

    def __init__(self, size: int = SIZE, count: int = BATCH) -> None:
        self.buffer = (ctypes.c_char * (size * count))()
        start = ctypes.addressof(self.buffer)
        self._vectors = (_Vector * count)()
        self._messages = (_Message * count)()
        self._count = count
        for at in range(count):
            self._vectors[at].base, self._vectors[at].length = start + at * size, size
            self._messages[at].vectors = ctypes.addressof(self._vectors) + at * ctypes.sizeof(_Vector)
            self._messages[at].vector_count = 1

    def send(self, socket_fd: int) -> int:
        """Send all on a connected socket; return how many.

        Raises OSError if none was sent.
        """
        sent = int(_libc.sendmmsg(socket_fd, self._messages, self._count, 0))
        if sent <= 0:
            raise OSError(ctypes.get_errno(), "nothing was sent")
        return sent

    def receive(self, socket_fd: int) -> int:
        """Wait for one, receive what is there; return how many."""
        wait_for_one = 0x10000
        return int(_libc.recvmmsg(socket_fd, self._messages, self._count, wait_for_one, None))


def receive(port: int, cpu: int) -> None:
    """Take all that comes to the port, and answer questions."""
    os.sched_setaffinity(0, {cpu})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        here.bind(("0.0.0.0", port))
        batch = Batch()
        while True:
            data, sender = here.recvfrom(SIZE)
            if data == QUESTION:
                here.sendto(data, sender)
            else:
                batch.receive(here.fileno())


def warm_up(here: socket.socket, seconds: float = _WARM_UP) -> None:
    """Exchange questions and answers until the flow is known everywhere.

    Raises TimeoutError without an answer.
    """
    here.settimeout(0.2)
    began, answered = time.monotonic(), 0
    while time.monotonic() - began < seconds or not answered:
        here.send(QUESTION)
        with contextlib.suppress(TimeoutError, ConnectionRefusedError):
            here.recv(SIZE)
            answered += 1
        if time.monotonic() - began > 20:
            raise TimeoutError("no answer")
    here.settimeout(None)


def send(address: str, port: int, seconds: float, cpu: int, receiver: int) -> float:
    """Send for that long; datagrams a second that arrived."""
    os.sched_setaffinity(0, {cpu})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.connect((address, port))
        warm_up(here)
        batch = Batch()
        before, began = read_udp_arrivals(receiver), time.monotonic()
        while time.monotonic() - began < seconds:
            for _ in range(16):
                batch.send(here.fileno())
        took = time.monotonic() - began
        return (read_udp_arrivals(receiver) - before) / took


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(int(sys.argv[2]), int(sys.argv[3]))
    else:
        print(send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])))
