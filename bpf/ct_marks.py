"""Conntrack entries of the connections that are forwarded: conntrack made liberal about them, marks cleared
before a generation is used again, and taken away at the end.

Layout: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from bpf.nfnetlink import (
    AF_INET_BOTH,
    APPEND,
    CREATE,
    EXCLUDE,
    Transactions,
    expression,
    header,
    nest,
    string,
    word,
)
from core.netlink.client import NETFILTER, Netlink, attribute, attributes, walk

# The chain of our own that writes into conntrack's marks which packets passed all rules, in which
# generation of them.
#
# It is the last thing that a forwarded packet meets before conntrack confirms its entry, so what gets there
# survived every filter. Its table belongs to our socket (`flags owner`): the kernel removes it when that
# closes, in whatever way, and a `nft flush ruleset` of others passes it over.

TABLE, CHAIN = "vnet_fastpath", "mark"
GENERATIONS = 15
SHIFT = 24

_NEW_TABLE, _NEW_CHAIN, _NEW_RULE, _DEL_RULE = 0, 3, 6, 8
_OWNER = 2  # NFT_TABLE_F_OWNER
_POSTROUTING = 4
PRIORITY = 0x7FFFFFFE  # conntrack confirms at 0x7fffffff
_REGISTER = 1
_CT_STATE, _CT_DIRECTION, _CT_MARK = 0, 1, 3
_LINK_HEADER = 0  # NFT_PAYLOAD_LL_HEADER
_ESTABLISHED = 2  # NF_CT_STATE_BIT(IP_CT_ESTABLISHED)


def field_mask(shift: int = SHIFT) -> int:
    """The bits of the ct mark that are ours."""
    return 0xFF << shift


class MarkChain:
    """The table, for as long as it is open; raises OSError where nftables refuses it."""

    def __init__(self, shift: int = SHIFT) -> None:
        self._shift = shift
        self._transactions = Transactions()
        self._made = False

    @property
    def port(self) -> int:
        """What tells our own transactions from others'."""
        return self._transactions.port

    def write(self, generation: int) -> None:
        """From now on, what passes carries `generation`: one transaction."""
        requests = [(_DEL_RULE, 0, _where())] if self._made else self._table()
        requests += [(_NEW_RULE, CREATE | APPEND, self._rule(way, generation)) for way in (0, 1)]
        self._transactions.commit(requests)
        self._made = True

    def close(self) -> None:
        """The table is gone afterwards."""
        self._transactions.close()

    def _table(self) -> list[tuple[int, int, bytes]]:
        table = header(AF_INET_BOTH) + attribute(1, string(TABLE)) + attribute(2, word(_OWNER))
        hook = nest(4, attribute(1, word(_POSTROUTING)), attribute(2, word(PRIORITY)))
        chain = attribute(1, string(TABLE)) + attribute(3, string(CHAIN)) + hook
        chain += attribute(5, word(1)) + attribute(7, string("filter"))
        return [
            (_NEW_TABLE, CREATE | EXCLUDE, table),
            (_NEW_CHAIN, CREATE, header(AF_INET_BOTH) + chain),
        ]

    def _rule(self, way: int, generation: int) -> bytes:
        """ct direction WAY ct state established ct mark set ct mark & ~bits | generation in those bits, of
        packets with an Ethernet header.

        What is forwarded is established, so that is what has to pass the rules: they may let through the
        packet that opens a connection, or an ICMP error about it, and not what follows. What the host itself
        sends in a container's name, such as a RST, has no header yet (loading a byte of it ends the rule): it
        has not passed the rules that forwarded packets pass."""
        shift, established = self._shift + 4 * way, attribute(1, _native(_ESTABLISHED))
        keep, new = 0xFFFFFFFF & ~(15 << shift), generation << shift
        register, way_is = word(_REGISTER), attribute(1, bytes([way]))
        return _where() + nest(
            4,
            expression(
                "payload", attribute(1, register), attribute(2, word(_LINK_HEADER)), attribute(3, word(0)),
                attribute(4, word(1)),
            ),
            expression("ct", attribute(1, register), attribute(2, word(_CT_DIRECTION))),
            expression("cmp", attribute(1, register), attribute(2, word(0)), nest(3, way_is)),
            expression("ct", attribute(1, register), attribute(2, word(_CT_STATE))),
            expression("cmp", attribute(1, register), attribute(2, word(0)), nest(3, established)),
            expression("ct", attribute(1, register), attribute(2, word(_CT_MARK))),
            expression(
                "bitwise", attribute(1, register), attribute(2, register), attribute(3, word(4)),
                nest(4, attribute(1, _native(keep))), nest(5, attribute(1, _native(new))),
            ),
            expression("ct", attribute(2, word(_CT_MARK)), attribute(4, register)),
        )  # fmt: skip


