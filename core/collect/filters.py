"""The chains of nftables, and the rules of those tables that drop what is forwarded, from the kernel itself:
what plans of networks ask of others' rules, which may be many, and the tools that tell them whole slow."""

from __future__ import annotations

import ipaddress
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.collect.netlink import NETFILTER, Netlink, attribute, attribute_list, attributes, text
from core.collect.nftables import (
    FAMILIES,
    GET_CHAIN,
    GET_RULE,
    IPTABLES_CHAINS,
    IPTABLES_TABLES,
    NFGENMSG,
    would_load_module,
)
from core.model import Chain, FirewallRule

# linux/netfilter/nf_tables.h; numbers are in network order.
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS = 1, 2, 3, 4
_NAME, _DATA = 1, 2
_ASKED = {
    ("meta", 6): "iif",
    ("meta", 7): "oif",
    ("meta", 15): "protocol",
    ("ct", 0): "state",
    ("ct", 2): "status",
}
# Where in a packet addresses are: in the network header, from which byte on.
_BASE, _OFFSET = 2, 3
_ADDRESSES = {(1, 12): "src", (1, 16): "dst", (1, 8): "src", (1, 24): "dst"}
_BITWISE_MASK, _LOOKUP_INTO, _MATCH_INFO, _VERDICT_CHAIN = 4, 3, 3, 2
# Where in xt_conntrack_mtinfo3 the flags, the inverted ones and the states are.
_MATCH_FLAGS = 146
_STATES = {1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked", 128: "dnat"}
_DNAT_STATUS = 32
_CODES = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return"}
_SILENT = ("counter", "log", "immediate")
_CMP_OP, _CMP_DATA, _EQUAL = 2, 3, 0
_IMMEDIATE_DATA, _VALUE, _VERDICT, _CODE = 2, 1, 2, 1
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
_OTHER_HOOKS = {"arp": ("input", "output", "forward"), "netdev": ("ingress", "egress")}
_NUMBERS = {name: number for number, name in FAMILIES.items()}

type _Expression = tuple[str, Mapping[int, bytes]]


def read_filters() -> tuple[list[Chain], list[FirewallRule]]:
    """The chains of the thread's network namespace, and the rules, as far as links and states tell them, of
    those tables that drop what is forwarded and not accepted. Raises PermissionError."""
    if would_load_module():
        return [], []
    try:
        with Netlink(NETFILTER) as kernel:
            told = kernel.dump(GET_CHAIN, NFGENMSG.pack(0, 0, 0))
            chains = [_chain(message.payload) for message in told]
            dropping = {(one.family, one.table) for one in chains if is_dropping(one)}
            return chains, [rule for table in sorted(dropping) for rule in _rules(kernel, *table)]
    except PermissionError:
        raise
    except OSError:
        # A kernel without nftables refuses the question.
        return [], []


def is_dropping(chain: Chain) -> bool:
    """Whether it drops what is forwarded and not accepted."""
    return chain.hook == "forward" and chain.policy == "drop"


def _chain(payload: bytes) -> Chain:
    family, found = FAMILIES.get(payload[0], str(payload[0])), attributes(payload, 4)
    table, name = text(found[_CHAIN_TABLE]), text(found[_CHAIN_NAME])
    backend = _backend(family, table)
    hook = attributes(found.get(_CHAIN_HOOK, b""))
    if not hook:
        return Chain(backend, family, table, name)
    if name not in IPTABLES_CHAINS:
        backend = "nft"
    number, (priority,) = _number(hook[_HOOK_NUMBER]), struct.unpack("!i", hook[_HOOK_PRIORITY])
    policy = ("drop", "accept")[bool(_number(found[_CHAIN_POLICY]))] if _CHAIN_POLICY in found else ""
    hooks = _OTHER_HOOKS.get(family, _HOOKS)
    where = hooks[number] if number < len(hooks) else str(number)
    return Chain(backend, family, table, name, where, text(found.get(_CHAIN_TYPE, b"")), priority, policy)


def _rules(kernel: Netlink, family: str, table: str) -> Iterator[FirewallRule]:
    body = NFGENMSG.pack(_NUMBERS[family], 0, 0) + attribute(_RULE_TABLE, table.encode() + b"\0")
    for message in kernel.dump(GET_RULE, body):
        found = attributes(message.payload, 4)
        listed = [attributes(one) for _, one in attribute_list(found.get(_RULE_EXPRESSIONS, b""))]
        fields: dict[str, Any] = {"text": ""}
        _read(fields, [(text(one[_NAME]), attributes(one.get(_DATA, b""))) for one in listed])
        rule_id = f"nft/{family}/{table}/{int.from_bytes(found[_RULE_HANDLE])}"
        backend = _backend(family, table)
        yield FirewallRule(backend, family, table, text(found[_RULE_CHAIN]), rule_id, **fields)


def _backend(family: str, table: str) -> str:
    return "iptables-nft" if family in ("ip", "ip6") and table in IPTABLES_TABLES else "nft"


def _read(fields: dict[str, Any], expressions: Sequence[_Expression]) -> None:
    """What the expressions of a rule match and do; what they match besides makes it not understood."""
    asked, mask = "", b""
    for name, data in expressions:
        match name:
            case "meta" | "ct":
                key = _number(data.get(2, b""))
                asked = _ASKED.get((name, key), "")
                if not asked:
                    fields["understood"] = False
            case "bitwise":
                mask = attributes(data[_BITWISE_MASK])[_VALUE]
            case "cmp":
                _compare(fields, asked, mask, data)
                asked, mask = "", b""
            case "payload":
                asked = _ADDRESSES.get((_number(data[_BASE]), _number(data[_OFFSET])), "other")
            case "immediate":
                _verdict(fields, attributes(attributes(data[_IMMEDIATE_DATA]).get(_VERDICT, b"")))
            case "match" if text(data[_NAME]) == "conntrack":
                _conntrack(fields, data[_MATCH_INFO])
            case "match" if text(data[_NAME]) == "comment":
                pass
            case "reject":
                fields["verdict"] = "reject"
            case "lookup" if _number(data.get(_LOOKUP_INTO, b"\1")) == 0 and _LOOKUP_INTO in data:
                fields["verdict"] = "vmap"
            case "target" if text(data[_NAME]) == "REJECT":
                fields["verdict"] = "reject"
            case _ if name not in _SILENT:
                fields["understood"] = False


def _compare(fields: dict[str, Any], asked: str, mask: bytes, data: Mapping[int, bytes]) -> None:
    value, equal = attributes(data[_CMP_DATA])[_VALUE], _number(data[_CMP_OP]) == _EQUAL
    if asked in ("iif", "oif"):
        name = text(value) + ("" if value.endswith(b"\0") else "*")
        fields[asked] = name if equal else f"!{name}"
    elif asked in ("src", "dst"):
        fields[asked] = ("" if equal else "!") + _prefix(value, mask)
    elif asked == "protocol" and equal:
        pass  # said by the address that follows
    elif asked == "state" and mask and not equal:
        fields["ct_state"] = _states(int.from_bytes(mask, sys.byteorder))
    elif asked == "status" and int.from_bytes(mask, sys.byteorder) == _DNAT_STATUS and not equal:
        fields["text"] = "ct status dnat"
        fields["understood"] = False
    else:
        fields["understood"] = False


def _prefix(value: bytes, mask: bytes) -> str:
    """An address, or where a mask or the first bytes alone are compared, a prefix."""
    size = 4 if len(value) <= 4 else 16
    bits = int.from_bytes(mask).bit_count() if mask else 8 * len(value)
    address = ipaddress.ip_address(value.ljust(size, b"\0"))
    return str(address) if bits == 8 * size else f"{address}/{bits}"


def _verdict(fields: dict[str, Any], verdict: Mapping[int, bytes]) -> None:
    code = int.from_bytes(verdict.get(_CODE, b""), signed=True)
    if _CODE in verdict and code in _CODES:
        fields["verdict"] = _CODES[code]
        fields["target"] = text(verdict.get(_VERDICT_CHAIN, b""))


def _conntrack(fields: dict[str, Any], info: bytes) -> None:
    """xt_conntrack_mtinfo3 of linux/netfilter/xt_conntrack.h, where it asks for the state alone."""
    flags, inverted, mask = struct.unpack_from("=3H", info, _MATCH_FLAGS) if len(info) >= 154 else (0, 0, 0)
    if flags == 1:
        fields["ct_state"] = ("!" if inverted & 1 else "") + _states(mask)
    else:
        fields["understood"] = False


def _states(mask: int) -> str:
    return ",".join(name for bit, name in _STATES.items() if mask & bit)


def _number(value: bytes) -> int:
    return int.from_bytes(value)
