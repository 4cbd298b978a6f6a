"""Evaluate the chains of a hook for one packet, as the kernel would.

See nft(8) and the kernel's net/netfilter/core.c: base chains of all tables run by ascending priority, an
accept ends one base chain, a drop ends all. Conntrack runs at priority -200; chains of type nat see only the
first packet of a connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from core.model import Chain, Firewall, FirewallRule, VerdictCase
from core.nat.packets import ChainKey, chain_key, has_any, matches_link, matches_ports, targets
from core.reach.effects import apply_effect, effect_of
from core.reach.packet import Hook, Packet, match

_CONNTRACK = -200
# Where NAT happens, whatever the priority of its chains (NF_IP_PRI_NAT_DST and NF_IP_PRI_NAT_SRC).
_NAT_AT = {"prerouting": -100, "output": -100, "postrouting": 100, "input": 100}
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
    packet: Packet | None = None
    rerouted: bool = False


type Translate = Callable[[FirewallRule | None, Packet], Packet]


class Evaluator:
    """Evaluate the rules of one namespace."""

    def __init__(self, firewall: Firewall) -> None:
        self.firewall = firewall
        self._rules: dict[ChainKey, list[FirewallRule]] = {}
        for rule in firewall.rules:
            self._rules.setdefault(chain_key(rule), []).append(rule)
        self._by_port: dict[tuple[ChainKey, int], list[FirewallRule]] = {}
        self._bases: dict[tuple[str, str], list[Chain]] = {}
        for chain in firewall.chains:
            # A chain without rules and with policy accept changes nothing.
            if chain.hook and (chain.policy == "drop" or self._rules.get(chain.key)):
                self._bases.setdefault((chain.family, chain.hook), []).append(chain)

    @property
    def has_link_chains(self) -> bool:
        """Return whether there are chains of family netdev."""
        return any(family == "netdev" for family, _ in self._bases)

    def evaluate(self, packet: Packet, hook: Hook, translate: Translate | None = None) -> Decision:
        """Evaluate the IP chains of a hook.

        `translate` returns the packet after a NAT rule; with None, after the translation of its connection.
        """
        return self._evaluate(packet, hook, _FAMILIES[packet.is_ipv6], translate=translate)

    def evaluate_bridge(self, packet: Packet, hook: Hook) -> Decision:
        """Evaluate the chains of family bridge of a hook."""
        return self._evaluate(packet, hook, ("bridge",))

    def evaluate_link(self, packet: Packet, hook: Hook, link: str) -> Decision:
        """Evaluate the chains of family netdev on a link."""
        return self._evaluate(packet, hook, ("netdev",), link)

    def loopback_dnat(self, packet: Packet) -> FirewallRule | None:
        """Return the DNAT rule for the packet's port on a loopback address."""
        hook = Hook("prerouting", (), (), True, sets=self.firewall.sets)
        for rule in self.firewall.rules:
            if rule.verdict == "dnat" and rule.dst.startswith("127."):
                local = replace(packet, dst=rule.dst.partition("/")[0])
                if match(replace(rule, iif=""), local, hook):
                    return rule
        return None

    def zone_rule(self, packet: Packet, hook: Hook) -> FirewallRule | None:
        """Return the rule that sets the conntrack zone of a packet."""
        for chain in self._bases_of(hook.name):
            for rule in self._rules.get(chain.key, ()):
                effect = effect_of(rule)
                if effect is not None and effect.what == "zone" and match(rule, packet, hook):
                    return rule
        return None

    def _bases_of(self, hook: str) -> Iterator[Chain]:
        return (chain for (_, name), chains in self._bases.items() if name == hook for chain in chains)

    def later_nat(self, rule: FirewallRule, packet: Packet) -> FirewallRule | None:
        """Return a later rule of the chain that has another destination for the packet."""
        rules = self._rules.get(chain_key(rule), [])
        hook = Hook("prerouting", (rule.iif,) if rule.iif else (), (), True, sets=self.firewall.sets)
        for one in rules[rules.index(rule) + 1 :] if rule in rules else ():
            differs = (one.to_address, one.to_port) != (rule.to_address, rule.to_port)
            if one.verdict == "dnat" and differs and match(replace(one, iif=""), packet, hook):
                return one
        return None

    def _evaluate(
        self, packet: Packet, hook: Hook, families: Sequence[str], link: str = "",
        translate: Translate | None = None,
    ) -> Decision:  # fmt: skip
        chains = [chain for family in families for chain in self._bases.get((family, hook.name), ())]
        chains = [chain for chain in chains if not link or link in chain.links]
        run = _Traversal(self, hook, families, packet, translate)
        for chain in sorted(chains, key=_place_of):
            run.restore(chain)
            if (stop := run.pass_chain(chain)) is not None:
                return stop
        run.restore(None)
        return run.end()

    def rules_of(self, key: ChainKey) -> Sequence[FirewallRule]:
        """Return the rules of a chain."""
        return self._rules.get(key, ())

    def rules_for(self, key: ChainKey, port: int) -> Sequence[FirewallRule]:
        """Return the rules of a chain that may act on packets to a port (0: unknown)."""
        found = self._by_port.get((key, port))
        if found is None:
            other = frozenset(("", str(port))) if port else None
            found = self._by_port[key, port] = [
                rule
                for rule in self._rules.get(key, ())
                if (other is None or rule.dport in other or not rule.dport.isdigit())
                and (rule.verdict or effect_of(rule) is not None)
            ]
        return found


