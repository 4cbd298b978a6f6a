"""Work out rates of dropped packets, and detect high rates that last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from core.drop_reasons import NO_REASON, explain
from core.model import Drop, HeavyDrop
from core.storms import rounded

LASTING = 10.0  # seconds above the limit before it is reported
CALM = 10.0  # seconds below half the limit before that ends
# Packets a second. Dropped packets of a container are its problem. What a whole namespace drops may be normal
# noise of the Internet, so there the limit is higher, and rules and closed ports don't count.
LIMIT_OF_CONTAINER, LIMIT_OF_NAMESPACE = 10.0, 100.0
_NOISE = frozenset({"NO_SOCKET", "IP_RPFILTER", "IP_INNOROUTES", "IP_INADDRERRORS"})
_STEADY = 0.5  # a rate that changes by a smaller fraction is the same


class DropsUnavailable(Exception):
    """Dropped packets can't be counted here: the reason, and what to `try_`.

    The text is the reason that follows "can't count dropped packets: ".
    """

    def __init__(self, why: str, try_: str = "") -> None:
        super().__init__(f"{why}{f'. Try: {try_}' if try_ else ''}")
        self.why, self.try_ = why, try_


class DropMeter:
    """Work out rates of successive readings of counters."""

    def __init__(self) -> None:
        self._counts: dict[Drop, int] = {}
        self._at = 0.0

    def feed(self, drops: Iterable[Drop], now: float) -> tuple[Drop, ...]:
        """Return the counters with rates since the last reading, the highest first.

        `now` is in monotonic seconds. Rates of the first reading are 0.
        """
        before, seconds = self._counts, now - self._at if self._at else 0.0
        counts = {replace(one, packets=0): one.packets for one in drops}
        self._counts, self._at = counts, now
        found = [
            replace(
                key,
                packets=packets,
                rate=max(0.0, (packets - before.get(key, 0)) / seconds) if seconds > 0 else 0.0,
            )
            for key, packets in counts.items()
        ]
        return tuple(sorted(found, key=lambda one: (-one.rate, -one.packets, one.reason)))


def is_drop(drop: Drop) -> bool:
    """Return whether the reason isn't one that every host has all the time."""
    return explain(drop.reason, drop.function).kind != "normal"


@dataclass(slots=True)
class _State:
    """One reason at one place: when it went above or below the limit."""

    above_since: float | None = None
    below_since: float | None = None
    heavy: HeavyDrop | None = None


type _Key = tuple[str, int, int, str, str]


class HeavyDropWatch:
    """Detect high rates in successive readings.

    Reasons that are normal, or that nothing is known about, are never reported.
    """

    def __init__(self) -> None:
        self._states: dict[_Key, _State] = {}

    def feed(self, drops: Iterable[tuple[Drop, str]], since: float, until: float) -> tuple[HeavyDrop, ...]:
        """Add drops between two times (monotonic seconds); return what is reported.

        Each drop comes with its container's uid, "" without one. What is reported stays the same object while
        its rate doesn't change much.
        """
        groups: dict[_Key, list[Drop]] = {key: [] for key in self._states}
        for drop, container in drops:
            if explain(drop.reason, drop.function).kind in ("fault", "rule"):
                function = drop.function if drop.reason == NO_REASON else ""
                # A container's packets are dropped at several links: they are one problem.
                place = (0, 0) if container else (drop.ns, drop.ifindex)
                groups.setdefault((drop.reason, *place, container, function), []).append(drop)
        states = {}
        for key, group in groups.items():
            state = self._states.get(key) or _State()
            _update(state, _heavy(key, group), since, until)
            if state != _State():
                states[key] = state
        self._states = states
        return tuple(state.heavy for state in states.values() if state.heavy is not None)


def _heavy(key: _Key, drops: list[Drop]) -> HeavyDrop:
    """Return the sum of drops, with the place where most of them happen."""
    reason, ns, ifindex, container, function = key
    if drops:
        busiest = max(drops, key=lambda one: one.rate)
        ns, ifindex = busiest.ns, busiest.ifindex
    return HeavyDrop(reason, ns, ifindex, container, rounded(sum(one.rate for one in drops)), function)


def limit_of(heavy: HeavyDrop) -> float:
    """Return the rate above which it is reported."""
    if heavy.container:
        return LIMIT_OF_CONTAINER
    is_noise = heavy.reason in _NOISE or explain(heavy.reason, heavy.function).kind == "rule"
    return float("inf") if is_noise else LIMIT_OF_NAMESPACE


def _update(state: _State, now: HeavyDrop, since: float, until: float) -> None:
    limit = limit_of(now)
    if state.heavy is None:
        state.below_since = None
        if now.rate < limit:
            state.above_since = None
            return
        state.above_since = since if state.above_since is None else state.above_since
        if until - state.above_since >= LASTING:
            state.above_since, state.heavy = None, now
    elif now.rate >= limit / 2:
        state.below_since = None
        if abs(now.rate - state.heavy.rate) > _STEADY * state.heavy.rate:
            state.heavy = replace(state.heavy, rate=now.rate)
    else:
        state.below_since = since if state.below_since is None else state.below_since
        if until - state.below_since >= CALM:
            state.below_since = state.heavy = None


def totals(drops: Iterable[Drop]) -> Mapping[str, int]:
    """Return the packets by reason, most first."""
    found: dict[str, int] = {}
    for drop in drops:
        found[drop.reason] = found.get(drop.reason, 0) + drop.packets
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
