"""The chain of our own that writes into conntrack's marks which packets passed all rules, in which generation
of them.

It is the last thing that a forwarded packet meets before conntrack confirms its entry, so what gets there
survived every filter. Its table belongs to our socket (`flags owner`): the kernel removes it when that
closes, in whatever way, and a `nft flush ruleset` of others passes it over.
"""

from __future__ import annotations

import sys

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
from core.netlink.client import attribute

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
