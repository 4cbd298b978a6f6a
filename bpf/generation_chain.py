"""Write the generation of the rules to conntrack marks, and pause.

The chain `mark` writes into conntrack marks which packets passed all rules, and in which generation. It is
the last chain before conntrack confirms an entry, so a packet that reaches it passed every filter. Its
table belongs to our socket (`flags owner`): the kernel removes it when the socket closes, and `nft flush
ruleset` of other tools skips it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from bpf import hooks, layout
from bpf.connections import (
    GENERATIONS,
    PRIORITY,
    SHIFT,
    TABLE,
    clear_all_marks,
    clear_generation,
    field_mask,
)
from bpf.maps import Maps
from bpf.preconditions import Preconditions, has_ipsec_policies
from bpf.ruleset import legacy_fingerprint
from core.netlink.client import attribute
from core.netlink.nfnetlink import (
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

CHAIN = "mark"
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE, _DEL_RULE = 0, 3, 6, 8
_OWNER = 2  # NFT_TABLE_F_OWNER
_POSTROUTING = 4
_REGISTER = 1
_CT_STATE, _CT_DIRECTION, _CT_MARK = 0, 1, 3
_LINK_HEADER = 0  # NFT_PAYLOAD_LL_HEADER
_ESTABLISHED = 2  # NF_CT_STATE_BIT(IP_CT_ESTABLISHED)
_CLEAR_AHEAD = 8  # generations whose marks are cleared before they are used again


class MarkTable:
    """Own the nftables table with the chain; raises OSError if nftables refuses it."""

    def __init__(self, shift: int = SHIFT) -> None:
        self._shift = shift
        self._transactions = Transactions()
        self._made = False

    @property
    def port(self) -> int:
        """The netlink port by which our own transactions are recognized."""
        return self._transactions.port

    def write(self, generation: int) -> None:
        """Mark packets with `generation` from now on, in one transaction."""
        requests = [(_DEL_RULE, 0, _chain_attributes())] if self._made else self._table()
        requests += [(_NEW_RULE, CREATE | APPEND, self._rule(direction, generation)) for direction in (0, 1)]
        self._transactions.commit(requests)
        self._made = True

    def close(self) -> None:
        """Remove the table."""
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

    def _rule(self, direction: int, generation: int) -> bytes:
        """Build the rule of one direction.

            ct direction DIRECTION ct state established ct mark set ct mark & ~bits | generation

        for packets with an Ethernet header. Forwarded packets are established, so that is what has to pass
        the rules: they may accept the packet that opens a connection, or an ICMP error about it, and drop
        what follows. Packets that the host itself sends in a container's name, such as a RST, have no
        Ethernet header yet (loading a byte of it ends the rule): they don't pass the rules for forwarded
        packets.
        """
        shift, established = self._shift + 4 * direction, attribute(1, _native(_ESTABLISHED))
        keep, new = 0xFFFFFFFF & ~(15 << shift), generation << shift
        register, is_direction = word(_REGISTER), attribute(1, bytes([direction]))
        return _chain_attributes() + nest(
            4,
            expression(
                "payload", attribute(1, register), attribute(2, word(_LINK_HEADER)), attribute(3, word(0)),
                attribute(4, word(1)),
            ),
            expression("ct", attribute(1, register), attribute(2, word(_CT_DIRECTION))),
            expression("cmp", attribute(1, register), attribute(2, word(0)), nest(3, is_direction)),
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


def _chain_attributes() -> bytes:
    return header(AF_INET_BOTH) + attribute(1, string(TABLE)) + attribute(2, string(CHAIN))


class GenerationChain:
    """Begin a generation, and pause; paused at first.

    `reasons` say why it is paused, `preconditions` are those of the rules that were read last. `strict`:
    rules about invalid packets pause it as well.
    """

    def __init__(self, maps: Maps, strict: bool = False) -> None:
        self._maps = maps
        self.strict = strict
        self._table: MarkTable | None = None
        self._generation = 0
        self._used: set[int] = set()
        self.reasons: tuple[str, ...] = ()
        self.preconditions = Preconditions()
        self._silent_state = self._read_silent_state()

    def pause(self) -> None:
        """Stop forwarding."""
        if self._maps.config["generation"]:
            self._maps.config["generation"] = 0
            self._maps.raise_epoch()

    def apply(self, preconditions: Preconditions) -> None:
        """Forward what passes the current rules, unless a precondition is missing."""
        self.preconditions = preconditions
        self.reasons = (*preconditions.reasons, *self._strict_reasons(preconditions))
        self._silent_state = self._read_silent_state()
        self._maps.set_flag(layout.READS_CT_MARKS, preconditions.reads_marks)
        try:
            if preconditions.marks_in_use:
                self._release_marks()
            elif not self.reasons:
                self._begin_next()
        except OSError as error:
            self.reasons = (_write_failed(error),)

    def _strict_reasons(self, preconditions: Preconditions) -> Iterator[str]:
        for rule in preconditions.invalid if self.strict else ():
            yield f"{rule}: matches invalid packets, which the fast path doesn't check for (--strict)"

    def readmit(self) -> None:
        """Let every connection pass the rules once more, without a pause.

        For changes of what rules can match besides the packet: a link's name or group, a route, the port
        of an address.
        """
        if not self._maps.config["generation"]:
            return  # paused: apply() begins a generation
        try:
            self._begin_next()
        except OSError as error:
            self.pause()
            self.reasons = (_write_failed(error),)

    def clear_ahead(self) -> bool:
        """Clear the marks of one coming generation, so that it can begin without a pause.

        Returns whether more remain to be cleared.
        """
        used = [each for each in map(self._following, range(_CLEAR_AHEAD)) if each in self._used]
        if not used:
            return False
        try:
            clear_generation(used[0], SHIFT)
        except OSError:
            return False  # _begin_next() tries again
        self._used.discard(used[0])
        return len(used) > 1

    def _following(self, after: int = 0) -> int:
        """Return the number of the next generation, or of one that comes `after` it."""
        return (self._generation + after) % GENERATIONS + 1

    def _begin_next(self) -> None:
        following = self._following()
        if self._table is None:
            clear_all_marks(field_mask())  # those of an earlier run, or of other programs
            self._table, self._used = MarkTable(), set()
        if following in self._used:
            self.pause()
            clear_generation(following, SHIFT)
        self._table.write(following)
        self._used.add(following)
        self._generation = following
        self._maps.config["generation"] = following
        self._maps.raise_epoch()

    def _release_marks(self) -> None:
        """Clear our marks: another program uses these bits."""
        if self._table is not None:
            self.close()
            clear_all_marks(field_mask())

    @property
    def port(self) -> int:
        """The netlink port of our own transactions, 0 before the first one."""
        return self._table.port if self._table else 0

    def has_silent_change(self) -> bool:
        """Return whether something changed that sends no event.

        That is iptables-legacy, IPsec policies and other users of netfilter hooks.
        """
        before, self._silent_state = self._silent_state, self._read_silent_state()
        return self._silent_state != before

    def _read_silent_state(self) -> tuple[object, ...]:
        of_others = hooks.foreign_hooks(), hooks.foreign_hooks_of_tunnels()
        return legacy_fingerprint(), has_ipsec_policies(), of_others

    def close(self) -> None:
        """Remove the nftables table."""
        if self._table is not None:
            self._table.close()
            self._table = None


def _write_failed(error: OSError) -> str:
    return f"can't write the marks: {error.strerror}"
