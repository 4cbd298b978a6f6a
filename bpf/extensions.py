"""Parse matches and targets of iptables in rules of nftables, and saved rules.

Their structures: include/uapi/linux/netfilter/xt_*.h.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Iterator, Sequence

from bpf.rule_analysis import (
    ABSENT_MATCHES,
    ALL_BITS,
    ESTABLISHED,
    INVALID,
    PLAIN_MATCHES,
    PLAIN_TARGETS,
    ChainName,
    Rule,
    RuleBuilder,
    flags_match,
)
from core.netlink.client import text

# Of struct xt_conntrack_mtinfo: flags of what is matched, and states in addition to those of packets.
_STATE, _STATUS, _EXPIRES = 0x1, 0x40, 0x80
_TRANSLATED = 0x40 | 0x80
_INVERTED_FLAGS = 0x4  # XT_TCP_INV_FLAGS
_CT_ZONE_FLAGS = 4 | 8 | 16  # per direction, and from the packet's mark
_CT_TIMEOUT_AT = 28
_CONNMARK_SAVE, _CONNMARK_RESTORE = 1, 2


def match(rule: RuleBuilder, name: str, revision: int, info: bytes) -> None:
    """Note what a match matches."""
    if name == "conntrack":
        _conntrack(rule, revision, info)
        return
    if name == "state":
        rule.compare_state(0, True, _word(info, 0))
        return
    if name == "connmark":
        rule.reads_mark = True
        rule.use_mark(_word(info, 4))
    elif name in ABSENT_MATCHES:
        rule.can_match &= bool(rule.per_packet)  # expressions before it match every packet
    elif name not in PLAIN_MATCHES:
        rule.note_per_packet(f"match {name}")
    rule.reads_mac |= name == "mac"
    if name == "tcp" and len(info) >= 12:
        _tcp(rule, info)
    rule.conditional |= name != "comment"


def target(rule: RuleBuilder, name: str, revision: int, info: bytes) -> None:
    """Note what a target does."""
    if name == "CONNMARK":
        rule.note_per_packet("target CONNMARK")
        _connmark(rule, revision, info)
    elif name == "CT":
        _ct(rule, info)
    elif name not in PLAIN_TARGETS:
        rule.note_per_packet(f"target {name}")


def _word(info: bytes, at: int) -> int:
    return int.from_bytes(info[at : at + 4], sys.byteorder)


def _half(info: bytes, at: int) -> int:
    return int.from_bytes(info[at : at + 2], sys.byteorder)


def _tcp(rule: RuleBuilder, info: bytes) -> None:
    """Parse struct xt_tcp: ports, option, flags' mask and value, what is inverted."""
    option, mask, value, inverted = info[8:12]
    if option:
        rule.note_per_packet("matches TCP options")
    if mask:
        rule.compare_flags(mask, value, bool(inverted & _INVERTED_FLAGS))


def _conntrack(rule: RuleBuilder, revision: int, info: bytes) -> None:
    """Parse struct xt_conntrack_mtinfo1, 2, 3.

    The flags follow four address pairs, times and ports.
    """
    matched, is_inverted = _half(info, 146), bool(_half(info, 148) & _STATE)
    state = info[150] if revision == 1 else _half(info, 150)
    if matched & _EXPIRES:
        rule.note_per_packet("matches timeouts of connections")
    if matched & _STATE and state & _TRANSLATED and not state & ESTABLISHED:
        # `--ctstate DNAT` matches each packet of a translated connection.
        rule.conditional = True
        rule.reads_invalid |= bool(state & INVALID) != is_inverted
    elif matched & _STATE:
        rule.compare_state(0, not is_inverted, state)
    if matched & _STATUS:
        rule.use_status(info[151] if revision == 1 else _half(info, 152))
    rule.conditional |= matched != _STATE


