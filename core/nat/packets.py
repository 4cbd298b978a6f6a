"""Decide whether a firewall rule matches all, none or some packets of a kind."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from core.model import Chain, Firewall, FirewallRule
from core.text import bounds

Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network

# Matching fields of FirewallRule; a chain inherits them from the rules that jump to it.
MATCHES = ("iif", "oif", "src", "dst", "l4_proto", "sport", "dport", "ct_state")
PROTOCOL_NUMBERS = {"tcp": "6", "udp": "17", "icmp": "1", "icmpv6": "58", "sctp": "132"}


@lru_cache(8192)
def split(text: str) -> tuple[bool, tuple[str, ...]]:
    """Split a match into whether it is negated, and its members."""
    return text.startswith("!"), tuple(part for part in text.removeprefix("!").split(",") if part)


@lru_cache(4096)
def prefixes(text: str) -> tuple[Prefix, ...] | None:
    """Return the prefixes of an address match, with ranges split; None for a set.

    A "!" is ignored.
    """
    found: list[Prefix] = []
    try:
        for part in split(text)[1]:
            first, _, last = part.partition("-")
            if last:
                ends = ipaddress.ip_address(first), ipaddress.ip_address(last)
                found += ipaddress.summarize_address_range(*ends)
            else:
                found.append(ipaddress.ip_network(part, strict=False))
    except (ValueError, TypeError):
        return None
    return tuple(found)


def within(inner: Prefix, outer: Prefix) -> bool:
    """Return whether a prefix is contained in another one of the same family."""
    return (
        inner.version == outer.version
        and inner.prefixlen >= outer.prefixlen
        and inner.network_address in outer
    )


def overlap(one: Prefix, other: Prefix) -> bool:
    """Return whether two prefixes share an address."""
    return within(one, other) or within(other, one)


def covers(text: str, prefix: Prefix) -> bool | None:
    """Return whether an address match holds for every address of a prefix.

    False: it holds for none. None: it holds for some, or that isn't known.
    """
    if not text:
        return True
    negated, _ = split(text)
    found = prefixes(text)
    if found is None:
        return None
    if any(within(prefix, one) for one in found):
        return not negated
    return None if any(overlap(prefix, one) for one in found) else negated


def is_everything(text: str) -> bool:
    """Return whether an address match has a prefix of all addresses; a "!" is ignored."""
    return any(prefix.prefixlen == 0 for prefix in prefixes(text) or ())


def are_disjoint(field: str, one: str, other: str) -> bool:
    """Return whether no packet can satisfy two matches on a field of FirewallRule.

    False if that isn't certain.
    """
    if one == other:
        return False
    (negated, members), (other_negated, others) = split(one), split(other)
    if negated:
        return not other_negated and _are_contained(field, others, members)
    if other_negated:
        return _are_contained(field, members, others)
    if field in ("iif", "oif"):
        return not any(_link_name_matches(a, b) or _link_name_matches(b, a) for a in members for b in others)
    if field in ("src", "dst"):
        left, right = prefixes(one), prefixes(other)
        return bool(left and right) and not any(overlap(a, b) for a in left or () for b in right or ())
    return field == "l4_proto" and not set(members) & set(others)


def _are_contained(field: str, members: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Return whether each member of one list is contained in the other."""
    if field in ("iif", "oif"):
        return all(any(_link_name_matches(one, other) for other in others) for one in members)
    if field in ("src", "dst"):
        parts = [(prefixes(one), one) for one in members]
        return all(one in others or (found and _all_within(found, others)) for found, one in parts)
    return field == "l4_proto" and set(members) <= set(others)


def _all_within(found: tuple[Prefix, ...], others: tuple[str, ...]) -> bool:
    outer = prefixes(",".join(others)) or ()
    return all(any(within(one, each) for each in outer) for one in found)


@lru_cache(8192)
def matches_address(text: str, known: str) -> bool | None:
    """Return whether an address match holds for an address or for a prefix.

    False: it holds for none of the prefix. None: it holds for some, or that isn't known.
    """
    negated, members = split(text)
    if "@" in text:
        return None
    if not members:  # a set without elements
        return negated
    if members == (known,):
        return not negated
    if (":" in members[0]) != (":" in known):
        return False
    own = prefixes(known)
    return covers(text, own[0]) if own else None


