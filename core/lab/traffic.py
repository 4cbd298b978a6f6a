"""What runs in a container of the lab: small servers and clients of bounded rate.

Run as `traffic.py COMMAND JOB...`, by path and without site-packages, so that it starts fast. COMMAND is the
command line that the process shows from then on. A JOB is one argument:

- `serve-http PORT`: answers `GET /SIZE` with SIZE bytes, at all addresses.
- `serve-udp ADDRESS PORT`: answers each datagram with its first 64 bytes.
- `http ADDRESS PORT size=BYTES every=SECONDS keep=REQUESTS [from=ADDRESS]`: asks for about `size` bytes
  every so often, over connections of `keep` requests each.
- `udp ADDRESS PORT size=BYTES every=SECONDS keep=DATAGRAMS [from=ADDRESS]`: the same, over sockets of
  `keep` datagrams each.
- `ping ADDRESS every=SECONDS`: ICMP echo.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

_PATIENCE = 2.0  # seconds for a connection or an answer
_RETRY = 1.0  # seconds after a failure
_BODY = bytes(65536)


def serve_http(port: str) -> None:
    """Serve for ever, a thread for each connection."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with socket.create_server(("", int(port)), family=family, dualstack_ipv6=dual) as server:
        while True:
            connection, _ = server.accept()
            _in_background(_answer, connection)


def serve_udp(address: str, port: str) -> None:
    """Echo for ever; bound to one address, so that answers come from the one that was asked."""
    with _udp_socket(address) as server:
        server.bind((address, int(port)))
        while True:
            data, peer = server.recvfrom(2048)
            server.sendto(data[:64], peer)


def http(address: str, port: str, *, size: str, every: str, keep: str, source: str = "") -> None:
    """One connection after another, each with `keep` requests."""
    origin = (source, 0) if source else None
    while True:
        with socket.create_connection((address, int(port)), _PATIENCE, origin) as connection:
            for _ in range(int(keep)):
                _request(connection, _wave(int(size)))
                time.sleep(float(every))
        time.sleep(float(every))


def udp(address: str, port: str, *, size: str, every: str, keep: str, source: str = "") -> None:
    """One socket after another, each with `keep` datagrams; answers are not waited for."""
    while True:
        with _udp_socket(address) as client:
            if source:
                client.bind((source, 0))
            client.connect((address, int(port)))
            for _ in range(int(keep)):
                client.send(_BODY[: int(size)])
                time.sleep(float(every))


def ping(address: str, *, every: str) -> None:
    """ICMP echo requests of 64 bytes with one id and rising sequence numbers."""
    v6 = ":" in address
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6) if v6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    with socket.socket(family, socket.SOCK_RAW, protocol) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # answers are not read
        sequence = 0
        while True:
            sequence = (sequence + 1) & 0xFFFF
            client.sendto(_echo_request(128 if v6 else 8, sequence), (address, 0))
            time.sleep(float(every))


def _echo_request(icmp_type: int, sequence: int) -> bytes:
    # RFC 792; for ICMPv6 the kernel replaces the checksum (RFC 3542).
    identity = threading.get_native_id() & 0xFFFF
    words = (icmp_type << 8, identity, sequence)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!4H56x", words[0], ~total & 0xFFFF, identity, sequence)


def _answer(connection: socket.socket) -> None:
    with connection, connection.makefile("rb") as stream:
        for line in stream:
            if not line.startswith(b"GET /"):
                continue
            size = int(line.split()[1].strip(b"/") or 600)
            while stream.readline().strip():
                pass
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + _BODY[:size])


def _request(connection: socket.socket, size: int) -> None:
    connection.sendall(b"GET /%d HTTP/1.1\r\nHost: lab\r\n\r\n" % size)
    head = b""
    while b"\r\n\r\n" not in head:
        head += _received(connection)
    left = size - len(head.partition(b"\r\n\r\n")[2])
    while left > 0:
        left -= len(_received(connection))


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the server closed the connection")
    return data


def _wave(size: int) -> int:
    """Sizes swell and ebb, so that rates have a shape."""
    return int(size * (1 + math.sin(time.monotonic() / 9) / 2))


def _udp_socket(address: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)


_JOBS: dict[str, Callable[..., None]] = {
    "serve-http": serve_http,
    "serve-udp": serve_udp,
    "http": http,
    "udp": udp,
    "ping": ping,
}


def _work(job: str) -> None:
    """Do a job for ever; what fails is tried again."""
    kind, *words = job.split()
    places = [word for word in words if "=" not in word]
    options = dict(word.replace("from=", "source=").split("=") for word in words if "=" in word)
    while True:
        try:
            _JOBS[kind](*places, **options)
        except OSError:
            time.sleep(_RETRY)


def _in_background(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def _show_as(command: str) -> None:
    """Be COMMAND for ps(1): its first word as the name, all of it written over the command line."""
    with open("/proc/self/comm", "w") as comm:
        comm.write(command.split()[0])
    with open("/proc/self/stat") as stat:  # fields 48 and 49: where the command line lies (proc_pid_stat(5))
        start, end = map(int, stat.read().rpartition(")")[2].split()[45:47])
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(command.replace(" ", "\0").encode()[: end - start - 1].ljust(end - start, b"\0"))


def main() -> None:
    """Start every job; stay until a signal ends the process."""
    command, *jobs = sys.argv[1:]
    _show_as(command)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for job in jobs:
        _in_background(_work, job)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
