"""Check the netlink client with messages, errors, interrupted dumps and garbage."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.netlink.client import (
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    Netlink,
    attribute,
    attribute_list,
    attributes,
    message,
    text,
    walk,
)

INTERRUPTED = NLM_F_DUMP_INTR


class Kernel:
    """A socket that returns given answers, with the request's sequence number."""

    def __init__(self, *answers: list[tuple[int, int, bytes]]) -> None:
        self.answers = iter(answers)
        self.requests = 0
        self._datagrams: Iterator[bytes] = iter(())

    def send(self, data: bytes) -> None:
        self.requests += 1
        sequence = next(walk(data))[2]
        self._datagrams = iter(
            [message(kind, flags, sequence, body) for kind, flags, body in next(self.answers)]
        )

    def recv(self, size: int) -> bytes:
        return next(self._datagrams)


def client(kernel: Kernel) -> Netlink:
    """Create a client with that fake kernel."""
    made: Any = Netlink.__new__(Netlink)
    made._socket = kernel
    return made


def done(code: int = 0) -> tuple[int, int, bytes]:
    return NLMSG_DONE, 2, struct.pack("=i", code)


def error(code: int) -> tuple[int, int, bytes]:
    return NLMSG_ERROR, 0, struct.pack("=i", -code) + bytes(16)


def test_a_dump_collects_until_done() -> None:
    kernel = Kernel([(16, 2, b"one!"), (16, 2, b"two!"), done()])
    assert [m.payload for m in client(kernel).dump(18, b"")] == [b"one!", b"two!"]


def test_an_interrupted_dump_is_repeated() -> None:
    kernel = Kernel([(16, 2 | INTERRUPTED, b"old!"), done()], [(16, 2, b"new!"), done()])
    assert [m.payload for m in client(kernel).dump(18, b"")] == [b"new!"]
    assert kernel.requests == 2


def test_a_table_that_keeps_changing_is_returned() -> None:
    kernel = Kernel(*[[(16, 2, b"%04d" % n), (NLMSG_DONE, 2 | INTERRUPTED, bytes(4))] for n in range(50)])
    assert len(client(kernel).dump(18, b"")) == 1
    assert kernel.requests < 10


@pytest.mark.parametrize("refusal", [error(errno.EPERM), done(-errno.EPERM)])
def test_a_refusal_is_an_oserror(refusal: tuple[int, int, bytes]) -> None:
    with pytest.raises(PermissionError):
        client(Kernel([refusal])).dump(18, b"")
    with pytest.raises(PermissionError):
        list(client(Kernel([refusal])).dump_raw(18, b""))


def test_requests_return_answers_and_errors() -> None:
    assert [m.payload for m in client(Kernel([(16, 0, b"data"), error(0)])).request(18, b"")] == [b"data"]
    with pytest.raises(OSError, match="No such device"):
        client(Kernel([error(errno.ENODEV)])).request(18, b"")


def test_raw_dumps_come_without_their_end() -> None:
    kernel = Kernel([(16, 2, b"one!"), done()])
    (data,) = client(kernel).dump_raw(18, b"")
    assert [payload for *_, payload in walk(data)] == [b"one!"]


def test_attributes_know_their_flags_and_padding() -> None:
    data = attribute(0x8001, b"abc") + attribute(2, b"") + attribute(2, b"x")
    assert attributes(data) == {1: b"abc", 2: b"x"}
    assert attribute_list(data) == [(1, b"abc"), (2, b""), (2, b"x")]


def test_text_keeps_invalid_utf8() -> None:
    assert text(b"a\xff\x1b\0rest") == "a\udcff\x1b"


@given(st.binary(max_size=200))
def test_malformed_messages_are_walked_without_errors(data: bytes) -> None:
    assert len(list(walk(data))) <= len(data)
    assert sum(len(value) for _, value in attribute_list(data)) <= len(data)
    assert attributes(data).keys() == dict(attribute_list(data)).keys()
