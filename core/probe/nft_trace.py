"""Trace a probe through the nftables rules of one namespace (`nft monitor trace`).

A table of our own marks the probe's packets for tracing, before all other chains. It belongs to the socket
(`flags owner`), so the kernel removes it when this process ends, however that happens, and `nft flush
ruleset` skips it. It changes no packet and no verdict. Layouts: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal, Self

from core.collect.nft_netlink import FAMILIES, GET_RULE, number
from core.model.probe import PacketTuple, Role, TraceStep
from core.netlink.client import (
    NETFILTER,
    Netlink,
    attribute,
    attributes,
    listener,
    pending_events,
    text,
    walk,
)
from core.netlink.nfnetlink import (
    APPEND,
    CREATE,
    EXCLUDE,
    NFTABLES,
    Transactions,
    expression,
    header,
    nest,
    string,
    word,
)
from core.probe.packets import ICMP_ERROR_SIZE, TCP, UDP, Marker, decode_packet
from core.text import TRACE_TABLE

_NEW_TABLE, _NEW_CHAIN, _NEW_RULE, _TRACE = 0, 3, 6, NFTABLES | 17
_OWNER = 2  # NFT_TABLE_F_OWNER
_TRACE_GROUP, _TRACE_BUFFER = 9, 1 << 20  # NFNLGRP_NFTRACE
_INET, _BRIDGE = 1, 7  # NFPROTO_*
# Before all other chains: raw is at -300, defragmentation at -400.
_PRIORITY = -1000
_HOOKS = {"prerouting": 0, "output": 3}
_REGISTER = 1
_META_NFTRACE, _META_L4PROTO, _TRANSPORT = 12, 16, 2
_NOT_EQUAL = 1
_TCP_FLAGS, _SYN_OR_RST = 13, 0x06
_NAME, _CHAIN, _HANDLE, _KIND, _VERDICT, _ID, _NETWORK, _TRANSPORT_HEADER = 1, 2, 3, 4, 5, 6, 8, 9
_IIF, _OIF, _POLICY = 10, 12, 16
_KINDS: dict[int, Literal["rule", "policy", "return"]] = {1: "policy", 2: "return", 3: "rule"}
_VERDICTS = {
    0: "drop", 1: "accept", 2: "stolen", 3: "queue", 4: "repeat", -1: "continue", -2: "continue", -3: "jump",
    -4: "goto", -5: "return",
}  # fmt: skip
_QUEUE_BITS = 0xFFFFFF00  # the number of a queue is in the upper 16 bits
_NUMBERS = {name: value for value, name in FAMILIES.items()}
_numbers = count(1)


@dataclass(slots=True)
class _Seen:
    """A packet of the trace: its role, once a header was seen."""

    role: Role | None = None


class NftTrace:
    """Trace a probe in the calling thread's namespace, whose inode is `ns`.

    Use it as a context manager. Raises OSError if the kernel refuses the table, PermissionError without
    CAP_NET_ADMIN."""

    def __init__(self, ns: int, marker: Marker, with_bridge: bool) -> None:
        self._ns, self._marker = ns, marker
        self._steps: list[TraceStep] = []
        self._roles: list[_Seen] = []
        self._seen: dict[int, _Seen] = {}
        self._requests: set[PacketTuple] = set()
        self.lost = False
        with ExitStack() as stack:
            self._events = stack.enter_context(listener(NETFILTER, (_TRACE_GROUP,), _TRACE_BUFFER))
            self._kernel = stack.enter_context(Netlink(NETFILTER))
            transactions = Transactions()
            stack.callback(transactions.close)
            name = f"{TRACE_TABLE}{os.getpid()}-{next(_numbers)}"
            for family in (_INET, *([_BRIDGE] if with_bridge else [])):
                transactions.commit(list(_table(family, name, marker)))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are steps."""
        return self._events.fileno()

    def read_events(self, keep: bool = True) -> None:
        """Read the steps that have arrived, or drop them; never waits."""
        for data in pending_events(self._events):
            if data is None:
                self.lost = True
                continue
            for kind, _, _, payload in walk(data):
                if kind == _TRACE and keep:
                    self._add(payload[0], attributes(payload, 4))

    @property
    def has_drop(self) -> bool:
        """Whether a packet of the probe was dropped."""
        pairs = zip(self._steps, self._roles, strict=True)
        return any(step.verdict == "drop" and seen.role for step, seen in pairs)

    def steps(self) -> tuple[TraceStep, ...]:
        """Return the steps of the probe's packets so far, with the rules' positions."""
        pairs = zip(self._steps, self._roles, strict=True)
        found = [replace(step, role=seen.role) for step, seen in pairs if seen.role]
        chains = {(step.family, step.table, step.chain) for step in found if step.handle}
        places = {chain: self._positions(*chain) for chain in chains}
        return tuple(
            replace(step, position=places.get((step.family, step.table, step.chain), {}).get(step.handle, 0))
            for step in found
        )

    def _add(self, family: int, found: dict[int, bytes]) -> None:
        """Add the step of one message; the first of each base chain has headers."""
        seen = self._seen.setdefault(number(found.get(_ID, b"")), _Seen())
        headers = found.get(_NETWORK, b"") + found.get(_TRANSPORT_HEADER, b"")
        if packet := decode_packet(headers):
            seen.role = self._marker.role_of(packet, self._requests) or seen.role
            if seen.role == "request":
                self._requests.add(packet.addresses)
        if not text(found.get(_NAME, b"")).startswith(TRACE_TABLE):
            self._steps.append(_step(self._ns, family, found))
            self._roles.append(seen)

    def _positions(self, family: str, table: str, chain: str) -> dict[int, int]:
        """Return the positions of a chain's rules by handle."""
        body = header(_NUMBERS.get(family, 0)) + attribute(1, string(table)) + attribute(2, string(chain))
        try:
            messages = self._kernel.dump(GET_RULE, body)
        except OSError:
            return {}
        handles = (number(attributes(message.payload, 4).get(3, b"")) for message in messages)
        return {handle: place for place, handle in enumerate(handles, 1)}


