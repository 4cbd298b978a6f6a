"""Check the decoding of ctnetlink messages: mixed layouts, malformed messages."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.collect.conntrack_decode import Decoder
from tests.support.bulk_conntrack import attribute, message, nest

NLM_F_MULTI, NLM_F_DUMP_INTR = 0x2, 0x10
MAPPED = bytes(10) + b"\xff\xff"


@dataclass(frozen=True)
class Sample:
    """An expected entry; None for attributes that the message lacks."""

    id: int
    src: bytes = bytes([10, 0, 0, 1])
    dst: bytes = bytes([192, 0, 2, 9])
    seen_as: bytes = bytes([10, 0, 0, 1])
    l4_proto: int = 17
    sport: int = 1000
    dport: int = 53
    status: int = 0xE
    timeout: int | None = 30
    tcp_state: int | None = None
    mark: int | None = None
    zone: int | None = None
    tuple_zone: int | None = None
    counters: tuple[int, int, int, int] | None = None
    start: int | None = None
    labels: bytes | None = None
    secctx: bytes | None = None
    helper: bytes | None = None

    @property
    def is_ipv6(self) -> bool:
        return len(self.src) == 16

    def encoded(self, flags: int = NLM_F_MULTI) -> bytes:
        """Encode the message like a dump of the kernel, with its order of attributes."""
        body = self._tuple(1, self.src, self.dst, self.sport, self.dport, 8, 128)
        body += self._tuple(2, self.dst, self.seen_as, self.dport, self.sport, 0, 129)
        body += optional(18, "!H", self.zone) + attribute(3, struct.pack("!I", self.status))
        body += optional(7, "!I", self.timeout)
        if self.counters is not None:
            for kind, pair in ((9, self.counters[:2]), (10, self.counters[2:])):
                body += nest(kind, *(attribute(i + 1, struct.pack("!Q", n)) for i, n in enumerate(pair)))
        if self.start is not None:
            body += nest(20, attribute(1, struct.pack("!Q", self.start)))
        if self.tcp_state is not None:
            body += nest(4, nest(1, attribute(1, bytes([self.tcp_state])), attribute(4, b"\x23\x00")))
        body += nest(5, attribute(1, self.helper)) if self.helper is not None else b""
        body += optional(8, "!I", self.mark)
        body += nest(19, attribute(1, self.secctx)) if self.secctx is not None else b""
        body += attribute(22, self.labels) if self.labels is not None else b""
        body += attribute(12, struct.pack("!I", self.id)) + attribute(11, struct.pack("!I", 1))
        return message(0x100, flags, body, 10 if self.is_ipv6 else 2)

    def _tuple(
        self, kind: int, src: bytes, dst: bytes, sport: int, dport: int, icmp: int, icmpv6: int
    ) -> bytes:
        first = 3 if self.is_ipv6 else 1
        proto = attribute(1, bytes([self.l4_proto]))
        if self.l4_proto in (6, 17, 132, 47):
            proto += attribute(2, struct.pack("!H", sport)) + attribute(3, struct.pack("!H", dport))
        elif self.l4_proto in (1, 58):
            number, icmp_type = (4, icmp) if self.l4_proto == 1 else (7, icmpv6)
            proto += attribute(number, struct.pack("!H", self.sport))
            proto += attribute(number + 1, bytes([icmp_type])) + attribute(number + 2, bytes([3]))
        parts = [nest(1, attribute(first, src), attribute(first + 1, dst)), nest(2, proto)]
        if self.tuple_zone is not None and kind == 1:
            parts.append(attribute(3, struct.pack("!H", self.tuple_zone)))
        return nest(kind, *parts)

    def expected(self) -> dict[str, Any]:
        """Return the expected row."""
        sport, dport = (self.sport, self.dport) if self.l4_proto in (6, 17, 132, 47) else (0, 0)
        ports = (sport, dport, dport, sport)
        if self.l4_proto == 1:
            ports = (self.sport, 8 << 8 | 3, self.sport, 0 << 8 | 3)
        elif self.l4_proto == 58:
            ports = (self.sport, 128 << 8 | 3, self.sport, 129 << 8 | 3)
        counters = self.counters or (0, 0, 0, 0)
        return {
            "id": self.id, "status": self.status, "timeout": self.timeout or 0, "mark": self.mark or 0,
            "zone": self.zone if self.zone is not None else self.tuple_zone or 0,
            "family": 6 if self.is_ipv6 else 4, "l4_proto": self.l4_proto, "tcp_state": self.tcp_state or 0,
            "counted": self.counters is not None,
            "orig_src": wide(self.src), "orig_dst": wide(self.dst),
            "reply_src": wide(self.dst), "reply_dst": wide(self.seen_as),
            "orig_sport": ports[0], "orig_dport": ports[1], "reply_sport": ports[2], "reply_dport": ports[3],
            "packets": [counters[0], counters[2]], "bytes": [counters[1], counters[3]],
            "start": self.start or 0,
        }  # fmt: skip


def wide(address: bytes) -> list[int]:
    return list(address if len(address) == 16 else MAPPED + address)


def optional(kind: int, form: str, value: int | None) -> bytes:
    return b"" if value is None else attribute(kind, struct.pack(form, value))


def decode(*chunks: bytes) -> Decoder:
    decoder = Decoder()
    for chunk in chunks:
        decoder.feed(chunk)
    return decoder


def plain(row: np.void) -> dict[str, Any]:
    return {name: row[name].tolist() for name in row.dtype.names or ()}


def by_id(decoder: Decoder) -> dict[int, dict[str, Any]]:
    return {row["id"]: row for row in map(plain, decoder.entries)}


def assert_decoded(decoder: Decoder, samples: list[Sample]) -> None:
    assert decoder.ignored == 0
    assert len(decoder.entries) == len(samples)
    assert by_id(decoder) == {sample.id: sample.expected() for sample in samples}


IPV6 = {"src": b"\xfd" + bytes(14) + b"\x02", "dst": b"\x20\x01" + bytes(13) + b"\x09",
        "seen_as": b"\x20\x01" + bytes(13) + b"\x01"}  # fmt: skip

EVERY_KIND = [
    Sample(1),
    Sample(2, seen_as=bytes([192, 0, 2, 1]), counters=(1, 60, 2, 2**40), start=1795478206808208283),
    Sample(3, l4_proto=6, tcp_state=3, mark=7, timeout=432000),
    Sample(4, l4_proto=1, sport=77),
    Sample(5, l4_proto=58, sport=78, **IPV6),
    Sample(6, l4_proto=6, tcp_state=7, **IPV6),
    Sample(7, l4_proto=132, zone=3),
    Sample(8, l4_proto=47, sport=0, dport=5),
    Sample(9, l4_proto=89, tuple_zone=5),
    Sample(10, helper=b"ftp\0", l4_proto=6, tcp_state=3),
    Sample(11, labels=bytes(16), secctx=b"system_u:object_r:t\0"),
    Sample(12, timeout=None),
    Sample(13, l4_proto=33),
]


def test_every_kind_of_entry() -> None:
    assert_decoded(decode(b"".join(sample.encoded() for sample in EVERY_KIND)), EVERY_KIND)


def test_equal_length_with_different_layout() -> None:
    """A mark and a timeout have the same size: only the headers differ."""
    marked = [Sample(n, mark=n, timeout=None) for n in range(10, 20)]
    timed = [Sample(n, timeout=n) for n in range(30, 40)]
    assert len(marked[0].encoded()) == len(timed[0].encoded())
    mixed = [one for pair in zip(marked, timed, strict=True) for one in pair]
    assert_decoded(decode(b"".join(sample.encoded() for sample in mixed)), mixed)


def test_values_that_resemble_headers() -> None:
    """A value equal to the word that marks entries must not be taken for an entry."""
    signature = int.from_bytes(struct.pack("=HH", 0x100, NLM_F_MULTI))
    samples = [Sample(n, mark=signature, counters=(signature, 1, 2, signature << 32)) for n in range(5)]
    assert_decoded(decode(b"".join(sample.encoded() for sample in samples)), samples)


def test_entries_of_an_interrupted_dump() -> None:
    samples = [Sample(n) for n in range(3)]
    assert_decoded(decode(b"".join(s.encoded(NLM_F_MULTI | NLM_F_DUMP_INTR) for s in samples)), samples)


def test_messages_of_other_types_are_skipped() -> None:
    samples = [Sample(1), Sample(2)]
    noop = struct.pack("=IHHII", 16, 1, 0, 0, 0)
    assert_decoded(decode(samples[0].encoded() + noop + samples[1].encoded()), samples)


def test_no_entries() -> None:
    assert_decoded(decode(b""), [])


def test_a_cut_message_is_ignored_and_counted() -> None:
    whole = Sample(1).encoded()
    for cut in range(4, len(whole), 4):
        decoder = decode(whole + whole[:cut])
        assert (len(decoder.entries), decoder.ignored) == (1, 1)


def test_attributes_beyond_the_message_are_ignored_and_counted() -> None:
    broken = bytearray(Sample(1).encoded())
    broken[20:22] = struct.pack("=H", 5000)
    decoder = decode(bytes(broken) * 3 + Sample(2).encoded())
    assert decoder.ignored == 3
    assert decoder.entries["id"].tolist() == [2]


@pytest.mark.parametrize("kind", [1, 2, 12])
def test_an_entry_needs_tuples_and_id(kind: int) -> None:
    """An entry without a tuple or the id is ignored."""
    body = Sample(1).encoded()[20:]
    kept, at = b"", 0
    while at < len(body):
        length, found = struct.unpack_from("=HH", body, at)
        if found & 0x3FFF != kind:
            kept += body[at : at + (length + 3 & ~3)]
        at += length + 3 & ~3
    decoder = decode(message(0x100, NLM_F_MULTI, kept))
    assert (len(decoder.entries), decoder.ignored) == (0, 1)


def test_a_value_of_a_wrong_size_is_not_read() -> None:
    body = Sample(1, timeout=None).encoded()[20:] + attribute(7, b"\x01")
    decoder = decode(message(0x100, NLM_F_MULTI, body))
    assert (len(decoder.entries), decoder.ignored) == (0, 1)


def test_entries_are_read_only() -> None:
    entries = decode(Sample(1).encoded()).entries
    with pytest.raises(ValueError, match="read-only"):
        entries["mark"] = 1


def test_table_grows() -> None:
    samples = [Sample(n) for n in range(1, 500)]
    assert_decoded(decode(*(sample.encoded() for sample in samples)), samples)


u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))


@st.composite
def sample_lists(draw: st.DrawFn) -> list[Sample]:
    ids = draw(st.lists(u32, min_size=1, max_size=40, unique=True))
    return [draw(samples(number)) for number in ids]


@st.composite
def samples(draw: st.DrawFn, number: int) -> Sample:
    length = draw(st.sampled_from((4, 16)))
    address = st.binary(min_size=length, max_size=length)
    l4_proto = draw(st.sampled_from((6, 17, 132, 47, 89, 33, 58 if length == 16 else 1)))
    return Sample(
        number, draw(address), draw(address), draw(address), l4_proto, draw(u16), draw(u16), draw(u32),
        timeout=draw(st.none() | u32), tcp_state=draw(u8) if l4_proto == 6 else None,
        mark=draw(st.none() | u32), zone=draw(st.none() | u16), tuple_zone=draw(st.none() | u16),
        counters=draw(st.none() | st.tuples(u64, u64, u64, u64)), start=draw(st.none() | u64),
        labels=draw(st.none() | st.just(bytes(16))), secctx=draw(st.none() | st.binary(max_size=9)),
        helper=draw(st.none() | st.just(b"ftp\0")),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(sample_lists(), st.integers(1, 8))
def test_any_mixture_in_any_chunks(wanted: list[Sample], size: int) -> None:
    parts = [wanted[at : at + size] for at in range(0, len(wanted), size)]
    assert_decoded(decode(*(b"".join(one.encoded() for one in part) for part in parts)), wanted)


@settings(max_examples=100, deadline=None)
@given(sample_lists(), st.data())
def test_garbage_never_raises(wanted: list[Sample], data: st.DataObject) -> None:
    chunk = bytearray(b"".join(sample.encoded() for sample in wanted))
    for _ in range(data.draw(st.integers(1, 5))):
        chunk[data.draw(st.integers(0, len(chunk) - 1))] = data.draw(u8)
    decoder = decode(bytes(chunk[: data.draw(st.integers(0, len(chunk)))]))
    assert set(decoder.entries["family"].tolist()) <= {4, 6}
