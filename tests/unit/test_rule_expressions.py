"""Analyse rules that today's tools don't write."""

from __future__ import annotations

import sys

import pytest

from bpf.expressions import Sets, rule_of
from bpf.rule_analysis import Rule
from core.netlink.client import attribute
from core.netlink.nfnetlink import expression, nest, string, word

_OURS = 0xFF000000


def _native(number: int, size: int = 4) -> bytes:
    return number.to_bytes(size, sys.byteorder)


def _rule(*expressions: bytes, family: str = "inet", sets: Sets | None = None) -> Rule:
    return rule_of((family, "t", "c"), 1, b"".join(expressions), sets or Sets(), _OURS)


def _load(name: str, key: int, register: int = 1) -> bytes:
    return expression(name, attribute(1, word(register)), attribute(2, word(key)))


def _compare(value: bytes, register: int = 1, operation: int = 0) -> bytes:
    return expression(
        "cmp", attribute(1, word(register)), attribute(2, word(operation)), nest(3, attribute(1, value))
    )


def _payload(base: int, offset: int, length: int, register: int = 1) -> bytes:
    numbers = (word(each) for each in (register, base, offset, length))
    return expression("payload", *(attribute(place, each) for place, each in enumerate(numbers, 1)))


def _masked(mask: int, inverted: int = 0, size: int = 4) -> bytes:
    data = nest(4, attribute(1, _native(mask, size))), nest(5, attribute(1, _native(inverted, size)))
    return expression(
        "bitwise", attribute(1, word(1)), attribute(2, word(1)), attribute(3, word(size)), *data
    )


def _lookup(name: str, register: int = 1) -> bytes:
    return expression("lookup", attribute(1, string(name)), attribute(2, word(register)))


def _extension(kind: str, name: str, info: bytes, revision: int = 0) -> bytes:
    return expression(kind, attribute(1, string(name)), attribute(2, word(revision)), attribute(3, info))


_IS_TCP = _load("meta", 16) + _compare(b"\x06")
_FLAGS = _payload(2, 13, 1)


@pytest.mark.parametrize(
    ("inverted", "value", "takes_part"), [(0, 16, True), (0, 2, False), (4, 16, False), (4, 2, True)]
)
def test_tcp_flags_of_the_match_may_be_inverted(inverted: int, value: int, takes_part: bool) -> None:
    info = bytes(8) + bytes((0, 0x17, value, inverted))
    assert _rule(_extension("match", "tcp", info)).can_match == takes_part


def test_inverted_bits_of_tcp_flags_are_not_compared_as_they_are() -> None:
    flags = _FLAGS, _masked(0x18, 0x08, 1)
    assert _rule(_IS_TCP, *flags, _compare(b"\x10")).per_packet
    assert not _rule(_IS_TCP, _FLAGS, _masked(0x17, 0x02, 1), _compare(b"\x12")).per_packet


def test_byte_13_after_the_ports_is_a_flag_only_of_tcp() -> None:
    assert not _rule(_IS_TCP, _FLAGS, _compare(b"\x02")).can_match
    for before in (b"", _load("meta", 16) + _compare(b"\x11"), _load("meta", 16) + _compare(b"\x06", 1, 1)):
        rule = _rule(before, _FLAGS, _compare(b"\x02"))
        assert rule.can_match and "byte 13" in rule.per_packet


def test_two_masks_of_the_ct_mark_count_both() -> None:
    put_back = expression("ct", attribute(2, word(3)), attribute(4, word(1)))
    for masks, uses in (
        ((0xFFFFFF00, 0xFFFFFF0F), False), ((0x00FFFFFF, 0xFFFFFFFE), True), ((0xFFFFFFFE, 0x00FFFFFF), True),
    ):  # fmt: skip
        rule = _rule(_load("ct", 3), *(_masked(mask) for mask in masks), put_back)
        assert rule.marks == uses, masks


def test_a_ct_mark_in_a_register_is_known_when_it_is_used() -> None:
    loads = _load("ct", 3), _payload(1, 12, 4, 9)
    assert not _rule(*loads).marks
    assert _rule(*loads, _lookup("s")).marks
    assert _rule(*loads, _compare(_native(1))).marks
    assert _rule(*loads, expression("hash", attribute(1, word(1)))).marks
    assert _rule(*loads, expression("something new")).marks
    assert not _rule(_load("ct", 3), _masked(0xFF), _payload(1, 12, 4, 9), _lookup("s")).marks


def test_only_the_compared_register_counts() -> None:
    assert not _rule(_load("meta", 16), _compare(b"\x01")).can_match
    assert _rule(_load("meta", 16), _load("meta", 6, 2), _compare(b"\x01")).can_match
    assert _rule(_load("meta", 16), _payload(2, 2, 2), _compare(b"\x01")).can_match
    assert _rule(_load("meta", 16, 9), _load("meta", 6), _compare(b"\x01", 9)).can_match
    assert _rule(_load("meta", 16, 9), _payload(1, 12, 64), _compare(b"\x01", 9)).can_match
    for before in (_load("meta", 16), _load("ct", 0), _load("meta", 6)):
        for name in ("numgen", "hash", "socket", "exthdr", "fib", "something new"):
            rule = _rule(before, _load(name, 1), _compare(bytes(4)))
            assert rule.can_match and not rule.link_in and not rule.always, name
    rule = _rule(_load("meta", 6), _load("meta", 16, 2), _compare(b"br0\0"), _compare(b"\x11", 2))
    assert (rule.link_in, rule.can_match) == ("", True)


def test_unknown_verdict_maps_count_as_verdicts() -> None:
    found = {code: Sets(verdicts={"s": ((b"\1", code, ""),)}) for code in (0, 1, 3, 0x50003, -1, -2, -5)}
    look_up = expression("lookup", attribute(1, string("s")), attribute(2, word(1)), attribute(3, word(0)))
    per_packet = {
        code for code, sets in found.items() if _rule(_payload(2, 2, 2), look_up, sets=sets).per_packet
    }
    assert per_packet == {3, 0x50003}


def _connmark(*numbers: int, mode: int, revision: int, shift: int = 0) -> bytes:
    last = bytes((0, shift, mode)) if revision == 2 else bytes((mode,))
    info = b"".join(map(_native, numbers)) + last + bytes(4 - len(last))
    return _extension("target", "CONNMARK", info, revision)


@pytest.mark.parametrize("revision", [1, 2])
def test_marks_of_connmark_change_outside_their_mask_too(revision: int) -> None:
    every, low = 0xFFFFFFFF, 0xFF
    uses = {
        (1, low, 0, 0): False, (_OURS, low, 0, 0): True, (0, every, 0, 0): True,
        (0, low, low, 1): False, (0, low, every, 1): True, (0, every, low, 1): True,
        (0, low, every, 2): False, (0, every, low, 2): True,
    }  # fmt: skip
    for (*numbers, mode), used in uses.items():
        assert _rule(_connmark(*numbers, mode=mode, revision=revision)).marks == used, (numbers, mode)
    if revision == 2:
        assert _rule(_connmark(0, 0xFF, 0xFF, mode=1, revision=2, shift=24)).marks
