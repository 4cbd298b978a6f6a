"""The tables of iptables-legacy: changes of theirs send no event, so what they hold is compared now and
then."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

# Reading these makes no tables (linux/netfilter/x_tables.h).
_NAMES = {"ip": "ip_tables_names", "ip6": "ip6_tables_names"}
# getsockopt(2) of linux/netfilter_ipv4/ip_tables.h, and of IPv6 the same.
_GET_INFO, _GET_ENTRIES = 64, 65
_NAME, _INFO, _INFO_SIZE, _HEADER = 32, 84, 80, 40
# struct ipt_entry and ip6t_entry: where `next_offset` and the two counters stand.
_OFFSETS = {"ip": (90, 96), "ip6": (142, 152)}
_COUNTERS = 16
_KINDS = {
    "ip": (socket.AF_INET, socket.IPPROTO_IP),
    "ip6": (socket.AF_INET6, socket.IPPROTO_IPV6),
}
_libc = ctypes.CDLL(None, use_errno=True)


def tables(family: str) -> tuple[str, ...]:
    """The tables that "ip" or "ip6" has in this process's namespace."""
    try:
        return tuple(sorted(Path("/proc/thread-self/net", _NAMES[family]).read_text().split()))
    except OSError:
        return ()


def families() -> tuple[str, ...]:
    """The families that have any."""
    return tuple(family for family in _NAMES if tables(family))


def fingerprint() -> bytes:
    """What all tables hold, as a digest that counters do not change; b"" where there is none."""
    found = [(family, name) for family in _NAMES for name in tables(family)]
    digest = blake2b(repr(found).encode(), digest_size=16)
    for family, name in found:
        try:
            for part in _rules(family, name):
                digest.update(part)
        except OSError as error:  # it is being replaced: the next comparison sees it whole
            digest.update(repr(error.errno).encode())
    return digest.digest() if found else b""


def _rules(family: str, table: str) -> Iterator[bytes]:
    """The rules of one table as the kernel holds them, each without its counters."""
    next_at, counters = _OFFSETS[family]
    kind, level = _KINDS[family]
    name = table.encode()[: _NAME - 1].ljust(_NAME, b"\0")
    with socket.socket(kind, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as kernel:
        info = _getsockopt(kernel, level, _GET_INFO, name + bytes(_INFO - _NAME))
        (size,) = struct.unpack_from("=I", info, _INFO_SIZE)
        asked = name + struct.pack("=I4x", size) + bytes(size)
        data = _getsockopt(kernel, level, _GET_ENTRIES, asked)[_HEADER:]
    yield info
    at = 0
    while at + counters + _COUNTERS <= len(data):
        (length,) = struct.unpack_from("=H", data, at + next_at)
        if not length:
            return
        yield data[at : at + counters] + data[at + counters + _COUNTERS : at + length]
        at += length


def _getsockopt(kernel: socket.socket, level: int, option: int, asked: bytes) -> bytes:
    """getsockopt(2) with what is asked in the buffer that takes the answer."""
    buffer = ctypes.create_string_buffer(asked, len(asked))
    length = ctypes.c_uint32(len(asked))
    if _libc.getsockopt(kernel.fileno(), level, option, buffer, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw[: length.value]
