"""What a rule's matches say about an address, a prefix or a link."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network

# Fields of FirewallRule that match, and that a chain inherits from the rules that jump to it.
MATCHES = ("iif", "oif", "src", "dst", "l4_proto", "sport", "dport", "ct_state")


def split(text: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a match is negated, and its members."""
    return text.startswith("!"), tuple(part for part in text.removeprefix("!").split(",") if part)


@lru_cache(4096)
def prefixes(text: str) -> tuple[Prefix, ...] | None:
    """The prefixes of an address match without its "!", ranges taken apart; None where a set hides them."""
    found: list[Prefix] = []
    try:
        for part in split(text)[1]:
            first, _, last = part.partition("-")
            if last:
                ends = ipaddress.ip_address(first), ipaddress.ip_address(last)
                found += ipaddress.summarize_address_range(*ends)
            else:
                found.append(ipaddress.ip_network(part, strict=False))
    except (ValueError, TypeError):
        return None
    return tuple(found)


def within(inner: Prefix, outer: Prefix) -> bool:
    """Whether all of one prefix lies in another; never across families."""
    return (
        inner.version == outer.version
        and inner.prefixlen >= outer.prefixlen
        and inner.network_address in outer
    )


def overlap(one: Prefix, other: Prefix) -> bool:
    """Whether two prefixes share an address."""
    return within(one, other) or within(other, one)


def covers(text: str, prefix: Prefix) -> bool | None:
    """Whether an address match holds for every address of a prefix (True), for none (False), or for some or
    nobody can tell (None)."""
    if not text:
        return True
    negated, _ = split(text)
    found = prefixes(text)
    if found is None:
        return None
    if any(within(prefix, one) for one in found):
        return not negated
    return None if any(overlap(prefix, one) for one in found) else negated


def are_disjoint(field: str, one: str, other: str) -> bool:
    """Whether no packet can meet both of two matches on that field of FirewallRule; False where that is not
    plain to see."""
    if one == other:
        return False
    (negated, members), (other_negated, others) = split(one), split(other)
    if negated:
        return not other_negated and _lie_within(field, others, members)
    if other_negated:
        return _lie_within(field, members, others)
    if field in ("iif", "oif"):
        return not any(_is_named(a, b) or _is_named(b, a) for a in members for b in others)
    if field in ("src", "dst"):
        these, those = prefixes(one), prefixes(other)
        return bool(these and those) and not any(overlap(a, b) for a in these or () for b in those or ())
    return field == "l4_proto" and not set(members) & set(others)


def _lie_within(field: str, members: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether each member of one list is in the other."""
    if field in ("iif", "oif"):
        return all(any(_is_named(one, other) for other in others) for one in members)
    if field in ("src", "dst"):
        parts = [(prefixes(one), one) for one in members]
        return all(one in others or (found and _are_in(found, others)) for found, one in parts)
    return field == "l4_proto" and set(members) <= set(others)


def _are_in(found: tuple[Prefix, ...], others: tuple[str, ...]) -> bool:
    outer = prefixes(",".join(others)) or ()
    return all(any(within(one, each) for each in outer) for one in found)


def takes_link(text: str, name: str) -> bool:
    """Whether a link match holds for the link of that name."""
    negated, members = split(text)
    return not text or negated != any(_is_named(name, member) for member in members)


def _is_named(name: str, member: str) -> bool:
    return name == member or (member.endswith("*") and name.startswith(member[:-1]))


def is_loopback(address: str) -> bool:
    """Whether an address, "" for any, is one of the loopback link."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
