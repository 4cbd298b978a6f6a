"""What one nftables rule does to packets of established connections, from its expressions as the kernel lists
them.

Pure. Numbers: include/uapi/linux/netfilter/nf_tables.h. Whatever is not known to look at the same in every
packet of a connection counts as judging each packet: an unknown expression can pause the fast path, never
slip past it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from bpf.judging import FIXED_STATUS, PLAIN_MATCHES, PLAIN_TARGETS, ChainName, Rule, flags_match
from core.collect.netlink import attribute_list, attributes, text

_PLAIN = frozenset(
    {
        "counter",
        "byteorder",
        "range",
        "reject",
        "nat",
        "masq",
        "redir",
        "notrack",
        "fib",
        "last",
        "xfrm",
    }
)
_INVALID, _ESTABLISHED = 1, 2  # NF_CT_STATE_INVALID_BIT, NF_CT_STATE_BIT(IP_CT_ESTABLISHED)
# Keys of meta and ct whose value stays the same for all packets of a connection (in one direction).
_META = frozenset({1, 3, *range(4, 12), *range(13, 20), 21, 22, 23, *range(25, 30), 33, 34})
_META_NFPROTO, _META_PROTOCOL, _META_L4PROTO = 15, 1, 16
# Keys of meta that name the link of a packet: index and name, in and out.
_META_LINKS = {4: "in", 6: "in", 5: "out", 7: "out"}
_META_INDEXES = (4, 5)
_FORWARDED_PROTOCOLS = (6, 17)
_CT_STATE, _CT_STATUS, _CT_MARK = 0, 2, 3
_CT_HELD = {_CT_STATE: "ct state", _CT_STATUS: "ct status", _CT_MARK: "ct mark"}
_CT = frozenset({0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 17, 19, 20, 21, 22, 23})
_RT_MTU = 3  # NFT_RT_TCPMSS: what ICMP says of the way changes it
_CT_SET = {3: "the ct mark", 13: "ct labels", 17: "the conntrack zone", 18: "which events conntrack tells"}
_LINK, _NETWORK, _TRANSPORT = 0, 1, 2
_BEHIND_MACS = 12
_TCP_FLAGS = (_TRANSPORT, 13, 1)
_V4_PROTOCOL = (_NETWORK, 9, 1)
# Named objects that change nothing for a packet that was let through: a counter, and a helper, whose
# connections IPS_HELPER tells. A time-out policy is heeded by the kernel alone.
_OBJECTS = frozenset({1, 3})
_VERDICTS = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return"}
_CT_ZONE_FLAGS = 4 | 8 | 16  # by direction, and from the packet's mark
_CT_TIMEOUT_AT = 28
_SET_OF_PACKETS = 0x20  # NFT_SET_EVAL
_V4_HEADER = {
    0: "the type of service",
    1: "the type of service",
    2: "the length",
    4: "the identification",
    6: "fragments",
    8: "the time to live",
}
_V6_HEADER = {0: "the traffic class", 1: "the flow label", 4: "the length", 7: "the hop limit"}
_V4, _V6 = (2, b"\x08\x00"), (10, b"\x86\xdd")


@dataclass(frozen=True, slots=True)
class Sets:
    """The sets of one table: the flags of each, and of verdict maps the elements, key and (code, chain); the
    key of a catch-all element is empty."""

    flags: Mapping[str, int] = field(default_factory=dict)
    verdicts: Mapping[str, Collection[tuple[bytes, int, str]]] = field(default_factory=dict)


def rule_of(chain: ChainName, handle: int, listed: bytes, sets: Sets, mask: int) -> Rule:
    """The rule whose NFTA_RULE_EXPRESSIONS is `listed`; `mask` are our bits of the ct mark."""
    reading = _Reading(chain, sets, mask)
    for _, expression in attribute_list(listed):
        parts = attributes(expression)
        reading.add(text(parts.get(1, b"")), parts.get(2, b""))
    return reading.rule(f"handle {handle}")


def _link_pattern(value: bytes) -> str:
    """The name of a link as it is compared: with the NUL at its end, or only its beginning."""
    return text(value) if b"\0" in value else f"{text(value)}*"


def _number(value: bytes | None, default: int = 0) -> int:
    return int.from_bytes(value, "big") if value else default


class _Reading:
    """A rule in the making: `held` says what the last load brought, for the comparison that follows."""

    def __init__(self, chain: ChainName, sets: Sets, mask: int) -> None:
        self.chain, self.sets, self.mask = chain, sets, mask
        self.judges = ""
        self.takes_part = True
        self.conditional = False
        self.verdict, self.targets = "", list[str]()
        self.looked_up = list[str]()
        self.reads_mark = False
        self.links = {"in": "", "out": ""}
        self.reads_mac = False
        self.reads_invalid = self.looks_up_state = False
        self.marks = False
        self._held: tuple[str, int] = ("", 0xFFFFFFFF)
        self._changed, self._keeps_mark = 0, False
        self._family = {"ip": 4, "ip6": 6}.get(chain[0], 0)

    def rule(self, name: str) -> Rule:
        """What was found."""
        targets = tuple((*self.chain[:2], target) for target in dict.fromkeys(self.targets))
        return Rule(
            name,
            self.judges,
            self.takes_part,
            not self.conditional,
            self.verdict,
            targets,
            self.marks,
            tuple((*self.chain[:2], name) for name in self.looked_up),
            self.reads_mark,
            self.links["in"],
            self.links["out"],
            self.reads_mac,
            self.reads_invalid or (self.looks_up_state and self.verdict != "accept"),
        )

    def add(self, name: str, data: bytes) -> None:
        """One more expression."""
        if self._held[0] == "ct mark" and name != "bitwise":
            self._use_mark(name, data)
        handler: Callable[[Mapping[int, bytes]], None] | None = getattr(self, f"_on_{name}", None)
        if handler is not None:
            handler(attributes(data))
        elif name not in _PLAIN:
            self._judge(name)
        if name in ("fib", "rt", "xfrm", "range"):
            self.conditional = True

    def _judge(self, what: str) -> None:
        self.judges = self.judges or what

    def _on_payload(self, given: Mapping[int, bytes]) -> None:
        if 5 in given:
            self._judge("it changes packets")
            return
        base, offset, length = (_number(given.get(each)) for each in (2, 3, 4))
        self._held = ("", 0)
        if (base, offset, length) == _TCP_FLAGS:
            self._held = ("tcp flags", 0xFF)
        elif (base, offset, length) == _V4_PROTOCOL and self._family == 4:
            self._held = ("protocol", 0)
        self.reads_mac |= base == _LINK and offset < _BEHIND_MACS
        if self._held[0]:
            return
        if not self._is_address_or_port(base, offset, length):
            self._judge(self._header_words(base, offset))

    def _header_words(self, base: int, offset: int) -> str:
        names = (_V6_HEADER if self._family == 6 else _V4_HEADER) if base == _NETWORK else {}
        return f"it looks at {names.get(offset, f'byte {offset} of a header')}"

    def _is_address_or_port(self, base: int, offset: int, length: int) -> bool:
        end = offset + length
        if base == _LINK:
            return end <= 18
        if base == _TRANSPORT:
            return end <= 4
        if base != _NETWORK:
            return False
        ipv4 = (offset, length) == (9, 1) or (offset >= 12 and end <= 20)
        ipv6 = (offset, length) == (6, 1) or (offset >= 8 and end <= 40)
        if not self._family:
            return ipv4 or (ipv6 and (offset, length) not in ((8, 1), (8, 2), (10, 2)))
        return ipv4 if self._family == 4 else ipv6

    def _on_meta(self, given: Mapping[int, bytes]) -> None:
        key = _number(given.get(2))
        if 3 in given:
            self._judge("it sets a packet's mark or priority" if key in (2, 3) else "it sets meta data")
        elif key not in _META:
            self._judge("it looks at single packets (meta)")
        self._held = ("", 0)
        if key in (_META_NFPROTO, _META_PROTOCOL):
            self._held = ("family", 0)
        elif key == _META_L4PROTO:
            self._held = ("protocol", 0)
        elif key in _META_LINKS:
            self._held = (_META_LINKS[key], int(key in _META_INDEXES))

    def _on_ct(self, given: Mapping[int, bytes]) -> None:
        key = _number(given.get(2))
        if 4 in given:
            self._judge(f"it sets {_CT_SET.get(key, 'something of connections (ct)')}")
            if key == _CT_MARK:
                self.marks |= not self._keeps_mark
            return
        if key not in _CT:
            self._judge("it looks at counters or times of connections (ct)")
        self.reads_mark |= key == _CT_MARK
        self._held = (_CT_HELD.get(key, ""), 0xFFFFFFFF)

    def _on_rt(self, given: Mapping[int, bytes]) -> None:
        if _number(given.get(2)) == _RT_MTU:
            self._judge("it looks at the MTU of the way")
        self._held = ("", 0)

    def _on_bitwise(self, given: Mapping[int, bytes]) -> None:
        what, _ = self._held
        if what:
            mask, changed = (attributes(given.get(each, b"")).get(1, b"") for each in (4, 5))
            self._held = (what, int.from_bytes(mask, sys.byteorder))
            self._changed = int.from_bytes(changed, sys.byteorder)

    def _use_mark(self, name: str, data: bytes) -> None:
        """The ct mark was loaded, and this takes it: put back with all our bits it harms nobody."""
        _, mask = self._held
        self._held = ("", 0)
        if name == "ct" and 4 in attributes(data):
            self._take_mark(~mask | self._changed)
            self._keeps_mark = True
        else:
            self._take_mark(mask)

    def _take_mark(self, used: int) -> None:
        if used & self.mask:
            self.marks = True

    def _on_cmp(self, given: Mapping[int, bytes]) -> None:
        what, mask = self._held
        value, negated = attributes(given.get(3, b"")).get(1, b""), _number(given.get(2)) == 1
        number = int.from_bytes(value, sys.byteorder)
        self._held = ("", 0)
        if what == "ct state":
            self._state(mask, number, negated)
            return
        if what == "ct status":
            self._status(mask)
        elif what == "tcp flags":
            self._flags(mask, number, negated)
        elif what == "protocol" and not negated and len(value) == 1 and value[0] not in _FORWARDED_PROTOCOLS:
            self.takes_part = False
        elif what in ("in", "out") and not negated:
            self.links[what] = f"#{number}" if mask else _link_pattern(value)
        elif what == "family" and not negated:
            self._family = (
                4 if value in (b"\x02", _V4[1]) else 6 if value in (b"\x0a", _V6[1]) else self._family
            )
        self.conditional = True

    def _state(self, mask: int, number: int, negated: bool) -> None:
        """`(state & mask) != 0` is how a list of states is asked for, `state == number` one of them."""
        if ((_ESTABLISHED & mask) == number) == negated:
            self.takes_part = False
            self.reads_invalid |= ((_INVALID & mask) == number) != negated

    def _status(self, mask: int) -> None:
        if mask & ~FIXED_STATUS:
            self._judge("it looks at what becomes of connections (ct status)")

    def _flags(self, mask: int, number: int, negated: bool) -> None:
        found = flags_match(mask, number, negated)
        if found == "never":
            self.takes_part = False
        elif found == "sometimes":
            self._judge("it looks at TCP flags")

    def _on_lookup(self, given: Mapping[int, bytes]) -> None:
        name = text(given.get(1, b""))
        what, mask = self._held
        self._held = ("", 0)
        if what == "ct status":
            self._status(mask)
        if self.sets.flags.get(name, 0) & _SET_OF_PACKETS:
            self._judge(f"its set {name} is filled by packets")
        self.looked_up.append(name)
        if _number(given.get(3), 1) != 0 or 3 not in given:
            self.conditional = True
            self.looks_up_state |= what == "ct state"
            return
        self._verdict_map(what, self.sets.verdicts.get(name, ()))

    def _verdict_map(self, what: str, elements: Collection[tuple[bytes, int, str]]) -> None:
        if what == "ct state":
            hit = {key: (code, chain) for key, code, chain in elements}
            self.reads_invalid |= _INVALID.to_bytes(4, sys.byteorder) in hit
            found = hit.get(_ESTABLISHED.to_bytes(4, sys.byteorder)) or hit.get(b"")
            if found:
                self._decide(*found)
            return
        self.conditional, self.verdict = True, "jump"
        self.targets += [chain for _, _, chain in elements if chain]

    def _on_immediate(self, given: Mapping[int, bytes]) -> None:
        verdict = attributes(attributes(given.get(2, b"")).get(2, b""))
        if _number(given.get(1), 1) == 0 and 1 in verdict:
            code = int.from_bytes(verdict[1], "big", signed=True)
            self._decide(code, text(verdict.get(2, b"")))

    def _decide(self, code: int, chain: str) -> None:
        self.verdict = _VERDICTS.get(code, "")
        if code not in (*_VERDICTS, -1):
            self._judge("it queues packets")
        if chain:
            self.targets.append(chain)

    def _on_objref(self, given: Mapping[int, bytes]) -> None:
        if _number(given.get(1)) not in _OBJECTS:
            self._judge("a named limit, quota or the like")

    def _on_exthdr(self, given: Mapping[int, bytes]) -> None:
        # Only a SYN has options that are worth changing: a rule that asks for one takes no part.
        self._judge("it looks at or changes header options")

    def _on_match(self, given: Mapping[int, bytes]) -> None:
        name, info = text(given.get(1, b"")), given.get(3, b"")
        self._held = ("", 0)
        if name == "conntrack":
            self._conntrack(_number(given.get(2)), info)
            return
        if name == "state":
            self._state(int.from_bytes(info[:4], sys.byteorder), 0, True)
            return
        if name == "connmark":
            self.reads_mark = True
            self._take_mark(int.from_bytes(info[4:8], sys.byteorder))
        elif name not in PLAIN_MATCHES:
            self._judge(f"match {name}")
        self.reads_mac |= name == "mac"
        if name == "tcp" and len(info) >= 12:
            self._tcp(info)
        self.conditional |= name != "comment"

    def _tcp(self, info: bytes) -> None:
        """struct xt_tcp: ports, option, flags' mask and value, what is inverted."""
        option, mask, value, inverted = info[8:12]
        if option:
            self._judge("it looks at TCP options")
        if mask:
            self._flags(mask, value, bool(inverted & 8))

    def _conntrack(self, revision: int, info: bytes) -> None:
        """struct xt_conntrack_mtinfo1, 2, 3: the flags behind four address pairs, times and ports."""
        match, inverted = (int.from_bytes(info[at : at + 2], sys.byteorder) for at in (146, 148))
        state = info[150] if revision == 1 else int.from_bytes(info[150:152], sys.byteorder)
        if match & 0x80:
            self._judge("it looks at time-outs of connections")
        if match & 1:
            self._state(state, 0, not inverted & 1)
        if match & 0x40:
            self._status(info[151] if revision == 1 else int.from_bytes(info[152:154], sys.byteorder))
        self.conditional |= match != 1

    def _on_target(self, given: Mapping[int, bytes]) -> None:
        name, info = text(given.get(1, b"")), given.get(3, b"")
        if name == "CONNMARK":
            self._judge("target CONNMARK")
            self._take_mark(int.from_bytes(info[4:8], sys.byteorder))
        elif name == "CT":
            self._ct_target(info)
        elif name not in PLAIN_TARGETS:
            self._judge(f"target {name}")

    def _ct_target(self, info: bytes) -> None:
        """struct xt_ct_target_info and _v1: flags, zone, events twice, name of the helper, name of the
        time-out policy (32 bytes, only in _v1)."""
        flags, zone = (int.from_bytes(info[at : at + 2], sys.byteorder) for at in (0, 2))
        if zone or flags & _CT_ZONE_FLAGS:
            self._judge("it sets the conntrack zone")
        if len(info) > _CT_TIMEOUT_AT + 16 and text(info[_CT_TIMEOUT_AT : _CT_TIMEOUT_AT + 32]):
            self._judge("it sets a time-out policy")
