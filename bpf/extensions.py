"""What matches and targets of iptables do in a rule of nftables.

Their structures: include/uapi/linux/netfilter/xt_*.h.
"""

from __future__ import annotations

import sys

from bpf.judging import ABSENT_MATCHES, PLAIN_MATCHES, PLAIN_TARGETS
from bpf.rulefacts import ALL_BITS, ESTABLISHED, INVALID, RuleFacts
from core.netlink.client import text

# Of struct xt_conntrack_mtinfo: what is matched, and states beside those of packets.
_STATE, _STATUS, _EXPIRES = 0x1, 0x40, 0x80
_TRANSLATED = 0x40 | 0x80
_INVERTED_FLAGS = 0x4  # XT_TCP_INV_FLAGS
_CT_ZONE_FLAGS = 4 | 8 | 16  # by direction, and from the packet's mark
_CT_TIMEOUT_AT = 28
_CONNMARK_SAVE, _CONNMARK_RESTORE = 1, 2


def match(facts: RuleFacts, name: str, revision: int, info: bytes) -> None:
    """Note what a match looks at."""
    if name == "conntrack":
        _conntrack(facts, revision, info)
        return
    if name == "state":
        facts.compare_state(0, True, _word(info, 0))
        return
    if name == "connmark":
        facts.reads_mark = True
        facts.take_mark(_word(info, 4))
    elif name in ABSENT_MATCHES:
        facts.takes_part &= bool(facts.judges)  # what stands before it sees every packet
    elif name not in PLAIN_MATCHES:
        facts.judge(f"match {name}")
    facts.reads_mac |= name == "mac"
    if name == "tcp" and len(info) >= 12:
        _tcp(facts, info)
    facts.conditional |= name != "comment"


def target(facts: RuleFacts, name: str, revision: int, info: bytes) -> None:
    """Note what a target does."""
    if name == "CONNMARK":
        facts.judge("target CONNMARK")
        _connmark(facts, revision, info)
    elif name == "CT":
        _ct(facts, info)
    elif name not in PLAIN_TARGETS:
        facts.judge(f"target {name}")


def _word(info: bytes, at: int) -> int:
    return int.from_bytes(info[at : at + 4], sys.byteorder)


def _half(info: bytes, at: int) -> int:
    return int.from_bytes(info[at : at + 2], sys.byteorder)


def _tcp(facts: RuleFacts, info: bytes) -> None:
    """struct xt_tcp: ports, option, flags' mask and value, what is inverted."""
    option, mask, value, inverted = info[8:12]
    if option:
        facts.judge("it looks at TCP options")
    if mask:
        facts.compare_flags(mask, value, bool(inverted & _INVERTED_FLAGS))


def _conntrack(facts: RuleFacts, revision: int, info: bytes) -> None:
    """struct xt_conntrack_mtinfo1, 2, 3: the flags behind four address pairs, times and ports."""
    matched, is_inverted = _half(info, 146), bool(_half(info, 148) & _STATE)
    state = info[150] if revision == 1 else _half(info, 150)
    if matched & _EXPIRES:
        facts.judge("it looks at time-outs of connections")
    if matched & _STATE and state & _TRANSLATED and not state & ESTABLISHED:
        # `--ctstate DNAT` holds for each packet of a translated connection.
        facts.conditional = True
        facts.reads_invalid |= bool(state & INVALID) != is_inverted
    elif matched & _STATE:
        facts.compare_state(0, not is_inverted, state)
    if matched & _STATUS:
        facts.look_at_status(info[151] if revision == 1 else _half(info, 152))
    facts.conditional |= matched != _STATE


def _connmark(facts: RuleFacts, revision: int, info: bytes) -> None:
    """struct xt_connmark_tginfo1 and 2: value, mask, mask of the packet's mark, what to do; in the second
    how to shift stands before that. What is set or saved changes bits outside the mask as well."""
    value, mask, of_packet = (_word(info, at) for at in (0, 4, 8))
    mode, shift = (info[14], info[13]) if revision >= 2 else (info[12], 0)
    other = {_CONNMARK_SAVE: of_packet, _CONNMARK_RESTORE: 0}.get(mode, value)
    facts.take_mark(ALL_BITS if shift else mask | other)


def _ct(facts: RuleFacts, info: bytes) -> None:
    """struct xt_ct_target_info and _v1: flags, zone, events twice, name of the helper, name of the
    time-out policy (32 bytes, only in _v1)."""
    if _half(info, 2) or _half(info, 0) & _CT_ZONE_FLAGS:
        facts.judge("it sets the conntrack zone")
    if len(info) > _CT_TIMEOUT_AT + 16 and text(info[_CT_TIMEOUT_AT : _CT_TIMEOUT_AT + 32]):
        facts.judge("it sets a time-out policy")
