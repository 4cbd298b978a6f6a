"""Decodes ctnetlink dumps into columns by the thousand: messages of equal layout share one walk."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from core.collect.conntrack_layout import Layout, Words, layout_of, write_entries
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
