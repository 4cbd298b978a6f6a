"""Reads the rules that forwarded packets pass, as values for judging: nftables' (iptables-nft's too)
straight from the kernel, iptables-legacy's from iptables-save."""

from __future__ import annotations

import struct
from collections import defaultdict

from bpf import legacy, marks
from bpf.expressions import Sets, rule_of
from bpf.judging import ChainName, Rule, RuleSet, saved_rule
from bpf.nfnetlink import NFTABLES, header
from core.collect.iptables import read_iptables
from core.collect.netlink import NETFILTER, Message, Netlink, attribute_list, attributes, text
from core.collect.nftables import FAMILIES

_GET_CHAIN, _GET_RULE, _GET_SET, _GET_ELEMENTS = (NFTABLES | number for number in (4, 7, 10, 13))
_HOOKS = {
    "inet": ("prerouting", "input", "forward", "output", "postrouting", "ingress"),
    "netdev": ("ingress", "egress"),
}
_MAP_OF_VERDICTS = 0xFFFFFF00
_POLICY_DROP = bytes(4)


def read_rules(shift: int = marks.SHIFT) -> RuleSet:
    """All rules of the process's network namespace; raises OSError, and ToolFailed where iptables-save
    does."""
    chains: dict[ChainName, list[Rule]] = {}
    hooks: dict[ChainName, str] = {}
    mask = marks.field_mask(shift)
    with Netlink(NETFILTER) as kernel:
        _read_nft(kernel, chains, hooks, mask)
    for family in legacy.families():
        _read_legacy(family, chains, hooks, mask)
    return RuleSet(chains, hooks)


def _read_nft(
    kernel: Netlink, chains: dict[ChainName, list[Rule]], hooks: dict[ChainName, str], mask: int
) -> None:
    dropping = []
    for message in kernel.dump(_GET_CHAIN, header(0)):
        family, given = _opened(message)
        name = (family, text(given[1]), text(given[3]))
        if name[:2] == ("inet", marks.TABLE) or family == "arp":
            continue
        chains.setdefault(name, [])
        if 4 in given and text(given.get(7, b"")) != "nat":
            hooks[name] = _hook(family, given[4])
            if given.get(5) == _POLICY_DROP:
                dropping.append(name)
    sets = _read_sets(kernel)
    for message in kernel.dump(_GET_RULE, header(0)):
        family, given = _opened(message)
        name = (family, text(given[1]), text(given[2]))
        if name in chains:
            handle = int.from_bytes(given.get(3, b""), "big")
            chains[name].append(rule_of(name, handle, given.get(4, b""), sets.get(name[:2], Sets()), mask))
    for name in dropping:
        chains[name].append(Rule("policy", always=True, verdict="drop"))


def _opened(message: Message) -> tuple[str, dict[int, bytes]]:
    return FAMILIES.get(message.payload[0], str(message.payload[0])), attributes(message.payload, 4)


def _hook(family: str, given: bytes) -> str:
    number = int.from_bytes(attributes(given).get(1, b""), "big")
    names = _HOOKS.get(family, _HOOKS["inet"])
    return names[number] if number < len(names) else "forward"


def _read_sets(kernel: Netlink) -> dict[tuple[str, str], Sets]:
    flags: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    verdicts: defaultdict[tuple[str, str], dict[str, list[tuple[bytes, int, str]]]] = defaultdict(dict)
    for message in kernel.dump(_GET_SET, header(0)):
        family, given = _opened(message)
        table, name = (family, text(given[1])), text(given[2])
        flags[table][name] = int.from_bytes(given.get(3, b""), "big")
        if int.from_bytes(given.get(6, b""), "big") == _MAP_OF_VERDICTS:
            verdicts[table][name] = _elements(kernel, message.payload[0], given[1], given[2])
    return {table: Sets(flags[table], verdicts[table]) for table in flags}


def _elements(kernel: Netlink, family: int, table: bytes, name: bytes) -> list[tuple[bytes, int, str]]:
    """Of a verdict map: each key, with the verdict's code and chain."""
    body = header(family) + _attribute(1, table) + _attribute(2, name)
    found = []
    for message in kernel.dump(_GET_ELEMENTS, body):
        listed = attributes(message.payload, 4).get(3, b"")
        for _, element in attribute_list(listed):
            given = attributes(element)
            key = attributes(given.get(1, b"")).get(1, b"")
            verdict = attributes(attributes(given.get(2, b"")).get(2, b""))
            code = int.from_bytes(verdict.get(1, b"\0\0\0\1"), "big", signed=True)
            found.append((key, code, text(verdict.get(2, b""))))
    return found


def _attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), number) + value + b"\0" * (-len(value) % 4)


def _read_legacy(
    family: str, chains: dict[ChainName, list[Rule]], hooks: dict[ChainName, str], mask: int
) -> None:
    saved = read_iptables(family, "iptables-legacy")
    backend = f"iptables-legacy {family}"
    for chain in saved.chains:
        name = (backend, chain.table, chain.name)
        chains[name] = []
        if chain.hook and chain.kind != "nat":
            hooks[name] = chain.hook
    for rule in saved.rules:
        known = frozenset(name[2] for name in chains if name[:2] == (backend, rule.table))
        name = (backend, rule.table, rule.chain)
        chains[name].append(saved_rule(rule.text, rule.ct_state, known, name, mask))
