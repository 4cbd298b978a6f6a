"""What gives packets on their way out another source: masquerades and source translations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from core.model import FirewallRule
from core.nat.draft import Draft, family_of
from core.nat.inward import expanded
from core.nat.match import prefixes, split
from core.nat.paths import PlacedRule
from core.nat.ties import Ties
from core.nat.words import listed, names_of, network_and, some_packets


def outward_drafts(ns: int, placed: Iterable[PlacedRule], ties: Ties) -> Iterator[Draft]:
    """One draft for each rule that changes a source, or for each element of its map."""
    for one in placed:
        if one.rule.verdict in ("masquerade", "snat"):
            for number, rule in enumerate(expanded(one.effective)):
                yield _draft(ns, one, rule, number, ties)


def _draft(ns: int, one: PlacedRule, rule: FirewallRule, number: int, ties: Ties) -> Draft:
    networks = _networks(ns, rule, ties)
    containers = ties.containers_at(ns, rule.src)
    source = _source(rule, ties, networks, containers)
    to = _destination(rule)
    gets = f"the address {rule.to_address}" if rule.to_address else _own_address(rule)
    whose = source or some_packets(one.rule)
    what = f"what leaves {source}" if source else f"{whose} that leave{'s' if whose == 'everything' else ''}"
    kind = rule.verdict
    further = "" if one.rule.understood else ", under further conditions"
    return Draft(
        same=(kind, rule.src, rule.iif, rule.oif, rule.dst, rule.to_address, further),
        kind=kind,
        name=f"{kind} {whose}{to}",
        sentence=f"{kind}: {what}{to} {'gets' if source or whose == 'everything' else 'get'} {gets}{further}",
        family=family_of(rule, rule.src.removeprefix("!") or rule.to_address),
        doing=[one.rule],
        entry_id=f"{rule.rule_id}#{number}" if one.rule.translations else rule.rule_id,
        l4_proto=rule.l4_proto,
        outside=rule.to_address or ("" if rule.oif.startswith("!") else rule.oif),
        inside=rule.src or rule.iif,
        networks=networks,
        containers=containers,
    )


def _networks(ns: int, rule: FirewallRule, ties: Ties) -> tuple[str, ...]:
    """The networks whose packets the rule takes: by prefix or by the bridge that they come from; a rule for
    all that leaves takes those of every network that is translated."""
    by_source = () if rule.src.startswith("!") else ties.networks_in(ns, rule.src)
    by_link = ties.networks_behind(ns, rule.iif)
    if not rule.src and not rule.iif:
        return ties.translated_networks(ns, rule.oif) if rule.understood else ()
    return tuple(dict.fromkeys((*by_source, *by_link)))


def _source(rule: FirewallRule, ties: Ties, networks: tuple[str, ...], containers: tuple[str, ...]) -> str:
    """Whose packets, for a sentence: "shop (172.18.0.0/16)", "web1 (172.18.0.2)", "10.0.0.0/8" or ""."""
    text = rule.src or rule.iif
    negated, members = split(text)
    if negated:
        return f"anywhere but {listed(members)}"
    if name := names_of(ties, containers):
        return f"{name} ({text})"
    exact = [network for network in networks if text in _names(ties, network)]
    return network_and(ties, exact[0], text) if exact else listed(members)


def _names(ties: Ties, network_id: str) -> tuple[str, ...]:
    network = ties.networks[network_id]
    return (*network.subnets, network.bridge)


def _destination(rule: FirewallRule) -> str:
    """The way and destination that packets must have, where that is more than "not its own network"."""
    parts = []
    if rule.oif and not rule.oif.startswith("!"):
        parts.append(f" by {listed(split(rule.oif)[1])}")
    if rule.dst and not rule.dst.startswith("!") and not _is_everything(rule.dst):
        parts.append(f" to {listed(split(rule.dst)[1])}")
    return "".join(parts)


def _is_everything(text: str) -> bool:
    return any(prefix.prefixlen == 0 for prefix in prefixes(text) or ())


def _own_address(rule: FirewallRule) -> str:
    negated, members = split(rule.oif)
    return f"{members[0]}'s address" if len(members) == 1 and not negated else "the address of the way out"
