"""Attach BPF programs to netfilter hooks, as another tool may.

Linux 6.4 and newer have them.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from bpf import syscall
from core.netlink.netns import entered

_PROG_LOAD, _LINK_CREATE = 5, 28
_NETFILTER, _AT_NETFILTER = 32, 45  # BPF_PROG_TYPE_NETFILTER, BPF_NETFILTER
_FORWARD, _IPV4 = 2, 2
_RETURN_0 = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)  # NF_DROP


def drop_program() -> int:
    """Load a program that drops everything; raises OSError on older kernels."""
    code, licence = np.frombuffer(_RETURN_0, np.uint8), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "<IIQQIIQII16sII", _NETFILTER, 2, code.ctypes.data, ctypes.addressof(licence), 0, 0, 0, 0, 0,
        b"drop", 0, _AT_NETFILTER,
    )  # fmt: skip
    return syscall.bpf(_PROG_LOAD, attributes)


@contextmanager
def dropping_all_that_is_forwarded(namespace: str) -> Iterator[None]:
    """Attach it to the IPv4 forward hook of a named namespace for the block."""
    program = drop_program()
    with entered(f"/run/netns/{namespace}"):
        link = syscall.bpf(
            _LINK_CREATE, struct.pack("<IIIIIIiI", program, 0, _AT_NETFILTER, 0, _IPV4, _FORWARD, 17, 0)
        )
    try:
        yield
    finally:
        os.close(link)
        os.close(program)
