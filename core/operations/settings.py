"""Change vnet's nftables tables, Docker's DNS rules and kernel settings."""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from core.collect.iptables import read_iptables
from core.collect.nft_netlink import read_filters
from core.netlink.client import NETFILTER, Netlink
from core.operations.base import Operation
from core.operations.connections import delete_all
from core.operations.executor import Executor, inside, run_holding_lock
from core.operations.values import HOST, NetnsTarget, recorded
from core.state import StateError, boot_id, read_state, write_state
from core.text import quoted
from core.tools import find_tool

_RULES = "rules.json"


@recorded()
@dataclass(frozen=True, slots=True)
class SetRules(Operation):
    """Replace vnet's nftables tables in one transaction, as `nft -f` does with `text`.

    `before` restores the current rules. Both begin by deleting vnet's tables ("table inet vnet; delete table
    inet vnet"), so that each is complete, and change no other table.
    """

    text: str
    before: str
    place: NetnsTarget = HOST

    def command(self) -> str:
        return self.place.inside("nft -f - <<'RULES'") + f"\n{self.text}RULES"

    def inverse(self) -> tuple[SetRules, ...]:
        return (replace(self, text=self.before, before=self.text),)

    def describe(self) -> str:
        return f"replace the rules of vnet-tui's own table in {self.place}"

    def affects(self) -> tuple[str, ...]:
        return (f"rules of {self.place}",)

    def execute(self, executor: Executor) -> None:
        at_host = self.place == HOST
        earlier = saved_rules() if at_host else ""
        if at_host:
            save_rules(self.text)
        try:
            executor.load_rules(self.place, self.text)
        except BaseException:
            if at_host:
                with suppress(StateError):
                    save_rules(earlier)
            raise


def save_rules(text: str) -> None:
    """Store the rules of vnet's tables, for the agent. Raises StateError."""
    write_state(_RULES, {"boot": boot_id(), "text": text}, durable=False)


def saved_rules() -> str:
    """Return the rules of vnet's tables that were last loaded since boot.

    "" if they are unknown.
    """
    try:
        noted = read_state(_RULES)
        return str(noted["text"]) if noted["boot"] == boot_id() else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


@recorded()
@dataclass(frozen=True, slots=True)
class SetDockerDns(Operation):
    """Write or delete Docker's rules for its DNS resolver in a container's namespace.

    They are all that its table nat of iptables-nft contains. `rules` is the input of iptables-restore(8).
    """

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

    def affects(self) -> tuple[str, ...]:
        return (f"rules of {self.place}",)

    def execute(self, executor: Executor) -> None:
        with inside(self.place):
            chains = ((chain.family, chain.table, chain.name) for chain in read_filters()[0])
            if (("ip", "nat", "DOCKER_OUTPUT") in chains) == self.there:
                return  # Docker may have written them itself, with other ports
            if self.there:
                self._restore()
            else:
                self._delete(executor)
            delete_all()  # the rules don't apply to connections that are tracked already

    def _delete(self, executor: Executor) -> None:
        found = {rule.text for rule in read_iptables("ip", "iptables-nft").rules if rule.table == "nat"}
        if found != {line for line in self.rules.splitlines() if line.startswith("-A ")}:
            raise OSError(errno.EBUSY, "another program has changed its iptables rules")
        executor.load_rules(self.place, "delete table ip nat\n")
        with Netlink(NETFILTER):
            pass  # closing it waits until the rules are freed, and the hooks of conntrack with them

    def _restore(self) -> None:
        tool = find_tool("iptables-nft-restore", "iptables-restore")
        done = run_holding_lock([tool or "iptables-restore", "--noflush"], self.rules)
        if done.returncode:
            raise OSError(errno.EIO, (done.stderr or f"{tool} ended with {done.returncode}").strip())


@recorded()
@dataclass(frozen=True, slots=True)
class SetSysctl(Operation):
    """Set one kernel setting (sysctl(8)).

    `key` has dots, and a slash for each dot in the name of a link.
    """

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

    def affects(self) -> tuple[str, ...]:
        return (f"{self.key} in {self.place}",)

    def execute(self, executor: Executor) -> None:
        # sysctl(8): dots separate the parts of a key, and a slash stands for a dot within a part.
        parts = (part.replace("/", ".") for part in self.key.split("."))
        with inside(self.place):
            # The kernel ignores a write of nothing, which would clear a list of ports.
            Path("/proc/sys", *parts).write_text(f"{self.value}\n")
