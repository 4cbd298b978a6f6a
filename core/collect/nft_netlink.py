"""Read nftables over netlink: tables, chains, rules that drop forwarded packets.

Plans of networks use it, because there may be many rules, and nft(8) is slow then.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from core.model import Chain, FirewallRule, VerdictCase
from core.nat.forward_policy import is_forward_chain
from core.netlink import client
from core.netlink.client import NETFILTER, Message, Netlink, attribute, attribute_list, attributes, text
from core.text import TABLE, TRACE_TABLE, range_text

# linux/netfilter/nf_tables.h and nfnetlink.h.
_SUBSYS = 10 << 8
_GET_TABLE, GET_CHAIN, GET_RULE, GET_ELEMENTS = _SUBSYS | 1, _SUBSYS | 4, _SUBSYS | 7, _SUBSYS | 13
_TABLE_NAME = 1
_EXPR_NAME = 1
NFGENMSG = struct.Struct("=BBH")

FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_IPTABLES_FAMILIES = (2, 10)
IPTABLES_TABLES = {"filter", "nat", "mangle", "raw", "security"}
IPTABLES_CHAINS = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
# The expressions of iptables-nft; iptables-save prints others, such as sets and maps, wrongly.
_IPTABLES_EXPRESSIONS = {
    "bitwise", "cmp", "counter", "immediate", "limit", "log", "masq", "match", "meta", "nat", "payload",
    "range", "redir", "target",
}  # fmt: skip


class Table(NamedTuple):
    """A table; `by_iptables` if iptables-nft made all of it.

    Only then iptables-save prints it correctly.
    """

    family: str
    name: str
    by_iptables: bool


def read_tables() -> tuple[Table, ...]:
    """Return the tables of the thread's network namespace, without those of a probe.

    Raises PermissionError without CAP_NET_ADMIN there.
    """
    if would_load_module():
        return ()
    try:
        with client.Netlink(client.NETFILTER) as kernel:
            messages = kernel.dump(_GET_TABLE, NFGENMSG.pack(0, 0, 0))
            tables = (_table(kernel, message) for message in messages)
            return tuple(table for table in tables if not table.name.startswith(TRACE_TABLE))
    except PermissionError:
        raise
    except OSError:
        # A kernel without nftables refuses the request.
        return ()


def _table(kernel: client.Netlink, message: client.Message) -> Table:
    family = message.payload[0]
    name = client.text(client.attributes(message.payload, 4)[_TABLE_NAME])
    candidate = family in _IPTABLES_FAMILIES and name in IPTABLES_TABLES
    by_iptables = (
        candidate and _has_iptables_chains(kernel, family, name) and _has_iptables_rules(kernel, family, name)
    )
    return Table(FAMILIES.get(family, str(family)), name, by_iptables)


def _has_iptables_chains(kernel: client.Netlink, family: int, table: str) -> bool:
    """Return whether there are base chains, and all have names of iptables."""
    found = [
        client.attributes(message.payload, 4)
        for message in kernel.dump(GET_CHAIN, NFGENMSG.pack(family, 0, 0))
    ]
    hooked = {
        client.text(chain[_CHAIN_NAME])
        for chain in found
        if _CHAIN_HOOK in chain and client.text(chain[_CHAIN_TABLE]) == table
    }
    return bool(hooked) and hooked <= IPTABLES_CHAINS


def _has_iptables_rules(kernel: client.Netlink, family: int, table: str) -> bool:
    """Return whether all rules have only expressions of iptables-nft."""
    body = NFGENMSG.pack(family, 0, 0) + client.attribute(_RULE_TABLE, table.encode() + b"\0")
    return all(
        _expressions(message.payload) <= _IPTABLES_EXPRESSIONS for message in kernel.dump(GET_RULE, body)
    )


def _expressions(payload: bytes) -> set[str]:
    listed = client.attributes(payload, 4).get(_RULE_EXPRESSIONS, b"")
    return {
        client.text(client.attributes(expression)[_EXPR_NAME])
        for _, expression in client.attribute_list(listed)
    }


def would_load_module() -> bool:
    """Return whether nftables is a module that isn't loaded: then there are no tables."""
    return _is_module() and not any(
        line.startswith("nf_tables ") for line in Path("/proc/modules").read_text().splitlines()
    )


