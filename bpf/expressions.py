"""Parse the expressions of an nftables rule: what it does to established packets.

Pure. Numbers: include/uapi/linux/netfilter/nf_tables.h. An expression that isn't known to be the same for
every packet of a connection counts as matching single packets: an unknown one can pause the fast path, but
not be skipped. Only an equality with a complete value shows that a rule can't match.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from bpf import extensions
from bpf.rule_analysis import ALL_BITS, ESTABLISHED, INVALID, KNOWN_FLAGS, ChainName, Rule, RuleBuilder
from core.netlink.client import attribute_list, attributes, text

# Packets that the fast path forwards are IPv4 without options or IPv6, with TCP or UDP and without a VLAN
# tag. These constants say which bytes of their headers are the same in all packets of a connection.
LINK, NETWORK, TRANSPORT = 0, 1, 2
BEHIND_MACS = 12
ETHER_TYPE = (LINK, 12, 2)
TCP_FLAGS = (TRANSPORT, 13, 1)
V4_PROTOCOL = (NETWORK, 9, 1)
# IPv6's field for it is 0 in frames of more than 64 KB, which begin with a jumbo header.
V6_NEXT_HEADER = (NETWORK, 6, 1)
_ETHERNET, _PORTS = 14, 4
# The version, followed by 5 in IPv4, and the traffic class in IPv6.
VERSION = (NETWORK, 0, 1)
VERSION_BITS = 0xF0
# Version and header length, protocol, addresses: from, to.
_FIXED = {4: ((0, 1), (9, 10), (12, 20)), 6: ((8, 40),)}
_V4_NAMES = {
    0: "the type of service",
    1: "the type of service",
    2: "the length",
    4: "the identification",
    6: "fragments",
    8: "the time to live",
}
_V6_NAMES = {
    0: "the traffic class",
    1: "the flow label",
    4: "the length",
    6: "the next header",
    7: "the hop limit",
}


def is_fixed(base: int, offset: int, length: int, family: int) -> bool:
    """Return whether these bytes are the same in all packets of a connection.

    `family`: 4, 6, or 0 if a packet may be either; then they must be fixed in both.
    """
    end = offset + length
    if base == LINK:
        return end <= _ETHERNET
    if base == TRANSPORT:
        return end <= _PORTS
    if base != NETWORK:
        return False
    return all(
        any(start <= offset and end <= stop for start, stop in _FIXED[each])
        for each in ((family,) if family else (4, 6))
    )


def name_of(base: int, offset: int, family: int) -> str:
    """Return the name of the field at that offset."""
    names = (_V6_NAMES if family == 6 else _V4_NAMES) if base == NETWORK else {}
    return names.get(offset, f"byte {offset} of a header")


_PLAIN = frozenset({"counter", "reject", "nat", "masq", "redir", "notrack", "fib", "last", "xfrm"})
# Those that don't use registers.
_WITHOUT_REGISTERS = frozenset({"counter", "reject", "notrack", "last", "limit", "log", "quota", "connlimit"})
_EQUAL, _UNEQUAL = 0, 1  # NFT_CMP_EQ, NFT_CMP_NEQ
# Keys of meta and ct that are the same for all packets of a connection in one direction.
_META = frozenset({1, 3, *range(4, 12), 13, *range(15, 20), 21, 22, 23, *range(25, 30), 33, 34})
_META_NFPROTO, _META_PROTOCOL, _META_L4PROTO = 15, 1, 16
# Keys of meta for a packet's link: index and name, in and out.
_META_LINKS = {4: "in #", 6: "in", 5: "out #", 7: "out"}
_TCP, _UDP = 6, 17
_FORWARDED_PROTOCOLS = (_TCP, _UDP)
_CT_STATE, _CT_STATUS, _CT_MARK = 0, 2, 3
_CT_HELD = {_CT_STATE: "ct state", _CT_STATUS: "ct status", _CT_MARK: "ct mark"}
_CT = frozenset({0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 17, 19, 20, 21, 22, 23})
_RT_MTU = 3  # NFT_RT_TCPMSS: ICMP errors change it
_CT_SET = {3: "the ct mark", 13: "ct labels", 17: "the conntrack zone", 18: "conntrack events"}
# Named objects without effect on established packets: a counter, and a helper, whose connections have
# IPS_HELPER. The kernel forwards connections with a timeout policy.
_OBJECTS = frozenset({1, 3})
# For exthdr: NFT_EXTHDR_OP_*, and the header of BIG TCP's packets.
_IPV6_HEADERS, _IPV4_OPTIONS = 0, 2
_HOP_BY_HOP = 0
_VERDICTS = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return"}
_NEXT = (-1, -2)  # NFT_CONTINUE, NFT_BREAK
_SET_OF_INTERVALS, _SET_OF_PACKETS = 0x4, 0x20  # NFT_SET_INTERVAL, NFT_SET_EVAL
_V4, _V6 = (b"\x02", b"\x08\x00"), (b"\x0a", b"\x86\xdd")
# If loaded and compared for equality, these select the packets that a rule is about.
_NARROWING = frozenset({"protocol", "family", *_META_LINKS.values()})


@dataclass(frozen=True, slots=True)
class Sets:
    """Describe the sets of one table.

    `flags` of each; `verdicts`: elements of verdict maps, key and (code, chain), where the key of a
    catch-all element is empty; `stateful`: sets whose elements hold limits or the like, with that
    expression.
    """

    flags: Mapping[str, int] = field(default_factory=dict)
    verdicts: Mapping[str, Collection[tuple[bytes, int, str]]] = field(default_factory=dict)
    stateful: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Value:
    """Describe a register's value: `what` it was loaded from, "" if it never differs.

    `mask`: which bits are left of it; `inverted`: which of these are inverted.
    """

    what: str = ""
    mask: int = ALL_BITS
    inverted: int = 0


def rule_of(chain: ChainName, handle: int, listed: bytes, sets: Sets, mask: int) -> Rule:
    """Parse NFTA_RULE_EXPRESSIONS (`listed`); `mask`: our bits of the ct mark."""
    reading = _RuleParser(chain, sets, mask)
    for _, expression in attribute_list(listed):
        parts = attributes(expression)
        reading.add(text(parts.get(1, b"")), parts.get(2, b""))
    return reading.rule(f"handle {handle}")


def _slot(register: bytes | None) -> int:
    """Return the index of a 4-byte register.

    Registers 1 to 4 have 16 bytes, those from 8 on have 4.
    """
    number = _number(register)
    return number - 8 if number >= 8 else (number - 1) * 4


def _bits(given: bytes | None) -> int:
    return int.from_bytes(attributes(given or b"").get(1, b""), sys.byteorder)


def _link_pattern(value: bytes) -> str:
    """Return a link's name as it is compared: with the NUL at its end, or as a prefix."""
    return text(value) if b"\0" in value else f"{text(value)}*"


