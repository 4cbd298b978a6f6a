"""The chains of nftables, and whom rules accept by the link that they come from, from the kernel itself: what
plans of networks ask of others' rules, which may be many, and the tools that tell them whole slow."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

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
_META_KEY, _IIFNAME = 2, 6
_CMP_OP, _CMP_DATA, _EQUAL = 2, 3, 0
_IMMEDIATE_DATA, _VALUE, _VERDICT, _CODE, _ACCEPT = 2, 1, 2, 1, 1
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
_OTHER_HOOKS = {"arp": ("input", "output", "forward"), "netdev": ("ingress", "egress")}
_NUMBERS = {name: number for number, name in FAMILIES.items()}

type _Expression = tuple[str, Mapping[int, bytes]]


def read_filters() -> tuple[list[Chain], list[FirewallRule]]:
    """The chains of the thread's network namespace, and the rules that accept what a link of a certain name
    brings, of those tables that drop the rest of what is forwarded. Raises PermissionError."""
    if would_load_module():
        return [], []
    try:
        with Netlink(NETFILTER) as kernel:
            told = kernel.dump(GET_CHAIN, NFGENMSG.pack(0, 0, 0))
            chains = [_chain(message.payload) for message in told]
            dropping = {(one.family, one.table) for one in chains if is_dropping(one)}
            return chains, [rule for table in sorted(dropping) for rule in _accepting(kernel, *table)]
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
    backend = "iptables-nft" if family in ("ip", "ip6") and table in IPTABLES_TABLES else "nft"
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


def _accepting(kernel: Netlink, family: str, table: str) -> Iterator[FirewallRule]:
    body = NFGENMSG.pack(_NUMBERS[family], 0, 0) + attribute(_RULE_TABLE, table.encode() + b"\0")
    for message in kernel.dump(GET_RULE, body):
        found = attributes(message.payload, 4)
        listed = [attributes(one) for _, one in attribute_list(found.get(_RULE_EXPRESSIONS, b""))]
        expressions = [(text(one[_NAME]), attributes(one.get(_DATA, b""))) for one in listed]
        iif = _link(expressions)
        if iif and any(map(_is_accept, expressions)):
            handle = int.from_bytes(found[_RULE_HANDLE])
            rule_id = f"nft/{family}/{table}/{handle}"
            yield FirewallRule(
                "nft", family, table, text(found[_RULE_CHAIN]), rule_id, "", verdict="accept", iif=iif
            )


def _link(expressions: Sequence[_Expression]) -> str:
    """The link of that name that must have brought a packet, "" where any may."""
    for (first, of), (second, with_) in pairwise(expressions):
        named = first == "meta" and second == "cmp" and _number(of.get(_META_KEY, b"")) == _IIFNAME
        if named and _number(with_[_CMP_OP]) == _EQUAL:
            return text(attributes(with_[_CMP_DATA])[_VALUE])
    return ""


def _is_accept(expression: _Expression) -> bool:
    name, data = expression
    verdict = attributes(attributes(data.get(_IMMEDIATE_DATA, b"")).get(_VERDICT, b""))
    return name == "immediate" and _number(verdict.get(_CODE, b"")) == _ACCEPT


def _number(value: bytes) -> int:
    return int.from_bytes(value)
