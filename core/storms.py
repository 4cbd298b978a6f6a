"""Detect broadcast and multicast storms on bridges, and what storm guards drop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from core.model import GUARDED, GuardCounters, GuardDrops, LinkKey, NetState, Storm, StormGuard
from core.rates import Rates

LASTING = 3.0  # seconds above the limit before a storm begins
CALM = 10.0  # seconds below half the limit before it ends
MOSTLY = 0.5  # the share of a bridge's frames above which the lower limit applies


@dataclass(frozen=True, slots=True)
class Limit:
    """Limits in frames a second: always, and if most frames are of that kind."""

    always: float
    if_mostly: float


# Some multicast is normal, such as television over IP, but not ten thousand frames a second.
LIMITS: Mapping[str, Limit] = {"broadcast": Limit(1000, 200), "multicast": Limit(10_000, 2000)}
# A storm is reported again when its rate changes by more than this fraction, or its share by more than this.
_STEADY = 0.25
# A port is named if it receives this share of a storm, provided all named ones together receive most of it.
_PORT_SHARE, _PORTS_SHARE = 0.25, 0.7


@dataclass(frozen=True, slots=True)
class GroupFrames:
    """Frames a second that entered one bridge in the last interval.

    `broadcast` and `multicast` are NaN if not counted; `entered` is the total, `by_port` that of each port by
    its ifindex."""

    bridge: LinkKey
    broadcast: float
    multicast: float
    entered: float
    by_port: Mapping[int, float] = field(default_factory=dict)


def group_frames(
    nets: Mapping[int, NetState],
    rates: Rates,
    broadcast: Mapping[LinkKey, float],
    multicast: Mapping[LinkKey, float],
) -> Iterator[GroupFrames]:
    """Iterate over bridges that have rates, with broadcast and multicast frames.

    Frames enter a bridge by its ports, or from the host by its own link."""
    if not rates.speeds.shape[1]:
        return
    newest = rates.speeds[:, -1]
    for net in nets.values():
        ports: dict[int, list[int]] = {}
        for link in net.links.values():
            if link.master is not None:
                ports.setdefault(link.master, []).append(link.ifindex)
        for bridge in (link for link in net.links.values() if link.kind == "bridge"):
            place = rates.places.get(bridge.key)
            if place is None or np.isnan(newest[place]).any():
                continue
            by_port = {
                port: float(newest[row, 2])
                for port in ports.get(bridge.ifindex, ())
                if (row := rates.places.get(LinkKey(net.ns, port))) is not None
                and not np.isnan(newest[row, 2])
            }
            yield GroupFrames(
                bridge.key, broadcast.get(bridge.key, np.nan), multicast.get(bridge.key, np.nan),
                sum(by_port.values()) + float(newest[place, 3]), by_port,
            )  # fmt: skip


@dataclass(slots=True)
class _StormState:
    """One kind of frames on one bridge: when it went above or below the limit."""

    above_since: float | None = None
    below_since: float | None = None
    storm: Storm | None = None


class StormWatch:
    """Detects storms in successive readings."""

    def __init__(self) -> None:
        self._states: dict[tuple[LinkKey, str], _StormState] = {}

    def feed(self, frames: Iterable[GroupFrames], since: float, until: float) -> tuple[Storm, ...]:
        """Add the frames from `since` to `until` (monotonic seconds); return the storms.

        A storm that doesn't change much stays the same object."""
        states: dict[tuple[LinkKey, str], _StormState] = {}
        for each in frames:
            for kind, rate in (("broadcast", each.broadcast), ("multicast", each.multicast)):
                key = each.bridge, kind
                state = self._states.get(key) or _StormState()
                if not np.isnan(rate):
                    _update(state, _storm(each, kind, rate), since, until)
                if state != _StormState():
                    states[key] = state
        self._states = states
        return tuple(state.storm for state in states.values() if state.storm is not None)