def _number(value: bytes | None, default: int = 0) -> int:
    return int.from_bytes(value, "big") if value else default


class _RuleParser(RuleBuilder):
    """Parse a rule's expressions, with the contents of its registers."""

    def __init__(self, chain: ChainName, sets: Sets, mask: int) -> None:
        super().__init__(chain, mask)
        self._sets = sets
        self._registers: dict[int, _Value] = {}
        self._last = -1  # the register that was loaded last: others may be partly overwritten
        self._family = {"ip": 4, "ip6": 6}.get(chain[0], 0)
        self._protocol = 0

    def add(self, name: str, data: bytes) -> None:
        """Parse one expression."""
        handler: Callable[[Mapping[int, bytes]], None] | None = getattr(self, f"_on_{name}", None)
        if handler is not None:
            handler(attributes(data))
            return
        if name not in _WITHOUT_REGISTERS:
            self._use_registers()
            self._last = -1
        if name not in _PLAIN:
            self.note_per_packet(name)
        if name in ("fib", "xfrm"):
            self.conditional = True

    def _load(self, register: bytes | None, value: _Value | None = None) -> None:
        """Set a register; None for a value that never differs."""
        self._last = _slot(register)
        self._registers[self._last] = value or _Value()

    def _register_value(self, register: bytes | None) -> _Value:
        """Return a register's value.

        If it isn't certain, the value counts as used, as it may be compared with anything.
        """
        slot = _slot(register)
        value = self._registers.get(slot, _Value())
        if slot == self._last:
            return value
        self._use(value)
        return _Value()

    def _use_registers(self, first: int = 0) -> None:
        """Note that the values of all registers from `first` on are used."""
        for slot, value in self._registers.items():
            if slot >= first:
                self._use(value)

    def _use(self, value: _Value) -> None:
        """Note that a value is used in a way that isn't evaluated here."""
        if value.what == "ct status":
            self.use_status(value.mask)
        elif value.what == "tcp flags" and value.mask & ~KNOWN_FLAGS:
            self.note_per_packet("matches TCP flags")
        elif value.what == "ct mark":
            self.use_mark(value.mask)
        elif value.what == "ct state":
            self.looks_up_state = True
        elif value.what == "version" and value.mask & ~VERSION_BITS:
            self.note_per_packet("matches the traffic class")
        elif value.what == "next header":
            self.note_per_packet("matches the next header, which differs in large IPv6 frames")

    def _on_payload(self, given: Mapping[int, bytes]) -> None:
        if 5 in given:
            self.note_per_packet("changes packets")
            self._use_registers()
            return
        base, offset, length = where = tuple(_number(given.get(each)) for each in (2, 3, 4))
        self.reads_mac |= base == LINK and offset < BEHIND_MACS
        value = _Value()
        if where == TCP_FLAGS and self._protocol == _TCP:
            value = _Value("tcp flags", 0xFF)
        elif where == ETHER_TYPE:
            value = _Value("family")
        elif where == V4_PROTOCOL and self._family == 4:
            value = _Value("protocol")
        elif where == V6_NEXT_HEADER and self._family == 6:
            value = _Value("next header", 0xFF)
        elif where == VERSION and self._family != 4:
            value = _Value("version", 0xFF)
        elif not is_fixed(base, offset, length, self._family):
            self.note_per_packet(f"matches {name_of(base, offset, self._family)}")
        self._load(given.get(1), value)

    def _on_meta(self, given: Mapping[int, bytes]) -> None:
        key = _number(given.get(2))
        if 3 in given:
            self.note_per_packet("sets a packet's mark or priority" if key in (2, 3) else "sets metadata")
            self._use(self._register_value(given.get(3)))
            return
        if key not in _META:
            self.note_per_packet("matches single packets (meta)")
        what = _META_LINKS.get(key, "")
        if key in (_META_NFPROTO, _META_PROTOCOL):
            what = "family"
        elif key == _META_L4PROTO:
            what = "protocol"
        self._load(given.get(1), _Value(what))

    def _on_ct(self, given: Mapping[int, bytes]) -> None:
        key = _number(given.get(2))
        if 4 in given:
            self.note_per_packet(f"sets {_CT_SET.get(key, 'connection data (ct)')}")
            self._set_mark(given.get(4)) if key == _CT_MARK else self._use(self._register_value(given.get(4)))
            return
        if key not in _CT:
            self.note_per_packet("matches counters or times of connections (ct)")
        self.reads_mark |= key == _CT_MARK
        self._load(given.get(1), _Value(_CT_HELD.get(key, "")))

    def _set_mark(self, register: bytes | None) -> None:
        """Note that it sets the ct mark; the same mark with all our bits is harmless."""
        value = self._register_value(register)
        self._registers.pop(_slot(register), None)
        self.use_mark(~value.mask | value.inverted if value.what == "ct mark" else ALL_BITS)

    def _on_rt(self, given: Mapping[int, bytes]) -> None:
        if _number(given.get(2)) == _RT_MTU:
            self.note_per_packet("matches the route's MTU")
        self._load(given.get(1))
        self.conditional = True

    def _on_bitwise(self, given: Mapping[int, bytes]) -> None:
        value = self._register_value(given.get(1))
        if _number(given.get(6)) or 4 not in given:  # it shifts, or combines registers
            self._use_registers()
            value = _Value()
        mask, inverted = _bits(given.get(4)), _bits(given.get(5))
        if value.what and value.what not in _NARROWING:
            value = _Value(value.what, value.mask & mask, value.inverted & mask ^ inverted)
        else:
            value = _Value()
        self._load(given.get(2), value)

    def _on_byteorder(self, given: Mapping[int, bytes]) -> None:
        self._use(self._register_value(given.get(1)))
        self._load(given.get(2))

    def _on_range(self, given: Mapping[int, bytes]) -> None:
        self._use(self._register_value(given.get(1)))
        self.conditional = True

    def _on_cmp(self, given: Mapping[int, bytes]) -> None:
        held, operation = self._register_value(given.get(1)), _number(given.get(2))
        value = attributes(given.get(3, b"")).get(1, b"")
        if operation not in (_EQUAL, _UNEQUAL):
            self._use(held)
        elif held.what == "ct state":
            number = int.from_bytes(value, sys.byteorder)
            self.compare_state(number, operation == _UNEQUAL, held.mask, held.inverted)
            return
        elif held.what == "tcp flags" and not held.inverted:
            self.compare_flags(held.mask, int.from_bytes(value, sys.byteorder), operation == _UNEQUAL)
        elif operation == _UNEQUAL or not self._narrow(held, value):
            self._use(held)
        self.conditional = True

    def _narrow(self, held: _Value, value: bytes) -> bool:
        """Return whether this equality only selects the packets that the rule matches."""
        if held.what == "protocol":
            self._protocol = _number(value)
            self.can_match &= self._protocol in _FORWARDED_PROTOCOLS
            self.excludes_udp |= self._protocol != _UDP
        elif held.what == "family":
            self._family = 4 if value in _V4 else 6 if value in _V6 else self._family
            self.can_match &= len(value) != 2 or value in (*_V4, *_V6)
        elif held.what in ("in", "out"):
            self.links[held.what] = _link_pattern(value)
        elif held.what in ("in #", "out #"):
            self.links[held.what[:-2]] = f"#{int.from_bytes(value, sys.byteorder)}"
        elif held == _Value("next header", 0xFF) and _number(value) not in (0, *_FORWARDED_PROTOCOLS):
            self.can_match = False
        else:
            return False
        return True

    def _on_lookup(self, given: Mapping[int, bytes]) -> None:
        name, held = text(given.get(1, b"")), self._register_value(given.get(2))
        flags = self._sets.flags.get(name, 0)
        if flags & _SET_OF_PACKETS:
            self.note_per_packet(f"its set {name} is filled by packets")
        if name in self._sets.stateful:
            self.note_per_packet(f"each element of its set {name} has a {self._sets.stateful[name]}")
        self.looked_up.append(name)
        is_verdict = 3 in given and _number(given.get(3)) == 0
        elements = self._sets.verdicts.get(name, ())
        if is_verdict and held == _Value("ct state") and not flags & _SET_OF_INTERVALS:
            self._state_map(elements)
            return
        self._use_registers(_slot(given.get(2)))
        self.conditional = True
        if is_verdict:
            self._verdict_map(elements)
        elif 3 in given:
            self._load(given.get(3))

    def _state_map(self, elements: Collection[tuple[bytes, int, str]]) -> None:
        by_key = {key: (code, chain) for key, code, chain in elements}
        self.reads_invalid |= INVALID.to_bytes(4, sys.byteorder) in by_key
        found = by_key.get(ESTABLISHED.to_bytes(4, sys.byteorder)) or by_key.get(b"")
        if found:
            self._decide(*found)

    def _verdict_map(self, elements: Collection[tuple[bytes, int, str]]) -> None:
        """Handle a verdict map: packets may jump, leave this chain, or continue."""
        codes = {code for _, code, _ in elements}
        for code in codes:
            self._know(code)
        self.verdict = next((_VERDICTS[code] for code in (-5, -4) if code in codes), "jump")
        self.targets += [chain for _, _, chain in elements if chain]

    def _on_immediate(self, given: Mapping[int, bytes]) -> None:
        verdict = attributes(attributes(given.get(2, b"")).get(2, b""))
        if _number(given.get(1)):
            self._load(given.get(1))
        elif 1 in verdict:
            code = int.from_bytes(verdict[1], "big", signed=True)
            self._decide(code, text(verdict.get(2, b"")))

    def _decide(self, code: int, chain: str) -> None:
        self.verdict = _VERDICTS.get(code, "")
        self._know(code)
        if chain:
            self.targets.append(chain)

    def _know(self, code: int) -> None:
        if code not in _VERDICTS and code not in _NEXT:
            self.note_per_packet("queues packets")

    def _on_objref(self, given: Mapping[int, bytes]) -> None:
        if _number(given.get(1)) not in _OBJECTS:
            self.note_per_packet("uses a named limit, quota or similar object")
            self._use_registers()

    def _on_exthdr(self, given: Mapping[int, bytes]) -> None:
        # Only a SYN has options that are worth changing: a rule that matches one doesn't match established
        # packets. Nor does a rule that reads an IPv6 header or an IPv4 option that no plain packet has.
        operation, is_asked_for = _number(given.get(6), -1), bool(_number(given.get(5)))
        is_absent = operation == _IPV4_OPTIONS or (
            operation == _IPV6_HEADERS and _number(given.get(2)) != _HOP_BY_HOP
        )
        if is_absent and not is_asked_for and not self.per_packet:
            self.can_match = False
        self.note_per_packet("matches or changes header options")
        self._use_registers()
        self._last = -1

    def _on_match(self, given: Mapping[int, bytes]) -> None:
        extensions.match(self, text(given.get(1, b"")), _number(given.get(2)), given.get(3, b""))

    def _on_target(self, given: Mapping[int, bytes]) -> None:
        extensions.target(self, text(given.get(1, b"")), _number(given.get(2)), given.get(3, b""))
