"""Compare two snapshots as sentences for the Events view, untrusted text verbatim."""

from __future__ import annotations

from core.diff import containers, links, overlay
from core.diff.changelist import ChangeList
from core.model import Change, Part, Snapshot

_PARTS = {
    Part.NAMESPACES: (containers.compare_namespaces, containers.compare_sysctls),
    Part.LINKS: (links.compare_links, links.compare_routing, overlay.compare_overlays),
    Part.FIREWALL: (containers.compare_rules,),
    Part.CONNTRACK: (containers.compare_conntrack,),
    Part.CONTAINERS: (containers.compare_containers, containers.compare_networks),
    Part.STORMS: (containers.compare_storms, containers.compare_storm_guards),
    Part.FRR: (overlay.compare_sessions,),
    Part.DROPS: (containers.compare_heavy_drops,),
}


def changes(old: Snapshot, new: Snapshot, at: float) -> tuple[Change, ...]:
    """Return the changes between two snapshots, stamped `at` (Unix time in seconds).

    A part that one of them hasn't read is skipped; a part that is the same object in both costs nothing.
    Counters, timers and other values that always change aren't compared.
    """
    log = ChangeList(old, new, at)
    unread = old.pending | new.pending
    for part, functions in _PARTS.items():
        if part not in unread:
            for compare in functions:
                compare(log)
    containers.compare_problems(log)
    return tuple(one.change for one in log.ranked)
