"""Packets of one kind, and whether a rule matches them: all, none, or some of them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from core.model import Chain, Firewall, FirewallRule

Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network

# Fields of FirewallRule that match, and that a chain inherits from the rules that jump to it.
MATCHES = ("iif", "oif", "src", "dst", "l4_proto", "sport", "dport", "ct_state")


def split(text: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a match is negated, and its members."""
    return text.startswith("!"), tuple(part for part in text.removeprefix("!").split(",") if part)


@lru_cache(4096)
def prefixes(text: str) -> tuple[Prefix, ...] | None:
    """The prefixes of an address match without its "!", ranges taken apart; None where a set hides them."""
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
    """Whether all of one prefix lies in another; never across families."""
    return (
        inner.version == outer.version
        and inner.prefixlen >= outer.prefixlen
        and inner.network_address in outer
    )


def overlap(one: Prefix, other: Prefix) -> bool:
    """Whether two prefixes share an address."""
    return within(one, other) or within(other, one)


def covers(text: str, prefix: Prefix) -> bool | None:
    """Whether an address match holds for every address of a prefix (True), for none (False), or for some or
    nobody can tell (None)."""
    if not text:
        return True
    negated, _ = split(text)
    found = prefixes(text)
    if found is None:
        return None
    if any(within(prefix, one) for one in found):
        return not negated
    return None if any(overlap(prefix, one) for one in found) else negated


def are_disjoint(field: str, one: str, other: str) -> bool:
    """Whether no packet can meet both of two matches on that field of FirewallRule; False where that is not
    plain to see."""
    if one == other:
        return False
    (negated, members), (other_negated, others) = split(one), split(other)
    if negated:
        return not other_negated and _lie_within(field, others, members)
    if other_negated:
        return _lie_within(field, members, others)
    if field in ("iif", "oif"):
        return not any(_is_named(a, b) or _is_named(b, a) for a in members for b in others)
    if field in ("src", "dst"):
        these, those = prefixes(one), prefixes(other)
        return bool(these and those) and not any(overlap(a, b) for a in these or () for b in those or ())
    return field == "l4_proto" and not set(members) & set(others)