def matches_link(text: str, *names: str) -> bool:
    """Return whether a link match holds for one of these link names."""
    if not text:
        return True
    negated, members = split(text)
    return negated != any(_link_name_matches(name, one) for name in names for one in members)


def _link_name_matches(name: str, member: str) -> bool:
    return name == member or (member.endswith("*") and name.startswith(member[:-1]))


@lru_cache(4096)
def matches_protocol(text: str, l4_proto: str) -> bool | None:
    """Return whether a protocol match holds for a protocol; None for a named set."""
    if "@" in text:
        return None
    own = {l4_proto, PROTOCOL_NUMBERS.get(l4_proto, "")}
    return not text or has_any(text, own | {"ipv6-icmp"} if l4_proto == "icmpv6" else own)


@lru_cache(8192)
def matches_ports(text: str, known: str) -> bool | None:
    """Return whether a port match holds for a port or a range of ports ("80-82").

    False: it holds for none. None: it holds for some, or has members that are no numbers.
    """
    negated, members = split(text)
    try:
        ranges = [bounds(one) for one in members]
    except ValueError:
        return None
    first, last = bounds(known)
    if any(low <= first and last <= high for low, high in ranges):
        return not negated
    return None if any(low <= last and first <= high for low, high in ranges) else negated


def has_any(text: str, own: AbstractSet[str]) -> bool:
    """Return whether a match holds for packets with these values."""
    negated, members = split(text)
    return own.isdisjoint(members) == negated


