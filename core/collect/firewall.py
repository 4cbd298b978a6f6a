"""The packet filter rules of one namespace: finds out who made them and asks the tool that reads them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from core.collect import nft_netlink
from core.collect.iptables import read_iptables
from core.collect.nft import read_nft, read_table
from core.collect.nft_netlink import Table, read_tables
from core.model import Chain, Firewall, FirewallRule, Namespace, Problem
from core.netlink.netns import NamespaceGone, entered, entry_of
from core.tags import TABLE
from core.tools import OutOfTime, ToolFailed, ToolMissing, bounded

# The legacy tables that exist in the thread's namespace; reading these makes none.
_LEGACY = {
    "ip": Path("/proc/thread-self/net/ip_tables_names"),
    "ip6": Path("/proc/thread-self/net/ip6_tables_names"),
}
_OURS = ("inet", TABLE)
# For a namespace other than the host's: seconds for each, for all of them, and bytes that a tool prints.
_EACH_OTHER, _ALL_OTHERS = 3.0, 30.0
_MOST_PRINTED = 16 << 20
_slow: set[int] = set()  # inodes of those that took too long
_DENIED = "CAP_NET_ADMIN and CAP_SYS_ADMIN are needed"


@dataclass(slots=True)
class _Reading:
    """A firewall in the making."""

    ns: int
    chains: list[Chain] = field(default_factory=list)
    rules: list[FirewallRule] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def result(self) -> Firewall:
        return Firewall(self.ns, tuple(self.chains), tuple(self.rules), tuple(self.problems))

    def problem(self, what: str, why: str, try_: str) -> None:
        self.problems.append(Problem("nat", what, why, try_, self.ns))

    def attempt(self, read: Callable[[], None]) -> None:
        """Read one part; a tool that fails becomes a problem."""
        try:
            read()
        except ToolFailed as error:
            self.failed(error)

    def failed(self, error: ToolFailed) -> None:
        """A tool that fails becomes a problem."""
        if isinstance(error, OutOfTime):
            _slow.add(self.ns)
        self.problem(error.what, error.why, error.try_)


def read_firewall(namespace: Namespace) -> Firewall:
    """All rules of one namespace, by nft(8) and iptables-save(8); neither runs where there are no rules.

    Raises NamespaceGone; what else stands in the way becomes a problem of the result.
    """
    return _read(namespace, _read_tables)


def read_firewalls(found: Mapping[int, Namespace]) -> dict[int, Firewall]:
    """The rules of each namespace, by inode; those that vanished meanwhile are left out. The host is read
    first. Who may change the rules of another namespace may make them many: each has its own time, all have
    some together, and those that took too long come last the next time."""
    parts: dict[int, Firewall] = {}
    end = math.inf
    for namespace in sorted(found.values(), key=lambda one: (not one.is_host, one.inode in _slow)):
        with suppress(NamespaceGone):
            if namespace.is_host:
                parts[namespace.inode] = read_firewall(namespace)
                continue
            end = min(end, time.monotonic() + _ALL_OTHERS)
            with bounded(min(_EACH_OTHER, end - time.monotonic()), _MOST_PRINTED):
                parts[namespace.inode] = read_firewall(namespace)
    return parts


def read_filters(namespace: Namespace) -> Firewall:
    """What plans of networks are made from: our own table whole, and of others what
    `core.collect.nft_netlink.read_filters` tells and all that is of iptables-legacy. Raises NamespaceGone."""
    return _read(namespace, _read_brief)


def _read(namespace: Namespace, read: Callable[[_Reading], None]) -> Firewall:
    """What `read` takes in there, and iptables-legacy's tables."""
    reading = _Reading(namespace.inode)
    _slow.discard(namespace.inode)
    try:
        with entered(entry_of(namespace), namespace.inode):
            read(reading)
            for family in _LEGACY:
                _read_legacy(reading, family)
    except OutOfTime as error:
        reading.failed(error)
    except PermissionError:
        reading.problem("the firewall rules of this namespace could not be read", _DENIED, "run as root")
    return reading.result()


def _read_brief(reading: _Reading) -> None:
    chains, rules = nft_netlink.read_filters()
    others = [chain for chain in chains if (chain.family, chain.table) != _OURS]
    reading.chains, reading.rules = others, rules
    if len(others) < len(chains):
        reading.attempt(lambda: _take(reading, *read_table(_OURS)))


def _read_tables(reading: _Reading) -> None:
    """Read what nftables holds: iptables-nft's tables by iptables-save, all others by nft."""
    rest = []
    tables = read_tables()
    for family in _LEGACY:
        rest += _read_by_iptables(reading, family, [table for table in tables if table.family == family])
    others = [(table.family, table.name) for table in tables if table.family not in _LEGACY]
    if wanted := {*rest, *others}:
        reading.attempt(lambda: _take(reading, *read_nft(wanted)))


def _take(reading: _Reading, chains: list[Chain], rules: list[FirewallRule]) -> None:
    reading.chains += chains
    reading.rules += rules


def _read_by_iptables(reading: _Reading, family: str, tables: list[Table]) -> list[tuple[str, str]]:
    """Read the tables of iptables-nft among these; the names of those that nft has to read."""
    names = {table.name for table in tables}
    ours = {table.name for table in tables if table.by_iptables}
    done: set[str] = set()
    if ours:
        try:
            saved = read_iptables(family, "iptables-nft")
        except ToolMissing as error:
            why = "nft alone does not tell all that rules of iptables do"
            reading.problem(error.what, f"{error.why}; {why}", error.try_)
        except ToolFailed as error:
            reading.failed(error)
        else:
            done = ours & set(saved.tables)
            reading.chains += [chain for chain in saved.chains if chain.table in done]
            reading.rules += [rule for rule in saved.rules if rule.table in done]
    return [(family, name) for name in sorted(names - done)]


def _read_legacy(reading: _Reading, family: str) -> None:
    try:
        names = _LEGACY[family].read_text().split()
    except FileNotFoundError:
        return
    if names:
        reading.attempt(lambda: _take_legacy(reading, family))


def _take_legacy(reading: _Reading, family: str) -> None:
    saved = read_iptables(family, "iptables-legacy")
    reading.chains += saved.chains
    reading.rules += saved.rules
