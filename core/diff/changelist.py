"""Collect changes with their topics, and compare mappings and sequences by key."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from core.model import Change, Ref, Snapshot
from core.topology import Topology

# From this number on, additions or removals at once become one sentence.
MANY = 12


class Topic(StrEnum):
    """Name what a change is about; the first ones break traffic most likely."""

    STATE = "state"
    ADDRESS = "address"
    ROUTE = "route"
    POLICY_RULE = "policy rule"
    NEIGHBOUR = "neighbour"
    SYSCTL = "sysctl"
    BRIDGE = "bridge"
    FIREWALL = "firewall"
    NAT = "nat"
    CONTAINER = "container"
    NETWORK = "network"
    SERVICE = "service"
    MTU = "mtu"
    SETTING = "setting"
    OTHER = "other"


@dataclass(slots=True)
class RankedChange:
    """One change; within a topic, one of a lower weight breaks traffic more likely."""

    change: Change
    topic: Topic
    weight: int


class ChangeList:
    """Two snapshots and the changes found so far."""

    def __init__(self, old: Snapshot, new: Snapshot, at: float) -> None:
        self.old, self.new = Topology(old), Topology(new)
        self.ranked: list[RankedChange] = []
        self._at = at

    def add(
        self, action: str, ref: Ref, sentence: str, topic: Topic = Topic.OTHER, weight: int | None = None
    ) -> None:
        """Add one change; by default, additions have a higher weight."""
        change = Change(self._at, action, ref, sentence)
        self.ranked.append(RankedChange(change, topic, action == "added" if weight is None else weight))

    def add_each(
        self, action: str, found: Sequence[tuple[Ref, str]], together: str, ref: Ref,
        topic: Topic = Topic.OTHER, weight: int | None = None,
    ) -> None:  # fmt: skip
        """Add a change for each (ref, sentence), or one of `ref` for all if they are many."""
        if len(found) < MANY:
            for each, sentence in found:
                self.add(action, each, sentence, topic, weight)
        else:
            self.add(action, ref, f"{len(found)} {together}", topic, weight)

    def label(self, ns: int) -> str:
        """Return the label of a namespace, even if it no longer exists."""
        side = self.new if ns in self.new.snapshot.namespaces else self.old
        return side.label(ns)


def in_both[Part](old: Mapping[int, Part], new: Mapping[int, Part]) -> Iterator[tuple[int, Part, Part]]:
    """Iterate over (key, old, new) of the parts in both that aren't the same object."""
    for key, value in new.items():
        before = old.get(key)
        if before is not None and before is not value:
            yield key, before, value


def missing_in[Key](others: Container[Key], keys: Iterable[Key]) -> list[Key]:
    """Return the keys that aren't in others, in their order."""
    return [key for key in keys if key not in others]