@cache
def _is_module() -> bool:
    try:
        return "/nf_tables.ko" in Path(f"/lib/modules/{os.uname().release}/modules.dep").read_text()
    except OSError:
        return False


# linux/netfilter/nf_tables.h; numbers are in network byte order.
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS = 1, 2, 3, 4
_SET_TABLE, _SET_NAME, _SET_ELEMENTS = 1, 2, 3
_KEY, _ELEMENT_DATA, _ELEMENT_FLAGS, _KEY_END, _VALUE, _VERDICT = 1, 2, 3, 10, 1, 2
# In every rule that may drop: the verdict drop, a reject, a queue, or a verdict map.
_MAY_DROP = re.compile(
    rb"\x0c\0\x02[\x80\0]\x08\0\x01\0\0\0\0\0|reject\0|REJECT\0|queue\0|NFQUEUE\0|lookup\0.*\x08\0\x03\0\0\0\0\0",
    re.DOTALL,
)
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
_OTHER_HOOKS = {"arp": ("input", "output", "forward"), "netdev": ("ingress", "egress")}
_NUMBERS = {name: value for value, name in FAMILIES.items()}

type _TableName = tuple[str, str]


def read_filters() -> tuple[list[Chain], list[FirewallRule]]:
    """Return all chains, and the rules of tables that may drop forwarded packets.

    They are those of the thread's network namespace, without vnet's rules. Raises PermissionError.
    """
    if would_load_module():
        return [], []
    try:
        with Netlink(NETFILTER) as kernel:
            chains = [_chain(message.payload) for message in kernel.dump(GET_CHAIN, NFGENMSG.pack(0, 0, 0))]
            return chains, list(_dropping_rules(kernel, chains))
    except PermissionError:
        raise
    except OSError:
        # A kernel without nftables refuses the request.
        return [], []


def _dropping_rules(kernel: Netlink, chains: Sequence[Chain]) -> Iterator[FirewallRule]:
    """Yield the rules of tables that drop, by a chain's policy or by a rule."""
    forwarding = [chain for chain in chains if is_forward_chain(chain) and chain.table != TABLE]
    by_policy = {(chain.family, chain.table) for chain in forwarding if chain.policy == "drop"}
    for family, table in sorted({(chain.family, chain.table) for chain in forwarding}):
        body = NFGENMSG.pack(_NUMBERS[family], 0, 0) + attribute(_RULE_TABLE, table.encode() + b"\0")
        rules = kernel.dump(GET_RULE, body)
        if (family, table) in by_policy or any(_MAY_DROP.search(rule.payload) for rule in rules):
            yield from _rules(kernel, (family, table), rules)


def _chain(payload: bytes) -> Chain:
    family, found = FAMILIES.get(payload[0], str(payload[0])), attributes(payload, 4)
    table, name = text(found[_CHAIN_TABLE]), text(found[_CHAIN_NAME])
    backend = _backend(family, table)
    hook = attributes(found.get(_CHAIN_HOOK, b""))
    if not hook:
        return Chain(backend, family, table, name)
    if name not in IPTABLES_CHAINS:
        backend = "nft"
    hook_number, (priority,) = number(hook[_HOOK_NUMBER]), struct.unpack("!i", hook[_HOOK_PRIORITY])
    policy = ("drop", "accept")[bool(number(found[_CHAIN_POLICY]))] if _CHAIN_POLICY in found else ""
    hooks = _OTHER_HOOKS.get(family, _HOOKS)
    hook_name = hooks[hook_number] if hook_number < len(hooks) else str(hook_number)
    return Chain(backend, family, table, name, hook_name, text(found.get(_CHAIN_TYPE, b"")), priority, policy)


def _rules(kernel: Netlink, table: _TableName, messages: Sequence[Message]) -> Iterator[FirewallRule]:
    family, name = table
    backend = _backend(*table)
    sets: dict[str, Sequence[Element]] = {}

    def elements(set_name: str) -> Sequence[Element]:
        if set_name not in sets:
            sets[set_name] = list(_elements(kernel, table, set_name))
        return sets[set_name]

    for message in messages:
        found = attributes(message.payload, 4)
        fields = RuleDecoder(elements).read(found.get(_RULE_EXPRESSIONS, b""))
        rule_id = f"nft/{family}/{name}/{int.from_bytes(found[_RULE_HANDLE])}"
        yield FirewallRule(backend, family, name, text(found[_RULE_CHAIN]), rule_id, **fields)


