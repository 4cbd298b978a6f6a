"""An entry in the making."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.model import FirewallRule, NatEntry


@dataclass(slots=True)
class Draft:
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

    def take_in(self, other: Draft) -> None:
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
