"""Storms: frames to everybody that fill a bridge."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Storm:
    """Too many frames to everybody on one bridge (`ns`, `ifindex`): `kind` is "broadcast" or "multicast",
    `rate` about how many frames a second, `share` of all frames that enter the bridge (0 to 1). `ports` are
    the ifindexes of the ports that they come in by, the foremost first, none where the ports' counters do not
    tell."""

    ns: int
    ifindex: int
    kind: str
    rate: float
    share: float
    ports: tuple[int, ...] = ()
