"""Whether the rules of the forward path let anything new out of a network."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from core.model import Chain, Firewall, FirewallRule
from core.nat.match import Prefix, covers, split, takes_link
from core.nat.paths import ChainKey, branches, chain_key, targets

_FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}
_DEEPEST = 16


def is_shut_in(firewall: Firewall, bridge: str, subnet: Prefix) -> bool:
    """Whether every new packet from a bridge's subnet to anywhere else is dropped. Accepts count that name
    where packets come from, or that hold whatever the destination address; further conditions are taken as
    met by none."""
    walk = _Walk(firewall, bridge, subnet)
    bases = [
        chain
        for chain in firewall.chains
        if chain.hook == "forward" and chain.family in _FAMILIES[subnet.version]
    ]
    return any(walk.drops(chain) for chain in bases)


@dataclass(frozen=True, slots=True)
class _Packets:
    """New packets from a bridge's subnet that leave by any other link to any other address."""

    bridge: str
    subnet: Prefix

    def match(self, rule: FirewallRule) -> bool | None:
        """Whether a rule matches all of them, none, or some (None)."""
        verdicts = (
            takes_link(rule.iif, self.bridge),
            self._leaves_by(rule.oif),
            covers(rule.src, self.subnet),
            self._goes_to(rule.dst),
            _is_new(rule.ct_state),
            None if rule.l4_proto or rule.sport or rule.dport or not rule.understood else True,
        )
        if False in verdicts:
            return False
        return None if None in verdicts else True

    def _leaves_by(self, oif: str) -> bool | None:
        negated, members = split(oif)
        if not members or (negated and members == (self.bridge,)):
            return True
        return False if members == (self.bridge,) else None

    def _goes_to(self, dst: str) -> bool | None:
        held = covers(dst, self.subnet)
        if not dst:
            return True
        # Their destination is outside: what says "not the subnet" holds, what says "in the subnet" does not.
        return held is False if held is not None and (held or dst.startswith("!")) else None

    def named_by(self, rule: FirewallRule) -> bool:
        """Whether a rule names where they come from."""
        return bool(
            (rule.iif and not rule.iif.startswith("!") and takes_link(rule.iif, self.bridge))
            or (rule.src and covers(rule.src, self.subnet))
        )


class _Walk:
    """One walk of these packets through the rules."""

    def __init__(self, firewall: Firewall, bridge: str, subnet: Prefix) -> None:
        self._packets = _Packets(bridge, subnet)
        self._rules: dict[ChainKey, list[FirewallRule]] = {}
        for rule in firewall.rules:
            self._rules.setdefault(chain_key(rule), []).append(rule)

    def drops(self, base: Chain) -> bool:
        """Whether a base chain drops them all."""
        verdict = self._chain((base.backend, base.family, base.table, base.name), 0)
        return (verdict or base.policy) == "drop"

    def _chain(self, key: ChainKey, depth: int) -> str:
        """ "accept", "drop" or "" where the chain does not decide."""
        rules = self._rules.get(key, ()) if depth < _DEEPEST else ()
        for rule in chain.from_iterable(branches(one) for one in rules):
            matched = self._packets.match(rule)
            if matched is False:
                continue
            verdict = self._verdict(rule, matched is True, depth)
            if verdict:
                return verdict.removeprefix("return")
        return ""

    def _verdict(self, rule: FirewallRule, surely: bool, depth: int) -> str:
        """What a rule that may match decides: "" for nothing, "return" to leave its chain."""
        if rule.verdict == "accept":
            return "accept" if surely or self._lets_out(rule) else ""
        if rule.verdict in ("drop", "reject"):
            return "drop" if surely else ""
        if rule.verdict in ("jump", "goto"):
            return self._jump(rule, surely, depth)
        return "return" if rule.verdict == "return" and surely else ""

    def _jump(self, rule: FirewallRule, surely: bool, depth: int) -> str:
        verdict = next((self._chain(key, depth + 1) for key in targets(rule)), "")
        if not surely:
            return verdict if verdict == "accept" and self._lets_out(rule) else ""
        return verdict or ("return" if rule.verdict == "goto" else "")

    def _lets_out(self, rule: FirewallRule) -> bool:
        return self._packets.named_by(rule) or (rule.understood and not rule.dst)


def _is_new(ct_state: str) -> bool:
    negated, members = split(ct_state)
    return not members or negated != ("new" in members)
