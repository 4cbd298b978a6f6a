"""Measure frames at the uplink to a published port (XDP live frames).

They arrive as a NIC delivers them.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bpf import syscall
from core.netlink.netns import entered
from tests.bench.fastpath_alternating import measure_paths
from tests.bench.fastpath_flood import warm_up
from tests.bench.fastpath_lab import CPU, FLOOD, Case, FastPath, Lab, named, one_cpu, read_udp_arrivals
from tests.bench.fastpath_traffic import Floods
from tests.bench.report import Figure
from tests.bench.size import sized

_PROG_XDP, _XDP_PASS, _LIVE_FRAMES = 6, 2, 1 << 1
_TEST_RUN = 10
_FRAMES, _BATCH = sized(200_000, 5_000), 64
_HEADERS = 48  # bytes written into every frame
_SOURCE_PORT = 40000


def figures(lab: Lab, fast: FastPath, floods: Floods) -> Iterator[Figure]:
    """Measure Docker, the fast path, and the limit.

    The limit is a link that ends in the receiver's own namespace.
    """
    published = lab.cases[-1]
    limit = lab.limit_of(published)
    with _speaker(published) as speaker, _speaker(limit) as near:
        host = named(lab.host.name)

        def through_the_host() -> float:
            return _inject(speaker, published, host, "up0", floods)

        results = measure_paths(
            fast,
            through_the_host,
            through_the_host,
            lambda: _inject(near, limit, limit.server, "eth0", floods),
        )
    yield Figure(
        "frames as from a NIC, published port", ">= 2.8 x, <= 1.10 of the limit's time",
        results.as_text(is_time=True), "ns a frame; 64 B of UDP, XDP live frames",
    )  # fmt: skip


@contextmanager
def _speaker(case: Case) -> Iterator[socket.socket]:
    """Return a socket of the flow that the frames belong to."""
    with entered(case.client):
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with here:
        here.bind(("0.0.0.0", _SOURCE_PORT))
        here.connect((case.address, FLOOD))
        yield here


def _inject(speaker: socket.socket, case: Case, namespace: str, link: str, floods: Floods) -> float:
    """Measure nanoseconds a frame of the speaker's flow by that link; all must arrive."""
    warm_up(speaker)
    receiver = floods.receiver(case)
    source = mac_of(case.client, "eth0")
    with entered(namespace), one_cpu(CPU):
        frame = _frame(speaker, source, mac_of(namespace, link))
        program = _passing(frame[:_HEADERS])
        before, began = read_udp_arrivals(receiver), time.perf_counter()
        _receive(program, frame, socket.if_nametoindex(link))
        took = time.perf_counter() - began
        os.close(program)
    arrived = read_udp_arrivals(receiver) - before
    assert arrived > 0.95 * _FRAMES, f"{arrived} of {_FRAMES} frames arrived by {case.name}"
    return took / _FRAMES * 1e9


def _frame(speaker: socket.socket, source: str, destination: str) -> bytes:
    (src, sport), (dst, dport) = speaker.getsockname(), speaker.getpeername()
    headers = Ether(src=source, dst=destination) / IP(src=src, dst=dst) / UDP(sport=sport, dport=dport)
    return bytes(headers / Raw(b"x" * 64))


def mac_of(namespace: str, link: str) -> str:
    """Return the address of a link."""
    with entered(namespace), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as here:
        here.bind((link, 0))
        return str(here.getsockname()[4].hex(":"))


def _passing(headers: bytes) -> int:
    """Load an XDP program that passes each frame with these headers.

    Their size is a multiple of eight. The kernel reuses a frame's memory with its changes.
    """
    words = list(struct.iter_unpack("=ii", headers))
    begin = [
        (0x61, 0x12, 0, 0),  # r2 = data
        (0x61, 0x13, 4, 0),  # r3 = data_end
        (0xBF, 0x24, 0, 0),  # r4 = r2
        (0x07, 4, 0, len(headers)),  # r4 += headers
        (0x2D, 0x34, 3 * len(words), 0),  # if r4 > r3: over the stores
    ]
    stores = [
        each
        for number, (low, high) in enumerate(words)
        for each in ((0x18, 5, 0, low), (0, 0, 0, high), (0x7B, 0x52, 8 * number, 0))  # r5 = word, store
    ]
    code = [*begin, *stores, (0xB7, 0, 0, _XDP_PASS), (0x95, 0, 0, 0)]
    packed = b"".join(struct.pack("=BBhi", *each) for each in code)
    return syscall.load_program(_PROG_XDP, packed, "passing")


def _receive(program: int, frame: bytes, ifindex: int) -> None:
    """Run an XDP program by BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES.

    Its frames are really received.
    """
    data = np.frombuffer(bytearray(frame), np.uint8)
    context = np.frombuffer(bytearray(struct.pack("=IIIIII", 0, len(frame), 0, ifindex, 0, 0)), np.uint8)
    attributes = struct.pack(
        "<IIIIQQIIIIQQIII4x",
        program, 0, len(frame), 0, data.ctypes.data, 0, _FRAMES, 0,
        len(context), 0, context.ctypes.data, 0, _LIVE_FRAMES, 0, _BATCH,
    )  # fmt: skip
    syscall.bpf(_TEST_RUN, attributes)