def is_loopback(address: str) -> bool:
    """Return whether an address is a loopback address; False for "" (any)."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


# "out": new connections from the bridge to other links; "answers": answers to these; "published": packets to
# a published port from outside; "replies": answers of a published port; "same": new connections between ports
# of the bridge; "joined": packets from the bridge to another bridge.
Kind = Literal["out", "answers", "published", "replies", "same", "joined"]

_DNAT = re.compile(r"ct status dnat\b|--ct(?:status|state) DNAT\b", re.IGNORECASE)
_FAMILY = re.compile(r"meta (?:nfproto|protocol) (ipv4|ipv6|ip|ip6)\b")
# Matches of unusual packets only: forged sources, routing headers, TCP flags that start no connection.
_UNUSUAL = re.compile(
    r"fib saddr\b.* oif missing|-m rpfilter --invert|-m (?:rt|frag|hbh|dst|mh) |\b(?:rt|frag|hbh|mh) \w+ "
    r"|(?:--dst-type|fib daddr type) (?:BROADCAST|MULTICAST|ANYCAST|LOCAL)\b"
    r"|--tcp-flags (?!FIN,SYN,RST,ACK SYN)|tcp flags (?!syn\b|& \(fin \| syn \| rst \| ack\) == syn)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Packet:
    """Known properties of packets at a hook; "" is any value.

    `iif` and `oif` "" are any link but the bridge (in a prerouting chain `oif` isn't known), `src` and `dst`
    are addresses or prefixes, `sport` and `dport` ports ("80", "80-82").
    """

    kind: Kind
    bridge: str
    ipv6: bool = False
    iif: str = ""
    oif: str = ""
    src: str = ""
    dst: str = ""
    l4_proto: str = ""
    sport: str = ""
    dport: str = ""
    states: frozenset[str] = frozenset()

    def match(self, rule: FirewallRule) -> bool | None:
        """Return whether the rule matches all of the packets, none, or some (None)."""
        # Links first: cheapest, and they exclude most rules.
        found = [self._link(rule.iif, self.iif), self._link(rule.oif, self.oif)]
        if False in found or self._is_other_traffic(rule):
            return False
        found += [
            self._address(rule.src, self.src),
            self._address(rule.dst, self.dst),
            _ports(rule.sport, self.sport),
            _ports(rule.dport, self.dport),
            self._protocol(rule.l4_proto),
            self._state(rule),
        ]
        if False in found:
            return False
        return None if None in found else True

    def is_narrow(self, rule: FirewallRule) -> bool:
        """Return whether the rule only matches packets of one remote address or port.

        A drop then only concerns that address or port.
        """
        return bool(
            (rule.src and not self.src and rule.src[0] != "!")
            or (rule.dst and not self.dst and rule.dst[0] != "!")
            or (rule.sport and not self.sport and rule.sport[0] != "!")
            or (rule.dport and not self.dport and rule.dport[0] != "!")
        )

    def get(self, name: str) -> str:
        """Return the value for a field of FirewallRule, "" for any."""
        return str(getattr(self, name, ""))

    def _link(self, text: str, name: str) -> bool | None:
        if not text:
            return True
        if name:
            return matches_link(text, name)
        negated, members = split(text)
        if members == (self.bridge,):
            return negated
        return negated if members == ("lo",) else None

    def _is_other_traffic(self, rule: FirewallRule) -> bool:
        """Return whether a rule only matches the other address family or unusual packets."""
        if rule.understood or not rule.text:
            return False
        family = _FAMILY.search(rule.text)
        if family and family[1].endswith("6") != self.ipv6:
            return True
        return _UNUSUAL.search(rule.text) is not None

    def _address(self, text: str, known: str) -> bool | None:
        if not text:
            return True
        if "@" not in text and (":" in text) != self.ipv6:
            return False
        return matches_address(text, known) if known else None

    def _protocol(self, text: str) -> bool | None:
        return matches_protocol(text, self.l4_proto) if self.l4_proto or not text else None

    def _state(self, rule: FirewallRule) -> bool | None:
        translated = not rule.understood and _DNAT.search(rule.text) is not None
        if not rule.ct_state:
            if translated:
                return "dnat" in self.states or (None if self.kind == "answers" else False)
            return True if rule.understood or rule.verdict == "vmap" else None
        fits = has_any(rule.ct_state, self.states)
        # Other matches of the rule may not hold.
        return fits if not fits or rule.understood or translated else None


def _ports(text: str, known: str) -> bool | None:
    if not text:
        return True
    return matches_ports(text, known) if known else None


def families_of(family: str, families: Iterable[bool] = (False, True)) -> tuple[bool, ...]:
    """Return which of these families (True: IPv6) pass chains of an nftables family."""
    possible = {"ip": (False,), "ip6": (True,), "inet": (False, True)}.get(family, ())
    return tuple(one for one in possible if one in set(families))


ChainKey = tuple[str, str, str, str]
# Matches on the path to a chain, by field names of FirewallRule.
Matched = Mapping[str, str]
# With more paths to a chain only their common matches are kept.
_MAX_PATHS = 256


@dataclass(frozen=True, slots=True)
class PlacedRule:
    """A rule with the matches on all paths to it.

    `effective` is `rule` with the matches that all jumps to its chain have in common, or the union of their
    links or addresses; `hooks` and `kinds` are the hooks and types of the base chains that lead to it, empty
    if no packet can reach it.
    """

    rule: FirewallRule
    effective: FirewallRule
    hooks: frozenset[str]
    kinds: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _ChainPath:
    """One path to a chain: its base chains, and the matches on it."""

    bases: frozenset[Chain]
    matched: Matched


def chain_key(rule: FirewallRule) -> ChainKey:
    """Return the key of a rule's chain."""
    return (rule.backend, rule.family, rule.table, rule.chain)


def placed_rules(firewall: Firewall) -> tuple[PlacedRule, ...]:
    """Return all rules of a firewall with the matches on the paths to them, in order."""
    paths = _ChainPaths(firewall)
    return tuple(paths.place(rule) for rule in firewall.rules)


def targets(rule: FirewallRule) -> tuple[ChainKey, ...]:
    """Return the keys of the chains that a rule may jump to."""
    if rule.verdict not in ("jump", "goto", "vmap") or not rule.target:
        return ()
    # Only a verdict map has several: a chain of iptables may have a comma in its name.
    names = rule.target.split(",") if rule.verdict == "vmap" else [rule.target]
    return tuple((rule.backend, rule.family, rule.table, name) for name in names)


def matches_of(rule: FirewallRule) -> dict[str, str]:
    """Return a rule's matches by field name."""
    return {name: text for name in MATCHES if (text := getattr(rule, name))}


def branches(rule: FirewallRule) -> Iterator[FirewallRule]:
    """Yield the rule, or one rule for each element of its verdict map if known."""
    if not rule.choices:
        yield rule
    for choice in rule.choices:
        matches: dict[str, Any] = {} if choice.value == "*" else {rule.chosen_by: choice.value}
        yield replace(
            rule, verdict=choice.verdict, target=choice.target, choices=(), understood=True, **matches
        )


class _ChainPaths:
    """Find all paths to each chain, once."""

    def __init__(self, firewall: Firewall) -> None:
        self._bases: dict[ChainKey, Chain] = {chain.key: chain for chain in firewall.chains if chain.hook}
        self._callers: dict[ChainKey, list[FirewallRule]] = {}
        for rule in firewall.rules:
            for key in targets(rule):
                self._callers.setdefault(key, []).append(rule)
        self._paths: dict[ChainKey, Sequence[_ChainPath]] = {}

    def place(self, rule: FirewallRule) -> PlacedRule:
        """Return a rule with the matches on all paths to it."""
        matches = matches_of(rule)
        paths = [path for path in self._paths_to(chain_key(rule)) if not _contradicts(path.matched, matches)]
        common = _common([path.matched for path in paths])
        inherited: dict[str, Any] = {name: text for name, text in common.items() if name not in matches}
        bases = frozenset().union(*(path.bases for path in paths))
        return PlacedRule(
            rule,
            replace(rule, **inherited) if inherited else rule,
            frozenset(base.hook for base in bases),
            frozenset(base.kind for base in bases),
        )

    def _paths_to(self, key: ChainKey) -> Sequence[_ChainPath]:
        """Return all paths to a chain that a packet can take."""
        if key not in self._paths:
            # Set before the callers: a loop of jumps (the kernel refuses it) must not recurse forever.
            self._paths[key] = ()
            if key in self._bases:
                self._paths[key] = [_ChainPath(frozenset({self._bases[key]}), {})]
            else:
                jumps = self._callers.get(key, ())
                self._paths[key] = _distinct(
                    path for one in jumps for path in self._paths_through(one, key[-1])
                )
        return self._paths[key]

    def _paths_through(self, jump: FirewallRule, target: str) -> Iterator[_ChainPath]:
        """Yield the paths through a jump to a chain."""
        for path in self._paths_to(chain_key(jump)):
            for matches in _sent_to(jump, target):
                if not _contradicts(path.matched, matches):
                    yield _ChainPath(path.bases, _merge(path.matched, matches))


def _sent_to(jump: FirewallRule, target: str) -> Iterator[Matched]:
    """Yield the matches of a jump to a chain, one for each element of a verdict map."""
    matches = matches_of(jump)
    if not jump.choices:
        yield matches
    for choice in jump.choices:
        if choice.target == target:
            yield matches if choice.value == "*" else _merge(matches, {jump.chosen_by: choice.value})


def _merge(matched: Matched, more: Matched) -> Matched:
    """Add matches; a negated match doesn't replace an existing one."""
    negated = {name for name, text in more.items() if text.startswith("!") and name in matched}
    return {**matched, **{name: text for name, text in more.items() if name not in negated}}


def _contradicts(matched: Matched, matches: Matched) -> bool:
    """Return whether no packet can satisfy both sets of matches."""
    return any(name in matches and are_disjoint(name, text, matches[name]) for name, text in matched.items())


def _distinct(paths: Iterable[_ChainPath]) -> Sequence[_ChainPath]:
    """Merge paths with equal matches; merge all paths if there are too many."""
    found: dict[frozenset[tuple[str, str]], _ChainPath] = {}
    for path in paths:
        previous = found.setdefault(frozenset(path.matched.items()), path)
        if not path.bases <= previous.bases:
            found[frozenset(path.matched.items())] = _ChainPath(previous.bases | path.bases, path.matched)
    if len(found) <= _MAX_PATHS:
        return tuple(found.values())
    bases = frozenset[Chain]().union(*(path.bases for path in found.values()))
    return (_ChainPath(bases, _common([path.matched for path in found.values()])),)


def _common(paths: Sequence[Matched]) -> Matched:
    """Return the common matches of several paths.

    Different links or addresses become their union, unless one is negated.
    """
    names = [name for name in paths[0] if all(name in path for path in paths)] if paths else ()
    joined = {name: _union([path[name] for path in paths]) for name in names}
    return {name: text for name, text in joined.items() if text}


def _union(texts: list[str]) -> str:
    distinct = dict.fromkeys(texts)
    if len(distinct) == 1:
        return texts[0]
    if any(text.startswith("!") for text in distinct):
        return ""
    return ",".join(dict.fromkeys(part for text in distinct for part in split(text)[1]))
