"""An entry in the making."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from core.model import FirewallRule, NatEntry
from core.nat.packets import PlacedRule


@dataclass(slots=True)
class RawEntry:
    """What becomes a NatEntry. `same` is what entries that do the same have in common; `doing` the rules that
    do it, `helping` the ids of those behind them; `address` and `port` where a published port leads."""

    same: tuple[str, ...]
    kind: str
    name: str
    sentence: str
    family: str
    doing: list[FirewallRule]
    entry_id: str
    l4_proto: str = ""
    outside: str = ""
    inside: str = ""
    networks: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    address: str = ""
    port: str = ""
    helping: list[str] = field(default_factory=list)

    def take_in(self, other: RawEntry) -> None:
        """Add the rules of a draft that does the same."""
        self.doing += other.doing
        protos = dict.fromkeys((self.l4_proto, other.l4_proto))
        self.l4_proto = "" if "" in protos else ",".join(protos)

    def entry(self, ns: int) -> NatEntry:
        """The finished entry."""
        return NatEntry(
            ns, self.entry_id, self.kind, self.name, self.sentence, self.family, self.l4_proto, self.outside,
            self.inside, self.doing[0].verdict,
            packets=_sum([rule.packets for rule in self.doing]),
            bytes=_sum([rule.bytes for rule in self.doing]),
            networks=self.networks, containers=self.containers,
            rules=tuple(dict.fromkeys([*(rule.rule_id for rule in self.doing), *self.helping])),
            doing=tuple(dict.fromkeys(rule.rule_id for rule in self.doing)),
        )  # fmt: skip


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def family_of(rule: FirewallRule, address: str) -> str:
    """ "ip" or "ip6" where an address tells, else the rule's own family."""
    if rule.family != "inet" or not address or address.startswith("@"):
        return rule.family
    return "ip6" if ":" in address else "ip"


# What a helper does, the address and port it is for, and the protocol.
Key = tuple[str, str, str, str]


def fold_helpers(placed: Iterable[PlacedRule], drafts: Sequence[RawEntry]) -> frozenset[str]:
    """Put the helpers among these rules behind the published ports they belong to; returns their ids.

    Where several ports lead to one place, an engine makes a helper for each: they are dealt out in their
    order; a helper that there are fewer of than ports stands behind each of them."""
    groups: dict[Key, list[str]] = {}
    for one in placed:
        if key := _key(one):
            groups.setdefault(key, []).append(one.rule.rule_id)
    folded: set[str] = set()
    for key, rules in groups.items():
        helped = [draft for draft in drafts if _is_for(key, draft)]
        if helped:
            _deal(rules, helped)
            folded.update(rules)
    return frozenset(folded)


def _key(one: PlacedRule) -> Key | None:
    """What a rule is a helper for, None where it is none."""
    rule = one.effective
    address = rule.dst.removesuffix("/32" if ":" not in rule.dst else "/128")
    if not address or address.startswith("!") or not rule.dport:
        return None
    if rule.verdict == "masquerade" and rule.src == rule.dst:
        return ("hairpin", address, rule.dport, rule.l4_proto)
    if rule.verdict == "accept" and not rule.src and not rule.ct_state and "forward" in one.hooks:
        return ("accept", address, rule.dport, rule.l4_proto)
    return None


def _is_for(key: Key, draft: RawEntry) -> bool:
    _, address, port, l4_proto = key
    return draft.kind == "published port" and (draft.address, draft.port, draft.l4_proto) == (
        address,
        port,
        l4_proto,
    )


def _deal(rules: Sequence[str], drafts: Sequence[RawEntry]) -> None:
    for number, draft in enumerate(drafts):
        if len(rules) < len(drafts):
            draft.helping += rules
        else:
            draft.helping += rules[number :: len(drafts)]
