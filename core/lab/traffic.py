"""The program of the lab's containers: small servers and clients of limited rate.

Run it as `traffic.py COMMAND JOB...`, by path and without site-packages, so that it starts fast. COMMAND
replaces the command line that the process shows. A JOB is one argument:

- `serve-http PORT [address=ADDRESS]`: answers `GET /SIZE` with SIZE bytes, at all addresses or one.
- `serve-udp ADDRESS PORT`: answers each datagram with its first 64 bytes.
- `http ADDRESS PORT size=BYTES every=SECONDS keep=REQUESTS [from=ADDRESS]`: requests about `size` bytes
  every `every` seconds, over connections of `keep` requests each.
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

_TIMEOUT = 2.0  # seconds for a connection or an answer
_RETRY = 1.0  # seconds after a failure
_BODY = bytes(65536)


def serve_http(port: str, *, address: str = "") -> None:
    """Serve HTTP for ever, with a thread for each connection; "::" accepts only IPv6."""
    dual = not address and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or ":" in address else socket.AF_INET
    with socket.create_server((address, int(port)), family=family, dualstack_ipv6=dual) as server:
        while True:
            connection, _ = server.accept()
            _in_background(_answer, connection)


def serve_udp(address: str, port: str) -> None:
    """Echo datagrams for ever; bound to an address, so that answers come from it."""
    with _udp_socket(address) as server:
        server.bind((address, int(port)))
        while True:
            data, peer = server.recvfrom(2048)
            server.sendto(data[:64], peer)


def http(address: str, port: str, *, size: str, every: str, keep: str, source: str = "") -> None:
    """Open one connection after another, each with `keep` requests."""
    origin = (source, 0) if source else None
    while True:
        with socket.create_connection((address, int(port)), _TIMEOUT, origin) as connection:
            for _ in range(int(keep)):
                _request(connection, _varying(int(size)))
                time.sleep(float(every))
        time.sleep(float(every))


def udp(address: str, port: str, *, size: str, every: str, keep: str, source: str = "") -> None:
    """Open one socket after another and send `keep` datagrams; answers are ignored."""
    while True:
        with _udp_socket(address) as client:
            if source:
                client.bind((source, 0))
            client.connect((address, int(port)))
            for _ in range(int(keep)):
                client.send(_BODY[: int(size)])
                time.sleep(float(every))


def ping(address: str, *, every: str) -> None:
    """Send ICMP echo requests of 64 bytes with one id and rising sequence numbers."""
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


def _varying(size: int) -> int:
    """Vary a size over time as a sine wave, so that rates vary."""
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


def _run_job(job: str) -> None:
    """Run a job for ever; restart it after an error."""
    kind, *words = job.split()
    arguments = [word for word in words if "=" not in word]
    options = dict(word.replace("from=", "source=").split("=") for word in words if "=" in word)
    while True:
        try:
            _JOBS[kind](*arguments, **options)
        except OSError:
            time.sleep(_RETRY)


def _in_background(function: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def _set_command_line(command: str) -> None:
    """Show `command` in ps(1): its first word as name, all of it as command line."""
    with open("/proc/self/comm", "w") as comm:
        comm.write(command.split()[0])
    with open("/proc/self/stat") as stat:  # fields 48 and 49: addresses of the command line
        start, end = map(int, stat.read().rpartition(")")[2].split()[45:47])
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(command.replace(" ", "\0").encode()[: end - start - 1].ljust(end - start, b"\0"))


def main() -> None:
    """Start every job; run until a signal ends the process."""
    command, *jobs = sys.argv[1:]
    _set_command_line(command)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for job in jobs:
        _in_background(_run_job, job)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
