"""Compile filters in libpcap's syntax (pcap-filter(7)) with libpcap itself."""

from __future__ import annotations

import ctypes
import re
import socket
import struct
from functools import cache

from core.capture import CaptureError
from core.text import safe

_LIBRARIES = ("libpcap.so.0.8", "libpcap.so.1", "libpcap.so")
_ANY_NETMASK = 0xFFFFFFFF  # PCAP_NETMASK_UNKNOWN
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER of asm-generic/socket.h, on every architecture that Python supports
_RETURN = 0x06  # BPF_RET | BPF_K
_INSTRUCTION = struct.Struct("=HBBI")
# The kernel takes a VLAN tag out of the packet before a filter sees it.
_NEEDS_TAGS = re.compile(r"\b(vlan|0x8100|0x88a8|mpls|pppoe[sd]?)\b")


class _Program(ctypes.Structure):
    """struct bpf_program of pcap/bpf.h."""

    _fields_ = [("length", ctypes.c_uint), ("instructions", ctypes.c_void_p)]


class _PacketHeader(ctypes.Structure):
    """struct pcap_pkthdr of pcap/pcap.h."""

    _fields_ = [("seconds", ctypes.c_long), ("fraction", ctypes.c_long)]
    _fields_ += [("captured", ctypes.c_uint32), ("length", ctypes.c_uint32)]


@cache
def _libpcap() -> ctypes.CDLL | None:
    """Load libpcap; None if it isn't installed."""
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.pcap_open_dead.restype = ctypes.c_void_p
        library.pcap_geterr.restype = ctypes.c_char_p
        return library
    return None


class Filter:
    """A compiled filter for one link type.

    `attach` lets the kernel apply it; one that looks at VLAN tags is applied by `accepts` (`in_kernel` is
    False), because the kernel's filters don't see them in the packet."""

    def __init__(self, text: str, code: bytes, snap_length: int, in_kernel: bool = True) -> None:
        self.text, self.snap_length, self.in_kernel = text, snap_length, in_kernel
        self.code = ctypes.create_string_buffer(code, len(code))  # stays at its address

    def attach(self, sock: socket.socket) -> None:
        """Attach the filter to a packet socket, in place of an earlier one (socket(7))."""
        code = self.code
        if not self.in_kernel:
            code = ctypes.create_string_buffer(_accept_all(self.snap_length), _INSTRUCTION.size)
        program = struct.pack("@HP", len(code) // _INSTRUCTION.size, ctypes.addressof(code))
        sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)

    def accepts(self, data: bytes, length: int) -> bool:
        """Return whether the filter matches a packet of `length` bytes on the wire."""
        library = _libpcap()
        assert library is not None
        header = _PacketHeader(0, 0, len(data), length)
        program = _Program(len(self.code) // _INSTRUCTION.size, ctypes.addressof(self.code))
        return bool(library.pcap_offline_filter(ctypes.byref(program), ctypes.byref(header), data))


def _accept_all(snap_length: int) -> bytes:
    return _INSTRUCTION.pack(_RETURN, 0, 0, snap_length)


def compile_filter(text: str, link_type: int, snap_length: int) -> Filter:
    """Compile a filter; "" matches all packets. Raises CaptureError."""
    text = text.strip()
    if not text:
        return Filter("", _accept_all(snap_length), snap_length)
    library = _libpcap()
    if library is None:
        raise CaptureError(
            "can't compile the filter: libpcap is not installed. Try: apt-get install libpcap0.8"
        )
    if "\0" in text:
        raise CaptureError("can't compile the filter: it contains a null character")
    handle = ctypes.c_void_p(library.pcap_open_dead(link_type, snap_length))
    try:
        return Filter(text, _compile(library, handle, text), snap_length, not _NEEDS_TAGS.search(text))
    finally:
        library.pcap_close(handle)


def _compile(library: ctypes.CDLL, handle: ctypes.c_void_p, text: str) -> bytes:
    """Return the instructions of a filter. Raises CaptureError."""
    program = _Program()
    encoded = text.encode("utf-8", "surrogateescape")
    if library.pcap_compile(handle, ctypes.byref(program), encoded, 1, ctypes.c_uint32(_ANY_NETMASK)):
        why = (library.pcap_geterr(handle) or b"").decode(errors="replace")
        raise CaptureError(f"can't compile the filter {safe(repr(text))}: {safe(why)}. Try: man pcap-filter")
    try:
        return ctypes.string_at(program.instructions, program.length * _INSTRUCTION.size)
    finally:
        library.pcap_freecode(ctypes.byref(program))
