"""Read the storm guard of links: its limits are in the name of its filter."""

from __future__ import annotations

import errno

from core.model import StormGuard, StormLimits
from core.netlink.clsact import STORM_GUARD, AttachedFilter

type AttachedGuard = tuple[AttachedFilter, StormLimits]


def attached_guards() -> list[AttachedGuard]:
    """Return the storm guards of the thread's namespace. Raises OSError."""
    try:
        return [(one, limits) for one in STORM_GUARD.attached() if (limits := _limits(one))]
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # a kernel without tc
            return []
        raise


def read_storm_guards(ns: int) -> tuple[StormGuard, ...]:
    """Return the storm guards of the thread's namespace, whose inode is `ns`.

    Raises OSError.
    """
    return tuple(StormGuard(ns, one.ifindex, limits) for one, limits in attached_guards())


def _limits(one: AttachedFilter) -> StormLimits | None:
    try:
        return StormLimits.parse(one.name.partition(" ")[2])
    except ValueError:
        return None  # of another version
