"""Reads the rules that forwarded packets pass, as values for judging: nftables' (iptables-nft's too)
straight from the kernel, iptables-legacy's from iptables-save."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from bpf.ct_marks import PRIORITY, SHIFT, TABLE, field_mask
from bpf.expressions import Sets, rule_of
from bpf.extensions import saved_rule
from bpf.nfnetlink import NFTABLES, header, string
from bpf.rule_analysis import ChainName, Rule, RuleSet
from bpf.rulewatch import families
from core.collect.iptables import read_iptables
from core.collect.nft_netlink import FAMILIES
from core.netlink.client import NETFILTER, Message, Netlink, attribute_list, attributes, text

_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_SET, _GET_ELEMENTS = (
    NFTABLES | number for number in (1, 4, 7, 10, 13)
)
_IPTABLES = ("filter", "nat", "mangle", "raw", "security")
_HOOKS = {
    "inet": ("prerouting", "input", "forward", "output", "postrouting", "ingress"),
    "netdev": ("ingress", "egress"),
}
_MAP_OF_VERDICTS = 0xFFFFFF00
_POLICY_DROP = bytes(4)
_DROPS = Rule("policy", always=True, verdict="drop")
_NUMBERS = {name: number for number, name in FAMILIES.items()}
_MAP, _TIMEOUT = 0x8, 0x10  # NFT_SET_MAP, NFT_SET_TIMEOUT
_SET_EXPRESSION, _SET_EXPRESSIONS = 17, 18  # NFTA_SET_EXPR, NFTA_SET_EXPRESSIONS


@dataclass(slots=True)
class _KnownTable:
    """A table of nftables as it was read last: its sets, and its rules by handle."""

    sets: Sets
    rules: dict[int, Rule] = field(default_factory=dict)


class RuleCache:
    """The rules that were read before: one that keeps its handle never changes, and to understand it takes
    most of the time of reading it (a quarter of a millisecond). Tables are told by their own handles, for
    names are used again."""

    def __init__(self) -> None:
        self._known: dict[int, _KnownTable] = {}

    def of(self, handle: int, sets: Sets) -> dict[int, Rule]:
        """What is known of a table's rules; nothing where its sets are others than before."""
        known = self._known.get(handle)
        if known is None or known.sets != sets:
            known = self._known[handle] = _KnownTable(sets)
        return known.rules

    def table(self, handle: int) -> _KnownTable | None:
        """What was read last of a table, where it had rules."""
        return self._known.get(handle)

    def keep(self, handles: Collection[int]) -> None:
        """Forget all tables but these."""
        self._known = {handle: known for handle, known in self._known.items() if handle in handles}


def read_rules(shift: int = SHIFT, cache: RuleCache | None = None) -> RuleSet:
    """All rules of the process's network namespace; raises OSError, and ToolFailed where iptables-save
    does. With the `cache` of the last time only what is new is looked at closely."""
    mask = field_mask(shift)
    chains: dict[ChainName, list[Rule]] = {}
    hooks: dict[ChainName, str] = {}
    with Netlink(NETFILTER) as kernel:
        behind = _read_chains(kernel, chains, hooks)
        sets = _read_sets(kernel)
        _read_nft_rules(kernel, chains, sets, mask, cache or RuleCache())
        for name in behind.dropping:
            chains[name].append(_DROPS)
    for family in families():
        _read_legacy(family, chains, hooks, mask)
    named = {(*table, name): flags for table, found in sets.items() for name, flags in found.flags.items()}
    return RuleSet(
        chains,
        hooks,
        frozenset(behind.late),
        frozenset(name for name, flags in named.items() if flags & _MAP),
        frozenset(name for name, flags in named.items() if flags & _TIMEOUT),
    )


@dataclass(slots=True)
class _BaseChains:
    """Base chains that drop what comes to their end, and those behind our own chain."""

    dropping: list[ChainName] = field(default_factory=list)
    late: list[ChainName] = field(default_factory=list)


def _read_chains(
    kernel: Netlink, chains: dict[ChainName, list[Rule]], hooks: dict[ChainName, str]
) -> _BaseChains:
    """Fill in nftables' chains, without rules, and their hooks."""
    found = _BaseChains()
    for message in kernel.dump(_GET_CHAIN, header(0)):
        family, given = _opened(message)
        name = (family, text(given[1]), text(given[3]))
        if name[:2] == ("inet", TABLE) or family == "arp":
            continue
        chains.setdefault(name, [])
        if 4 in given and text(given.get(7, b"")) != "nat":
            hooks[name] = _hook(family, given[4])
            if hooks[name] == "postrouting" and _priority(given[4]) >= PRIORITY:
                found.late.append(name)
            if given.get(5) == _POLICY_DROP:
                found.dropping.append(name)
    return found


