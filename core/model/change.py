"""What differs between two snapshots."""

from __future__ import annotations

from dataclasses import dataclass

from core.model.refs import Ref


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: `action` is "added", "removed" or "changed"; `sentence` says it for a person."""

    at: float
    action: str
    ref: Ref
    sentence: str