def _storm(frames: GroupFrames, kind: str, rate: float) -> Storm:
    share = min(1.0, rate / frames.entered) if frames.entered > 0 else 1.0
    return Storm(*frames.bridge, kind, rounded(rate), round(share, 2), _source_ports(frames.by_port, rate))


def _source_ports(by_port: Mapping[int, float], rate: float) -> tuple[int, ...]:
    """Return the ports that a storm enters by, none unless they explain most of it."""
    found = [port for port in by_port if by_port[port] >= rate * _PORT_SHARE]
    found.sort(key=lambda port: -by_port[port])
    return tuple(found) if sum(by_port[port] for port in found) >= rate * _PORTS_SHARE else ()


def rounded(rate: float) -> float:
    """Round a rate to two digits: more would differ with each reading."""
    return float(f"{rate:.2g}")


def _update(state: _StormState, now: Storm, since: float, until: float) -> None:
    """Begin a storm after LASTING above its limit; end it after CALM below half of it."""
    limit = LIMITS[now.kind]
    if state.storm is None:
        if not _is_above(now, limit, 1.0):
            state.above_since = None
            return
        state.above_since = since if state.above_since is None else state.above_since
        if until - state.above_since >= LASTING:
            state.above_since, state.below_since, state.storm = None, None, now
        return
    if _is_above(now, limit, 0.5):
        state.below_since = None
        state.storm = _steadied(state.storm, now)
        return
    state.below_since = since if state.below_since is None else state.below_since
    if until - state.below_since >= CALM:
        state.below_since = state.storm = None


def _is_above(storm: Storm, limit: Limit, factor: float) -> bool:
    mostly = storm.share > MOSTLY * factor and storm.rate >= limit.if_mostly * factor
    return storm.rate >= limit.always * factor or mostly


def _steadied(before: Storm, now: Storm) -> Storm:
    """Return the storm as before if rate and share are about the same; keep its ports."""
    changed = abs(now.rate - before.rate) > _STEADY * before.rate or abs(now.share - before.share) > _STEADY
    if changed or (now.ports and not before.ports):
        return replace(now, ports=now.ports or before.ports)
    return before


def is_dropping(counters: GuardCounters, place: int) -> bool:
    """Return whether a guard has dropped frames of a class (of GUARDED) just now."""
    last = counters.last_drop[place]
    return last is not None and last < CALM


class GuardWatch:
    """Detect in successive readings what the storm guards of a namespace drop."""

    def __init__(self) -> None:
        self._before: dict[int, GuardCounters] = {}
        self._drops: dict[tuple[int, str], GuardDrops] = {}
        self._at = 0.0

    def feed(self, ns: int, counters: Iterable[GuardCounters], at: float) -> tuple[StormGuard, ...]:
        """Add a reading at `at` (monotonic seconds); return the guards.

        A rate that doesn't change much stays the same, and ends after CALM seconds without a drop."""
        now = {one.ifindex: one for one in counters}
        drops = {}
        for ifindex, one in now.items():
            before = self._before.get(ifindex)
            for place, kind in enumerate(GUARDED):
                if is_dropping(one, place):
                    key = ifindex, kind
                    earlier = before.dropped[place] if before else one.dropped[place]
                    grown = max(0, one.dropped[place] - earlier)
                    drops[key] = self._steadied(key, grown / max(at - self._at, 0.001))
        self._before, self._drops, self._at = now, drops, at
        return tuple(
            StormGuard(
                ns, ifindex, one.limits,
                tuple(drops[ifindex, kind] for kind in GUARDED if (ifindex, kind) in drops), one.dropped,
            )
            for ifindex, one in now.items()
        )  # fmt: skip

    def _steadied(self, key: tuple[int, str], rate: float) -> GuardDrops:
        before = self._drops.get(key)
        if before and (not rate or abs(rate - before.rate) <= _STEADY * before.rate):
            return before
        return GuardDrops(key[1], rounded(rate))
