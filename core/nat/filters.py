"""Build filter entries: rules that accept or drop forwarded packets.

An accept is listed if it matches by address or link.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from core.model import Chain, Firewall, FirewallRule
from core.nat.describe import describe_filter, describe_packets, describe_side, describe_traffic
from core.nat.packets import (
    ChainKey,
    PlacedRule,
    Prefix,
    branches,
    chain_key,
    covers,
    has_any,
    matches_link,
    matches_of,
    split,
    targets,
)
from core.nat.raw_entries import Owners, RawEntry, family_of

_VERDICTS = ("accept", "drop", "reject")
_EARLY = {"prerouting", "ingress"}


def filter_entries(ns: int, placed: Iterable[PlacedRule], owners: Owners) -> Iterator[RawEntry]:
    """Yield an entry for each forward rule that accepts by link or address, or drops."""
    begun: set[ChainKey] = set()
    for one in placed:
        rest = chain_key(one.rule) in begun and not matches_of(one.rule)
        begun.add(chain_key(one.rule))
        if not _is_on_forward_path(one):
            continue
        for number, rule in enumerate(branches(one.effective)):
            if rule.verdict in _VERDICTS and _is_listed(rule):
                yield _entry(ns, one, rule, number, owners, rest)


def _is_on_forward_path(one: PlacedRule) -> bool:
    """Return whether forwarded packets pass the rule.

    In NAT chains an accept only ends translation.
    """
    return "forward" in one.hooks or (bool(one.hooks & _EARLY) and "filter" in one.kinds)


def _is_listed(rule: FirewallRule) -> bool:
    """Return whether the rule matches a link or address, or drops.

    A drop only by the conntrack state isn't listed.
    """
    if rule.iif or rule.oif or rule.src or rule.dst:
        return True
    ports = rule.l4_proto or rule.sport or rule.dport
    return rule.verdict != "accept" and bool(ports or not rule.understood or not rule.ct_state)


def _entry(ns: int, one: PlacedRule, rule: FirewallRule, number: int, owners: Owners, rest: bool) -> RawEntry:
    what = describe_filter(rule)
    what = what.replace("everything", "everything else") if rest else what
    source = describe_side(owners, ns, rule.iif, rule.src)
    destination = describe_side(owners, ns, rule.oif, rule.dst)
    further = "" if one.rule.understood or one.rule.choices else ", under further conditions"
    early = "" if "forward" in one.hooks else ", before routing and NAT"
    entry_id = f"{rule.rule_id}#{number}" if one.rule.choices else rule.rule_id
    return RawEntry(
        key=(entry_id,),
        kind="filter",
        name=_name(rule),
        sentence=f"{rule.verdict}: {what} from {source} to {destination}{early}{further}",
        family=family_of(rule, (rule.src or rule.dst).removeprefix("!")),
        rules=[_counted(one.rule, rule)],
        entry_id=entry_id,
        l4_proto=rule.l4_proto,
        outside=rule.dst or rule.oif,
        inside=rule.src or rule.iif,
        networks=_networks(ns, one.rule, rule, owners),
        containers=_containers(ns, rule, owners),
    )


def _counted(placed: FirewallRule, rule: FirewallRule) -> FirewallRule:
    """Return the rule with its branch's verdict, without the counters of all branches."""
    if not placed.choices:
        return placed
    return replace(placed, verdict=rule.verdict, packets=None, bytes=None)


def _name(rule: FirewallRule) -> str:
    sides = f"{_short(rule.src or rule.iif)} -> {_short(rule.dst or rule.oif)}"
    what = describe_traffic(rule.l4_proto, rule.dport) or ("" if rule.understood else describe_packets(rule))
    return " ".join(part for part in (rule.verdict, sides, what, rule.ct_state) if part)


def _short(text: str) -> str:
    """Shorten one side for a name: "*" for any."""
    first, more, _ = text.partition(",")
    return f"{first},…" if more else text or "*"


def _networks(ns: int, own: FirewallRule, rule: FirewallRule, owners: Owners) -> tuple[str, ...]:
    """Return the networks whose bridge or prefix the rule matches.

    The match may also be on every jump to the rule's chain.
    """
    found: dict[str, None] = {}
    for name in ("iif", "oif", "src", "dst"):
        text = getattr(rule, name)
        if text and (getattr(own, name) or "," not in text):
            find = owners.networks_behind if name in ("iif", "oif") else owners.networks_in
            found.update(dict.fromkeys(find(ns, text)))
    return tuple(found)


