"""How a person looks at flows: each connection once or hop by hop, one by one or added up, some pinned."""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.model import Ref

# What flows are added up by, in the order in which one key goes through them.
GROUPINGS = ("", "container", "network", "peer", "port", "process", "client", "matrix")


@dataclass(frozen=True, slots=True)
class Lens:
    """`per_hop`: each namespace's entry is a row of its own, else a connection is one row; `by` one of
    GROUPINGS; `pins` stay on top, whatever the filter and the order."""

    per_hop: bool = False
    by: str = ""
    pins: frozenset[Ref] = frozenset()

    @property
    def told(self) -> str:
        """What flows are added up by, in words."""
        return {"": "one by one", "matrix": "who sends to whom"}.get(self.by, f"by {self.by}")

    def grouped_next(self) -> Lens:
        """Added up by the next thing."""
        return replace(self, by=GROUPINGS[(GROUPINGS.index(self.by) + 1) % len(GROUPINGS)])

    def pinned(self, ref: Ref) -> Lens:
        """With that one pinned, or no longer."""
        return replace(self, pins=self.pins ^ {ref})


PLAIN = Lens()
