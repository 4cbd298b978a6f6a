"""Evaluate the chains of a hook for one packet, as the kernel would.

See nft(8) and the kernel's net/netfilter/core.c: base chains of all tables run by ascending priority, an
accept ends one base chain, a drop ends all. Conntrack runs at priority -200; chains of type nat see only the
first packet of a connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from core.model import Chain, Firewall, FirewallRule, VerdictCase
from core.nat.packets import ChainKey, bounds, chain_key, matches_link, split, targets
from core.reach.packet import Hook, Packet, match

_CONNTRACK = -200
_DEEPEST = 16
_STOPS = ("drop", "reject")
_NAT = ("dnat", "snat", "masquerade", "redirect")
_FAMILIES = {False: ("ip", "inet"), True: ("ip6", "inet")}


@dataclass(frozen=True, slots=True)
class Decision:
    """What a hook does with a packet.

    `verdict` is "accept", "drop", "reject" or "unknown" (`rule` may or may not match, and would change the
    verdict). `rule` is None for a chain's policy. `rules` are those that decided in each chain, `nat` is the
    one that translates, `notrack` the one that excludes it from connection tracking.
    """

    verdict: Literal["accept", "drop", "reject", "unknown"]
    chain: Chain | None = None
    rule: FirewallRule | None = None
    rules: tuple[FirewallRule, ...] = ()
    nat: FirewallRule | None = None
    notrack: FirewallRule | None = None


class Evaluator:
    """Evaluate the rules of one namespace."""

    def __init__(self, firewall: Firewall) -> None:
        self.firewall = firewall
        self._rules: dict[ChainKey, list[FirewallRule]] = {}
        for rule in firewall.rules:
            self._rules.setdefault(chain_key(rule), []).append(rule)
        self._bases: dict[tuple[str, str], list[Chain]] = {}
        for chain in firewall.chains:
            # A chain without rules and with policy accept changes nothing.
            if chain.hook and (chain.policy == "drop" or self._rules.get(_key(chain))):
                self._bases.setdefault((chain.family, chain.hook), []).append(chain)

    @property
    def has_link_chains(self) -> bool:
        """Return whether there are chains of family netdev."""
        return any(family == "netdev" for family, _ in self._bases)

    def evaluate(self, packet: Packet, hook: Hook) -> Decision:
        """Evaluate the IP chains of a hook."""
        return self._evaluate(packet, hook, _FAMILIES[packet.is_ipv6])

    def evaluate_bridge(self, packet: Packet, hook: Hook) -> Decision:
        """Evaluate the chains of family bridge of a hook."""
        return self._evaluate(packet, hook, ("bridge",))

    def evaluate_link(self, packet: Packet, hook: Hook, link: str) -> Decision:
        """Evaluate the chains of family netdev on a link."""
        return self._evaluate(packet, hook, ("netdev",), link)

    def later_nat(self, rule: FirewallRule, packet: Packet) -> FirewallRule | None:
        """Return a later rule of the chain that has another destination for the packet."""
        rules = self._rules.get(chain_key(rule), [])
        hook = Hook("prerouting", (rule.iif,) if rule.iif else (), (), True, sets=self.firewall.sets)
        for one in rules[rules.index(rule) + 1 :] if rule in rules else ():
            differs = (one.to_address, one.to_port) != (rule.to_address, rule.to_port)
            if one.verdict == "dnat" and differs and match(replace(one, iif=""), packet, hook):
                return one
        return None

    def _evaluate(self, packet: Packet, hook: Hook, families: Sequence[str], link: str = "") -> Decision:
        chains = [chain for family in families for chain in self._bases.get((family, hook.name), ())]
        chains = [chain for chain in chains if not link or link in chain.links]
        passed: list[FirewallRule] = []
        nat, doubt = None, None
        notrack: FirewallRule | None = None
        untracked = "untracked" in packet.states
        for chain in sorted(chains, key=lambda one: one.priority):
            if chain.kind == "nat" and (nat or packet.is_reply or untracked):
                continue  # translations are kept per connection
            walk = _Walk(self._rules, self._seen(packet, chain, families, untracked), hook, chain)
            verdict, rule = walk.run()
            if verdict == "unknown":
                doubt = doubt or Decision("unknown", chain, rule)
            elif verdict in _STOPS:
                return Decision("drop" if verdict == "drop" else "reject", chain, rule, tuple(passed), nat)
            notrack = notrack or walk.notrack
            untracked = untracked or notrack is not None
            nat = nat or (rule if rule is not None and rule.verdict in _NAT else None)
            passed += [rule] if rule is not None and rule is not nat else []
        if doubt is not None:
            return replace(doubt, rules=tuple(passed), nat=nat, notrack=notrack)
        return Decision("accept", rules=tuple(passed), nat=nat, notrack=notrack)

    @staticmethod
    def _seen(packet: Packet, chain: Chain, families: Sequence[str], untracked: bool) -> Packet:
        """Return the packet with the connection state that a chain sees."""
        if untracked:
            return replace(packet, states=frozenset(("untracked",)))
        early = chain.hook in ("prerouting", "output") and chain.priority < _CONNTRACK
        outside_ip = "bridge" in families or "netdev" in families
        return replace(packet, states=frozenset(("invalid",))) if early or outside_ip else packet


class _Walk:
    """Evaluate one base chain."""

    def __init__(
        self, rules: dict[ChainKey, list[FirewallRule]], packet: Packet, hook: Hook, chain: Chain
    ) -> None:
        self.notrack: FirewallRule | None = None
        self._rules, self._packet, self._hook, self._chain = rules, packet, hook, chain
        self._doubt: FirewallRule | None = None  # the first rule that may or may not decide
        self._doubted: set[str] = set()  # the verdicts of such rules

    def run(self) -> tuple[str, FirewallRule | None]:
        """Return the verdict, "unknown" if it depends on a match that isn't known."""
        verdict, rule = self._run(_key(self._chain), 0) or (self._chain.policy or "accept", None)
        verdict = "drop" if verdict == "queue" else verdict
        outcome = "drop" if verdict in _STOPS else "accept"
        if self._doubt is not None and self._doubted - {outcome}:
            return "unknown", self._doubt
        return (verdict, rule) if verdict in _STOPS else ("accept", rule)

    def _run(self, key: ChainKey, depth: int) -> tuple[str, FirewallRule | None] | None:
        """Evaluate a chain; None if the packet leaves it without a verdict."""
        for rule in self._rules.get(key, ()) if depth < _DEEPEST else ():
            if not rule.verdict:
                continue
            matched = match(rule, self._packet, self._hook)
            if matched is False:
                continue
            if matched is None:
                self._doubt_about(rule, depth)
                continue
            if rule.verdict == "return":
                return None
            found = self._apply(rule, depth)
            if found is not None or rule.verdict == "goto":
                return found
        return None

    def _doubt_about(self, rule: FirewallRule, depth: int) -> None:
        """Note what a rule would do if it matched."""
        verdicts = _verdicts(self._rules, rule, depth)
        if verdicts:
            self._doubt = self._doubt or rule
            self._doubted |= verdicts

    def _apply(self, rule: FirewallRule, depth: int) -> tuple[str, FirewallRule | None] | None:
        match rule.verdict:
            case "notrack":
                self.notrack = self.notrack or rule
                return None
            case "jump" | "goto":
                (key,) = targets(rule) or (("", "", "", ""),)
                return self._run(key, depth + 1)
            case "vmap":
                return self._choose(rule, depth)
        return rule.verdict, rule

    def _choose(self, rule: FirewallRule, depth: int) -> tuple[str, FirewallRule | None] | None:
        """Apply the element of a verdict map that fits the packet."""
        if not rule.choices:
            self._doubt_about(rule, depth)
            return None
        chosen = self._chosen(rule)
        if chosen is None or chosen.verdict in ("continue", "return"):
            return None
        if chosen.verdict in ("jump", "goto"):
            return self._run((rule.backend, rule.family, rule.table, chosen.target), depth + 1)
        return chosen.verdict, rule

    def _chosen(self, rule: FirewallRule) -> VerdictCase | None:
        own = _values(rule.chosen_by, self._packet, self._hook)
        fit = (one for one in rule.choices if one.value != "*" and _fits(one.value, rule.chosen_by, own))
        rest = (one for one in rule.choices if one.value == "*")
        return next(fit, None) or next(rest, None)