def _containers(ns: int, rule: FirewallRule, owners: Owners) -> tuple[str, ...]:
    found = [
        *owners.containers_at(ns, rule.src),
        *owners.containers_at(ns, rule.dst),
        *owners.containers_behind(ns, rule.iif),
        *owners.containers_behind(ns, rule.oif),
    ]
    return tuple(dict.fromkeys(found))


_FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}
_DEEPEST = 16


def is_isolated(firewall: Firewall, bridge: str, subnet: Prefix) -> bool:
    """Return whether all new packets from a subnet to other networks are dropped.

    An accept counts if it matches their source, or any destination address; further conditions count as not
    met.
    """
    walk = _Walk(firewall, bridge, subnet)
    bases = [
        chain
        for chain in firewall.chains
        if chain.hook == "forward" and chain.family in _FAMILIES[subnet.version]
    ]
    return any(walk.drops(chain) for chain in bases)


@dataclass(frozen=True, slots=True)
class _Packets:
    """New packets from a bridge's subnet to other links and addresses."""

    bridge: str
    subnet: Prefix

    def match(self, rule: FirewallRule) -> bool | None:
        """Return whether a rule matches all of the packets, none, or some (None)."""
        verdicts = (
            matches_link(rule.iif, self.bridge),
            self._matches_output(rule.oif),
            covers(rule.src, self.subnet),
            self._matches_destination(rule.dst),
            not rule.ct_state or has_any(rule.ct_state, {"new"}),
            None if rule.l4_proto or rule.sport or rule.dport or not rule.understood else True,
        )
        if False in verdicts:
            return False
        return None if None in verdicts else True

    def _matches_output(self, oif: str) -> bool | None:
        negated, members = split(oif)
        if not members or (negated and members == (self.bridge,)):
            return True
        return False if members == (self.bridge,) else None

    def _matches_destination(self, dst: str) -> bool | None:
        covered = covers(dst, self.subnet)
        if not dst:
            return True
        # The destination is outside: "not the subnet" matches, "the subnet" doesn't.
        return covered is False if covered is not None and (covered or dst.startswith("!")) else None

    def is_source_named_by(self, rule: FirewallRule) -> bool:
        """Return whether a rule matches the source link or subnet."""
        return bool(
            (rule.iif and not rule.iif.startswith("!") and matches_link(rule.iif, self.bridge))
            or (rule.src and covers(rule.src, self.subnet))
        )


class _Walk:
    """Evaluation of the rules for these packets."""

    def __init__(self, firewall: Firewall, bridge: str, subnet: Prefix) -> None:
        self._packets = _Packets(bridge, subnet)
        self._rules: dict[ChainKey, list[FirewallRule]] = {}
        for rule in firewall.rules:
            self._rules.setdefault(chain_key(rule), []).append(rule)

    def drops(self, base: Chain) -> bool:
        """Return whether a base chain drops all of the packets."""
        verdict = self._chain(base.key, 0)
        return (verdict or base.policy) == "drop"

    def _chain(self, key: ChainKey, depth: int) -> str:
        """Return "accept", "drop", or "" if the chain doesn't decide."""
        rules = self._rules.get(key, ()) if depth < _DEEPEST else ()
        for rule in chain.from_iterable(branches(one) for one in rules):
            matched = self._packets.match(rule)
            if matched is False:
                continue
            verdict = self._verdict(rule, matched is True, depth)
            if verdict:
                return verdict.removeprefix("return")
        return ""

    def _verdict(self, rule: FirewallRule, matches_all: bool, depth: int) -> str:
        """Return the verdict of a rule that may match: "" for none.

        The verdict "return" leaves the rule's chain.
        """
        if rule.verdict == "accept":
            return "accept" if matches_all or self._accepts_outgoing(rule) else ""
        if rule.verdict in ("drop", "reject"):
            return "drop" if matches_all else ""
        if rule.verdict in ("jump", "goto"):
            return self._jump(rule, matches_all, depth)
        return "return" if rule.verdict == "return" and matches_all else ""

    def _jump(self, rule: FirewallRule, matches_all: bool, depth: int) -> str:
        verdict = next((self._chain(key, depth + 1) for key in targets(rule)), "")
        if not matches_all:
            return verdict if verdict == "accept" and self._accepts_outgoing(rule) else ""
        return verdict or ("return" if rule.verdict == "goto" else "")

    def _accepts_outgoing(self, rule: FirewallRule) -> bool:
        return self._packets.is_source_named_by(rule) or (rule.understood and not rule.dst)
