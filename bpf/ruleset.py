"""Read the rules that forwarded packets pass, as values for the analysis.

Those of nftables (and iptables-nft) come from the kernel, those of iptables-legacy from iptables-save.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from bpf.connections import PRIORITY, SHIFT, TABLE, field_mask
from bpf.expressions import Sets, rule_of
from bpf.extensions import saved_rule
from bpf.rule_analysis import ChainName, Rule, RuleSet
from core.collect.iptables import read_iptables
from core.collect.nft_netlink import FAMILIES
from core.netlink.client import NETFILTER, Message, Netlink, attribute_list, attributes, text
from core.netlink.nfnetlink import NFTABLES, header, string
from core.text import TRACE_TABLE

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
    """Hold a table of nftables as it was read last: its sets, and rules by handle."""

    sets: Sets
    rules: dict[int, Rule] = field(default_factory=dict)


class RuleCache:
    """Cache parsed rules.

    A rule that keeps its handle never changes, and parsing takes most of the time of reading (a quarter of
    a millisecond a rule). Tables are identified by handle, as names are reused.
    """

    def __init__(self) -> None:
        self._known: dict[int, _KnownTable] = {}

    def of(self, handle: int, sets: Sets) -> dict[int, Rule]:
        """Return the known rules of a table; none if its sets changed."""
        known = self._known.get(handle)
        if known is None or known.sets != sets:
            known = self._known[handle] = _KnownTable(sets)
        return known.rules

    def table(self, handle: int) -> _KnownTable | None:
        """Return what was read last of a table that had rules."""
        return self._known.get(handle)

    def forget_others(self, handles: Collection[int]) -> None:
        """Forget all other tables."""
        self._known = {handle: known for handle, known in self._known.items() if handle in handles}


def read_rules(shift: int = SHIFT, cache: RuleCache | None = None) -> RuleSet:
    """Read all rules of the process's network namespace.

    With the `cache` of the last time only new rules are parsed. Raises OSError, and ToolFailed if
    iptables-save fails.
    """
    mask = field_mask(shift)
    chains: dict[ChainName, list[Rule]] = {}
    hooks: dict[ChainName, str] = {}
    with Netlink(NETFILTER) as kernel:
        port_macs = _read_chains(kernel, chains, hooks)
        sets = _read_sets(kernel)
        _read_nft_rules(kernel, chains, sets, mask, cache or RuleCache())
        for name in port_macs.dropping:
            chains[name].append(_DROPS)
    for family in legacy_families():
        _read_legacy(family, chains, hooks, mask)
    named = {(*table, name): flags for table, found in sets.items() for name, flags in found.flags.items()}
    return RuleSet(
        chains,
        hooks,
        frozenset(port_macs.late),
        frozenset(name for name, flags in named.items() if flags & _MAP),
        frozenset(name for name, flags in named.items() if flags & _TIMEOUT),
    )


@dataclass(slots=True)
class _BaseChains:
    """Hold base chains with policy drop, and those after our own chain."""

    dropping: list[ChainName] = field(default_factory=list)
    late: list[ChainName] = field(default_factory=list)


def _read_chains(
    kernel: Netlink, chains: dict[ChainName, list[Rule]], hooks: dict[ChainName, str]
) -> _BaseChains:
    """Add nftables' chains, without rules, and their hooks.

    Those of a probe only mark its own packets for tracing.
    """
    found = _BaseChains()
    for message in kernel.dump(_GET_CHAIN, header(0)):
        family, given = _parsed(message)
        name = (family, text(given[1]), text(given[3]))
        if name[:2] == ("inet", TABLE) or name[1].startswith(TRACE_TABLE) or family == "arp":
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
    cache.forget_others(tables.values())
    for message in kernel.dump(_GET_RULE, header(0)):
        family, given = _parsed(message)
        name = (family, text(given[1]), text(given[2]))
        if name not in chains:
            continue
        of_table = sets.get(name[:2], Sets())
        known = cache.of(tables.get(name[:2], 0), of_table)
        _append(chains[name], name, given, of_table, known, mask)


def _append(
    listed_rules: list[Rule],
    chain: ChainName,
    given: dict[int, bytes],
    sets: Sets,
    known: dict[int, Rule],
    mask: int,
) -> None:
    """Add one rule to a chain."""
    handle = int.from_bytes(given.get(3, b""), "big")
    if handle not in known:
        known[handle] = rule_of(chain, handle, given.get(4, b""), sets, mask)
    listed_rules.append(_as_listed(known[handle], chain, len(listed_rules) + 1))


def reread(rules: RuleSet, names: Collection[ChainName], cache: RuleCache, shift: int = SHIFT) -> RuleSet:
    """Read the rules of these nftables chains again, and return the updated rule set.

    Chains, sets and iptables-legacy must be unchanged. If not enough is known, all is read.
    """
    mask = field_mask(shift)
    chains = dict(rules.chains)
    with Netlink(NETFILTER) as kernel:
        tables = _handles(kernel)
        for name in names:
            known = cache.table(tables.get(name[:2], 0))
            if known is None or name not in chains:
                return read_rules(shift, cache)
            listed_rules: list[Rule] = []
            body = header(_NUMBERS[name[0]]) + _attribute(1, string(name[1])) + _attribute(2, string(name[2]))
            for message in kernel.dump(_GET_RULE, body):
                _append(listed_rules, name, _parsed(message)[1], known.sets, known.rules, mask)
            chains[name] = [*listed_rules, *(rule for rule in chains[name] if rule == _DROPS)]
    return replace(rules, chains=chains)


def _handles(kernel: Netlink) -> dict[tuple[str, str], int]:
    """Return the handle of each table."""
    tables: dict[tuple[str, str], int] = {}
    for message in kernel.dump(_GET_TABLE, header(0)):
        family, given = _parsed(message)
        tables[family, text(given[1])] = int.from_bytes(given.get(4, b""), "big")
    return tables


def _as_listed(rule: Rule, chain: ChainName, number: int) -> Rule:
    """Name a rule by its number if iptables lists it that way; nft(8) shows handles."""
    is_iptables = chain[0] in ("ip", "ip6") and chain[1] in _IPTABLES
    return replace(rule, name=f"rule {number}") if is_iptables else rule


def _parsed(message: Message) -> tuple[str, dict[int, bytes]]:
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
    stateful: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for message in kernel.dump(_GET_SET, header(0)):
        family, given = _parsed(message)
        table, name = (family, text(given[1])), text(given[2])
        flags[table][name] = int.from_bytes(given.get(3, b""), "big")
        if int.from_bytes(given.get(6, b""), "big") == _MAP_OF_VERDICTS:
            verdicts[table][name] = _elements(kernel, message.payload[0], given[1], given[2])
        if per_packet := _stateful_expression(given):
            stateful[table][name] = per_packet
    return {table: Sets(flags[table], verdicts[table], stateful[table]) for table in flags}


def _stateful_expression(given: Mapping[int, bytes]) -> str:
    """Return the expression in a set's elements that may separate packets, or "".

    Counters don't.
    """
    listed = [given[_SET_EXPRESSION]] if _SET_EXPRESSION in given else []
    listed += [each for _, each in attribute_list(given.get(_SET_EXPRESSIONS, b""))]
    names = (text(attributes(each).get(1, b"")) for each in listed)
    return next((name for name in names if name not in ("counter", "last")), "")


def _elements(kernel: Netlink, family: int, table: bytes, name: bytes) -> list[tuple[bytes, int, str]]:
    """Return the elements of a verdict map: key, the verdict's code, and its chain."""
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


