"""Send packets of 64 bytes at a rate, through a packet socket with sendmmsg(2).

Run it in the namespace of the link: LINK RATE SECONDS. Prints how many were sent, and in how many seconds.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import time

_BATCH = 64


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _Message(ctypes.Structure):
    """struct mmsghdr of sendmmsg(2)."""

    _fields_ = [
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32), ("vectors", ctypes.POINTER(_Vector)),
        ("count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int), ("sent", ctypes.c_uint),
    ]  # fmt: skip


def frame() -> bytes:
    """Return a UDP packet of 64 bytes on the wire, without a checksum."""
    payload = bytes(64 - 14 - 20 - 8)
    udp = struct.pack("!HHHH", 4000, 9, 8 + len(payload), 0)
    addresses = socket.inet_aton("10.77.0.1") + socket.inet_aton("10.77.0.2")
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp) + len(payload), 0, 0, 64, 17, 0) + addresses
    return b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x08\0" + ip + udp + payload


def flood(link: str, rate: int, seconds: float) -> tuple[int, float]:
    """Send until that many were sent; return the number and the seconds that it took."""
    buffer = ctypes.create_string_buffer(frame(), 64)
    vector = _Vector(ctypes.addressof(buffer), 64)
    messages = (_Message * _BATCH)()
    for message in messages:
        message.vectors, message.count = ctypes.pointer(vector), 1
    sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
    count, sent = int(rate * seconds), 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((link, 0))
        began = time.monotonic()
        while sent < count:
            due = min(count, int((time.monotonic() - began) * rate)) - sent
            if due < _BATCH and sent + due < count:
                time.sleep(0.0002)
                continue
            done = sendmmsg(sock.fileno(), messages, min(_BATCH, due), 0)
            if done < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            sent += done
        return sent, time.monotonic() - began


if __name__ == "__main__":
    print(*flood(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