def _lie_within(field: str, members: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether each member of one list is in the other."""
    if field in ("iif", "oif"):
        return all(any(_is_named(one, other) for other in others) for one in members)
    if field in ("src", "dst"):
        parts = [(prefixes(one), one) for one in members]
        return all(one in others or (found and _are_in(found, others)) for found, one in parts)
    return field == "l4_proto" and set(members) <= set(others)


def _are_in(found: tuple[Prefix, ...], others: tuple[str, ...]) -> bool:
    outer = prefixes(",".join(others)) or ()
    return all(any(within(one, each) for each in outer) for one in found)


def takes_link(text: str, name: str) -> bool:
    """Whether a link match holds for the link of that name."""
    negated, members = split(text)
    return not text or negated != any(_is_named(name, member) for member in members)


def _is_named(name: str, member: str) -> bool:
    return name == member or (member.endswith("*") and name.startswith(member[:-1]))


def is_loopback(address: str) -> bool:
    """Whether an address, "" for any, is one of the loopback link."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


# "out" opens a connection from the bridge to elsewhere, "answers" belong to one of these, "published" come
# from outside to a published port, "replies" go back from there, "same" opens a connection between two ports
# of the bridge, "joined" from the bridge to another one.
Kind = Literal["out", "answers", "published", "replies", "same", "joined"]

_DNAT = re.compile(r"ct status dnat\b|--ct(?:status|state) DNAT\b", re.IGNORECASE)
_FAMILY = re.compile(r"meta (?:nfproto|protocol) (ipv4|ipv6|ip|ip6)\b")
# What only odd packets match: forged sources, routing headers, TCP flags that no connection begins with.
_ODD = re.compile(
    r"fib saddr\b.* oif missing|-m rpfilter --invert|-m (?:rt|frag|hbh|dst|mh) |\b(?:rt|frag|hbh|mh) \w+ "
    r"|(?:--dst-type|fib daddr type) (?:BROADCAST|MULTICAST|ANYCAST|LOCAL)\b"
    r"|--tcp-flags (?!FIN,SYN,RST,ACK SYN)|tcp flags (?!syn\b|& \(fin \| syn \| rst \| ack\) == syn)",
    re.IGNORECASE,
)
_ICMP = {"icmp", "icmpv6", "ipv6-icmp"}


@dataclass(frozen=True, slots=True)
class Packet:
    """What is known of them as they come by a hook; "" is anything. `iif` and `oif` are links other than the
    bridge where they are "" (in a prerouting chain `oif` is not known), `src` and `dst` addresses or
    prefixes, `sport` and `dport` ports ("80", "80-82")."""

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

    def meets(self, rule: FirewallRule) -> bool | None:
        """Whether the rule matches all of them, none, or some (None)."""
        # The links first: they rule out most, and cost least.
        found = [self._link(rule.iif, self.iif), self._link(rule.oif, self.oif)]
        if False in found or self._other_kind(rule):
            return False
        found += [
            self._address(rule.src, self.src),
            self._address(rule.dst, self.dst),
            _port(rule.sport, self.sport),
            _port(rule.dport, self.dport),
            self._protocol(rule.l4_proto),
            self._state(rule),
        ]
        if False in found:
            return False
        return None if None in found else True

    def is_narrow(self, rule: FirewallRule) -> bool:
        """Whether the rule picks some of them by what is not known of them: an address or port that it names
        at the other end. What it drops concerns that address or port alone."""
        return bool(
            (rule.src and not self.src and rule.src[0] != "!")
            or (rule.dst and not self.dst and rule.dst[0] != "!")
            or (rule.sport and not self.sport and rule.sport[0] != "!")
            or (rule.dport and not self.dport and rule.dport[0] != "!")
        )

    def of(self, name: str) -> str:
        """What is known of a field of FirewallRule."""
        return str(getattr(self, name, ""))

    def _link(self, text: str, name: str) -> bool | None:
        if not text:
            return True
        if name:
            return takes_link(text, name)
        negated, members = split(text)
        if members == (self.bridge,):
            return negated
        return negated if members == ("lo",) else None

    def _other_kind(self, rule: FirewallRule) -> bool:
        """Whether the rule is about another family, or about packets that are out of the ordinary."""
        if rule.understood or not rule.text:
            return False
        family = _FAMILY.search(rule.text)
        if family and family[1].endswith("6") != self.ipv6:
            return True
        return _ODD.search(rule.text) is not None

    def _address(self, text: str, own: str) -> bool | None:
        if not text:
            return True
        if "@" not in text and (":" in text) != self.ipv6:
            return False
        if not own:
            return None
        if "/" not in own and not any(mark in text for mark in "/,-!@"):
            return _same(text, own)
        return covers(text, ipaddress.ip_network(own, strict=False))

    def _protocol(self, text: str) -> bool | None:
        if not text or not self.l4_proto:
            return None if text else True
        negated, members = split(text)
        if any(member.startswith("@") for member in members):
            return None
        return (self.l4_proto in members) != negated

    def _state(self, rule: FirewallRule) -> bool | None:
        translated = not rule.understood and _DNAT.search(rule.text) is not None
        if not rule.ct_state:
            if translated:
                return "dnat" in self.states or (None if self.kind == "answers" else False)
            return True if rule.understood or rule.verdict == "vmap" else None
        negated, states = split(rule.ct_state)
        fits = bool(self.states & set(states)) != negated
        # A further match beside the state may not hold.
        return fits if not fits or rule.understood or translated else None


@lru_cache(1024)
def _same(one: str, other: str) -> bool:
    if ":" not in one:
        return one == other
    found = prefixes(one)
    return found == prefixes(other) and found is not None


def _port(text: str, own: str) -> bool | None:
    """Whether a match of ports holds for a port or a range of them."""
    if not text:
        return True
    negated, members = split(text)
    if not own or any(not _is_range(one) for one in members):
        return None
    first, last = bounds(own)
    named = list(map(bounds, members))
    if any(low <= first and last <= high for low, high in named):
        return not negated
    return None if any(low <= last and first <= high for low, high in named) else negated


def bounds(ports: str) -> tuple[int, int]:
    """The first and the last of "80" or "80-82"."""
    first, _, last = ports.partition("-")
    return int(first), int(last or first)


def _is_range(text: str) -> bool:
    return all(part.isascii() and part.isdigit() for part in text.split("-"))


def families_of(family: str, wanted: Iterable[bool] = (False, True)) -> tuple[bool, ...]:
    """Which of the families wanted (IPv6 or not) come by chains of a family."""
    own = {"ip": (False,), "ip6": (True,), "inet": (False, True)}.get(family, ())
    return tuple(one for one in own if one in set(wanted))


ChainKey = tuple[str, str, str, str]
# What a packet has matched before it comes to a chain, by the names of FirewallRule's fields.
Matched = Mapping[str, str]
# Of more ways to one chain only what all have in common is kept.
_MOST_WAYS = 256


@dataclass(frozen=True, slots=True)
class PlacedRule:
    """A rule with what leads to it. `rule` is the rule as it stands; `effective` the same with the matches
    that all jumps to its chain have in common, or that together name all links or addresses; `hooks` and
    `kinds` the hooks and types of the base chains that it is reached from, none where nothing can match."""

    rule: FirewallRule
    effective: FirewallRule
    hooks: frozenset[str]
    kinds: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _ChainPath:
    """One way to a chain: from which base chains, and what a packet has matched on it."""

    bases: frozenset[Chain]
    matched: Matched


def chain_key(thing: FirewallRule) -> ChainKey:
    """The key of the chain that a rule is in."""
    return (thing.backend, thing.family, thing.table, thing.chain)


def placed_rules(firewall: Firewall) -> tuple[PlacedRule, ...]:
    """Every rule of a firewall with what leads to it, in their order."""
    paths = _ChainPaths(firewall)
    return tuple(paths.place(rule) for rule in firewall.rules)


def targets(rule: FirewallRule) -> tuple[ChainKey, ...]:
    """The keys of the chains that a rule may lead to."""
    names = rule.target.split(",") if rule.verdict in ("jump", "goto", "vmap") and rule.target else ()
    return tuple((rule.backend, rule.family, rule.table, name) for name in names)


def matches_of(rule: FirewallRule) -> dict[str, str]:
    """What a rule matches, by the names of its fields."""
    return {name: text for name in MATCHES if (text := getattr(rule, name))}


def branches(rule: FirewallRule) -> Iterator[FirewallRule]:
    """The rule, or of one with a verdict map whose elements are known a rule for each of them."""
    if not rule.choices:
        yield rule
    for choice in rule.choices:
        known: dict[str, Any] = {} if choice.value == "*" else {rule.chosen_by: choice.value}
        yield replace(
            rule, verdict=choice.verdict, target=choice.target, choices=(), understood=True, **known
        )


class _ChainPaths:
    """The ways to each chain, worked out once."""

    def __init__(self, firewall: Firewall) -> None:
        self._bases: dict[ChainKey, Chain] = {
            (chain.backend, chain.family, chain.table, chain.name): chain
            for chain in firewall.chains
            if chain.hook
        }
        self._callers: dict[ChainKey, list[FirewallRule]] = {}
        for rule in firewall.rules:
            for key in targets(rule):
                self._callers.setdefault(key, []).append(rule)
        self._ways: dict[ChainKey, Sequence[_ChainPath]] = {}

    def place(self, rule: FirewallRule) -> PlacedRule:
        """The rule with what leads to it."""
        own = matches_of(rule)
        ways = [way for way in self._ways_to(chain_key(rule)) if not _contradicts(way.matched, own)]
        common = _common([way.matched for way in ways])
        inherited: dict[str, Any] = {name: text for name, text in common.items() if name not in own}
        bases = frozenset().union(*(way.bases for way in ways))
        return PlacedRule(
            rule,
            replace(rule, **inherited) if inherited else rule,
            frozenset(base.hook for base in bases),
            frozenset(base.kind for base in bases),
        )

    def _ways_to(self, key: ChainKey) -> Sequence[_ChainPath]:
        """All ways to a chain, but those on which no packet can come."""
        if key not in self._ways:
            # Set before the callers are asked: a loop, which the kernel refuses, must not hang us.
            self._ways[key] = ()
            if key in self._bases:
                self._ways[key] = [_ChainPath(frozenset({self._bases[key]}), {})]
            else:
                callers = self._callers.get(key, ())
                self._ways[key] = _distinct(way for rule in callers for way in self._through(rule, key[-1]))
        return self._ways[key]

    def _through(self, jump: FirewallRule, target: str) -> Iterator[_ChainPath]:
        """The ways that a jump to that chain sends packets on."""
        for way in self._ways_to(chain_key(jump)):
            for own in _sent_to(jump, target):
                if not _contradicts(way.matched, own):
                    yield _ChainPath(way.bases, _narrowed(way.matched, own))


def _sent_to(jump: FirewallRule, target: str) -> Iterator[Matched]:
    """What a rule matches of the packets that it sends to a chain, once for each element of a verdict map."""
    own = matches_of(jump)
    if not jump.choices:
        yield own
    for choice in jump.choices:
        if choice.target == target:
            yield own if choice.value == "*" else _narrowed(own, {jump.chosen_by: choice.value})


def _narrowed(matched: Matched, more: Matched) -> Matched:
    """What has been matched after one more match; of two on one thing that which names it."""
    vague = {name for name, text in more.items() if text.startswith("!") and name in matched}
    return {**matched, **{name: text for name, text in more.items() if name not in vague}}


def _contradicts(matched: Matched, own: Matched) -> bool:
    """Whether no packet that has matched one can match the other."""
    return any(name in own and are_disjoint(name, text, own[name]) for name, text in matched.items())


def _distinct(ways: Iterable[_ChainPath]) -> Sequence[_ChainPath]:
    """Ways that match the same put together; where there are very many, all of them."""
    found: dict[frozenset[tuple[str, str]], _ChainPath] = {}
    for way in ways:
        known = found.setdefault(frozenset(way.matched.items()), way)
        if not way.bases <= known.bases:
            found[frozenset(way.matched.items())] = _ChainPath(known.bases | way.bases, way.matched)
    if len(found) <= _MOST_WAYS:
        return tuple(found.values())
    bases = frozenset[Chain]().union(*(way.bases for way in found.values()))
    return (_ChainPath(bases, _common([way.matched for way in found.values()])),)


def _common(ways: Sequence[Matched]) -> Matched:
    """What several ways have in common; where each names links or addresses of its own, all of these."""
    names = [name for name in ways[0] if all(name in way for way in ways)] if ways else ()
    joined = {name: _union([way[name] for way in ways]) for name in names}
    return {name: text for name, text in joined.items() if text}


def _union(texts: list[str]) -> str:
    distinct = dict.fromkeys(texts)
    if len(distinct) == 1:
        return texts[0]
    if any(text.startswith("!") for text in distinct):
        return ""
    return ",".join(dict.fromkeys(part for text in distinct for part in split(text)[1]))
