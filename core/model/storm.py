"""Storms on bridges, and the storm guard of bridge ports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

# The classes of frames that the storm guard limits, in the order of its buckets.
GUARDED = ("broadcast", "multicast", "arp", "unknown unicast")


@dataclass(frozen=True, slots=True)
class Storm:
    """A broadcast or multicast storm on one bridge (`ns`, `ifindex`).

    `kind` is "broadcast" or "multicast", `rate` in frames a second (about), `share` the fraction of all
    frames that enter the bridge (0 to 1). `ports` are the ifindexes of the ports that they enter by, the
    busiest first, empty if the counters don't show it."""

    ns: int
    ifindex: int
    kind: str
    rate: float
    share: float
    ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StormLimits:
    """The limits of a bridge port in frames a second, and `burst`, frames at once.

    `broadcast` is the limit of ARP and of unknown unicast, too, which have buckets of their own. `xdp`: the
    NIC's driver limits what enters."""

    broadcast: int
    multicast: int
    burst: int
    xdp: bool = False

    def __str__(self) -> str:
        return f"{self.broadcast}/{self.multicast}/{self.burst}{'/xdp' if self.xdp else ''}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the form of __str__. Raises ValueError."""
        rates = text.removesuffix("/xdp")
        broadcast, multicast, burst = map(int, rates.split("/"))
        if min(broadcast, multicast, burst) < 1:
            raise ValueError(text)
        return cls(broadcast, multicast, burst, rates != text)

    @property
    def rates(self) -> tuple[int, ...]:
        """The limits in the order of GUARDED."""
        return self.broadcast, self.multicast, self.broadcast, self.broadcast


@dataclass(frozen=True, slots=True)
class GuardDrops:
    """Frames of one class (of GUARDED) that a guard drops, about `rate` a second."""

    kind: str
    rate: float


@dataclass(frozen=True, slots=True)
class StormGuard:
    """The storm guard of a bridge port (`ns`, `ifindex`).

    `drops`: what it drops at present; `dropped`: the frames of each class (of GUARDED) that it has dropped so
    far. Both are known only while that is watched."""

    ns: int
    ifindex: int
    limits: StormLimits
    drops: tuple[GuardDrops, ...] = ()
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GuardCounters:
    """What the guard of one link has done since it has its limits.

    By class, in the order of GUARDED. `last_drop` is the time since then in seconds, None if there was none.
    """

    ifindex: int
    limits: StormLimits
    passed: tuple[int, ...]
    dropped: tuple[int, ...]
    last_drop: tuple[float | None, ...]
