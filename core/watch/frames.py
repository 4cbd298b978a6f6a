"""Frames to everybody, bridge by bridge: counted with each reading of the links, and judged for storms."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from core.collect.broadcasts import Broadcasts
from core.model import LinkKey
from core.rates import Histories, Rates
from core.storms import LIMITS, StormWatch, group_frames
from core.watch.board import Board

# (when it was read, how many) by the kind of frame and the bridge
_Counts = dict[LinkKey, tuple[float, int]]


class FrameCounts:
    """Looks at the host's broadcast counters often, which costs next to nothing, and has the links read as
    soon as they rise: `hurry` is called then."""

    def __init__(self, board: Board, histories: Histories, hurry: Callable[[], None]) -> None:
        self._board, self._hurry = board, hurry
        self._history = histories.group
        self._taps = Broadcasts()
        self._watch = StormWatch()
        self._glanced: tuple[float, dict[int, int]] = (0.0, {})
        self._broadcast: _Counts = {}
        self._multicast: _Counts = {}
        self._last = 0.0

    def glance(self) -> None:
        """Follow the bridges that there are, and hurry where broadcasts are many, or a storm may be over."""
        snapshot = self._board.snapshot
        net = snapshot.nets.get(snapshot.host.netns)
        links = net.links.values() if net else ()
        self._taps.follow({link.ifindex: link.name for link in links if link.kind == "bridge"})
        if self._taps.problems != snapshot.part_problems.get("storms", ()):
            self._board.put("storms", problems=self._taps.problems)
        at, counts = time.monotonic(), self._taps.read()
        before_at, before = self._glanced
        self._glanced = at, counts
        many = LIMITS["broadcast"].considerable * (at - before_at)
        if snapshot.storms or any(counts[one] - before.get(one, counts[one]) >= many for one in counts):
            self._hurry()

    def take(self, rates: Rates) -> None:
        """Judge what came since the reading before, and note it."""
        if rates.counters is None:
            return
        snapshot, now = self._board.snapshot, rates.counters.taken_at
        broadcast = self._rates_of_broadcast(snapshot.host.netns)
        multicast = self._rates_of_multicast(rates)
        frames = [*group_frames(snapshot.nets, rates, broadcast, multicast)]
        if frames and self._last:
            keys = [(each.bridge, kind) for each in frames for kind in ("broadcast", "multicast")]
            figures = np.array([rate for each in frames for rate in (each.broadcast, each.multicast)])
            self._history.feed(keys, figures[:, None], self._last, now)
            self._board.put("storms", storms=self._watch.feed(frames, self._last, now))
        self._last = now

    def _rates_of_broadcast(self, host: int) -> dict[LinkKey, float]:
        at = time.monotonic()
        counts = {LinkKey(host, ifindex): (at, count) for ifindex, count in self._taps.read().items()}
        before, self._broadcast = self._broadcast, counts
        return _risen(before, counts)

    def _rates_of_multicast(self, rates: Rates) -> dict[LinkKey, float]:
        """The kernel counts as multicast, of a bridge's own link, what its ports brought in for any group
        (and multicast snooping did not keep from it)."""
        assert rates.counters is not None
        rows, at = rates.counters.rows["multicast"], rates.counters.taken_at
        counts = {
            link.key: (at, int(rows[place]))
            for net in self._board.snapshot.nets.values()
            for link in net.links.values()
            if link.kind == "bridge" and (place := rates.places.get(link.key)) is not None
        }
        before, self._multicast = self._multicast, counts
        return _risen(before, counts)

    def close(self) -> None:
        """Count no more."""
        self._taps.close()


def _risen(before: _Counts, now: _Counts) -> dict[LinkKey, float]:
    """What was counted a second, of those that were there before and did not start again."""
    found = {}
    for key, (at, count) in now.items():
        earlier, fewer = before.get(key, (at, 0))
        if at > earlier and count >= fewer:
            found[key] = (count - fewer) / (at - earlier)
    return found
