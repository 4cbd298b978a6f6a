"""What leads packets in: published ports, other destination translations, redirects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from core.model import FirewallRule
from core.nat.draft import Draft, family_of
from core.nat.match import split
from core.nat.paths import PlacedRule
from core.nat.ties import Ties
from core.nat.words import conditions, host_port, names_of, traffic, where_to

_TRANSLATED = ("src", "dst", "l4_proto", "sport", "dport", "to_address", "to_port")


def inward_drafts(ns: int, placed: Iterable[PlacedRule], ties: Ties) -> Iterator[Draft]:
    """One draft for each rule that changes a destination, or for each element of its map."""
    for one in placed:
        if one.rule.verdict == "redirect":
            yield _redirect(one)
        elif one.rule.verdict == "dnat":
            for number, rule in enumerate(expanded(one.effective)):
                yield _dnat(ns, one, rule, number, ties)


def expanded(rule: FirewallRule) -> Iterator[FirewallRule]:
    """The rule, or where it translates by a map, one rule for each element of it."""
    if not rule.translations:
        yield rule
    for element in rule.translations:
        told = {name: text for name in _TRANSLATED if (text := getattr(element, name))}
        yield replace(rule, translations=(), **told)


def _dnat(ns: int, one: PlacedRule, rule: FirewallRule, number: int, ties: Ties) -> Draft:
    address, port = rule.to_address, rule.to_port or rule.dport
    inside = host_port(address, port)
    containers = ties.containers_at(ns, address)
    network = ties.network_at(ns, address)
    kind = "published port" if rule.dport and (containers or network) else "dnat"
    who = names_of(ties, containers)
    what = traffic(rule.l4_proto, rule.dport)
    said = f"{kind.removesuffix(' port')}: {what or 'everything'} {where_to(rule)} ->"
    to = f"{who} {inside or 'another address'}".strip()
    return Draft(
        same=("in", rule.l4_proto, rule.dport, rule.dst, where_to(rule), conditions(rule), inside),
        kind=kind,
        name=" ".join(part for part in (who, what, "->", inside) if part),
        sentence=f"{said} {to}{conditions(rule)}",
        family=family_of(rule, address),
        doing=[one.rule],
        entry_id=f"{rule.rule_id}#{number}" if one.rule.translations else rule.rule_id,
        l4_proto=rule.l4_proto,
        outside=_outside(rule),
        inside=inside,
        networks=(network,) if network else (),
        containers=containers,
        address=address,
        port=port,
    )


def _redirect(one: PlacedRule) -> Draft:
    rule = one.effective
    what = traffic(rule.l4_proto, rule.dport)
    port = rule.to_port or rule.dport
    to = f"port {port}" if port else "the same port"
    return Draft(
        same=("redirect", rule.l4_proto, rule.dport, rule.dst, where_to(rule), conditions(rule), to),
        kind="redirect",
        name=" ".join(part for part in ("redirect", what, "->", to) if part),
        sentence=f"redirect: {what or 'everything'} {where_to(rule)} -> {to} of this host{conditions(rule)}",
        family=family_of(rule, rule.dst),
        doing=[one.rule],
        entry_id=rule.rule_id,
        l4_proto=rule.l4_proto,
        outside=_outside(rule),
        inside=f":{port}" if port else "",
    )


def _outside(rule: FirewallRule) -> str:
    """The address and port that packets are sent to: "*" for any address."""
    negated, members = split(rule.dst)
    address = members[0] if len(members) == 1 and not negated else rule.dst or "*"
    return host_port(address, rule.dport)
