"""How packets reach a rule: the hooks that lead to its chain, and what the jumps on the way there match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.model import Chain, Firewall, FirewallRule
from core.nat.packets import MATCHES, are_disjoint, split

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
class _Way:
    """One way to a chain: from which base chains, and what a packet has matched on it."""

    bases: frozenset[Chain]
    matched: Matched


def chain_key(thing: FirewallRule) -> ChainKey:
    """The key of the chain that a rule is in."""
    return (thing.backend, thing.family, thing.table, thing.chain)


def placed_rules(firewall: Firewall) -> tuple[PlacedRule, ...]:
    """Every rule of a firewall with what leads to it, in their order."""
    paths = _Paths(firewall)
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


class _Paths:
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
        self._ways: dict[ChainKey, Sequence[_Way]] = {}

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

    def _ways_to(self, key: ChainKey) -> Sequence[_Way]:
        """All ways to a chain, but those on which no packet can come."""
        if key not in self._ways:
            # Set before the callers are asked: a loop, which the kernel refuses, must not hang us.
            self._ways[key] = ()
            if key in self._bases:
                self._ways[key] = [_Way(frozenset({self._bases[key]}), {})]
            else:
                callers = self._callers.get(key, ())
                self._ways[key] = _distinct(way for rule in callers for way in self._through(rule, key[-1]))
        return self._ways[key]

    def _through(self, jump: FirewallRule, target: str) -> Iterator[_Way]:
        """The ways that a jump to that chain sends packets on."""
        for way in self._ways_to(chain_key(jump)):
            for own in _sent_to(jump, target):
                if not _contradicts(way.matched, own):
                    yield _Way(way.bases, _narrowed(way.matched, own))


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


def _distinct(ways: Iterable[_Way]) -> Sequence[_Way]:
    """Ways that match the same put together; where there are very many, all of them."""
    found: dict[frozenset[tuple[str, str]], _Way] = {}
    for way in ways:
        known = found.setdefault(frozenset(way.matched.items()), way)
        if not way.bases <= known.bases:
            found[frozenset(way.matched.items())] = _Way(known.bases | way.bases, way.matched)
    if len(found) <= _MOST_WAYS:
        return tuple(found.values())
    bases = frozenset[Chain]().union(*(way.bases for way in found.values()))
    return (_Way(bases, _common([way.matched for way in found.values()])),)


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
