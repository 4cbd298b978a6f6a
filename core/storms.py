"""When frames to everybody are a storm: limits, how long they must be passed, and when it is over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from core.model import LinkKey, NetState, Storm
from core.rates import Rates

LASTING = 3.0  # seconds that a limit must be passed for
CALM = 10.0  # seconds that it must be well kept again, before a storm is over
MOSTLY = 0.5  # the share of a bridge's frames from which on a smaller rate is a storm as well


@dataclass(frozen=True, slots=True)
class Limit:
    """Frames a second: `plain` is a storm whatever else there is, `considerable` where most frames are."""

    plain: float
    considerable: float


# Multicast may be wanted, as television over IP is, ten thousand frames a second are not.
LIMITS: Mapping[str, Limit] = {"broadcast": Limit(1000, 200), "multicast": Limit(10_000, 2000)}
# A storm is reported again when its rate has changed by more than this part, or its share by more than this.
_STEADY = 0.25
# Ports are named that bring in this share of a storm each, where together they bring in most of it.
_TELLING, _TOGETHER = 0.25, 0.7


@dataclass(frozen=True, slots=True)
class GroupFrames:
    """One bridge over the last interval, frames a second: to everybody by kind (NaN where nobody counted),
    all that `entered`, and how many came in by each port, by its ifindex."""

    bridge: LinkKey
    broadcast: float
    multicast: float
    entered: float
    came: Mapping[int, float] = field(default_factory=dict)


def group_frames(
    nets: Mapping[int, NetState],
    rates: Rates,
    broadcast: Mapping[LinkKey, float],
    multicast: Mapping[LinkKey, float],
) -> Iterator[GroupFrames]:
    """Every bridge of which anything is counted, with the frames to everybody that were; its frames enter by
    its ports, or from its own link's side."""
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
            came = {
                port: float(newest[where, 2])
                for port in ports.get(bridge.ifindex, ())
                if (where := rates.places.get(LinkKey(net.ns, port))) is not None
                and not np.isnan(newest[where, 2])
            }
            yield GroupFrames(
                bridge.key, broadcast.get(bridge.key, np.nan), multicast.get(bridge.key, np.nan),
                sum(came.values()) + float(newest[place, 3]), came,
            )  # fmt: skip


@dataclass(slots=True)
class _Watched:
    """One kind of frames on one bridge: since when its limit is passed, since when it is kept again, and the
    storm that it is."""

    passed: float | None = None
    calm: float | None = None
    storm: Storm | None = None


class StormWatch:
    """Turns one reading after another into the storms that there are."""

    def __init__(self) -> None:
        self._watched: dict[tuple[LinkKey, str], _Watched] = {}

    def feed(self, frames: Iterable[GroupFrames], since: float, until: float) -> tuple[Storm, ...]:
        """The storms at `until`, as the frames from `since` on tell (monotonic seconds). One that goes on as
        it was stays the same object."""
        kept: dict[tuple[LinkKey, str], _Watched] = {}
        for each in frames:
            for kind, rate in (("broadcast", each.broadcast), ("multicast", each.multicast)):
                key = each.bridge, kind
                watched = self._watched.get(key) or _Watched()
                if not np.isnan(rate):
                    _judge(watched, _storm(each, kind, rate), since, until)
                if watched != _Watched():
                    kept[key] = watched
        self._watched = kept
        return tuple(watched.storm for watched in kept.values() if watched.storm is not None)


def _storm(frames: GroupFrames, kind: str, rate: float) -> Storm:
    share = min(1.0, rate / frames.entered) if frames.entered > 0 else 1.0
    return Storm(*frames.bridge, kind, rounded(rate), round(share, 2), _senders(frames.came, rate))


def _senders(came: Mapping[int, float], rate: float) -> tuple[int, ...]:
    """The ports by which a storm may have come in; none where most of it is not explained by them."""
    found = sorted((port for port in came if came[port] >= rate * _TELLING), key=lambda port: -came[port])
    return tuple(found) if sum(came[port] for port in found) >= rate * _TOGETHER else ()


def rounded(rate: float) -> float:
    """A rate in two digits: more would differ with each reading."""
    return float(f"{rate:.2g}")


def _judge(watched: _Watched, now: Storm, since: float, until: float) -> None:
    """A storm begins once its limit was passed for LASTING, and ends once half of it was kept for CALM."""
    limit = LIMITS[now.kind]
    if watched.storm is None:
        if not _beyond(now, limit, 1.0):
            watched.passed = None
            return
        watched.passed = since if watched.passed is None else watched.passed
        if until - watched.passed >= LASTING:
            watched.passed, watched.calm, watched.storm = None, None, now
        return
    if _beyond(now, limit, 0.5):
        watched.calm = None
        watched.storm = _told(watched.storm, now)
        return
    watched.calm = since if watched.calm is None else watched.calm
    if until - watched.calm >= CALM:
        watched.calm = watched.storm = None


def _beyond(storm: Storm, limit: Limit, part: float) -> bool:
    mostly = storm.share > MOSTLY * part and storm.rate >= limit.considerable * part
    return storm.rate >= limit.plain * part or mostly


def _told(before: Storm, now: Storm) -> Storm:
    """The storm as it was, where it goes on at about that rate and share; ports once named stay named."""
    changed = abs(now.rate - before.rate) > _STEADY * before.rate or abs(now.share - before.share) > _STEADY
    if changed or (now.ports and not before.ports):
        return replace(now, ports=now.ports or before.ports)
    return before