def _elements(kernel: Netlink, table: _TableName, name: str) -> Iterator[Element]:
    family, table_name = table
    names = attribute(_SET_TABLE, table_name.encode() + b"\0") + attribute(_SET_NAME, name.encode() + b"\0")
    for message in kernel.dump(GET_ELEMENTS, NFGENMSG.pack(_NUMBERS[family], 0, 0) + names):
        listed = attributes(message.payload, 4).get(_SET_ELEMENTS, b"")
        for _, one in attribute_list(listed):
            found = attributes(one)
            key = attributes(found.get(_KEY, b"")).get(_VALUE, b"")
            end = attributes(found.get(_KEY_END, b"")).get(_VALUE, b"")
            verdict = attributes(attributes(found.get(_ELEMENT_DATA, b"")).get(_VERDICT, b""))
            yield key, end, number(found.get(_ELEMENT_FLAGS, b"")), verdict


def _backend(family: str, table: str) -> str:
    return "iptables-nft" if family in ("ip", "ip6") and table in IPTABLES_TABLES else "nft"


# An element of a set: the key, the key's end ("" if that is a separate element), flags, a verdict.
type Element = tuple[bytes, bytes, int, Mapping[int, bytes]]
type Elements = Callable[[str], Sequence[Element]]
type _Expression = tuple[str, Mapping[int, bytes]]

