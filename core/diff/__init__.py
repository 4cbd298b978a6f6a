"""What differs between two snapshots, in sentences for the Events view; text from outside stays verbatim."""

from __future__ import annotations

from core.diff import containers, host, links
from core.diff.change_list import ChangeList
from core.model import Change, Snapshot

_PARTS = {
    "namespaces": (host.tell_namespaces, host.tell_sysctls),
    "links": (links.tell_links, links.tell_routing),
    "firewall": (containers.tell_rules,),
    "conntrack": (host.tell_conntrack,),
    "containers": (containers.tell_containers, containers.tell_networks),
    "storms": (host.tell_storms,),
}


def changes(old: Snapshot, new: Snapshot, at: float) -> tuple[Change, ...]:
    """What happened between two snapshots, each change stamped `at` (Unix time in seconds).

    A part that was never read in one of them is left out, and one that is the same object in both costs
    nothing. Counters, timers and other things that always move are no changes.
    """
    told = ChangeList(old, new, at)
    unread = old.pending | new.pending
    for part, tellers in _PARTS.items():
        if part not in unread:
            for tell in tellers:
                tell(told)
    host.tell_problems(told)
    return tuple(told.changes)
