"""What accepts, drops or rejects forwarded packets by their addresses or links."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from core.model import FirewallRule
from core.nat.draft import Draft, family_of
from core.nat.paths import PlacedRule
from core.nat.ties import Ties
from core.nat.words import filtered, side, traffic

_VERDICTS = ("accept", "drop", "reject")


def filter_drafts(ns: int, placed: Iterable[PlacedRule], ties: Ties) -> Iterator[Draft]:
    """One draft for each rule in the way of forwarded packets that decides by links or addresses."""
    for one in placed:
        rule = one.effective
        if rule.verdict in _VERDICTS and "forward" in one.hooks and _names_something(rule):
            yield _draft(ns, one, ties)


def _names_something(rule: FirewallRule) -> bool:
    return bool(rule.iif or rule.oif or rule.src or rule.dst)


def _draft(ns: int, one: PlacedRule, ties: Ties) -> Draft:
    rule = one.effective
    source, destination = side(ties, ns, rule.iif, rule.src), side(ties, ns, rule.oif, rule.dst)
    further = "" if one.rule.understood else ", under further conditions"
    return Draft(
        same=(rule.rule_id,),
        kind="filter",
        name=_name(rule),
        sentence=f"{rule.verdict}: {filtered(rule)} from {source} to {destination}{further}",
        family=family_of(rule, (rule.src or rule.dst).removeprefix("!")),
        doing=[one.rule],
        entry_id=rule.rule_id,
        l4_proto=rule.l4_proto,
        outside=rule.dst or rule.oif,
        inside=rule.src or rule.iif,
        networks=_networks(ns, one, ties),
        containers=_containers(ns, rule, ties),
    )


def _name(rule: FirewallRule) -> str:
    sides = f"{_short(rule.src or rule.iif)} -> {_short(rule.dst or rule.oif)}"
    what = traffic(rule.l4_proto, rule.dport)
    return " ".join(part for part in (rule.verdict, sides, what, rule.ct_state) if part)


def _short(text: str) -> str:
    """One side in a title: "*" for anything."""
    first, more, _ = text.partition(",")
    return f"{first},…" if more else text or "*"


def _networks(ns: int, one: PlacedRule, ties: Ties) -> tuple[str, ...]:
    """The networks whose bridge or prefix it names; of what a chain's callers name only the one in common."""
    found: dict[str, None] = {}
    for name in ("iif", "oif", "src", "dst"):
        text = getattr(one.effective, name)
        if text and (getattr(one.rule, name) or "," not in text):
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
