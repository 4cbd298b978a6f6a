"""Measure the CPU time of both ends of a connection.

Other load hardly changes it. Both ends are processes on one CPU. The kernel's work for a packet, in any
namespace, is accounted to the process that sends it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from core.netlink.netns import entered
from tests.bench.fastpath_lab import CPU, Case

_PORT = 7000
_BLOCK = 1 << 18
_BITS = 8

type _End = Callable[[socket.socket], None]


def bits(case: Case, size: int) -> float:
    """Return bits per CPU second, of `size` bytes sent over TCP."""

    def receive(here: socket.socket) -> None:
        block = bytearray(_BLOCK)
        while here.recv_into(block):
            pass

    def send(here: socket.socket) -> None:
        block = bytes(_BLOCK)
        for _ in range(size // _BLOCK):
            here.sendall(block)

    return size * _BITS / _spent(case, socket.SOCK_STREAM, send, receive)


def transactions(case: Case, kind: socket.SocketKind, count: int) -> float:
    """Return request-response pairs of one byte per CPU second."""

    def ask(here: socket.socket) -> None:
        byte = bytearray(1)
        for _ in range(count):
            here.send(b"?")
            here.recv_into(byte)

    def answer(here: socket.socket) -> None:
        byte = bytearray(1)
        for _ in range(count):
            here.recv_into(byte)
            here.send(b"!")

    return count / _spent(case, kind, ask, answer)


def _spent(case: Case, kind: socket.SocketKind, client: _End, server: _End) -> float:
    """Return the CPU seconds of both."""
    family = socket.AF_INET6 if ":" in case.address else socket.AF_INET
    here, there = (_socket(namespace, family, kind) for namespace in (case.client, case.server))
    there.bind(("", _PORT))
    if kind == socket.SOCK_STREAM:
        there.listen()
    here.connect((case.address, _PORT))
    if kind == socket.SOCK_STREAM:
        answering = there.accept()[0]
    else:  # the first datagram has the client's address
        here.send(b"?")
        there.connect(there.recvfrom(1)[1])
        answering = there.dup()
    there.close()
    ends = [_started(client, here, answering), _started(server, answering, here)]
    here.close()
    answering.close()
    return sum(map(_ended, ends)) / 1e9


def _socket(namespace: str, family: int, kind: socket.SocketKind) -> socket.socket:
    with entered(namespace):
        made = socket.socket(family, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == socket.SOCK_STREAM:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _started(end: _End, own: socket.socket, other: socket.socket) -> tuple[int, int]:
    """Start a process for one end; return its pid, and a pipe for its CPU time."""
    read, write = os.pipe()
    if pid := os.fork():
        os.close(write)
        return pid, read
    code = 1
    try:
        other.close()
        os.sched_setaffinity(0, {CPU})
        end(own)
        os.write(write, Path("/proc/self/schedstat").read_bytes().split()[0])
        code = 0
    finally:
        os._exit(code)


def _ended(end: tuple[int, int]) -> int:
    """Return the CPU time in nanoseconds, after the connection is closed."""
    pid, read = end
    _, status = os.waitpid(pid, 0)
    nanoseconds = os.read(read, 99)
    os.close(read)
    assert not status and nanoseconds, "an end of the conversation failed"
    return int(nanoseconds)
