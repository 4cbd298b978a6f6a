"""Operations on the firewall's table of ours and on kernel settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.operations.target import HOST, NetnsTarget
from core.text import quoted


@dataclass(frozen=True, slots=True)
class SetRules:
    """Replace our own nftables tables, all at once: `text` is what `nft -f` reads, `before` what was there.

    Both begin by emptying what is ours ("table inet vnet; delete table inet vnet"), so that either is the
    whole truth about our tables and touches nobody else's (nft(8)).
    """

    text: str
    before: str
    place: NetnsTarget = HOST

    def command(self) -> str:
        return self.place.inside("nft -f - <<'RULES'") + f"\n{self.text}RULES"

    def inverse(self) -> tuple[SetRules, ...]:
        return (replace(self, text=self.before, before=self.text),)

    def describe(self) -> str:
        return f"replace the rules of vnet's own table in {self.place}"


@dataclass(frozen=True, slots=True)
class SetDockerDns:
    """Write or delete the rules by which Docker leads DNS to its resolver in a container's namespace: all
    that is in the table nat of iptables-nft there. `rules` is what iptables-restore(8) reads."""

    rules: str
    there: bool
    place: NetnsTarget = HOST

    def command(self) -> str:
        words = "iptables-nft-restore --noflush <<'RULES'" if self.there else "nft delete table ip nat"
        rules = f"\n{self.rules}RULES" if self.there else ""
        return f"{self.place.inside(words)}{rules}\n{self.place.inside('conntrack -F')}"

    def inverse(self) -> tuple[SetDockerDns, ...]:
        return (replace(self, there=not self.there),)

    def describe(self) -> str:
        return f"{'write' if self.there else 'delete'} Docker's rules for DNS in {self.place}"


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """Set one kernel setting (sysctl(8)), `key` with dots; slashes where a link's name holds a dot."""

    key: str
    value: str
    before: str
    place: NetnsTarget = HOST

    def command(self) -> str:
        return self.place.inside(f"sysctl -qw {quoted(f'{self.key}={self.value}')}")

    def inverse(self) -> tuple[SetSysctl, ...]:
        return (replace(self, value=self.before, before=self.value),)

    def describe(self) -> str:
        if self.value == self.before:
            return f"keep {self.key} in {self.place} at {self.value}"
        return f"set {self.key} in {self.place} from {self.before} to {self.value}"
