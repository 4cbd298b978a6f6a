"""Hold the moment with which `:diff` compares what the dashboard shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.model import Snapshot

if TYPE_CHECKING:
    from core.diff.compare import Difference


class Baseline:
    """A snapshot and its title; the differences to another one are cached.

    Call `differences` from one thread."""

    def __init__(self, title: str, snapshot: Snapshot) -> None:
        self.title, self.snapshot = title, snapshot
        self._parts: tuple[object, ...] = ()
        self._found: tuple[Difference, ...] = ()

    def differences(self, snapshot: Snapshot) -> tuple[Difference, ...]:
        """Return the differences from the baseline to a snapshot."""
        parts = (
            snapshot.host, snapshot.namespaces, snapshot.nets, snapshot.firewalls, snapshot.engines,
            snapshot.ovs, snapshot.pending,
        )  # fmt: skip
        # Parts that weren't read again are the same objects.
        if len(parts) != len(self._parts) or any(a is not b for a, b in zip(parts, self._parts, strict=True)):
            from core.diff.compare import differences  # not before the first paint

            self._parts, self._found = parts, differences(self.snapshot, snapshot)
        return self._found
