"""Decodes ctnetlink dumps into columns by the thousand: messages of equal layout share one walk."""

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

# The second word of the header of every entry in a dump.
_SIGNATURE = np.frombuffer(_TYPE_AND_FLAGS.pack(CT_ENTRY, NLM_F_MULTI), np.uint32)[0]


def message_starts(words: Words) -> tuple[Words, Words, int]:
    """Where the chunk's entries start and how long they are, both in words, and the end of the last whole
    message.

    Entries are found by the second word of their header; only where each ends exactly at the next one's start
    is that taken for the truth, else the messages are walked one by one.
    """
    found = np.flatnonzero(words == _SIGNATURE) - 1
    if found.size:
        lengths = (words[found] + np.uint32(3)) >> np.uint32(2)
        ends = found + lengths
        if found[0] == 0 and np.array_equal(ends[:-1], found[1:]) and ends[-1] == words.size:
            return found.astype(np.uint32), lengths, words.size
    return _walked_starts(words)


def _walked_starts(words: Words) -> tuple[Words, Words, int]:
    """The same, one message after another, those of other types left out."""
    starts: list[int] = []
    lengths: list[int] = []
    at, plain = 0, words.tolist()
    while at + _HEADER_WORDS <= len(plain):
        length = (plain[at] + 3) >> 2
        if length < _HEADER_WORDS or at + length > len(plain):
            break
        if _kind(plain[at + 1]) == CT_ENTRY:
            starts.append(at)
            lengths.append(length)
        at += length
    return np.array(starts, np.uint32), np.array(lengths, np.uint32), at


def _kind(word: int) -> int:
    """The message type in the second word of a header."""
    return int(_TYPE_AND_FLAGS.unpack(_WORD.pack(word))[0])


class Decoder:
    """Takes a dump chunk by chunk, each a run of whole messages; finds room for `expected` entries at once.
    `ignored` counts the messages that could not be understood; what follows a broken one in its chunk counts
    as one."""

    def __init__(self, expected: int = 0) -> None:
        self.ignored = 0
        self._used = 0
        self._table = np.zeros(expected + expected // 16 + 64, CONNTRACK_DTYPE)
        self._layouts: dict[int, list[Layout]] = {}

    @property
    def entries(self) -> np.ndarray[Any, Any]:
        """All entries so far, read-only."""
        rows = self._table[: self._used]
        rows.flags.writeable = False
        return rows

    def feed(self, chunk: bytes) -> None:
        """Decode one chunk; the bytes are not kept."""
        words = np.frombuffer(chunk, np.uint32, len(chunk) // 4)
        starts, lengths, end = message_starts(words)
        self.ignored += end * 4 != len(chunk)
        for length in np.unique(lengths).tolist():
            self._decode(words, starts[lengths == length], length)

    def _decode(self, words: Words, starts: Words, length: int) -> None:
        """Decode messages of `length` words: by the layouts met before, then by new ones."""
        messages: Words = np.lib.stride_tricks.sliding_window_view(words, length)[starts]
        known = self._layouts.setdefault(length, [])
        for layout in known:
            messages = self._take(layout, messages)
        while messages.size:
            known.append(layout_of(messages[0].tobytes()))
            messages = self._take(known[-1], messages)

    def _take(self, layout: Layout, messages: Words) -> Words:
        """Decode those messages that have this layout and return the others."""
        fits = layout.fits(messages)
        everyone = bool(fits.all())
        mine = messages if everyone else messages[fits]
        if layout.record is None:
            self.ignored += len(mine)
        else:
            write_entries(layout.record, mine, self._claim(len(mine)))
        return messages[:0] if everyone else messages[~fits]

    def _claim(self, count: int) -> np.ndarray[Any, Any]:
        """The next `count` zeroed rows; the table grows by half where it is full."""
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


def _tuple_leaves(kind: int, way: str) -> dict[Path, tuple[str, str]]:
    """What one tuple (CTA_TUPLE_ORIG or CTA_TUPLE_REPLY) may hold: path to column and format."""
    leaves = {
        (kind, 1, 1): (f"{way}_src", "4u1"),
        (kind, 1, 2): (f"{way}_dst", "4u1"),
        (kind, 1, 3): (f"{way}_src", "16u1"),
        (kind, 1, 4): (f"{way}_dst", "16u1"),
        (kind, 2, 1): (f"{way}_l4_proto", "u1"),
        (kind, 2, 2): (f"{way}_sport", ">u2"),
        (kind, 2, 3): (f"{way}_dport", ">u2"),
        (kind, 3): (f"{way}_zone", ">u2"),
    }
    for number in (4, 7):  # CTA_PROTO_ICMP_ID, CTA_PROTO_ICMPV6_ID; type and code follow each
        leaves[(kind, 2, number)] = (f"{way}_sport", ">u2")
        leaves[(kind, 2, number + 1)] = (f"{way}_icmp_type", "u1")
        leaves[(kind, 2, number + 2)] = (f"{way}_icmp_code", "u1")
    return leaves


# linux/netfilter/nfnetlink_conntrack.h: the attributes that are read, by their path from the message down.
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
    """The attributes of a message do not fit into it, or have another size than they must."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where messages of one length and one attribute structure keep their values.

    `mask` has ones where a message must equal `template` bit by bit: its length and family and every
    attribute header down the tree. `record` names the values' places; None for messages that are malformed.
    """

    template: Words
    mask: Words
    record: np.dtype[Any] | None

    def fits(self, messages: Words) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of the messages (rows of words) have exactly this layout."""
        different: Words = messages ^ self.template
        different &= self.mask
        return np.asarray(~different.any(axis=1))


def layout_of(message: bytes) -> Layout:
    """Walk one message's attribute tree once; never raises."""
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
                    "formats": [form for form, _ in fields.values()],
                    "offsets": [offset for _, offset in fields.values()],
                    "itemsize": len(message),
                }
            )
    except _Malformed:
        pass
    return Layout(np.frombuffer(message, np.uint32), np.frombuffer(mask, np.uint32), record)


