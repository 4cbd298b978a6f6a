"""Run `vnet-tui capture` in tests, and read its files without vnet-tui's own code."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scapy.utils import PcapNgReader

from tests.support.host import ThrowawayHost
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
INTERFACE, STATISTICS, PACKET = 1, 5, 6
_SERVER = """
import socket, threading
def answer(one):
    one.sendall(b"hello")
    one.recv(100)
    one.close()
with socket.create_server(("", 80)) as server:
    print("ready", flush=True)
    while True:
        threading.Thread(target=answer, args=server.accept()[:1], daemon=True).start()
"""
_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as one:
    one.recv(100)
    sys.stdin.readline()
    one.sendall(b"bye")
    one.recv(100)
"""


@dataclass
class Capturing:
    """A capture that runs; `said` is what it has printed to standard error at its end."""

    process: subprocess.Popen[bytes]
    said: str = ""
    printed: bytes = b""

    def stop(self) -> int:
        """End it as Ctrl-C does; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.ended()

    def ended(self) -> int:
        """Wait for its end; returns the exit code."""
        self.printed, said = self.process.communicate(timeout=PATIENCE)
        self.said += said.decode()
        return self.process.returncode


@contextmanager
def capturing(host: ThrowawayHost, *words: str) -> Iterator[Capturing]:
    """Run a capture on the host, from the moment on that its sockets are open."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{host.name}", sys.executable, "-m", "tui.cli", "capture", *words],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"TZ": "UTC"},
    )  # fmt: skip
    assert process.stderr is not None
    found = Capturing(process)
    try:
        for line in iter(process.stderr.readline, b""):
            found.said += line.decode()
            if line.startswith(b"capturing "):
                break
        else:
            raise AssertionError(f"it did not start: {found.said}")
        yield found
    finally:
        process.kill()
        process.wait(PATIENCE)
        process.stderr.close()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def server(host: ThrowawayHost, inside: str) -> Iterator[int]:
    """Run a TCP server on port 80 in a namespace; yields its pid."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{host.full(inside)}", sys.executable, "-c", _SERVER],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.kill()
        process.wait(PATIENCE)
        process.stdout.close()


@contextmanager
def client(host: ThrowawayHost, inside: str, address: str, port: int) -> Iterator[int]:
    """Keep a connection to a server open in the body; yields the client's pid."""
    process = subprocess.Popen(
        [
            "nsenter",
            f"--net=/run/netns/{host.full(inside)}",
            sys.executable,
            "-c",
            _CLIENT,
            address,
            str(port),
        ],
        stdin=subprocess.PIPE,
    )
    try:
        yield process.pid
    finally:
        process.communicate(b"\n", timeout=PATIENCE)
    assert process.returncode == 0


def packets(path: Path) -> list[Any]:
    """Return the packets of a file as scapy reads them, with `comment` and `sniffed_on`."""
    with PcapNgReader(str(path)) as reader:
        return list(reader)


def comments(path: Path) -> list[str]:
    """Return the comment of each packet, "" for none."""
    found = (getattr(one, "comments", None) or [b""] for one in packets(path))
    return [each[0].decode() for each in found]


def tcpdump(path: Path, *words: str) -> list[str]:
    """Return the lines of tcpdump for a file; it fails on a damaged one."""
    done = subprocess.run(
        ["tcpdump", "-n", "-r", str(path), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "truncated" not in done.stderr, done.stderr
    return done.stdout.splitlines()


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    """Return type and body of each block; fails if the last one isn't whole."""
    found, at = [], 0
    while at < len(data):
        kind, size = struct.unpack_from("=II", data, at)
        assert size >= 12 and size % 4 == 0 and at + size <= len(data), "a damaged block"
        assert struct.unpack_from("=I", data, at + size - 4)[0] == size
        found.append((kind, data[at + 8 : at + size - 4]))
        at += size
    return found


def options(body: bytes, start: int) -> dict[int, bytes]:
    """Return the options of a block's body by code."""
    found, at = {}, start
    while at + 4 <= len(body):
        code, size = struct.unpack_from("=HH", body, at)
        if not code:
            break
        found[code] = body[at + 4 : at + 4 + size]
        at += 4 + size + -size % 4
    return found
