"""Decode ctnetlink dumps into columns, messages of equal layout at once."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.model.conntrack import CONNTRACK_DTYPE

NLM_F_MULTI = 0x2
CT_ENTRY = 0x100  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW
_HEADER_WORDS = 4
_WORD = struct.Struct("=I")
_TYPE_AND_FLAGS = struct.Struct("=HH")

# The second word in the header of each entry of a dump.
_SIGNATURE = np.frombuffer(_TYPE_AND_FLAGS.pack(CT_ENTRY, NLM_F_MULTI), np.uint32)[0]


def message_starts(words: Words) -> tuple[Words, Words, int]:
    """Return starts and lengths of a chunk's entries, and the end of the last message.

    All are in 32-bit words. Entries are found by the second word of their header. That counts only if each
    entry ends where the next one starts; else the messages are walked one by one.
    """
    found = np.flatnonzero(words == _SIGNATURE) - 1
    if found.size:
        lengths = (words[found] + np.uint32(3)) >> np.uint32(2)
        ends = found + lengths
        if found[0] == 0 and np.array_equal(ends[:-1], found[1:]) and ends[-1] == words.size:
            return found.astype(np.uint32), lengths, words.size
    return _walked_starts(words)


def _walked_starts(words: Words) -> tuple[Words, Words, int]:
    """Find entries by walking all messages; other types are skipped."""
    starts: list[int] = []
    lengths: list[int] = []
    offset, numbers = 0, words.tolist()
    while offset + _HEADER_WORDS <= len(numbers):
        length = (numbers[offset] + 3) >> 2
        if length < _HEADER_WORDS or offset + length > len(numbers):
            break
        if _message_type(numbers[offset + 1]) == CT_ENTRY:
            starts.append(offset)
            lengths.append(length)
        offset += length
    return np.array(starts, np.uint32), np.array(lengths, np.uint32), offset


def _message_type(word: int) -> int:
    """Return the message type in the second word of a header."""
    return int(_TYPE_AND_FLAGS.unpack(_WORD.pack(word))[0])


class Decoder:
    """Decode a dump chunk by chunk; each chunk holds whole messages.

    Memory for `expected` entries is allocated first. `ignored` counts malformed messages; everything after a
    truncated one in its chunk counts as one.
    """

    def __init__(self, expected: int = 0) -> None:
        self.ignored = 0
        self._used = 0
        self._table = np.zeros(expected + expected // 16 + 64, CONNTRACK_DTYPE)
        self._layouts: dict[int, list[Layout]] = {}

    @property
    def entries(self) -> np.ndarray[Any, Any]:
        """Return all entries so far, read-only."""
        rows = self._table[: self._used]
        rows.flags.writeable = False
        return rows

    def feed(self, chunk: bytes) -> None:
        """Decode one chunk; the bytes aren't kept."""
        words = np.frombuffer(chunk, np.uint32, len(chunk) // 4)
        starts, lengths, end = message_starts(words)
        self.ignored += end * 4 != len(chunk)
        for length in np.unique(lengths).tolist():
            self._decode(words, starts[lengths == length], length)

    def _decode(self, words: Words, starts: Words, length: int) -> None:
        """Decode messages of `length` words, by the known layouts, then by new ones."""
        messages: Words = np.lib.stride_tricks.sliding_window_view(words, length)[starts]
        known = self._layouts.setdefault(length, [])
        for layout in known:
            messages = self._decode_layout(layout, messages)
        while messages.size:
            known.append(layout_of(messages[0].tobytes()))
            messages = self._decode_layout(known[-1], messages)

    def _decode_layout(self, layout: Layout, messages: Words) -> Words:
        """Decode the messages with this layout and return the others."""
        fits = layout.fits(messages)
        all_fit = bool(fits.all())
        fitting = messages if all_fit else messages[fits]
        if layout.record is None:
            self.ignored += len(fitting)
        else:
            write_entries(layout.record, fitting, self._allocate(len(fitting)))
        return messages[:0] if all_fit else messages[~fits]

    def _allocate(self, count: int) -> np.ndarray[Any, Any]:
        """Return the next `count` zeroed rows; a full table grows by half."""
        end = self._used + count
        if end > len(self._table):
            grown = np.zeros(max(end, len(self._table) * 3 // 2), CONNTRACK_DTYPE)
            grown[: self._used] = self._table[: self._used]
            self._table = grown
        rows = self._table[self._used : end]
        self._used = end
        return rows


Words = np.ndarray[Any, np.dtype[np.uint32]]

NLA_TYPE_MASK = 0x3FFF
_ATTRIBUTE = struct.Struct("=HH")
_FIRST_ATTRIBUTE = 20  # struct nlmsghdr and struct nfgenmsg
_FAMILY_AT = 16

Path = tuple[int, ...]


def _tuple_leaves(kind: int, direction: str) -> dict[Path, tuple[str, str]]:
    """Return column and format by path in a tuple (CTA_TUPLE_ORIG or CTA_TUPLE_REPLY)."""
    leaves = {
        (kind, 1, 1): (f"{direction}_src", "4u1"),
        (kind, 1, 2): (f"{direction}_dst", "4u1"),
        (kind, 1, 3): (f"{direction}_src", "16u1"),
        (kind, 1, 4): (f"{direction}_dst", "16u1"),
        (kind, 2, 1): (f"{direction}_l4_proto", "u1"),
        (kind, 2, 2): (f"{direction}_sport", ">u2"),
        (kind, 2, 3): (f"{direction}_dport", ">u2"),
        (kind, 3): (f"{direction}_zone", ">u2"),
    }
    for number in (4, 7):  # CTA_PROTO_ICMP_ID, CTA_PROTO_ICMPV6_ID; type and code follow each
        leaves[(kind, 2, number)] = (f"{direction}_sport", ">u2")
        leaves[(kind, 2, number + 1)] = (f"{direction}_icmp_type", "u1")
        leaves[(kind, 2, number + 2)] = (f"{direction}_icmp_code", "u1")
    return leaves


# linux/netfilter/nfnetlink_conntrack.h: column and format by path of nested attributes.
_LEAVES: dict[Path, tuple[str, str]] = {
    **_tuple_leaves(1, "orig"),
    **_tuple_leaves(2, "reply"),
    (3,): ("status", ">u4"),
    (4, 1, 1): ("tcp_state", "u1"),
    (7,): ("timeout", ">u4"),
    (8,): ("mark", ">u4"),
    (9, 1): ("orig_packets", ">u8"),
    (9, 2): ("orig_bytes", ">u8"),
    (10, 1): ("reply_packets", ">u8"),
    (10, 2): ("reply_bytes", ">u8"),
    (12,): ("id", ">u4"),
    (18,): ("zone", ">u2"),
    (20, 1): ("start", ">u8"),
}
_NESTS = {path[:depth] for path in _LEAVES for depth in range(1, len(path))}
_NEEDED = {"orig_src", "orig_dst", "reply_src", "reply_dst", "orig_l4_proto", "id"}
_COPIED = (
    "id", "status", "timeout", "mark", "tcp_state", "start",
    "orig_sport", "orig_dport", "reply_sport", "reply_dport",
)  # fmt: skip


class _Malformed(Exception):
    """A message has attributes that exceed it or have an unexpected size."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The offsets of values in messages of one length and attribute structure.

    `mask` has ones where a message must equal `template`: in its length, family and all attribute headers.
    `record` has the offsets; None for malformed messages.
    """

    template: Words
    mask: Words
    record: np.dtype[Any] | None

    def fits(self, messages: Words) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return a mask of the messages (rows of words) with exactly this layout."""
        different: Words = messages ^ self.template
        different &= self.mask
        return np.asarray(~different.any(axis=1))


def layout_of(message: bytes) -> Layout:
    """Walk the attributes of a message and return its layout; never raises."""
    mask = bytearray(len(message))
    mask[0:4] = b"\xff" * 4
    mask[_FAMILY_AT : _FAMILY_AT + 1] = b"\xff"[: len(message) - _FAMILY_AT]
    fields: dict[str, tuple[str, int]] = {}
    record = None
    try:
        (length,) = _WORD.unpack_from(message)
        _walk(message, _FIRST_ATTRIBUTE, length, (), fields, mask)
        if fields.keys() >= _NEEDED:
            record = np.dtype(
                {
                    "names": list(fields),
                    "formats": [number_format for number_format, _ in fields.values()],
                    "offsets": [offset for _, offset in fields.values()],
                    "itemsize": len(message),
                }
            )
    except _Malformed:
        pass
    return Layout(np.frombuffer(message, np.uint32), np.frombuffer(mask, np.uint32), record)


def _walk(
    message: bytes, offset: int, end: int, parent: Path, fields: dict[str, tuple[str, int]], mask: bytearray
) -> None:
    """Add the values from `offset` to `end` to `fields`, and their headers to `mask`."""
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        mask[offset : offset + 4] = b"\xff" * 4
        if length < 4 or offset + length > end:
            raise _Malformed
        path = (*parent, kind & NLA_TYPE_MASK)
        if path in _NESTS:
            _walk(message, offset + 4, offset + length, path, fields, mask)
        elif path in _LEAVES:
            name, number_format = _LEAVES[path]
            if np.dtype(number_format).itemsize != length - 4:
                raise _Malformed
            fields[name] = (number_format, offset + 4)
        offset += length + 3 & ~3


def write_entries(record: np.dtype[Any], messages: Words, rows: np.ndarray[Any, Any]) -> None:
    """Fill zeroed `rows` (CONNTRACK_DTYPE) from messages with the layout `record`."""
    values = messages.view(record)[:, 0]
    names = record.names or ()
    for name in _COPIED:
        if name in names:
            rows[name] = values[name]
    rows["l4_proto"] = values["orig_l4_proto"]
    for name in ("orig_src", "orig_dst", "reply_src", "reply_dst"):
        _write_address(values[name], rows[name])
    rows["family"] = 4 if values["orig_src"].shape[1] == 4 else 6
    for name in ("zone", "orig_zone", "reply_zone"):
        if name in names:
            rows["zone"] = values[name]
            break
    for index, direction in enumerate(("orig", "reply")):
        if f"{direction}_icmp_type" in names and f"{direction}_icmp_code" in names:
            rows[f"{direction}_dport"] = values[f"{direction}_icmp_type"].astype(np.uint16) << 8
            rows[f"{direction}_dport"] |= values[f"{direction}_icmp_code"]
        for count in ("packets", "bytes"):
            if f"{direction}_{count}" in names:
                rows[count][:, index] = values[f"{direction}_{count}"]
                rows["counted"] = True


def _write_address(value: np.ndarray[Any, Any], column: np.ndarray[Any, Any]) -> None:
    """Write IPv6 addresses as they are, IPv4 addresses as IPv4-mapped ones."""
    if value.shape[1] == 4:
        column[:, 10:12] = 0xFF
        column[:, 12:16] = value
    else:
        column[:] = value