# Numbers are in network byte order, values of ct and meta in host byte order.
_NAME, _DATA = 1, 2
_META = {4: "iif", 5: "oif", 6: "iif", 7: "oif", 15: "nfproto", 16: "l4_proto"}
_CT = {0: "state", 2: "status"}
_BY_INDEX = (4, 5)
# By position in the packet: network or transport header, and offset in bytes.
_PAYLOADS = {
    (1, 12): "src", (1, 16): "dst", (1, 8): "src", (1, 24): "dst", (1, 9): "l4_proto", (1, 6): "l4_proto",
    (2, 0): "sport", (2, 2): "dport",
}  # fmt: skip
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 58: "icmpv6", 132: "sctp", 136: "udplite"}
_NFPROTO = {2: "ipv4", 10: "ipv6"}
_STATES = {1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked", 128: "dnat"}
_DNAT_STATUS = 32
_CODES = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return"}
_SILENT = {"counter", "log", "last"}
_TARGETS = {"REJECT": "reject", "NFQUEUE": "queue"}
_INTERVAL_END, _CATCH_ALL = 1, 2
# xt_conntrack_mtinfo3 of linux/netfilter/xt_conntrack.h: offset of flags, inverted flags and states.
_MATCH_FLAGS = 146
_HEADERS = ("rt", "frag", "hbh", "dst", "mh")


class RuleDecoder:
    """Decode one rule into fields of FirewallRule.

    Its expressions (linux/netfilter/nf_tables.h) are decoded as far as they matter for forwarded packets.
    `elements` returns the elements of a set of the rule's table.
    """

    def __init__(self, elements: Elements) -> None:
        self.fields: dict[str, Any] = {"text": ""}
        self._elements = elements
        self._loaded, self._by_index, self._mask = "", False, b""
        self._family = ""

    def read(self, payload: bytes) -> dict[str, Any]:
        """Decode a rule's list of expressions."""
        for _, one in attribute_list(payload):
            found = attributes(one)
            self._expression(text(found[_NAME]), attributes(found.get(_DATA, b"")))
        if self._family and not {"src", "dst", "verdict_map"} & self.fields.keys():
            self._unknown(f"meta nfproto {self._family}")
        return self.fields

    def _unknown(self, match: str = "") -> None:
        """Record a match that the fields can't express, with its text if that matters."""
        self.fields["understood"] = False
        self.fields["text"] = f"{self.fields['text']} {match}".strip()

    def _expression(self, name: str, data: Mapping[int, bytes]) -> None:
        match name:
            case "meta" | "ct":
                key = number(data.get(2, b""))
                field = (_META if name == "meta" else _CT).get(key, "")
                self._load(field, name == "meta" and key in _BY_INDEX)
            case "payload":
                position = number(data[2]), number(data[3])
                self._load(_PAYLOADS.get(position, ""))
            case "bitwise":
                self._mask = attributes(data[4])[1]
            case "cmp":
                self._compare(attributes(data[3])[1], number(data[2]) == 0)
            case "range":
                values = attributes(data[3])[1], attributes(data[4])[1]
                self._set(_range_text(self._loaded, *values), number(data[2]) == 0)
            case "lookup":
                self._look_up(data)
            case "immediate":
                self._verdict(attributes(attributes(data[2]).get(2, b"")))
            case "reject" | "queue":
                self.fields["verdict"] = name
            case "target":
                self.fields["verdict"] = _TARGETS.get(text(data[1]), "")
            case "match":
                self._extension(text(data[1]), data[3])
            case "fib":
                self._fib(number(data[2]), number(data[3]))
            case _ if name not in _SILENT:
                self._unknown()

    def _load(self, field: str, by_index: bool = False) -> None:
        """Set the loaded field, "" for an unknown one; `by_index` if it is an ifindex."""
        self._loaded, self._by_index = field, by_index
        if not field:
            self._unknown()

    def _compare(self, value: bytes, equal: bool) -> None:
        field, mask = self._loaded, self._mask
        self._mask = b""
        if field == "nfproto" and equal:
            self._family = _NFPROTO.get(value[0], "")
        elif field == "state" and mask and not equal:
            self._set(_states(int.from_bytes(mask, sys.byteorder)), True)
        elif field == "status" and int.from_bytes(mask, sys.byteorder) == _DNAT_STATUS and not equal:
            self._unknown("ct status dnat")
        elif field in ("src", "dst"):
            self._set(_prefix(value, mask), equal)
        elif field in ("iif", "oif") and not self._by_index:
            self._set(text(value) + ("" if value.endswith(b"\0") else "*"), equal)
        elif field != "fib":
            self._set("" if mask else self._value_text(value), equal)

    def _value_text(self, value: bytes) -> str:
        """Format a value of the loaded field, "" if it is unknown."""
        field = self._loaded
        if field in ("iif", "oif") and self._by_index:
            with suppress(OSError):
                return socket.if_indextoname(int.from_bytes(value, sys.byteorder))
        elif field in ("iif", "oif"):
            return text(value)
        elif field in ("src", "dst"):
            return str(ipaddress.ip_address(value))
        elif field in ("sport", "dport"):
            return str(number(value))
        elif field == "l4_proto":
            return _PROTOCOLS.get(value[0], str(value[0]))
        elif field == "state":
            return _states(int.from_bytes(value, sys.byteorder))
        return ""

    def _set(self, value: str, equal: bool) -> None:
        """Set the loaded field; a second match with another value is recorded as unknown."""
        field = "ct_state" if self._loaded == "state" else self._loaded
        value = value if equal or not value else f"!{value}"
        if not value or self.fields.setdefault(field, value) != value:
            self._unknown()

    def _look_up(self, data: Mapping[int, bytes]) -> None:
        """Decode a lookup in a set or a verdict map, whose name is the first attribute."""
        name = text(data[1])
        if number(data.get(3, b"\1")) == 0 and 3 in data:
            self._add_verdict_map(name)
        elif not name.startswith("__"):
            self._set(f"@{name}" if self._loaded in ("src", "dst", "sport", "dport", "iif", "oif") else "",
                      not number(data.get(5, b"")))  # fmt: skip
        else:
            members = self._members(self._elements(name))
            self._set(",".join(members) if all(members) else "", not number(data.get(5, b"")))

    def _members(self, elements: Iterable[Element]) -> list[str]:
        """Format the members of a set; the ends of ranges may be separate elements."""
        field, found = self._loaded, sorted(elements, key=lambda one: (one[0], -one[2]))
        if not any(flags & _INTERVAL_END for _, _, flags, _ in found):
            return [
                _range_text(field, key, end) if end else self._value_text(key) for key, end, _, _ in found
            ]
        members, start = [], b""
        for key, _, flags, _ in found:
            if not flags & _INTERVAL_END:
                start = key
            elif start:
                last = (int.from_bytes(key) - 1).to_bytes(len(key)) if any(key) else key
                members.append(self._value_text(start) if last == start else _range_text(field, start, last))
                start = b""
        return [*members, *([_range_text(field, start, b"\xff" * len(start))] if start else [])]

    def _add_verdict_map(self, name: str) -> None:
        choices = []
        for key, _, flags, verdict in self._elements(name):
            if not flags & _INTERVAL_END and 1 in verdict:
                value = "*" if flags & _CATCH_ALL else self._value_text(key)
                code = _CODES.get(int.from_bytes(verdict[1], signed=True), "")
                choices.append(VerdictCase(value, code or "continue", text(verdict.get(2, b""))))
        targets = dict.fromkeys(one.target for one in choices if one.target)
        self.fields |= {"verdict": "vmap", "target": ",".join(targets), "understood": False}
        if self._loaded in ("iif", "oif", "state") and choices:
            field = "ct_state" if self._loaded == "state" else self._loaded
            self.fields |= {"chosen_by": field, "choices": tuple(choices)}

    def _verdict(self, verdict: Mapping[int, bytes]) -> None:
        code = int.from_bytes(verdict.get(1, b""), signed=True)
        if 1 in verdict and code in _CODES:
            self.fields |= {"verdict": _CODES[code], "target": text(verdict.get(2, b""))}

    def _fib(self, result: int, flags: int) -> None:
        self._loaded = "fib"
        by_source, of_type = flags & 1, result == 3
        self._unknown("" if of_type else "fib saddr . iif oif missing" if by_source else "")

    def _extension(self, name: str, info: bytes) -> None:
        """Decode a match of iptables by the structures of linux/netfilter/xt_*.h."""
        if name == "conntrack":
            self._conntrack(info)
        elif name in ("tcp", "udp") and len(info) >= 9:
            self._ports(info, name)
        elif name == "set" and len(info) >= 4:
            source, inverted = info[3] & 2, info[3] & 1
            self._loaded = "src" if source else "dst"
            self._set("@ipset", not inverted)
        elif name == "rpfilter":
            self._unknown("-m rpfilter --invert" if info[0] & 8 else "")
        elif name != "comment":
            self._unknown(f"-m {name} -" if name in _HEADERS else "")

    def _ports(self, info: bytes, name: str) -> None:
        """Decode xt_tcp and xt_udp: source and destination port ranges, inversion flags."""
        numbers = struct.unpack_from("=4H", info)
        inverted = info[11] if name == "tcp" and len(info) > 11 else info[8]
        for field, (first, last), bit in (("sport", numbers[:2], 1), ("dport", numbers[2:], 2)):
            if (first, last) != (0, 65535):
                self._loaded = field
                self._set(range_text(first, last), not inverted & bit)
        if name == "tcp" and any(info[8:11]):
            self._unknown()

    def _conntrack(self, info: bytes) -> None:
        known = len(info) >= 154
        flags, inverted, mask = struct.unpack_from("=3H", info, _MATCH_FLAGS) if known else (0, 0, 0)
        if flags == 1:
            self._loaded = "state"
            self._set(_states(mask), not inverted & 1)
        else:
            self._unknown()


def _range_text(field: str, first: bytes, last: bytes) -> str:
    if field in ("src", "dst"):
        return f"{ipaddress.ip_address(first)}-{ipaddress.ip_address(last)}"
    return f"{number(first)}-{number(last)}" if field in ("sport", "dport") else ""


def _prefix(value: bytes, mask: bytes) -> str:
    """Format an address, or a prefix if only some of its bits are compared."""
    size = 4 if len(value) <= 4 else 16
    bits = int.from_bytes(mask).bit_count() if mask else 8 * len(value)
    address = ipaddress.ip_address(value.ljust(size, b"\0"))
    return str(address) if bits == 8 * size else f"{address}/{bits}"


def _states(mask: int) -> str:
    return ",".join(name for bit, name in _STATES.items() if mask & bit)


def number(value: bytes) -> int:
    """Decode a number in network byte order."""
    return int.from_bytes(value)