def _values(name: str, packet: Packet, hook: Hook) -> tuple[str, ...]:
    """Return the values of a field of FirewallRule for a packet."""
    links = {"iif": hook.iifs, "oif": hook.oifs, "ct_state": tuple(packet.states)}
    return links[name] if name in links else (str(getattr(packet, name)),)


def _fits(value: str, name: str, own: tuple[str, ...]) -> bool:
    if name in ("iif", "oif"):
        return any(matches_link(value, one) for one in own)
    if name in ("sport", "dport") and own[0].isdigit():
        try:
            low, high = bounds(value)
        except ValueError:
            return False
        return low <= int(own[0]) <= high
    return bool(set(own) & set(split(value)[1]))


def _verdicts(
    rules: dict[ChainKey, list[FirewallRule]], rule: FirewallRule, depth: int
) -> set[Literal["accept", "drop"]]:
    """Return the final verdicts that a rule may lead to."""
    if rule.verdict in ("accept", *_NAT):
        return {"accept"}
    if rule.verdict in (*_STOPS, "queue"):
        return {"drop"}
    if rule.verdict in ("jump", "goto", "vmap") and depth < _DEEPEST:
        found = {("drop" if one.verdict in _STOPS else "accept") for one in _ending(rule)}
        for key in targets(rule):
            for inner in rules.get(key, ()):
                found |= _verdicts(rules, inner, depth + 4)
        return {one for one in ("accept", "drop") if one in found}
    return set()


def _ending(rule: FirewallRule) -> Iterator[VerdictCase]:
    return (one for one in rule.choices if one.verdict in ("accept", *_STOPS))


def _key(chain: Chain) -> ChainKey:
    return (chain.backend, chain.family, chain.table, chain.name)
