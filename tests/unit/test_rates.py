"""Rates come from counters, and survive links that come, go and start again."""

from __future__ import annotations

import numpy as np
import pytest

from core.model import STATS_DTYPE, LinkKey, LinkStats
from core.rates import HISTORY, RateMeter


def reading(at: float, **links: int) -> LinkStats:
    rows = np.zeros(len(links), STATS_DTYPE)
    for row, (name, received) in zip(rows, links.items(), strict=True):
        row["ns"], row["ifindex"] = 1, int(name[1:])
        row["rx_bytes"], row["rx_packets"] = received, received // 100
    return LinkStats(at, rows)


def test_speed_is_the_rise_over_the_time_between() -> None:
    meter = RateMeter()
    assert meter.feed(reading(10.0, l2=1000)).of(LinkKey(1, 2)) is None
    rate = meter.feed(reading(12.0, l2=3000)).of(LinkKey(1, 2))
    assert rate is not None
    assert rate.rx_bps == pytest.approx(8000)
    assert rate.rx_pps == pytest.approx(10)
    assert rate.tx_bps == 0
    assert rate.history == (pytest.approx(8000),)


def test_links_come_go_and_change_places() -> None:
    meter = RateMeter()
    meter.feed(reading(0.0, l2=0, l3=0))
    meter.feed(reading(1.0, l3=1000, l2=500, l4=7))
    rates = meter.feed(reading(2.0, l4=1007, l3=2000))
    assert rates.of(LinkKey(1, 2)) is None
    assert rates.of(LinkKey(1, 3)).history == (pytest.approx(8000), pytest.approx(8000))
    assert rates.of(LinkKey(1, 4)).history == (pytest.approx(8000),)


def test_a_counter_that_starts_again_is_no_negative_speed() -> None:
    meter = RateMeter()
    for at, value in ((0.0, 10_000), (1.0, 20_000), (2.0, 5)):
        rates = meter.feed(reading(at, l2=value))
    assert rates.of(LinkKey(1, 2)).history == (pytest.approx(80_000),)


def test_history_is_bounded() -> None:
    meter = RateMeter()
    for second in range(3 * HISTORY):
        rates = meter.feed(reading(float(second), l2=second))
    assert len(rates.of(LinkKey(1, 2)).history) == HISTORY
