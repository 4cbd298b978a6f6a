"""A storm is reported when it lasts, while it fluctuates, and until it ends."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from core.model import LinkKey, Storm
from core.storms import GroupFrames, StormWatch
from tests.support.host_builder import HOST

BRIDGE = LinkKey(HOST, 7)


class SimulatedBridge:
    """A bridge whose frames per second a test sets."""

    def __init__(self) -> None:
        self.watch, self.now = StormWatch(), 100.0
        self.storms: tuple[Storm, ...] = ()

    def passes(
        self, seconds: int, broadcast: float = 0.0, multicast: float = 0.0, entered: float = 1e6,
        came: Mapping[int, float] = MappingProxyType({}), step: float = 1.0,
    ) -> tuple[Storm, ...]:  # fmt: skip
        for _ in range(seconds):
            frames = GroupFrames(BRIDGE, broadcast, multicast, entered, came)
            self.storms = self.watch.feed([frames], self.now, self.now + step)
            self.now += step
        return self.storms


def test_many_broadcasts_are_a_storm_after_three_seconds() -> None:
    weather = SimulatedBridge()
    assert weather.passes(2, broadcast=1500) == ()
    assert weather.passes(1, broadcast=1500) == (Storm(*BRIDGE, "broadcast", 1500.0, 0.0),)


def test_a_burst_is_not_a_storm() -> None:
    weather = SimulatedBridge()
    for _ in range(5):
        assert weather.passes(2, broadcast=50_000) == ()
        assert weather.passes(1, broadcast=10) == ()


def test_one_long_reading_is_enough() -> None:
    assert SimulatedBridge().passes(1, broadcast=1500, step=10.0)


def test_fewer_broadcasts_are_a_storm_if_they_are_most_frames() -> None:
    assert SimulatedBridge().passes(5, broadcast=400, entered=600)[0].share == 0.67
    assert SimulatedBridge().passes(5, broadcast=400, entered=2000) == ()
    assert SimulatedBridge().passes(5, broadcast=100, entered=100) == ()


def test_multicast_has_other_limits() -> None:
    assert SimulatedBridge().passes(5, multicast=1500, entered=1500) == ()
    assert SimulatedBridge().passes(5, multicast=3000, entered=4000)[0].kind == "multicast"
    assert SimulatedBridge().passes(5, multicast=20_000)[0].kind == "multicast"


def test_uncounted_frames_are_not_a_storm() -> None:
    assert SimulatedBridge().passes(5, broadcast=np.nan, multicast=np.nan) == ()


def test_short_gaps_do_not_end_a_storm() -> None:
    weather = SimulatedBridge()
    (first,) = weather.passes(3, broadcast=1500)
    for _ in range(5):
        assert weather.passes(8, broadcast=100) == (first,)
        (again,) = weather.passes(1, broadcast=1500)
        assert again is first
    assert weather.passes(9, broadcast=100) == (first,)
    assert weather.passes(1, broadcast=100) == ()


def test_between_the_limits_a_storm_continues_and_none_starts() -> None:
    weather = SimulatedBridge()
    assert weather.passes(30, broadcast=700) == ()
    weather.passes(3, broadcast=1500)
    assert weather.passes(30, broadcast=700)


def test_a_fluctuating_rate_is_not_reported_again() -> None:
    weather = SimulatedBridge()
    (first,) = weather.passes(3, broadcast=10_000)
    for rate in (11_000, 9000, 12_000):
        (now,) = weather.passes(1, broadcast=rate)
        assert now is first
    assert weather.passes(1, broadcast=123_456)[0].rate == 120_000


def test_a_share_that_changes_is_reported_again() -> None:
    weather = SimulatedBridge()
    (first,) = weather.passes(3, broadcast=3000, entered=27_000)
    assert first.share == 0.11
    assert weather.passes(1, broadcast=3000, entered=20_000) == (first,)
    assert weather.passes(1, broadcast=3000, entered=3100)[0].share == 0.97


def test_the_ports_that_receive_the_frames_are_named() -> None:
    def ports(came: Mapping[int, float]) -> tuple[int, ...]:
        return SimulatedBridge().passes(3, broadcast=5000, came=came)[0].ports

    assert ports({2: 100, 3: 4900}) == (3,)
    assert ports({2: 2400, 3: 2600}) == (3, 2)  # a loop
    assert ports(dict.fromkeys(range(10), 500.0)) == ()
    assert ports({}) == ()


def test_a_storm_ends_with_its_bridge() -> None:
    weather = SimulatedBridge()
    weather.passes(3, broadcast=1500)
    assert weather.watch.feed([], weather.now, weather.now + 1) == ()
