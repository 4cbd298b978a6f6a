"""Build the NAT and filter entries of a snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from core.model import Firewall, FirewallRule, NatEntry, Network, Snapshot
from core.nat.describe import (
    describe_conditions,
    describe_destination,
    describe_packets,
    describe_traffic,
    first_name,
    with_network_name,
)
from core.nat.filters import filter_entries
from core.nat.packets import PlacedRule, is_everything, placed_rules, split
from core.nat.raw_entries import Owners, RawEntry, family_of, fold_helpers
from core.text import end_text, join_short

_TRANSLATED = ("src", "dst", "l4_proto", "sport", "dport", "to_address", "to_port")


def dnat_entries(ns: int, placed: Iterable[PlacedRule], owners: Owners) -> Iterator[RawEntry]:
    """Yield an entry for each rule, or map element, that changes the destination."""
    for one in placed:
        if one.rule.verdict == "redirect":
            yield _redirect(one)
        elif one.rule.verdict == "dnat":
            for number, rule in enumerate(expanded(one.effective)):
                yield _dnat(ns, one, rule, number, owners)


def expanded(rule: FirewallRule) -> Iterator[FirewallRule]:
    """Yield the rule, or one rule for each element of its NAT map."""
    if not rule.translations:
        yield rule
    for element in rule.translations:
        fields = {name: text for name in _TRANSLATED if (text := getattr(element, name))}
        yield replace(rule, translations=(), **fields)


def _dnat(ns: int, one: PlacedRule, rule: FirewallRule, number: int, owners: Owners) -> RawEntry:
    address, port = rule.to_address, rule.to_port or rule.dport
    inside = end_text(address, port)
    containers = owners.containers_at(ns, address)
    network = owners.network_at(ns, address)
    kind = "published port" if rule.dport and (containers or network) else "dnat"
    owner = first_name(owners, containers)
    what = describe_traffic(rule.l4_proto, rule.dport)
    to = f"{owner} {inside or 'another address'}".strip()
    outside, more = describe_destination(rule), describe_conditions(rule)
    return RawEntry(
        key=("in", rule.l4_proto, rule.dport, rule.dst, outside, more, inside),
        kind=kind,
        name=" ".join(part for part in (owner, what, "->", inside) if part),
        sentence=f"{kind.removesuffix(' port')}: {what or 'everything'} {outside} -> {to}{more}",
        family=family_of(rule, address),
        rules=[one.rule],
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
    what = describe_traffic(rule.l4_proto, rule.dport)
    port = rule.to_port or rule.dport
    to = f"port {port}" if port else "the same port"
    outside, more = describe_destination(rule), describe_conditions(rule)
    return RawEntry(
        key=("redirect", rule.l4_proto, rule.dport, rule.dst, outside, more, to),
        kind="redirect",
        name=" ".join(part for part in ("redirect", what, "->", to) if part),
        sentence=f"redirect: {what or 'everything'} {outside} -> {to} of this host{more}",
        family=family_of(rule, rule.dst),
        rules=[one.rule],
        entry_id=rule.rule_id,
        l4_proto=rule.l4_proto,
        outside=_outside(rule),
        inside=f":{port}" if port else "",
    )


def _outside(rule: FirewallRule) -> str:
    """Return the original destination address and port: "*" for any address."""
    negated, members = split(rule.dst)
    address = members[0] if len(members) == 1 and not negated else rule.dst or "*"
    return end_text(address, rule.dport)


def snat_entries(ns: int, placed: Iterable[PlacedRule], owners: Owners) -> Iterator[RawEntry]:
    """Yield an entry for each rule, or map element, that changes the source."""
    for one in placed:
        if one.rule.verdict in ("masquerade", "snat"):
            for number, rule in enumerate(expanded(one.effective)):
                yield _snat(ns, one, rule, number, owners)


def _snat(ns: int, one: PlacedRule, rule: FirewallRule, number: int, owners: Owners) -> RawEntry:
    networks = _networks(ns, rule, owners)
    containers = owners.containers_at(ns, rule.src)
    source = _source(rule, owners, networks, containers)
    to = _destination(rule)
    address = rule.to_address or _link_address(rule)
    packets = source or describe_packets(one.rule)
    what = f"packets from {source}" if source else packets.replace("everything", "all packets")
    kind = rule.verdict
    further = "" if one.rule.understood else ", under further conditions"
    return RawEntry(
        key=(kind, rule.src, rule.iif, rule.oif, rule.dst, rule.to_address, further),
        kind=kind,
        name=f"{kind} {packets}{to}",
        sentence=f"{kind}: {what}{to} get the source address {address}{further}",
        family=family_of(rule, rule.src.removeprefix("!") or rule.to_address),
        rules=[one.rule],
        entry_id=f"{rule.rule_id}#{number}" if one.rule.translations else rule.rule_id,
        l4_proto=rule.l4_proto,
        outside=rule.to_address or ("" if rule.oif.startswith("!") else rule.oif),
        inside=rule.src or rule.iif,
        networks=networks,
        containers=containers,
    )


def _networks(ns: int, rule: FirewallRule, owners: Owners) -> tuple[str, ...]:
    """Return the networks whose packets the rule matches, by prefix or bridge.

    A rule for all packets matches every network of kind "nat".
    """
    by_source = () if rule.src.startswith("!") else owners.networks_in(ns, rule.src)
    by_link = owners.networks_behind(ns, rule.iif)
    if not rule.src and not rule.iif:
        return owners.translated_networks(ns, rule.oif) if rule.understood else ()
    return tuple(dict.fromkeys((*by_source, *by_link)))


def _source(
    rule: FirewallRule, owners: Owners, networks: tuple[str, ...], containers: tuple[str, ...]
) -> str:
    """Describe the source, such as "shop (172.18.0.0/16)", "10.0.0.0/8" or ""."""
    text = rule.src or rule.iif
    negated, members = split(text)
    if negated:
        return f"anywhere except {join_short(members)}"
    if name := first_name(owners, containers):
        return f"{name} ({text})"
    exact = [network for network in networks if text in _names(owners, network)]
    return with_network_name(owners, exact[0], text) if exact else join_short(members)


def _names(owners: Owners, network_id: str) -> tuple[str, ...]:
    network = owners.networks[network_id]
    return (*network.subnets, network.bridge)


def _destination(rule: FirewallRule) -> str:
    """Describe the outgoing link and destination, unless it is "not the own network"."""
    parts = []
    if rule.oif and not rule.oif.startswith("!"):
        parts.append(f" via {join_short(split(rule.oif)[1])}")
    if rule.dst and not rule.dst.startswith("!") and not is_everything(rule.dst):
        parts.append(f" to {join_short(split(rule.dst)[1])}")
    return "".join(parts)


def _link_address(rule: FirewallRule) -> str:
    negated, members = split(rule.oif)
    return f"of {members[0]}" if len(members) == 1 and not negated else "of the outgoing link"


KINDS = ("published port", "dnat", "redirect", "masquerade", "snat", "filter")


def nat_entries(snapshot: Snapshot, networks: Sequence[Network]) -> tuple[NatEntry, ...]:
    """Return the NAT and forward filter entries of all namespaces.

    They are in the order of namespace, kind and rule. Rules that do the same become one entry; hairpin
    masquerades and accepts of a published port belong to its entry. Rules that only jump, return, count or
    mark have no entry.
    """
    owners = Owners(snapshot, networks)
    return tuple(chain.from_iterable(_entries(firewall, owners) for firewall in snapshot.firewalls.values()))


def _entries(firewall: Firewall, owners: Owners) -> Iterable[NatEntry]:
    placed = placed_rules(firewall)
    dnat = _merged(dnat_entries(firewall.ns, placed, owners))
    folded = fold_helpers(placed, dnat)
    rest = [one for one in placed if one.rule.rule_id not in folded]
    snat = _merged(snat_entries(firewall.ns, rest, owners))
    entries = [*dnat, *snat, *filter_entries(firewall.ns, rest, owners)]
    entries.sort(key=lambda entry: KINDS.index(entry.kind))
    return (entry.build(firewall.ns) for entry in entries)


def _merged(entries: Iterable[RawEntry]) -> list[RawEntry]:
    """Merge entries with the same key."""
    found: dict[tuple[str, ...], RawEntry] = {}
    for entry in entries:
        known = found.setdefault(entry.key, entry)
        if known is not entry:
            known.merge(entry)
    return list(found.values())
