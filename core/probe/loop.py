"""Find loops of a bridge: probe frames that come back on one of its ports.

A probe leaves by one port and isn't forwarded by this bridge: its destination is a MAC address that the
bridge has as its own meanwhile. Other bridges don't know that address, so they send the probe out of all
their ports.
"""

from __future__ import annotations

import ctypes
import hashlib
import secrets
import select
import socket
import struct
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from core.netlink.client import ROUTE, Netlink, attribute

_SECONDS = 1.0
_TRIES = 3  # a busy link may lose a probe
# linux/if_ether.h, if_packet.h, rtnetlink.h, neighbour.h
_ALL, _OUTGOING, _ETHERTYPE = 3, 4, 0x88B5  # ETH_P_ALL, PACKET_OUTGOING, "local experimental"
_SO_ATTACH_FILTER = 26
_NEW_NEIGH, _DEL_NEIGH, _CREATE = 28, 29, 0x400
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_LLADDR, _SELF, _PERMANENT = 2, 0x02, 0x80
_PROBE = struct.Struct(">6s6sH16sI28x")


@dataclass(frozen=True, slots=True)
class Loop:
    """Ports (ifindexes) between which probes came back.

    A single one: the loop is behind it.
    """

    ports: tuple[int, ...]


def find_loops(bridge: int, ports: Collection[int]) -> list[Loop]:
    """Send probes out of the ports of a bridge in the thread's namespace.

    `ports` are those that forward. Takes a second, and raises OSError.
    """
    name = socket.if_indextoname(bridge)
    digest = hashlib.sha256(f"{socket.gethostname()}/{name}/loop".encode()).digest()
    destination = b"\x02" + digest[:5]
    names = {port: socket.if_indextoname(port) for port in ports}
    probe_id, source = secrets.token_bytes(16), b"\x02" + secrets.token_bytes(5)
    found: set[tuple[int, int]] = set()
    with _own_address(bridge, destination), _packet_socket(destination) as sock:
        for _ in range(_TRIES):
            for port, link in names.items():
                frame = _PROBE.pack(destination, source, _ETHERTYPE, probe_id, port)
                with suppress(OSError):  # it is down or was deleted
                    sock.sendto(frame, (link, 0))
            for sent, link in _returned(sock, probe_id, _SECONDS / _TRIES):
                received = next((port for port, one in names.items() if one == link), None)
                if sent in names and received is not None:
                    found.add((sent, received))
    return _joined(found)


def _joined(found: Collection[tuple[int, int]]) -> list[Loop]:
    """Join the ports that reach each other."""
    groups: list[set[int]] = []
    for pair in found:
        touching = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in touching]
        groups.append(set(pair).union(*touching))
    return sorted((Loop(tuple(sorted(group))) for group in groups), key=lambda loop: loop.ports)


def _returned(sock: socket.socket, probe_id: bytes, seconds: float) -> Iterator[tuple[int, str]]:
    """Yield for each returned probe the port that it left by, and the link it came by."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if not select.select([sock], [], [], left)[0]:
            return
        frame, (link, _, kind, *_) = sock.recvfrom(_PROBE.size)
        if kind != _OUTGOING and len(frame) == _PROBE.size:
            *_, ethertype, found_id, sent = _PROBE.unpack(frame)
            if (ethertype, found_id) == (_ETHERTYPE, probe_id):
                yield sent, link


@contextmanager
def _own_address(bridge: int, mac: bytes) -> Iterator[None]:
    """Make the bridge take frames for `mac` itself instead of forwarding them.

    The address is the same each time: one that a killed process left behind is deleted by the next.
    """
    entry = _NEIGHBOUR.pack(socket.AF_BRIDGE, bridge, _PERMANENT, _SELF, 0) + attribute(_LLADDR, mac)
    with Netlink(ROUTE) as kernel:
        with suppress(FileExistsError):
            kernel.request(_NEW_NEIGH, entry, _CREATE)
        try:
            yield
        finally:
            kernel.request(_DEL_NEIGH, entry)


@contextmanager
def _packet_socket(mac: bytes) -> Iterator[socket.socket]:
    """Open a packet socket for frames to `mac` on all links."""
    first, last = struct.unpack(">IH", mac)
    program = (
        (0x20, 0, 0, 0),  # ld [0]
        (0x15, 0, 3, first),  # jeq, else drop
        (0x28, 0, 0, 4),  # ldh [4]
        (0x15, 0, 1, last),
        (0x06, 0, 0, 0xFFFF),  # ret all
        (0x06, 0, 0, 0),  # ret 0
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in program))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_ALL)) as sock:
        described = struct.pack("@HP", len(program), ctypes.addressof(code))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
        yield sock