def _connmark(rule: RuleBuilder, revision: int, info: bytes) -> None:
    """Parse struct xt_connmark_tginfo1 and 2.

    Value, mask, mask of the packet's mark, mode; in the second the shift precedes the mode. Setting or
    saving changes bits outside the mask as well.
    """
    value, mask, of_packet = (_word(info, at) for at in (0, 4, 8))
    mode, shift = (info[14], info[13]) if revision >= 2 else (info[12], 0)
    other = {_CONNMARK_SAVE: of_packet, _CONNMARK_RESTORE: 0}.get(mode, value)
    rule.use_mark(ALL_BITS if shift else mask | other)


def _ct(rule: RuleBuilder, info: bytes) -> None:
    """Parse struct xt_ct_target_info and _v1.

    Flags, zone, events twice, name of the helper, name of the timeout policy (32 bytes, only in _v1).
    """
    if _half(info, 2) or _half(info, 0) & _CT_ZONE_FLAGS:
        rule.note_per_packet("sets the conntrack zone")
    if len(info) > _CT_TIMEOUT_AT + 16 and text(info[_CT_TIMEOUT_AT : _CT_TIMEOUT_AT + 32]):
        rule.note_per_packet("sets a timeout policy")


# Changes packets, but none in the middle of a connection: see saved_rule.
_OPENING_TARGETS = frozenset({"TCPMSS"})