def _native(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def _where() -> bytes:
    return header(AF_INET_BOTH) + attribute(1, string(TABLE)) + attribute(2, string(CHAIN))


_NEW, _GET = 0x100, 0x101
_TUPLE, _PROTOINFO, _MARK, _ZONE, _MARK_MASK = 1, 4, 8, 18, 21
_BE_LIBERAL, _DATA_UNACKNOWLEDGED = 0x08, 0x10  # IP_CT_TCP_FLAG_*


def clear_generation(generation: int, shift: int) -> int:
    """Take one generation's marks off every entry that still has them; how many requests that took."""
    done = 0
    with Netlink(NETFILTER) as kernel:
        for at in (shift, shift + 4):
            found = list(_marked(kernel, 15 << at, generation << at))
            done += _send(kernel, (_cleared(entry, 15 << at) for entry in found))
    return done


def hand_back(mask: int) -> int:
    """Take all our marks away; how many entries that were."""
    with Netlink(NETFILTER) as kernel:
        found = list(_marked(kernel, mask))
        return _send(kernel, (_cleared(entry, mask) for entry in found))


def let_be_liberal(rows: Sequence[np.void] | np.ndarray) -> int:
    """Have conntrack be liberal about these TCP connections (rows of layout.WANT), in both directions, and
    wait for no acknowledgement: it will not see the middle of them, and would take what comes after for
    invalid. Others of the namespace keep their check of the window. How many requests that took."""
    if not len(rows):
        return 0
    flags = bytes([_BE_LIBERAL, _BE_LIBERAL | _DATA_UNACKNOWLEDGED])  # values, and which bits they are for
    liberal = nest(_PROTOINFO, nest(1, attribute(4, flags), attribute(5, flags)))
    with Netlink(NETFILTER) as kernel:
        return _send(kernel, (header(int(row["family"])) + tuple_of(row) + liberal for row in rows))


def clear_marks(rows: Sequence[np.void] | np.ndarray, mask: int) -> int:
    """Take our marks off the entries of these connections (rows of layout.WANT), so that they pass the rules
    once more. How many requests that took."""
    if not len(rows):
        return 0
    with Netlink(NETFILTER) as kernel:
        return _send(kernel, (header(int(row["family"])) + tuple_of(row) + _no_mark(mask) for row in rows))


def tuple_of(row: np.void) -> bytes:
    """CTA_TUPLE_ORIG of a connection by the tuple of either direction, in a row of layout.WANT: conntrack
    finds it by both."""
    is_ipv4 = row["family"] == socket.AF_INET
    first, size = (1, 4) if is_ipv4 else (3, 16)
    addresses = (attribute(first + at, row[name].tobytes()[:size]) for at, name in enumerate(("src", "dst")))
    ports = (attribute(2 + at, struct.pack(">H", row[name])) for at, name in enumerate(("sport", "dport")))
    proto = attribute(1, bytes([row["l4_proto"]]))
    return nest(_TUPLE, nest(1, *addresses), nest(2, proto, *ports))


def count_marked(mask: int) -> int:
    """How many entries carry a mark of ours."""
    with Netlink(NETFILTER) as kernel:
        return sum(1 for _ in _marked(kernel, mask))


Entry = tuple[int, dict[int, bytes]]


def _marked(kernel: Netlink, mask: int, value: int | None = None) -> Iterator[Entry]:
    """Entries by family and attributes: those whose mark under `mask` is `value` (None: any but 0)."""
    body = header(0)
    if value is not None:
        body += attribute(_MARK, struct.pack(">I", value)) + attribute(_MARK_MASK, struct.pack(">I", mask))
    for datagram in kernel.dump_raw(_GET, body):
        for _, _, _, payload in walk(datagram):
            found = attributes(payload, 4)
            mark = int.from_bytes(found.get(_MARK, b"\0"), "big") & mask
            if mark == value if value is not None else mark:
                yield payload[0], found


def _cleared(entry: Entry, mask: int) -> bytes:
    """The request that changes the entry, whose timer goes on meanwhile."""
    family, found = entry
    body = header(family) + attribute(_TUPLE | 0x8000, found[_TUPLE])
    if _ZONE in found:
        body += attribute(_ZONE, found[_ZONE])
    return body + _no_mark(mask)


def _no_mark(mask: int) -> bytes:
    return attribute(_MARK, bytes(4)) + attribute(_MARK_MASK, struct.pack(">I", mask))


def _send(kernel: Netlink, requests: Iterable[bytes]) -> int:
    """Entries that are gone meanwhile are refused, which is as good."""
    return len(kernel.batch([(_NEW, body) for body in requests]))
