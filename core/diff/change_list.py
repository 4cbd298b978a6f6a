"""The list of changes of a comparison, and helpers to describe them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from core.model import Change, Link, Ref, Snapshot
from core.topology import Topology

# From this number on, additions or removals at once become one sentence.
MANY = 12
_UNNAMED_KINDS = ("physical", "loopback", "")


class ChangeList:
    """Two snapshots and the changes found so far."""

    def __init__(self, old: Snapshot, new: Snapshot, at: float) -> None:
        self.old, self.new = Topology(old), Topology(new)
        self.changes: list[Change] = []
        self._at = at

    def add(self, action: str, ref: Ref, sentence: str) -> None:
        """Add one change; `action` as in core.model.Change."""
        self.changes.append(Change(self._at, action, ref, sentence))

    def add_each(self, action: str, found: Sequence[tuple[Ref, str]], together: str, ref: Ref) -> None:
        """Add a change for each (ref, sentence), or one of `ref` for all if they are many."""
        if len(found) < MANY:
            for each, sentence in found:
                self.add(action, each, sentence)
        else:
            self.add(action, ref, f"{len(found)} {together}")

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


def link_text(link: Link) -> str:
    """Name a link with its kind: "veth v-web1", "link eth0"."""
    return f"{'link' if link.kind in _UNNAMED_KINDS else link.kind} {link.name}"
