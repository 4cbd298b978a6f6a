"""All entries of a snapshot: what translates, with its helpers folded behind it, and what filters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from core.model import Firewall, FirewallRule, NatEntry, Network, Snapshot
from core.nat.describe import (
    conditions,
    host_port,
    listed,
    names_of,
    network_and,
    some_packets,
    traffic,
    where_to,
)
from core.nat.filters import filter_drafts
from core.nat.owners import Owners
from core.nat.packets import PlacedRule, placed_rules, prefixes, split
from core.nat.raw_entries import RawEntry, family_of, fold_helpers

_TRANSLATED = ("src", "dst", "l4_proto", "sport", "dport", "to_address", "to_port")


def inward_drafts(ns: int, placed: Iterable[PlacedRule], ties: Owners) -> Iterator[RawEntry]:
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


def _dnat(ns: int, one: PlacedRule, rule: FirewallRule, number: int, ties: Owners) -> RawEntry:
    address, port = rule.to_address, rule.to_port or rule.dport
    inside = host_port(address, port)
    containers = ties.containers_at(ns, address)
    network = ties.network_at(ns, address)
    kind = "published port" if rule.dport and (containers or network) else "dnat"
    who = names_of(ties, containers)
    what = traffic(rule.l4_proto, rule.dport)
    said = f"{kind.removesuffix(' port')}: {what or 'everything'} {where_to(rule)} ->"
    to = f"{who} {inside or 'another address'}".strip()
    return RawEntry(
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


def _redirect(one: PlacedRule) -> RawEntry:
    rule = one.effective
    what = traffic(rule.l4_proto, rule.dport)
    port = rule.to_port or rule.dport
    to = f"port {port}" if port else "the same port"
    return RawEntry(
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


def outward_drafts(ns: int, placed: Iterable[PlacedRule], ties: Owners) -> Iterator[RawEntry]:
    """One draft for each rule that changes a source, or for each element of its map."""
    for one in placed:
        if one.rule.verdict in ("masquerade", "snat"):
            for number, rule in enumerate(expanded(one.effective)):
                yield _draft(ns, one, rule, number, ties)


def _draft(ns: int, one: PlacedRule, rule: FirewallRule, number: int, ties: Owners) -> RawEntry:
    networks = _networks(ns, rule, ties)
    containers = ties.containers_at(ns, rule.src)
    source = _source(rule, ties, networks, containers)
    to = _destination(rule)
    gets = f"the address {rule.to_address}" if rule.to_address else _own_address(rule)
    whose = source or some_packets(one.rule)
    what = f"what leaves {source}" if source else f"{whose} that leave{'s' if whose == 'everything' else ''}"
    kind = rule.verdict
    further = "" if one.rule.understood else ", under further conditions"
    return RawEntry(
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


def _networks(ns: int, rule: FirewallRule, ties: Owners) -> tuple[str, ...]:
    """The networks whose packets the rule takes: by prefix or by the bridge that they come from; a rule for
    all that leaves takes those of every network that is translated."""
    by_source = () if rule.src.startswith("!") else ties.networks_in(ns, rule.src)
    by_link = ties.networks_behind(ns, rule.iif)
    if not rule.src and not rule.iif:
        return ties.translated_networks(ns, rule.oif) if rule.understood else ()
    return tuple(dict.fromkeys((*by_source, *by_link)))


def _source(rule: FirewallRule, ties: Owners, networks: tuple[str, ...], containers: tuple[str, ...]) -> str:
    """Whose packets, for a sentence: "shop (172.18.0.0/16)", "web1 (172.18.0.2)", "10.0.0.0/8" or ""."""
    text = rule.src or rule.iif
    negated, members = split(text)
    if negated:
        return f"anywhere but {listed(members)}"
    if name := names_of(ties, containers):
        return f"{name} ({text})"
    exact = [network for network in networks if text in _names(ties, network)]
    return network_and(ties, exact[0], text) if exact else listed(members)


def _names(ties: Owners, network_id: str) -> tuple[str, ...]:
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


KINDS = ("published port", "dnat", "redirect", "masquerade", "snat", "filter")


def nat_entries(snapshot: Snapshot, networks: Sequence[Network]) -> tuple[NatEntry, ...]:
    """Every translation and forward filter of every namespace, by namespace, kind and place in the rules.

    Rules that do the same are one entry; a hairpin masquerade or an accept that belongs to a published port
    stands behind it. Rules that only jump, return, count or mark are no entries."""
    ties = Owners(snapshot, networks)
    return tuple(chain.from_iterable(_entries(firewall, ties) for firewall in snapshot.firewalls.values()))


def _entries(firewall: Firewall, ties: Owners) -> Iterable[NatEntry]:
    placed = placed_rules(firewall)
    inward = _merged(inward_drafts(firewall.ns, placed, ties))
    folded = fold_helpers(placed, inward)
    rest = [one for one in placed if one.rule.rule_id not in folded]
    outward = _merged(outward_drafts(firewall.ns, rest, ties))
    drafts = [*inward, *outward, *filter_drafts(firewall.ns, rest, ties)]
    drafts.sort(key=lambda draft: KINDS.index(draft.kind))
    return (draft.entry(firewall.ns) for draft in drafts)


def _merged(drafts: Iterable[RawEntry]) -> list[RawEntry]:
    """Drafts that say the same put together."""
    found: dict[tuple[str, ...], RawEntry] = {}
    for draft in drafts:
        known = found.setdefault(draft.same, draft)
        if known is not draft:
            known.take_in(draft)
    return list(found.values())
