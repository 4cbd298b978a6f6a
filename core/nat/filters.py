"""What accepts forwarded packets by addresses or links, and what drops or rejects them, where they come in
as well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from core.model import FirewallRule
from core.nat.draft import Draft, family_of
from core.nat.paths import ChainKey, PlacedRule, branches, chain_key, matches_of
from core.nat.ties import Ties
from core.nat.words import filtered, side, some_packets, traffic

_VERDICTS = ("accept", "drop", "reject")
_EARLY = {"prerouting", "ingress"}


def filter_drafts(ns: int, placed: Iterable[PlacedRule], ties: Ties) -> Iterator[Draft]:
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


def _draft(ns: int, one: PlacedRule, rule: FirewallRule, number: int, ties: Ties, rest: bool) -> Draft:
    what = filtered(rule).replace("everything", "everything else") if rest else filtered(rule)
    source, destination = side(ties, ns, rule.iif, rule.src), side(ties, ns, rule.oif, rule.dst)
    further = "" if one.rule.understood or one.rule.choices else ", under further conditions"
    early = "" if "forward" in one.hooks else ", before it is routed or translated"
    entry_id = f"{rule.rule_id}#{number}" if one.rule.choices else rule.rule_id
    return Draft(
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


def _networks(ns: int, own: FirewallRule, rule: FirewallRule, ties: Ties) -> tuple[str, ...]:
    """The networks whose bridge or prefix it names; of what a chain's callers name only the one in common."""
    found: dict[str, None] = {}
    for name in ("iif", "oif", "src", "dst"):
        text = getattr(rule, name)
        if text and (getattr(own, name) or "," not in text):
            near = ties.networks_behind if name in ("iif", "oif") else ties.networks_in
            found.update(dict.fromkeys(near(ns, text)))
    return tuple(found)


def _containers(ns: int, rule: FirewallRule, ties: Ties) -> tuple[str, ...]:
    found = [
        *ties.containers_at(ns, rule.src),
        *ties.containers_at(ns, rule.dst),
        *ties.containers_behind(ns, rule.iif),
        *ties.containers_behind(ns, rule.oif),
    ]
    return tuple(dict.fromkeys(found))