# Reading these doesn't create tables (linux/netfilter/x_tables.h).
_LEGACY_NAMES = {"ip": "ip_tables_names", "ip6": "ip6_tables_names"}
# getsockopt(2) of linux/netfilter_ipv4/ip_tables.h; IPv6 has the same.
_GET_INFO, _GET_ENTRIES = 64, 65
_NAME, _INFO, _INFO_SIZE, _ENTRIES_HEADER = 32, 84, 80, 40
# Offsets of `next_offset` and the two counters in struct ipt_entry and ip6t_entry.
_ENTRY_OFFSETS = {"ip": (90, 96), "ip6": (142, 152)}
_COUNTERS = 16
_SOCKETS = {
    "ip": (socket.AF_INET, socket.IPPROTO_IP),
    "ip6": (socket.AF_INET6, socket.IPPROTO_IPV6),
}
_libc = ctypes.CDLL(None, use_errno=True)


def legacy_tables(family: str) -> tuple[str, ...]:
    """Return the tables that "ip" or "ip6" has in this process's namespace."""
    try:
        return tuple(sorted(Path("/proc/thread-self/net", _LEGACY_NAMES[family]).read_text().split()))
    except OSError:
        return ()


def legacy_families() -> tuple[str, ...]:
    """Return the families that have tables."""
    return tuple(family for family in _LEGACY_NAMES if legacy_tables(family))


def legacy_fingerprint() -> bytes:
    """Hash the rules of all tables without their counters; b"" if there are none.

    Changes of iptables-legacy send no event, so this is called periodically.
    """
    found = [(family, name) for family in _LEGACY_NAMES for name in legacy_tables(family)]
    digest = blake2b(repr(found).encode(), digest_size=16)
    for family, name in found:
        try:
            for part in _legacy_rules(family, name):
                digest.update(part)
        except OSError as error:  # being replaced: the next comparison reads it
            digest.update(repr(error.errno).encode())
    return digest.digest() if found else b""


def _legacy_rules(family: str, table: str) -> Iterator[bytes]:
    """Yield the rules of one table as the kernel has them, without their counters."""
    next_at, counters = _ENTRY_OFFSETS[family]
    kind, level = _SOCKETS[family]
    name = table.encode()[: _NAME - 1].ljust(_NAME, b"\0")
    with socket.socket(kind, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as kernel:
        info = _getsockopt(kernel, level, _GET_INFO, name + bytes(_INFO - _NAME))
        (size,) = struct.unpack_from("=I", info, _INFO_SIZE)
        asked = name + struct.pack("=I4x", size) + bytes(size)
        data = _getsockopt(kernel, level, _GET_ENTRIES, asked)[_ENTRIES_HEADER:]
    yield info
    at = 0
    while at + counters + _COUNTERS <= len(data):
        (length,) = struct.unpack_from("=H", data, at + next_at)
        if not length:
            return
        yield data[at : at + counters] + data[at + counters + _COUNTERS : at + length]
        at += length


def _getsockopt(kernel: socket.socket, level: int, option: int, asked: bytes) -> bytes:
    """Call getsockopt(2) with a request in the buffer for the answer."""
    buffer = ctypes.create_string_buffer(asked, len(asked))
    length = ctypes.c_uint32(len(asked))
    if _libc.getsockopt(kernel.fileno(), level, option, buffer, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw[: length.value]