def _read_nft_rules(
    kernel: Netlink,
    chains: dict[ChainName, list[Rule]],
    sets: Mapping[tuple[str, str], Sets],
    mask: int,
    cache: RuleCache,
) -> None:
    tables = _handles(kernel)
    cache.keep(tables.values())
    for message in kernel.dump(_GET_RULE, header(0)):
        family, given = _opened(message)
        name = (family, text(given[1]), text(given[2]))
        if name not in chains:
            continue
        of_table = sets.get(name[:2], Sets())
        known = cache.of(tables.get(name[:2], 0), of_table)
        _append(chains[name], name, given, of_table, known, mask)


def _append(
    held: list[Rule], chain: ChainName, given: dict[int, bytes], sets: Sets, known: dict[int, Rule], mask: int
) -> None:
    """One more rule of a chain."""
    handle = int.from_bytes(given.get(3, b""), "big")
    if handle not in known:
        known[handle] = rule_of(chain, handle, given.get(4, b""), sets, mask)
    held.append(_as_listed(known[handle], chain, len(held) + 1))


def reread(rules: RuleSet, names: Collection[ChainName], cache: RuleCache, shift: int = SHIFT) -> RuleSet:
    """What was read, with the rules of these chains of nftables as they are now; chains, sets and what
    iptables-legacy has must be as they were. Where not enough is known, all is read."""
    mask = field_mask(shift)
    chains = dict(rules.chains)
    with Netlink(NETFILTER) as kernel:
        tables = _handles(kernel)
        for name in names:
            known = cache.table(tables.get(name[:2], 0))
            if known is None or name not in chains:
                return read_rules(shift, cache)
            held: list[Rule] = []
            body = header(_NUMBERS[name[0]]) + _attribute(1, string(name[1])) + _attribute(2, string(name[2]))
            for message in kernel.dump(_GET_RULE, body):
                _append(held, name, _opened(message)[1], known.sets, known.rules, mask)
            chains[name] = [*held, *(rule for rule in chains[name] if rule == _DROPS)]
    return replace(rules, chains=chains)


def _handles(kernel: Netlink) -> dict[tuple[str, str], int]:
    """The handle of each table."""
    tables: dict[tuple[str, str], int] = {}
    for message in kernel.dump(_GET_TABLE, header(0)):
        family, given = _opened(message)
        tables[family, text(given[1])] = int.from_bytes(given.get(4, b""), "big")
    return tables


def _as_listed(rule: Rule, chain: ChainName, number: int) -> Rule:
    """Under the number by which iptables knows it; nft(8) knows handles (`nft -a list ruleset`)."""
    is_iptables = chain[0] in ("ip", "ip6") and chain[1] in _IPTABLES
    return replace(rule, name=f"rule {number}") if is_iptables else rule


def _opened(message: Message) -> tuple[str, dict[int, bytes]]:
    return FAMILIES.get(message.payload[0], str(message.payload[0])), attributes(message.payload, 4)


def _hook(family: str, given: bytes) -> str:
    number = int.from_bytes(attributes(given).get(1, b""), "big")
    names = _HOOKS.get(family, _HOOKS["inet"])
    return names[number] if number < len(names) else "forward"


def _priority(given: bytes) -> int:
    return int.from_bytes(attributes(given).get(2, b""), "big", signed=True)


def _read_sets(kernel: Netlink) -> dict[tuple[str, str], Sets]:
    flags: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    verdicts: defaultdict[tuple[str, str], dict[str, list[tuple[bytes, int, str]]]] = defaultdict(dict)
    judging: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for message in kernel.dump(_GET_SET, header(0)):
        family, given = _opened(message)
        table, name = (family, text(given[1])), text(given[2])
        flags[table][name] = int.from_bytes(given.get(3, b""), "big")
        if int.from_bytes(given.get(6, b""), "big") == _MAP_OF_VERDICTS:
            verdicts[table][name] = _elements(kernel, message.payload[0], given[1], given[2])
        if judges := _in_elements(given):
            judging[table][name] = judges
    return {table: Sets(flags[table], verdicts[table], judging[table]) for table in flags}


def _in_elements(given: Mapping[int, bytes]) -> str:
    """The expression in each element of a set that may tell packets apart, "" for none: counters don't."""
    listed = [given[_SET_EXPRESSION]] if _SET_EXPRESSION in given else []
    listed += [each for _, each in attribute_list(given.get(_SET_EXPRESSIONS, b""))]
    names = (text(attributes(each).get(1, b"")) for each in listed)
    return next((name for name in names if name not in ("counter", "last")), "")


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
