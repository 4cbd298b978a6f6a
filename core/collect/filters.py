"""The chains of nftables, and the rules of those tables that may drop what is forwarded, from the kernel
itself: what plans of networks ask of others' rules, which may be many, and the tools for them slow."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence

from core.collect.filter_rules import Element, Meaning, number
from core.collect.netlink import NETFILTER, Message, Netlink, attribute, attribute_list, attributes, text
from core.collect.nftables import (
    FAMILIES,
    GET_CHAIN,
    GET_ELEMENTS,
    GET_RULE,
    IPTABLES_CHAINS,
    IPTABLES_TABLES,
    NFGENMSG,
    would_load_module,
)
from core.model import Chain, FirewallRule
from core.nat.letting import is_on_the_way
from core.tags import TABLE

# linux/netfilter/nf_tables.h; numbers are in network order.
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS = 1, 2, 3, 4
_SET_TABLE, _SET_NAME, _SET_ELEMENTS = 1, 2, 3
_KEY, _ELEMENT_DATA, _ELEMENT_FLAGS, _KEY_END, _VALUE, _VERDICT = 1, 2, 3, 10, 1, 2
# What a rule that drops holds: the verdict drop, a reject, a queue, or a verdict map.
_MAY_DROP = re.compile(
    rb"\x0c\0\x02[\x80\0]\x08\0\x01\0\0\0\0\0|reject\0|REJECT\0|queue\0|NFQUEUE\0|lookup\0.*\x08\0\x03\0\0\0\0\0",
    re.DOTALL,
)
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
_OTHER_HOOKS = {"arp": ("input", "output", "forward"), "netdev": ("ingress", "egress")}
_NUMBERS = {name: value for value, name in FAMILIES.items()}

type _TableName = tuple[str, str]


def read_filters() -> tuple[list[Chain], list[FirewallRule]]:
    """The chains of the thread's network namespace, and the rules, as far as filter_rules has them, of those
    tables in which anything that is forwarded is dropped. Raises PermissionError."""
    if would_load_module():
        return [], []
    try:
        with Netlink(NETFILTER) as kernel:
            chains = [_chain(message.payload) for message in kernel.dump(GET_CHAIN, NFGENMSG.pack(0, 0, 0))]
            return chains, list(_dropping(kernel, chains))
    except PermissionError:
        raise
    except OSError:
        # A kernel without nftables refuses the question.
        return [], []


def _dropping(kernel: Netlink, chains: Sequence[Chain]) -> Iterator[FirewallRule]:
    """The rules of others' tables that drop: by a chain's policy, or by a rule of any chain."""
    on_the_way = [chain for chain in chains if is_on_the_way(chain) and chain.table != TABLE]
    by_policy = {(chain.family, chain.table) for chain in on_the_way if chain.policy == "drop"}
    for family, table in sorted({(chain.family, chain.table) for chain in on_the_way}):
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
    hooked, (priority,) = number(hook[_HOOK_NUMBER]), struct.unpack("!i", hook[_HOOK_PRIORITY])
    policy = ("drop", "accept")[bool(number(found[_CHAIN_POLICY]))] if _CHAIN_POLICY in found else ""
    hooks = _OTHER_HOOKS.get(family, _HOOKS)
    where = hooks[hooked] if hooked < len(hooks) else str(hooked)
    return Chain(backend, family, table, name, where, text(found.get(_CHAIN_TYPE, b"")), priority, policy)


def _rules(kernel: Netlink, table: _TableName, messages: Sequence[Message]) -> Iterator[FirewallRule]:
    family, name = table
    backend = _backend(*table)
    sets: dict[str, Sequence[Element]] = {}

    def elements(of: str) -> Sequence[Element]:
        if of not in sets:
            sets[of] = list(_elements(kernel, table, of))
        return sets[of]

    for message in messages:
        found = attributes(message.payload, 4)
        fields = Meaning(elements).read(found.get(_RULE_EXPRESSIONS, b""))
        rule_id = f"nft/{family}/{name}/{int.from_bytes(found[_RULE_HANDLE])}"
        yield FirewallRule(backend, family, name, text(found[_RULE_CHAIN]), rule_id, **fields)


def _elements(kernel: Netlink, table: _TableName, name: str) -> Iterator[Element]:
    family, of = table
    words = attribute(_SET_TABLE, of.encode() + b"\0") + attribute(_SET_NAME, name.encode() + b"\0")
    for message in kernel.dump(GET_ELEMENTS, NFGENMSG.pack(_NUMBERS[family], 0, 0) + words):
        listed = attributes(message.payload, 4).get(_SET_ELEMENTS, b"")
        for _, one in attribute_list(listed):
            found = attributes(one)
            key = attributes(found.get(_KEY, b"")).get(_VALUE, b"")
            end = attributes(found.get(_KEY_END, b"")).get(_VALUE, b"")
            verdict = attributes(attributes(found.get(_ELEMENT_DATA, b"")).get(_VERDICT, b""))
            yield key, end, number(found.get(_ELEMENT_FLAGS, b"")), verdict


def _backend(family: str, table: str) -> str:
    return "iptables-nft" if family in ("ip", "ip6") and table in IPTABLES_TABLES else "nft"
