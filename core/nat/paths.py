"""How packets reach a rule: the hooks that lead to its chain, and what the jumps on the way there match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.model import Chain, Firewall, FirewallRule
from core.nat.match import MATCHES, split

ChainKey = tuple[str, str, str, str]
# What a packet has matched before it comes to a chain, by the names of FirewallRule's fields.
Way = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PlacedRule:
    """A rule with what leads to it. `rule` is the rule as it stands; `effective` the same with the matches
    that all jumps to its chain have in common, or that together name all links or addresses; `hooks` the
    hooks it is reached from."""

    rule: FirewallRule
    effective: FirewallRule
    hooks: frozenset[str]


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
        self._hooks: dict[ChainKey, frozenset[str]] = {}
        self._ways: dict[ChainKey, list[Way]] = {}

    def place(self, rule: FirewallRule) -> PlacedRule:
        """The rule with what leads to it."""
        key = chain_key(rule)
        ways = [way for way in self._ways_to(key) if not _contradicts(way, rule)]
        inherited: dict[str, Any] = {
            name: text for name, text in _common(ways).items() if not getattr(rule, name)
        }
        return PlacedRule(rule, replace(rule, **inherited) if inherited else rule, self._hooks_of(key))

    def _hooks_of(self, key: ChainKey) -> frozenset[str]:
        if key not in self._hooks:
            base = self._bases.get(key)
            # Set before the callers are asked: a loop, which the kernel refuses, must not hang us.
            self._hooks[key] = found = frozenset({base.hook} if base else ())
            for rule in self._callers.get(key, ()):
                found |= self._hooks_of(chain_key(rule))
            self._hooks[key] = found
        return self._hooks[key]

    def _ways_to(self, key: ChainKey) -> list[Way]:
        """What the jumps to a chain match, one by one; none for a chain at a hook."""
        if key not in self._ways:
            self._ways[key] = []
            callers = () if key in self._bases else self._callers.get(key, ())
            self._ways[key] = [self._through(rule) for rule in callers]
        return self._ways[key]

    def _through(self, jump: FirewallRule) -> Way:
        """What a packet has matched that a jump sends on."""
        own = {name: text for name in MATCHES if (text := getattr(jump, name))}
        return {**_common(self._ways_to(chain_key(jump))), **own}


def _contradicts(way: Way, rule: FirewallRule) -> bool:
    """Whether no packet that came this way can match the rule."""
    return any(way.get(name) == f"!{getattr(rule, name)}" for name in ("iif", "oif", "src", "dst"))


def _common(ways: list[Way]) -> Way:
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
