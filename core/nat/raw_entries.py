"""Build NAT entries: merge rules that do the same, and attach helper rules to published ports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from core.model import FirewallRule, NatEntry
from core.nat.packets import PlacedRule


@dataclass(slots=True)
class RawEntry:
    """A NatEntry before merging. Entries with the same `key` are merged. `rules` translate or filter,
    `helper_ids` are the ids of rules that support them, `address` and `port` the destination of a published
    port."""

    key: tuple[str, ...]
    kind: str
    name: str
    sentence: str
    family: str
    rules: list[FirewallRule]
    entry_id: str
    l4_proto: str = ""
    outside: str = ""
    inside: str = ""
    networks: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    address: str = ""
    port: str = ""
    helper_ids: list[str] = field(default_factory=list)

    def merge(self, other: RawEntry) -> None:
        """Add the rules of an entry with the same key."""
        self.rules += other.rules
        protos = dict.fromkeys((self.l4_proto, other.l4_proto))
        self.l4_proto = "" if "" in protos else ",".join(protos)

    def build(self, ns: int) -> NatEntry:
        """Return the finished entry."""
        return NatEntry(
            ns, self.entry_id, self.kind, self.name, self.sentence, self.family, self.l4_proto, self.outside,
            self.inside, self.rules[0].verdict,
            packets=_sum([rule.packets for rule in self.rules]),
            bytes=_sum([rule.bytes for rule in self.rules]),
            networks=self.networks, containers=self.containers,
            rules=tuple(dict.fromkeys([*(rule.rule_id for rule in self.rules), *self.helper_ids])),
            doing=tuple(dict.fromkeys(rule.rule_id for rule in self.rules)),
        )  # fmt: skip


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def family_of(rule: FirewallRule, address: str) -> str:
    """Return "ip" or "ip6" if the address shows it, else the rule's family."""
    if rule.family != "inet" or not address or address.startswith("@"):
        return rule.family
    return "ip6" if ":" in address else "ip"


# A helper's kind, and the address, port and protocol of the published port.
Key = tuple[str, str, str, str]


def fold_helpers(placed: Iterable[PlacedRule], entries: Sequence[RawEntry]) -> frozenset[str]:
    """Attach helper rules to the published ports that they support; returns their ids.

    If several ports forward to one destination, an engine makes a helper for each: they are distributed in
    order. If there are fewer helpers than ports, each port gets all of them."""
    groups: dict[Key, list[str]] = {}
    for one in placed:
        if key := _key(one):
            groups.setdefault(key, []).append(one.rule.rule_id)
    folded: set[str] = set()
    for key, rules in groups.items():
        helped = [entry for entry in entries if _is_for(key, entry)]
        if helped:
            _distribute(rules, helped)
            folded.update(rules)
    return frozenset(folded)


def _key(one: PlacedRule) -> Key | None:
    """Return the key of the published port that a rule supports, None for other rules."""
    rule = one.effective
    address = rule.dst.removesuffix("/32" if ":" not in rule.dst else "/128")
    if not address or address.startswith("!") or not rule.dport:
        return None
    if rule.verdict == "masquerade" and rule.src == rule.dst:
        return ("hairpin", address, rule.dport, rule.l4_proto)
    if rule.verdict == "accept" and not rule.src and not rule.ct_state and "forward" in one.hooks:
        return ("accept", address, rule.dport, rule.l4_proto)
    return None


def _is_for(key: Key, entry: RawEntry) -> bool:
    _, address, port, l4_proto = key
    return entry.kind == "published port" and (entry.address, entry.port, entry.l4_proto) == (
        address,
        port,
        l4_proto,
    )


def _distribute(rules: Sequence[str], entries: Sequence[RawEntry]) -> None:
    for number, entry in enumerate(entries):
        if len(rules) < len(entries):
            entry.helper_ids += rules
        else:
            entry.helper_ids += rules[number :: len(entries)]