def _walk(
    message: bytes, at: int, end: int, path: Path, fields: dict[str, tuple[str, int]], mask: bytearray
) -> None:
    """Note where the attributes from `at` to `end` keep their values, and mark their headers in `mask`."""
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        mask[at : at + 4] = b"\xff" * 4
        if length < 4 or at + length > end:
            raise _Malformed
        here = (*path, kind & NLA_TYPE_MASK)
        if here in _NESTS:
            _walk(message, at + 4, at + length, here, fields, mask)
        elif here in _LEAVES:
            name, form = _LEAVES[here]
            if np.dtype(form).itemsize != length - 4:
                raise _Malformed
            fields[name] = (form, at + 4)
        at += length + 3 & ~3


def write_entries(record: np.dtype[Any], messages: Words, rows: np.ndarray[Any, Any]) -> None:
    """Fill zeroed `rows` (CONNTRACK_DTYPE) from messages whose values lie where `record` says."""
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
    for index, way in enumerate(("orig", "reply")):
        if f"{way}_icmp_type" in names and f"{way}_icmp_code" in names:
            rows[f"{way}_dport"] = values[f"{way}_icmp_type"].astype(np.uint16) << 8
            rows[f"{way}_dport"] |= values[f"{way}_icmp_code"]
        for count in ("packets", "bytes"):
            if f"{way}_{count}" in names:
                rows[count][:, index] = values[f"{way}_{count}"]
                rows["counted"] = True


def _write_address(value: np.ndarray[Any, Any], column: np.ndarray[Any, Any]) -> None:
    """Write IPv6 addresses as they are and IPv4 addresses mapped into sixteen bytes."""
    if value.shape[1] == 4:
        column[:, 10:12] = 0xFF
        column[:, 12:16] = value
    else:
        column[:] = value
