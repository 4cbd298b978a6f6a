"""Remember which findings the user has muted, in the state directory."""

from __future__ import annotations

from collections.abc import Iterable

from core.state import read_state, write_state

_FILE = "muted.json"
_MOST = 1000


def muted_ids() -> frozenset[str]:
    """Return the ids of muted findings. Raises StateError."""
    try:
        found = read_state(_FILE)
        return frozenset(one for one in found["muted"][:_MOST] if isinstance(one, str))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return frozenset()


def set_muted(ids: Iterable[str]) -> None:
    """Replace the ids of muted findings. Raises StateError."""
    write_state(_FILE, {"muted": sorted(set(ids))[:_MOST]}, durable=False)