def saved_rule(text: str, ct_state: str, chains: frozenset[str], table: ChainName, mask: int) -> Rule:
    """Parse a rule of iptables-legacy, as iptables-save prints it (`-A CHAIN ...`).

    `table` is (backend, table, "").
    """
    words = _words(text)
    matches = [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-m", "--match")]
    target = next((words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-j", "-g")), "")
    per_packet = next((each for each in matches if each not in PLAIN_MATCHES | ABSENT_MATCHES), "")
    known = target in PLAIN_TARGETS or target in chains or not target
    if not per_packet and not known:
        per_packet = f"target {target}"
    if (
        target == "CT"
        and not per_packet
        and {"--zone", "--zone-orig", "--zone-reply", "--timeout"} & set(words)
    ):
        per_packet = "sets the conntrack zone or a timeout policy"
    flags = _tcp_flags_match(words)
    translated = not ct_state.startswith("!") and bool({"snat", "dnat"} & set(ct_state.split(",")))
    opening = flags == "never"
    if target in _OPENING_TARGETS and not opening:
        per_packet = f"target {target}"
    per_packet = per_packet or _per_packet_option(words, flags)
    established = _has_state(ct_state, "established")
    part = (
        (established or translated)
        and not opening
        and not _excludes(words, ("tcp", "udp", "all", "0", "6", "17"))
    )
    part = part and (bool(per_packet) or ABSENT_MATCHES.isdisjoint(matches))
    rest = list(_other_words(words[2:]))
    simple = all(word in ("-m", "conntrack", "state") for word in rest) and rest.count("-m") < 2
    verdict = {"ACCEPT": "accept", "DROP": "drop", "RETURN": "return"}.get(target, "")
    if target in chains:
        verdict = "goto" if "-g" in words else "jump"
    return Rule(
        text,
        per_packet,
        part,
        always=simple and part and established,
        verdict=verdict,
        targets=((*table[:2], target),) if target in chains else (),
        marks=("CONNMARK" in words or "connmark" in matches) and _uses_mark(words, mask),
        reads_mark="connmark" in matches,
        link_in=_named_link(words, "-i"),
        link_out=_named_link(words, "-o"),
        reads_mac="mac" in matches,
        reads_invalid=not established and _has_state(ct_state, "invalid"),
        excludes_udp=_excludes(words, ("udp", "all", "0", "17")),
    )


# The argument of these options is free text, which may look like an option.
_FREE_TEXT = frozenset(
    {"--comment", "--log-prefix", "--nflog-prefix", "--string", "--hex-string", "--helper", "--name"}
)


def _words(text: str) -> list[str]:
    """Split a rule into words, with "TEXT" in place of free text."""
    words = shlex.split(text)
    return [
        "TEXT" if before in _FREE_TEXT else word for before, word in zip(["", *words], words, strict=False)
    ]


def _named_link(words: Sequence[str], option: str) -> str:
    """Return the link that `-i` or `-o` names, with "*" in place of a final "+".

    "" if there is none, or it is negated.
    """
    if option not in words[2:]:
        return ""
    at = words.index(option, 2)
    name = words[at + 1]
    return "" if words[at - 1] == "!" else f"{name[:-1]}*" if name.endswith("+") else name


_PER_PACKET_OPTIONS = {
    "--ctexpire": "matches timeouts of connections",
    "--ctstatus": "matches changing bits of the connection's status",
    "--tcp-option": "matches TCP options",
}


def _per_packet_option(words: Sequence[str], flags: str) -> str:
    """Return what options of otherwise plain matches match in single packets, or ""."""
    if flags == "sometimes":
        return "matches TCP flags"
    return next((_PER_PACKET_OPTIONS[word] for word in words if word in _PER_PACKET_OPTIONS), "")


def _tcp_flags_match(words: Sequence[str]) -> str:
    """Return how `--tcp-flags MASK COMP` and `--syn` match established packets.

    They may occur several times. The result is one of flags_match().
    """
    found = set()
    for at, word in enumerate(words):
        is_negated = words[at - 1] == "!"
        if word == "--syn":
            found.add(flags_match(_flags("FIN,SYN,RST,ACK"), _flags("SYN"), is_negated))
        elif word == "--tcp-flags":
            found.add(flags_match(_flags(words[at + 1]), _flags(words[at + 2]), is_negated))
    return next((each for each in ("never", "sometimes") if each in found), "always")


def _flags(names: str) -> int:
    numbers = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ALL": 63, "NONE": 0}
    return sum(numbers[each] for each in names.split(","))


def _excludes(words: Sequence[str], protocols: Collection[str]) -> bool:
    """Return whether `-p` excludes all of these protocols."""
    if "-p" not in words[2:]:
        return False
    at = words.index("-p", 2)
    return words[at - 1] != "!" and words[at + 1] not in protocols


def _has_state(ct_state: str, which: str) -> bool:
    """Return whether packets of that state match: "established" or "invalid"."""
    if not ct_state:
        return True
    return (which in ct_state.lstrip("!").split(",")) != ct_state.startswith("!")


def _other_words(words: Sequence[str]) -> Iterator[str]:
    """Yield the words of a rule without its state and its target."""
    skip = 0
    for word in words:
        if skip:
            skip -= 1
        elif word in ("-j", "-g", "--ctstate", "--state"):
            skip = 1
        else:
            yield word


def _uses_mark(words: Sequence[str], mask: int) -> bool:
    """Return whether `-m connmark` or `-j CONNMARK` uses our bits of the ct mark.

    Without a mask they use all bits. Setting or saving changes bits outside the mask as well.
    """
    part, used = "", 0
    copies = {"--save-mark", "--restore-mark"} & set(words)
    has_mask = not copies or bool({"--ctmask", "--mask"} & set(words))
    for word, following in zip(words, (*words[1:], ""), strict=True):
        part = following if word in ("-m", "-j") else part
        if part not in ("connmark", "CONNMARK") or (word == "--nfmask" and "--save-mark" not in words):
            continue
        try:
            used |= _bits(word, following)
        except ValueError:
            return True
    return bool(used & mask) or not has_mask


def _bits(option: str, value: str) -> int:
    """Return the bits of the ct mark that an option of connmark or CONNMARK uses."""
    number, _, mask = value.partition("/")
    if option in ("--nfmask", "--ctmask", "--mask"):
        return int(number, 0)
    if option == "--mark":
        return int(mask, 0) if mask else ALL_BITS
    if option in ("--set-mark", "--set-xmark") and mask:
        return int(number, 0) | int(mask, 0)
    return ALL_BITS if option.endswith("-mark") and option not in ("--save-mark", "--restore-mark") else 0
