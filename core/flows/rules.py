"""Which rules can have translated which entries."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from core.flows.columns import Column, FlowColumns
from core.flows.words import PROTOCOLS, address_bytes
from core.model.firewall import FirewallRule, NatEntry

_DESTINATION = frozenset({"dnat", "redirect"})
_SOURCE = frozenset({"snat", "masquerade"})
TRANSLATING = _DESTINATION | _SOURCE


def translators(
    columns: FlowColumns, entries: Iterable[NatEntry], rules: Iterable[FirewallRule]
) -> Iterator[NatEntry]:
    """Those NAT entries of which a rule fits the translation of any of the columns' connections. Interfaces
    are not compared, so that of rules alike but for these each one is named."""
    fitting = {rule.rule_id for rule in rules if translated_by(columns, rule).any()}
    for entry in entries:
        if fitting.intersection(entry.rules):
            yield entry


def translated_by(columns: FlowColumns, rule: FirewallRule) -> Column:
    """Where the rule matches the first packet of a connection, and leads to what became of it."""
    if rule.verdict in _DESTINATION:
        translated, given, towards = columns.destination_translated, "reply_src", "orig_dst"
    elif rule.verdict in _SOURCE:  # source NAT comes after destination NAT
        translated, given, towards = columns.source_translated, "reply_dst", "reply_src"
    else:
        return np.zeros(len(columns), bool)
    protocols = rule.l4_proto.split(",")
    is_protocol = np.array([not rule.l4_proto or name in protocols for name in PROTOCOLS])
    found = translated & is_protocol[columns.column("l4_proto")]
    for end, text in (("orig_src", rule.src), (towards, rule.dst), (given, rule.to_address)):
        found = found & in_prefixes(columns.column(end), text)
    for end, text in (("orig_src", rule.sport), (towards, rule.dport), (given, rule.to_port)):
        found = found & _in_ranges(columns.port_of(end), text)
    return np.asarray(found)


def in_prefixes(addresses: Column, text: str) -> Column:
    """Where an address lies in one of the prefixes ("10.0.0.0/8,192.0.2.1"; a leading "!" negates);
    everywhere for no prefix at all, nowhere for what cannot be read."""
    return _in_any(addresses, text, _in_prefix)


def _in_prefix(addresses: Column, text: str) -> Column:
    first, dash, last = text.strip().partition("-")
    if not dash:
        network = ipaddress.ip_network(first, strict=False)
        first, last = str(network[0]), str(network[-1])
    return ~_below(addresses, address_bytes(first)) & ~_below(addresses, address_bytes(last), above=True)


def _below(addresses: Column, raw: bytes, above: bool = False) -> Column:
    """Where an address stands before that one, or `above`, after it."""
    upper, lower = (np.uint64(int.from_bytes(half)) for half in (raw[:8], raw[8:]))
    compare = np.greater if above else np.less
    same = addresses[:, 0] == upper
    return np.asarray(compare(addresses[:, 0], upper) | (same & compare(addresses[:, 1], lower)))


def _in_ranges(ports: Column, text: str) -> Column:
    """The same for ports ("80", "8000-8010", "80,443")."""
    return _in_any(ports, text, _in_range)


def _in_range(ports: Column, text: str) -> Column:
    first, _, last = text.partition("-")
    return np.asarray((int(first) <= ports) & (ports <= int(last or first)))


def _in_any(values: Column, text: str, fits: Callable[[Column, str], Column]) -> Column:
    found = np.zeros(len(values), bool)
    if not text:
        return ~found
    try:
        for part in text.lstrip("! ").split(","):
            found |= fits(values, part)
    except ValueError:
        return np.zeros(len(values), bool)
    return ~found if text.startswith("!") else found
