"""Unpacks files from outside piece by piece, so that none of them takes more memory than a real one would."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

# A conntrack entry takes about 220 bytes and 18 numbers, a link 1,000 bytes, 60 numbers and 16 brackets; a
# real dump unpacks to at most 35 times its size.
MAX_BYTES = 1 << 29
MAX_VALUES = 1 << 25
MAX_BRACKETS = 1 << 20  # lists and objects: an empty one takes as much memory as ten numbers
_SLACK, _RATIO = 1 << 25, 50
MAX_FILES = 1 << 14  # in an archive
_GZIP_MAGIC = b"\x1f\x8b"
_PIECE = 1 << 18
_BLOCK = 512


class Unfit(Exception):
    """A file cannot be unpacked: what is wrong with it, and where ("" for the whole)."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(what)
        self.what, self.where = what, where


class TooLarge(Unfit):
    """It would take more room than any real file does."""


def most_bytes(packed: int, slack: int = _SLACK) -> int:
    """How many bytes so many packed ones may become."""
    return min(MAX_BYTES, slack + _RATIO * packed)


class Counted:
    """Counts what the pieces of a JSON text would become; raises TooLarge as soon as that is too much."""

    def __init__(self, most_values: int = MAX_VALUES) -> None:
        self._values, self._brackets, self._most_values = 0, 0, most_values

    def add(self, piece: bytes | bytearray) -> None:
        """Take in the next piece."""
        self._values += piece.count(b",") + piece.count(b":")
        self._brackets += piece.count(b"[") + piece.count(b"{")
        if self._values > self._most_values or self._brackets > MAX_BRACKETS:
            raise TooLarge("it holds too many values")


class Unpacked:
    """What a file holds, gzip-compressed or not, read from the start on. Raises Unfit."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0
        self._stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if data[:2] == _GZIP_MAGIC else None
        self._left = most_bytes(len(data))
        self._held = b""
        self.position = 0  # of what is read next

    def start(self, size: int) -> bytes:
        """The first bytes, which are read again afterwards; for the beginning only."""
        self._held, self.position = self.read(size), 0
        return self._held

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end."""
        pieces, wanted = [self._held[:size]], size - len(self._held)
        self._held = self._held[size:]
        while wanted > 0 and (piece := self._next(min(wanted, _PIECE))):
            pieces.append(piece)
            wanted -= len(piece)
        whole = b"".join(pieces)
        self.position += len(whole)
        return whole

    def pieces(self, size: int = MAX_BYTES) -> Iterator[bytes]:
        """The next `size` bytes, piece by piece."""
        while size > 0 and (piece := self.read(min(size, _PIECE))):
            yield piece
            size -= len(piece)

    def end(self) -> None:
        """Read to the end, and see that it is whole."""
        for _ in self.pieces():
            pass
        if self._stream and not self._stream.eof:
            raise Unfit("the dump ends too early")
        if self._stream and (self._stream.unused_data or self._at < len(self._data)):
            raise Unfit("something follows the end of the dump")

    def _next(self, size: int) -> bytes:
        piece = self._plain(size) if self._stream is None else self._inflated(self._stream, size)
        self._left -= len(piece)
        if self._left < 0:
            raise TooLarge("it unpacks to too much")
        return piece

    def _plain(self, size: int) -> bytes:
        piece = bytes(self._data[self._at : self._at + size])
        self._at += len(piece)
        return piece

    def _inflated(self, stream: zlib._Decompress, size: int) -> bytes:
        piece = b""
        while not piece and not stream.eof and (stream.unconsumed_tail or self._at < len(self._data)):
            given: bytes | memoryview = stream.unconsumed_tail
            if not given:
                given = self._data[self._at : self._at + _PIECE]
                self._at += len(given)
            try:
                piece = stream.decompress(given, size)
            except zlib.error:
                raise Unfit("the dump is damaged: it does not unpack") from None
        return piece


def json_text(source: Unpacked, size: int = MAX_BYTES) -> bytearray:
    """The JSON that the next `size` bytes are; raises TooLarge before it takes much memory."""
    text, counted = bytearray(), Counted()
    for piece in source.pieces(size):
        counted.add(piece)
        text += piece
    return text


def archived(source: Unpacked) -> Iterator[tuple[bytes, int]]:
    """Name and size of each file in a tar archive (tar(5), "ustar"), whose content may be read from `source`
    meanwhile: whole or not at all."""
    at = 0
    for _ in range(MAX_FILES):
        head = source.read(_BLOCK)
        name, digits = head[:100].rstrip(b"\0"), head[124:136].strip(b" \0")
        if len(head) < _BLOCK or (not name and not digits):
            return
        if not digits or digits.strip(b"01234567"):
            raise Unfit("the archive is damaged", f"byte {at}")
        size = int(digits, 8)
        padded = -(-size // _BLOCK) * _BLOCK
        is_file = head[156:157] in (b"0", b"\0")
        before = source.position
        yield (name.split(b"/")[-1] if is_file else b""), size
        for _ in source.pieces(padded - (source.position - before)):
            pass
        at += _BLOCK + padded
    raise TooLarge("the archive holds too many files")
