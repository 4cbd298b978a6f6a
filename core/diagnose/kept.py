"""Keep the findings of a check while what it depends on stays the same.

The dashboard has a new snapshot each second, of which mostly counters and connections differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter

from core.model import Firewall, FirewallRule, NetState
from core.model.finding import Finding
from core.topology import Topology

type Check = Callable[[Topology], Iterable[Finding]]

# Seconds after which findings are worked out again although only counters and learned neighbours differ:
# evidence shows them.
_LONGEST = 10.0
# Those that differ most often come last.
_PARTS = attrgetter(
    "pending",
    "host",
    "part_problems",
    "namespaces",
    "engines",
    "ovs",
    "frr",
    "listeners",
    "nets",
    "firewalls",
)
_WORKING = ("reachable", "stale", "delay", "probe")
_but_counters = attrgetter(*({one.name for one in fields(FirewallRule)} - {"packets", "bytes"}))


@dataclass(slots=True)
class Kept:
    """Findings by check, valid for the parts of one snapshot."""

    parts: tuple[object, ...]
    full: tuple[int, ...]
    at: float = field(default_factory=time.monotonic)
    found: dict[Check, tuple[Finding, ...]] = field(default_factory=dict)

    def of(self, check: Check, topology: Topology) -> tuple[Finding, ...]:
        """Return the findings of a check."""
        if check not in self.found:
            self.found[check] = tuple(check(topology))
        return self.found[check]

    def is_valid(self, parts: tuple[object, ...], full: tuple[int, ...]) -> bool:
        """Return whether other parts lead to the same findings."""
        if full != self.full:
            return False
        pairs = list(zip(self.parts, parts, strict=True))
        if all(one is other for one, other in pairs[1:]):
            return pairs[0][0] == pairs[0][1]
        return time.monotonic() - self.at < _LONGEST and all(_is_same(*pair) for pair in pairs)


_LAST: list[Kept] = []


def kept(topology: Topology) -> Kept:
    """Return the findings that are still valid for a topology."""
    snapshot = topology.snapshot
    parts = _PARTS(snapshot)
    # A full table stops packets, but what it contains doesn't matter to the checks that are kept.
    full = tuple(ns for ns, one in snapshot.conntracks.items() if one.limit and len(one.entries) >= one.limit)
    if not _LAST or not _LAST[0].is_valid(parts, full):
        _LAST[:] = [Kept(parts, full)]
    return _LAST[0]


def forget() -> None:
    """Forget all findings, so that the next topology is examined as a whole."""
    _LAST.clear()


def _is_same(one: object, other: object) -> bool:
    if one is other:
        return True
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, NetState) and isinstance(other, NetState):
        return _without_learned(one) == _without_learned(other)
    if isinstance(one, Firewall) and isinstance(other, Firewall):
        return _has_same_rules(one, other)
    return one == other


def _without_learned(net: NetState) -> tuple[NetState, frozenset[object]]:
    """Return the state of a namespace without neighbour entries that come and go."""
    return replace(net, neighbours=()), frozenset(one for one in net.neighbours if one.state not in _WORKING)


def _has_same_rules(one: Firewall, other: Firewall) -> bool:
    """Return whether two rule sets differ by counters only."""
    if (one.chains, one.sets, one.problems, len(one.rules)) != (
        other.chains, other.sets, other.problems, len(other.rules),
    ):  # fmt: skip
        return False
    return all(_pairs_match(one, other))


def _pairs_match(one: Firewall, other: Firewall) -> Iterator[bool]:
    return (
        left is right or _but_counters(left) == _but_counters(right)
        for left, right in zip(one.rules, other.rules, strict=True)
    )
