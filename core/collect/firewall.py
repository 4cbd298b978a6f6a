"""Read firewall rules of namespaces with the tools of the backends that made them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from core.collect import nft_netlink
from core.collect.iptables import read_iptables
from core.collect.nft import Ruleset, read_nft, read_table
from core.collect.nft_netlink import Table, read_tables
from core.model import Chain, Firewall, FirewallRule, Namespace, Problem
from core.netlink.netns import NamespaceGone, entered, entry_of
from core.text import TABLE
from core.tools import OutOfTime, ToolFailed, ToolMissing, bounded

# The legacy tables that exist in the thread's namespace; reading these files creates none.
_LEGACY = {
    "ip": Path("/proc/thread-self/net/ip_tables_names"),
    "ip6": Path("/proc/thread-self/net/ip6_tables_names"),
}
_VNET_TABLE = ("inet", TABLE)
# Limits for namespaces other than the host's: seconds for each and for all, bytes of a tool's output.
_SECONDS_EACH, _SECONDS_ALL = 3.0, 30.0
_MAX_OUTPUT = 16 << 20
_slow: set[int] = set()  # inodes of namespaces that took too long
_DENIED = "needs CAP_NET_ADMIN and CAP_SYS_ADMIN"


@dataclass(slots=True)
class _Reading:
    """Collect chains, rules and problems of one namespace."""

    ns: int
    chains: list[Chain] = field(default_factory=list)
    rules: list[FirewallRule] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    sets: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def result(self) -> Firewall:
        return Firewall(self.ns, tuple(self.chains), tuple(self.rules), tuple(self.problems), self.sets)

    def problem(self, what: str, why: str, try_: str) -> None:
        self.problems.append(Problem("nat", what, why, try_, self.ns))

    def attempt(self, read: Callable[[], None]) -> None:
        """Call `read`; a failing tool becomes a problem."""
        try:
            read()
        except ToolFailed as error:
            self.add_failure(error)

    def add_failure(self, error: ToolFailed) -> None:
        """Add the failure of a tool as a problem."""
        if isinstance(error, OutOfTime):
            _slow.add(self.ns)
        self.problem(error.what, error.why, error.try_)


def read_firewall(namespace: Namespace) -> Firewall:
    """Read all rules of one namespace with nft(8) and iptables-save(8).

    The tools run only if there are rules. Raises NamespaceGone; other errors become problems of the result.
    """
    return _read(namespace, _read_tables)


def read_firewalls(found: Mapping[int, Namespace]) -> dict[int, Firewall]:
    """Read the rules of namespaces by inode, the host first.

    The owner of another namespace can add any number of rules, so time is limited for each one and for all
    together. Namespaces that took too long come last the next time. Those that are gone are left out.
    """
    parts: dict[int, Firewall] = {}
    end = math.inf
    for namespace in sorted(found.values(), key=lambda one: (not one.is_host, one.inode in _slow)):
        with suppress(NamespaceGone):
            if namespace.is_host:
                parts[namespace.inode] = read_firewall(namespace)
                continue
            end = min(end, time.monotonic() + _SECONDS_ALL)
            with bounded(min(_SECONDS_EACH, end - time.monotonic()), _MAX_OUTPUT):
                parts[namespace.inode] = read_firewall(namespace)
    return parts


def read_filters(namespace: Namespace) -> Firewall:
    """Read what plans of networks need. Raises NamespaceGone.

    That is vnet's table, iptables-legacy, and the rules that `core.collect.nft_netlink.read_filters` returns.
    """
    return _read(namespace, _read_filtering)


def _read(namespace: Namespace, read: Callable[[_Reading], None]) -> Firewall:
    """Enter the namespace, call `read`, and read iptables-legacy's tables."""
    reading = _Reading(namespace.inode)
    _slow.discard(namespace.inode)
    try:
        with entered(entry_of(namespace), namespace.inode):
            read(reading)
            for family in _LEGACY:
                _read_legacy(reading, family)
    except OutOfTime as error:
        reading.add_failure(error)
    except PermissionError:
        reading.problem("can't read the firewall rules of this namespace", _DENIED, "run it as root")
    return reading.result()


def _read_filtering(reading: _Reading) -> None:
    chains, rules = nft_netlink.read_filters()
    others = [chain for chain in chains if (chain.family, chain.table) != _VNET_TABLE]
    reading.chains, reading.rules = others, rules
    if len(others) < len(chains):
        reading.attempt(lambda: _add(reading, read_table(_VNET_TABLE)))


def _read_tables(reading: _Reading) -> None:
    """Read nftables: tables of iptables-nft with iptables-save, all others with nft."""
    rest = []
    tables = read_tables()
    for family in _LEGACY:
        rest += _read_iptables_nft(reading, family, [table for table in tables if table.family == family])
    others = [(table.family, table.name) for table in tables if table.family not in _LEGACY]
    if wanted := {*rest, *others}:
        reading.attempt(lambda: _add(reading, read_nft(wanted)))


def _add(reading: _Reading, found: Ruleset) -> None:
    reading.chains += found.chains
    reading.rules += found.rules
    reading.sets |= found.sets


def _read_iptables_nft(reading: _Reading, family: str, tables: list[Table]) -> list[tuple[str, str]]:
    """Read iptables-nft's tables among these; return the tables that nft has to read."""
    names = {table.name for table in tables}
    by_iptables = {table.name for table in tables if table.by_iptables}
    done: set[str] = set()
    if by_iptables:
        try:
            saved = read_iptables(family, "iptables-nft")
        except ToolMissing as error:
            why = "nft alone doesn't show everything that rules of iptables do"
            reading.problem(error.what, f"{error.why}; {why}", error.try_)
        except ToolFailed as error:
            reading.add_failure(error)
        else:
            done = by_iptables & set(saved.tables)
            reading.chains += [chain for chain in saved.chains if chain.table in done]
            reading.rules += [rule for rule in saved.rules if rule.table in done]
    return [(family, name) for name in sorted(names - done)]


def _read_legacy(reading: _Reading, family: str) -> None:
    try:
        names = _LEGACY[family].read_text().split()
    except FileNotFoundError:
        return
    if names:
        reading.attempt(lambda: _add_legacy(reading, family))


def _add_legacy(reading: _Reading, family: str) -> None:
    saved = read_iptables(family, "iptables-legacy")
    reading.chains += saved.chains
    reading.rules += saved.rules