def _step(ns: int, family: int, found: dict[int, bytes]) -> TraceStep:
    verdict = attributes(found.get(_VERDICT, b""))
    kind = _KINDS.get(number(found.get(_KIND, b"")), "rule")
    if kind == "rule" and _HANDLE not in found:
        kind = "return"  # the end of a chain
    code = int.from_bytes(verdict.get(1, b""), signed=True)
    if kind == "policy":
        code = number(found.get(_POLICY, b""))
    return TraceStep(
        ns, "request", FAMILIES.get(family, str(family)), text(found.get(_NAME, b"")),
        text(found.get(_CHAIN, b"")), kind, _VERDICTS.get(code & ~_QUEUE_BITS if code > 0 else code, "queue"),
        handle=number(found.get(_HANDLE, b"")), target=text(verdict.get(2, b"")),
        iif=number(found.get(_IIF, b"")), oif=number(found.get(_OIF, b"")),
    )  # fmt: skip


def _table(family: int, name: str, marker: Marker) -> Iterator[tuple[int, int, bytes]]:
    """Yield the requests that create the table: two chains with equal rules."""
    table = attribute(1, string(name))
    yield _NEW_TABLE, CREATE | EXCLUDE, header(family) + table + attribute(2, word(_OWNER))
    for chain, number_ in _HOOKS.items():
        hook = nest(4, attribute(1, word(number_)), attribute(2, struct.pack(">i", _PRIORITY)))
        named = table + attribute(3, string(chain)) + hook + attribute(5, word(1))
        yield _NEW_CHAIN, CREATE, header(family) + named + attribute(7, string("filter"))
        for match in _matches(marker):
            rule = table + attribute(2, string(chain)) + nest(4, *match, *_SET_TRACE)
            yield _NEW_RULE, CREATE | APPEND, header(family) + rule


def _matches(marker: Marker) -> Iterator[list[bytes]]:
    """Yield the matches for the request, the answer, and ICMP errors about it."""
    at, mark = marker.mark_offset, marker.mark
    is_protocol = _protocol(marker.proto)
    yield [*is_protocol, *_compare(at, mark)]
    if marker.proto == TCP:
        yield [*is_protocol, *_compare(8, marker.acknowledgement), *_SYN_OR_RST_SET]
    if marker.proto == UDP:
        ports = marker.addresses.sport.to_bytes(2)
        yield [*is_protocol, *_compare(2, ports)]
    quoted = ICMP_ERROR_SIZE + (20 if marker.family == 4 else 40)
    yield [*_protocol(marker.icmp), *_compare(quoted + at, mark)]


def _protocol(proto: int) -> tuple[bytes, bytes]:
    load = expression("meta", attribute(1, word(_REGISTER)), attribute(2, word(_META_L4PROTO)))
    return load, _equals(bytes([proto]))


def _compare(offset: int, value: bytes) -> tuple[bytes, bytes]:
    return _load(offset, len(value)), _equals(value)


def _load(offset: int, length: int) -> bytes:
    numbers = (_REGISTER, _TRANSPORT, offset, length)
    return expression("payload", *(attribute(kind, word(value)) for kind, value in enumerate(numbers, 1)))


def _equals(value: bytes, operator: int = 0) -> bytes:
    data = nest(3, attribute(1, value))
    return expression("cmp", attribute(1, word(_REGISTER)), attribute(2, word(operator)), data)


_SYN_OR_RST_SET = (
    _load(_TCP_FLAGS, 1),
    expression(
        "bitwise", attribute(1, word(_REGISTER)), attribute(2, word(_REGISTER)), attribute(3, word(1)),
        nest(4, attribute(1, bytes([_SYN_OR_RST]))), nest(5, attribute(1, bytes(1))),
    ),
    _equals(bytes(1), _NOT_EQUAL),
)  # fmt: skip
_SET_TRACE = (
    expression("immediate", attribute(1, word(_REGISTER)), nest(2, attribute(1, b"\1"))),
    expression("meta", attribute(2, word(_META_NFTRACE)), attribute(3, word(_REGISTER))),
)
