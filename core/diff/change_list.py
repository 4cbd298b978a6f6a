"""The list of changes while it grows, and the names that its sentences use."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from core.model import Change, Link, Ref, Snapshot
from core.topology import Topology

# From this many on, things that come or go together become one sentence.
MANY = 12
_PLAIN_KINDS = ("physical", "loopback", "")


class ChangeList:
    """Two snapshots and the changes found so far."""

    def __init__(self, old: Snapshot, new: Snapshot, at: float) -> None:
        self.old, self.new = Topology(old), Topology(new)
        self.changes: list[Change] = []
        self._at = at

    def add(self, action: str, ref: Ref, sentence: str) -> None:
        """Add one change; `action` as core.model.Change has it."""
        self.changes.append(Change(self._at, action, ref, sentence))

    def add_each(self, action: str, found: Sequence[tuple[Ref, str]], together: str, ref: Ref) -> None:
        """Add a change for each (reference, sentence), or one for all, `ref`'s, where they are many."""
        if len(found) < MANY:
            for each, sentence in found:
                self.add(action, each, sentence)
        else:
            self.add(action, ref, f"{len(found)} {together}")

    def place(self, ns: int) -> str:
        """What a person calls a namespace, also one that is gone."""
        side = self.new if ns in self.new.snapshot.namespaces else self.old
        return side.label(ns)


def in_both[Part](old: Mapping[int, Part], new: Mapping[int, Part]) -> Iterator[tuple[int, Part, Part]]:
    """The parts that were read anew: (key, old, new) for each in both that is not the same object."""
    for key, value in new.items():
        before = old.get(key)
        if before is not None and before is not value:
            yield key, before, value


def missing_in[Key](others: Container[Key], keys: Iterable[Key]) -> list[Key]:
    """The keys that the others lack, in their order."""
    return [key for key in keys if key not in others]


def link_words(link: Link) -> str:
    """A link with its kind: "veth v-web1", "link eth0"."""
    return f"{'link' if link.kind in _PLAIN_KINDS else link.kind} {link.name}"
