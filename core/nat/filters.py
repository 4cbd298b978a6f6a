"""What accepts forwarded packets by addresses or links, and what drops or rejects them, where they come in
as well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from core.model import Chain, Firewall, FirewallRule
from core.nat.describe import filtered, side, some_packets, traffic
from core.nat.owners import Owners
from core.nat.packets import (
    ChainKey,
    PlacedRule,
    Prefix,
    branches,
    chain_key,
    covers,
    matches_of,
    split,
    takes_link,
    targets,
)
from core.nat.raw_entries import RawEntry, family_of

_VERDICTS = ("accept", "drop", "reject")
_EARLY = {"prerouting", "ingress"}


def filter_drafts(ns: int, placed: Iterable[PlacedRule], ties: Owners) -> Iterator[RawEntry]:
    """One draft for each rule on the forward path that accepts by links or addresses, or drops."""
    begun: set[ChainKey] = set()
    for one in placed:
        rest = chain_key(one.rule) in begun and not matches_of(one.rule)
        begun.add(chain_key(one.rule))
        if not _is_on_the_way(one):
            continue
        for number, rule in enumerate(branches(one.effective)):
            if rule.verdict in _VERDICTS and _is_worth_a_row(rule):
                yield _draft(ns, one, rule, number, ties, rest)


def _is_on_the_way(one: PlacedRule) -> bool:
    """Whether forwarded packets come to it; where addresses are translated, an accept only ends that."""
    return "forward" in one.hooks or (bool(one.hooks & _EARLY) and "filter" in one.kinds)


def _is_worth_a_row(rule: FirewallRule) -> bool:
    """Whether it names a link or an address, or drops, other than by a connection's state alone."""
    if rule.iif or rule.oif or rule.src or rule.dst:
        return True
    ports = rule.l4_proto or rule.sport or rule.dport
    return rule.verdict != "accept" and bool(ports or not rule.understood or not rule.ct_state)


def _draft(ns: int, one: PlacedRule, rule: FirewallRule, number: int, ties: Owners, rest: bool) -> RawEntry:
    what = filtered(rule).replace("everything", "everything else") if rest else filtered(rule)
    source, destination = side(ties, ns, rule.iif, rule.src), side(ties, ns, rule.oif, rule.dst)
    further = "" if one.rule.understood or one.rule.choices else ", under further conditions"
    early = "" if "forward" in one.hooks else ", before it is routed or translated"
    entry_id = f"{rule.rule_id}#{number}" if one.rule.choices else rule.rule_id
    return RawEntry(
        same=(entry_id,),
        kind="filter",
        name=_name(rule),
        sentence=f"{rule.verdict}: {what} from {source} to {destination}{early}{further}",
        family=family_of(rule, (rule.src or rule.dst).removeprefix("!")),
        doing=[_counted(one.rule, rule)],
        entry_id=entry_id,
        l4_proto=rule.l4_proto,
        outside=rule.dst or rule.oif,
        inside=rule.src or rule.iif,
        networks=_networks(ns, one.rule, rule, ties),
        containers=_containers(ns, rule, ties),
    )


def _counted(placed: FirewallRule, rule: FirewallRule) -> FirewallRule:
    """The rule with its branch's verdict; the counter of a verdict map is of all that come to it."""
    if not placed.choices:
        return placed
    return replace(placed, verdict=rule.verdict, packets=None, bytes=None)


def _name(rule: FirewallRule) -> str:
    sides = f"{_short(rule.src or rule.iif)} -> {_short(rule.dst or rule.oif)}"
    what = traffic(rule.l4_proto, rule.dport) or ("" if rule.understood else some_packets(rule))
    return " ".join(part for part in (rule.verdict, sides, what, rule.ct_state) if part)


def _short(text: str) -> str:
    """One side in a title: "*" for anything."""
    first, more, _ = text.partition(",")
    return f"{first},…" if more else text or "*"


def _networks(ns: int, own: FirewallRule, rule: FirewallRule, ties: Owners) -> tuple[str, ...]:
    """The networks whose bridge or prefix it names; of what a chain's callers name only the one in common."""
    found: dict[str, None] = {}
    for name in ("iif", "oif", "src", "dst"):
        text = getattr(rule, name)
        if text and (getattr(own, name) or "," not in text):
            near = ties.networks_behind if name in ("iif", "oif") else ties.networks_in
            found.update(dict.fromkeys(near(ns, text)))
    return tuple(found)


def _containers(ns: int, rule: FirewallRule, ties: Owners) -> tuple[str, ...]:
    found = [
        *ties.containers_at(ns, rule.src),
        *ties.containers_at(ns, rule.dst),
        *ties.containers_behind(ns, rule.iif),
        *ties.containers_behind(ns, rule.oif),
    ]
    return tuple(dict.fromkeys(found))


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