def _place_of(chain: Chain) -> int:
    return _NAT_AT.get(chain.hook, chain.priority) if chain.kind == "nat" else chain.priority


class _Traversal:
    """Pass a packet through the base chains of a hook, in their order."""

    def __init__(
        self, evaluator: Evaluator, hook: Hook, families: Sequence[str], packet: Packet,
        translate: Translate | None,
    ) -> None:  # fmt: skip
        self._evaluator, self._hook, self._translate, self.packet = evaluator, hook, translate, packet
        self._outside_ip = "bridge" in families or "netdev" in families
        self._passed: list[FirewallRule] = []
        self._nat: FirewallRule | None = None
        self._doubt: Decision | None = None
        self._notrack: FirewallRule | None = None
        self._untracked = "untracked" in packet.states
        self._restored = False
        self._rerouted = False

    def restore(self, chain: Chain | None) -> None:
        """Translate a packet of a known connection before the chains that run after NAT."""
        at = _NAT_AT.get(self._hook.name)
        is_due = at is not None and (chain is None or _place_of(chain) >= at)
        if self._restored or not is_due or self._untracked or self._translate is None:
            return
        self._restored = True
        self.packet = self._translate(None, self.packet)

    def pass_chain(self, chain: Chain) -> Decision | None:
        """Evaluate a chain; return the decision if it drops the packet."""
        new = "new" in self.packet.states and not self.packet.is_reply
        if chain.kind == "nat" and (self._nat or not new or self._untracked or not self._translate):
            return None  # translations are kept per connection
        walk = _Walk(self._evaluator, self._seen(chain), self._hook, chain)
        verdict, rule = walk.run()
        self._take_effects(walk, chain)
        if verdict == "unknown":
            self._doubt = self._doubt or Decision("unknown", chain, rule)
        elif verdict in _STOPS:
            ended = Decision("drop" if verdict == "drop" else "reject", chain, rule)
            return replace(ended, rules=tuple(self._passed), nat=self._nat, packet=self.packet)
        if rule is not None and rule.verdict in _NAT and verdict != "unknown":
            self._nat = rule
            self.packet = self._translate(rule, self.packet) if self._translate else self.packet
        elif rule is not None:
            self._passed.append(rule)
        return None

    def _take_effects(self, walk: _Walk, chain: Chain) -> None:
        """Keep what rules of a chain set: marks, the conntrack zone, no tracking."""
        after = walk.packet
        is_route = chain.kind == "route" or (chain.backend != "nft" and chain.table == "mangle")
        if after.mark != self.packet.mark and is_route and chain.hook == "output":
            self._rerouted = True
        self.packet = replace(self.packet, mark=after.mark, ct_mark=after.ct_mark, zone=after.zone)
        self._notrack = self._notrack or walk.notrack
        if walk.notrack is not None:
            self._untracked = True

    def _seen(self, chain: Chain) -> Packet:
        """Return the packet with the connection state that a chain sees."""
        if self._untracked:
            return replace(self.packet, states=frozenset(("untracked",)))
        early = chain.hook in ("prerouting", "output") and chain.priority < _CONNTRACK
        if early or self._outside_ip:
            return replace(self.packet, states=frozenset(("invalid",)))
        return self.packet

    def end(self) -> Decision:
        """Return the decision if no chain drops the packet."""
        ended = self._doubt or Decision("accept")
        return replace(
            ended, rules=tuple(self._passed), nat=self._nat, notrack=self._notrack, packet=self.packet,
            rerouted=self._rerouted,
        )  # fmt: skip


