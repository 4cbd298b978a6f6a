"""Storms that begin and end."""

from __future__ import annotations

from core.diff.told import Told
from core.findings import storm_words
from core.model import Storm, link_ref
from core.model.refs import LinkKey


def tell_storms(told: Told) -> None:
    """Tell of each storm that begins, and of each that is over."""
    old, new = told.old.snapshot, told.new.snapshot
    if old.storms is new.storms:
        return
    before, now = ({_key(storm) for storm in one.storms} for one in (old, new))
    for storm in new.storms:
        bridge = new.link((storm.ns, storm.ifindex))
        if bridge is not None and _key(storm) not in before:
            told.tell("added", link_ref(bridge.key), storm_words(storm, bridge))
    for storm in old.storms:
        bridge = old.link((storm.ns, storm.ifindex))
        if bridge is not None and _key(storm) not in now:
            told.tell("removed", link_ref(bridge.key), f"the storm of {storm.kind}s on {bridge.name} is over")


def _key(storm: Storm) -> tuple[LinkKey, str]:
    return LinkKey(storm.ns, storm.ifindex), storm.kind
