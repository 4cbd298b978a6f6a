"""Which rules can have translated an entry."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from core.flows.meaning import Flow
from core.flows.words import address_bytes, protocol_name
from core.model.firewall import FirewallRule, NatEntry

_DESTINATION = frozenset({"dnat", "redirect"})
_SOURCE = frozenset({"snat", "masquerade"})


def translators(flow: Flow, entries: Iterable[NatEntry], rules: Iterable[FirewallRule]) -> Iterator[NatEntry]:
    """Those NAT entries of the flow's namespace of which a rule fits its translation. Interfaces are not
    compared, so that of rules alike but for these each one is named."""
    fitting = {rule.rule_id for rule in rules if _fits(rule, flow)}
    for entry in entries:
        if fitting.intersection(entry.rules):
            yield entry


def _fits(rule: FirewallRule, flow: Flow) -> bool:
    """Whether the rule matches the first packet, and leads to what became of it."""
    entry = flow.entry
    if rule.verdict in _DESTINATION and flow.dnat:
        address, port = entry.reply_src, entry.reply_sport
        destination, dport = entry.orig_dst, entry.orig_dport
    elif rule.verdict in _SOURCE and flow.snat:
        address, port = entry.reply_dst, entry.reply_dport
        destination, dport = entry.reply_src, entry.reply_sport  # source NAT comes after destination NAT
    else:
        return False
    return (
        (not rule.l4_proto or protocol_name(entry.l4_proto) in rule.l4_proto.split(","))
        and _in_prefixes(entry.orig_src, rule.src)
        and _in_prefixes(destination, rule.dst)
        and _in_ranges(entry.orig_sport, rule.sport)
        and _in_ranges(dport, rule.dport)
        and _in_prefixes(address, rule.to_address)
        and _in_ranges(port, rule.to_port)
    )


def _in_prefixes(raw: bytes, text: str) -> bool:
    """Whether an address lies in one of the prefixes ("10.0.0.0/8,192.0.2.1"; a leading "!" negates); True
    for no prefix at all, False for what cannot be read."""
    if not text:
        return True
    try:
        found = any(_in_prefix(raw, part) for part in text.lstrip("! ").split(","))
    except ValueError:
        return False
    return found != text.startswith("!")


def _in_prefix(raw: bytes, text: str) -> bool:
    first, dash, last = text.strip().partition("-")
    if dash:
        return address_bytes(first) <= raw <= address_bytes(last)
    network = ipaddress.ip_network(first, strict=False)
    return address_bytes(str(network[0])) <= raw <= address_bytes(str(network[-1]))


def _in_ranges(port: int, text: str) -> bool:
    """The same for ports ("80", "8000-8010", "80,443")."""
    if not text:
        return True
    try:
        found = any(_in_range(port, part) for part in text.lstrip("! ").split(","))
    except ValueError:
        return False
    return found != text.startswith("!")


def _in_range(port: int, text: str) -> bool:
    first, _, last = text.partition("-")
    return int(first) <= port <= int(last or first)
