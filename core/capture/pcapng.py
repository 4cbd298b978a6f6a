"""Encode and decode pcapng blocks (draft-ietf-opsawg-pcapng)."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

# LINKTYPE_* of https://www.tcpdump.org/linktypes.html.
ETHERNET, RAW_IP = 1, 101
# Kinds of a packet (PACKET_* of linux/if_packet.h) by their number.
HOST, BROADCAST, MULTICAST, OTHER_HOST, OUTGOING = range(5)

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_MAGIC, _VERSION = 0x1A2B3C4D, (1, 0)
_UNKNOWN_LENGTH = -1
# Codes of options; those from 2 on depend on the block.
_COMMENT = 1
_OS, _APPLICATION = 3, 4
_NAME, _DESCRIPTION, _MAC, _RESOLUTION, _FILTER = 2, 3, 6, 9, 11
_FLAGS = 2
_START, _END, _RECEIVED, _DROPPED, _DELIVERED = 2, 3, 4, 5, 8
_NANOSECONDS = bytes([9])  # 10 ** -9
_END_OF_OPTIONS = bytes(4)
_MOST_TEXT = 4096  # bytes of a text in an option

PACKET_HEADER = struct.Struct("=7I")  # type, length, interface, time (high, low), captured, original length
LENGTH = struct.Struct("=I")
PADDING = tuple(bytes(-size % 4) for size in range(4))
OVERHEAD = PACKET_HEADER.size + LENGTH.size


class Packet(NamedTuple):
    """One packet of a file: `at` in nanoseconds of Unix time, `length` on the wire."""

    interface: int
    at: int
    data: bytes
    length: int
    comment: str = ""
    kind: int = HOST


def section(application: str, system: str, comment: str) -> bytes:
    """Return a section header block."""
    head = struct.pack("=IHHq", _MAGIC, *_VERSION, _UNKNOWN_LENGTH)
    options = ((_COMMENT, comment), (_OS, system), (_APPLICATION, application))
    return _block(_SECTION, head + b"".join(option(code, _text(text)) for code, text in options if text))


def interface(
    link_type: int, snap_length: int, name: str, description: str, mac: bytes = b"", filter_text: str = ""
) -> bytes:
    """Return an interface description block, with times in nanoseconds."""
    options = [option(_NAME, _text(name)), option(_DESCRIPTION, _text(description))]
    options += [option(_MAC, mac)] if len(mac) == 6 else []
    options += [option(_RESOLUTION, _NANOSECONDS)]
    options += [option(_FILTER, b"\0" + _text(filter_text))] if filter_text else []
    return _block(_INTERFACE, struct.pack("=HHI", link_type, 0, snap_length) + b"".join(options))


def statistics(number: int, began: int, ended: int, received: int, dropped: int, delivered: int) -> bytes:
    """Return an interface statistics block; times in nanoseconds of Unix time."""
    times = ((_START, began), (_END, ended))
    options = [option(code, struct.pack("=II", *_halves(at))) for code, at in times]
    counters = ((_RECEIVED, received), (_DROPPED, dropped), (_DELIVERED, delivered))
    options += [option(code, struct.pack("=Q", value)) for code, value in counters]
    return _block(_STATISTICS, struct.pack("=III", number, *_halves(ended)) + b"".join(options))


def option(code: int, value: bytes) -> bytes:
    """Return one option, padded to 32 bits."""
    return struct.pack("=HH", code, len(value)) + value + PADDING[len(value) % 4]


def comment_option(text: str) -> bytes:
    """Return the option of a packet's comment, b"" without text."""
    return option(_COMMENT, _text(text)) if text else b""


def _flags_option(kind: int) -> bytes:
    """Return direction and kind of reception of a packet as the last option."""
    direction = 2 if kind == OUTGOING else 1
    reception = {HOST: 1, MULTICAST: 2, BROADCAST: 3, OTHER_HOST: 4}.get(kind, 0)
    return option(_FLAGS, struct.pack("=I", direction | reception << 2)) + _END_OF_OPTIONS


FLAGS = tuple(_flags_option(kind) for kind in range(256))


def packet(one: Packet) -> bytes:
    """Return an enhanced packet block; `core.capture.encoder` makes many at once."""
    tail = comment_option(one.comment) + FLAGS[one.kind]
    size = OVERHEAD + len(one.data) + -len(one.data) % 4 + len(tail)
    head = PACKET_HEADER.pack(_PACKET, size, one.interface, *_halves(one.at), len(one.data), one.length)
    return b"".join((head, one.data, PADDING[len(one.data) % 4], tail, LENGTH.pack(size)))


def packet_of(block: bytes) -> Packet:
    """Decode a block that `packet` or the encoder made."""
    _, size, number, high, low, captured, length = PACKET_HEADER.unpack_from(block)
    start = PACKET_HEADER.size
    found = dict(_options(block, start + captured + -captured % 4, size - 4))
    flags = int.from_bytes(found.get(_FLAGS, b""), sys.byteorder)
    kinds = {1: HOST, 2: MULTICAST, 3: BROADCAST, 4: OTHER_HOST}
    kind = OUTGOING if flags & 3 == 2 else kinds.get(flags >> 2 & 7, HOST)
    comment = found.get(_COMMENT, b"").decode(errors="replace")
    return Packet(number, high << 32 | low, block[start : start + captured], length, comment, kind)


def _options(block: bytes, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    while at + 4 <= end:
        code, size = struct.unpack_from("=HH", block, at)
        if not code:
            return
        yield code, block[at + 4 : at + 4 + size]
        at += 4 + size + -size % 4


def _block(kind: int, body: bytes) -> bytes:
    body += _END_OF_OPTIONS
    size = 12 + len(body)
    return struct.pack("=II", kind, size) + body + LENGTH.pack(size)


def _halves(at: int) -> tuple[int, int]:
    return at >> 32, at & 0xFFFFFFFF


def _text(text: str) -> bytes:
    """Encode text as UTF-8; bytes that aren't UTF-8 become question marks."""
    encoded = text.encode("utf-8", "replace")[:_MOST_TEXT]
    return encoded.decode("utf-8", "ignore").encode()