class _Walk:
    """Evaluate one base chain."""

    def __init__(self, evaluator: Evaluator, packet: Packet, hook: Hook, chain: Chain) -> None:
        self.notrack: FirewallRule | None = None
        self._evaluator, self.packet, self._hook, self._chain = evaluator, packet, hook, chain
        self._doubt: FirewallRule | None = None  # the first rule that may or may not decide
        self._doubted: set[str] = set()  # the verdicts of such rules

    def run(self) -> tuple[str, FirewallRule | None]:
        """Return the verdict, "unknown" if it depends on a match that isn't known."""
        verdict, rule = self._run(self._chain.key, 0) or (self._chain.policy or "accept", None)
        verdict = "drop" if verdict == "queue" else verdict
        outcome = "drop" if verdict in _STOPS else "accept"
        if self._doubt is not None and self._doubted - {outcome}:
            return "unknown", self._doubt
        return (verdict, rule) if verdict in _STOPS else ("accept", rule)

    def _run(self, key: ChainKey, depth: int) -> tuple[str, FirewallRule | None] | None:
        """Evaluate a chain; None if the packet leaves it without a verdict."""
        if depth >= _DEEPEST:
            return None
        for rule in self._evaluator.rules_for(key, self.packet.dport):
            matched = match(rule, self.packet, self._hook)
            if matched is False:
                continue
            if matched is None:
                self._doubt_about(rule, depth)
            if (effect := effect_of(rule)) is not None:
                self.packet = apply_effect(effect, self.packet, certain=matched is True)
            if matched is None or not rule.verdict:
                continue
            if rule.verdict == "return":
                return None
            found = self._apply(rule, depth)
            if found is not None or rule.verdict == "goto":
                return found
        return None

    def _doubt_about(self, rule: FirewallRule, depth: int) -> None:
        """Note what a rule would do if it matched."""
        verdicts = _verdicts(self._evaluator, rule, depth)
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
        own = _values(rule.chosen_by, self.packet, self._hook)
        fit = (one for one in rule.choices if one.value != "*" and _fits(one.value, rule.chosen_by, own))
        rest = (one for one in rule.choices if one.value == "*")
        return next(fit, None) or next(rest, None)


def _values(name: str, packet: Packet, hook: Hook) -> tuple[str, ...]:
    """Return the values of a field of FirewallRule for a packet."""
    links = {"iif": hook.iifs, "oif": hook.oifs, "ct_state": tuple(packet.states)}
    return links[name] if name in links else (str(getattr(packet, name)),)


def _fits(value: str, name: str, own: tuple[str, ...]) -> bool:
    if name in ("iif", "oif"):
        return matches_link(value, *own)
    if name in ("sport", "dport") and own[0].isdigit():
        return matches_ports(value, own[0]) is True
    return has_any(value, set(own))


def _verdicts(evaluator: Evaluator, rule: FirewallRule, depth: int) -> set[Literal["accept", "drop"]]:
    """Return the final verdicts that a rule may lead to."""
    if rule.verdict in ("accept", *_NAT):
        return {"accept"}
    if rule.verdict in (*_STOPS, "queue"):
        return {"drop"}
    if rule.verdict in ("jump", "goto", "vmap") and depth < _DEEPEST:
        found = {("drop" if one.verdict in _STOPS else "accept") for one in _ending(rule)}
        for key in targets(rule):
            for inner in evaluator.rules_of(key):
                found |= _verdicts(evaluator, inner, depth + 4)
        return {one for one in ("accept", "drop") if one in found}
    return set()


def _ending(rule: FirewallRule) -> Iterator[VerdictCase]:
    return (one for one in rule.choices if one.verdict in ("accept", *_STOPS))
