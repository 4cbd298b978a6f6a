"""Rates from counters, also of links that appear, disappear and restart."""

from __future__ import annotations

import time

import numpy as np
import pytest

from core.collect.links import read_stats
from core.model import STATS_DTYPE, Firewall, FirewallRule, LinkKey, LinkStats
from core.rates import HISTORY, HOUR, MINUTE, MINUTES, History, RateMeter, Rates, RuleMeter


def reading(at: float, **links: int) -> LinkStats:
    rows = np.zeros(len(links), STATS_DTYPE)
    for row, (name, received) in zip(rows, links.items(), strict=True):
        row["ns"], row["ifindex"] = 1, int(name[1:])
        row["rx_bytes"], row["rx_packets"] = received, received // 100
    return LinkStats(at, rows)


def test_rate_is_the_increase_over_the_time() -> None:
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


def test_a_restarted_counter_is_not_a_negative_rate() -> None:
    meter = RateMeter()
    for at, value in ((0.0, 10_000), (1.0, 20_000), (2.0, 5)):
        rates = meter.feed(reading(at, l2=value))
    assert rates.of(LinkKey(1, 2)).history == (pytest.approx(80_000),)


def test_history_is_bounded() -> None:
    meter = RateMeter()
    for second in range(3 * HISTORY):
        rates = meter.feed(reading(float(second), l2=second))
    assert len(rates.of(LinkKey(1, 2)).history) == HISTORY


def past(rates: Rates, key: LinkKey) -> list[float]:
    """Return a link's history of received bits a second."""
    found = rates.history("links", [key], MINUTE)
    assert found is not None
    column = found.values[:, 0]
    return column[~np.isnan(column)].tolist()


def test_history_continues_after_the_samples() -> None:
    meter = RateMeter()
    for second in range(3 * HISTORY):
        rates = meter.feed(reading(1000.0 + second, l2=1000 * second))
    whole = rates.history("links", [LinkKey(1, 2)], MINUTES)
    assert whole is not None
    values = whole.values[:, 0]
    assert values[~np.isnan(values)].tolist() == [8000.0] * (3 * HISTORY - 1)


@pytest.mark.parametrize("after", [0, 5, 2**64 - 1])
def test_a_counter_that_restarts_wraps_or_jumps_causes_no_spike(after: int) -> None:
    meter = RateMeter()
    for second, value in enumerate((2**40, 2**40 + 1000, 2**40 + 2000, after)):
        rates = meter.feed(reading(1000.0 + second, l2=value))
    assert max(past(rates, LinkKey(1, 2))) == 8000
    assert rates.of(LinkKey(1, 2)).history == (8000, 8000)


def test_a_counter_that_wraps_at_64_bits_continues() -> None:
    meter = RateMeter()
    for second, value in enumerate((2**64 - 500, 500)):
        stats = reading(1000.0 + second, l2=value)
        stats.rows["rx_packets"] = second
        rates = meter.feed(stats)
    assert past(rates, LinkKey(1, 2)) == [8000.0]


def test_a_link_that_vanished_for_a_while_leaves_a_gap() -> None:
    meter = RateMeter()
    for second, links in enumerate(({"l2": 0, "l3": 0}, {"l2": 100}, {"l2": 200, "l3": 10**9})):
        rates = meter.feed(reading(1000.0 + second, **links))
    assert past(rates, LinkKey(1, 3)) == []
    rates = meter.feed(reading(1003.0, l2=300, l3=10**9 + 1000))
    assert past(rates, LinkKey(1, 3)) == [8000.0]


def test_a_step_of_the_wall_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.monotonic()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= read_stats([]).taken_at <= time.monotonic()


def rules(ns: int, **packets: int | None) -> Firewall:
    made = []
    for name, count in packets.items():
        octets = None if count is None else count * 10
        made.append(FirewallRule("nft", "ip", "t", "c", name, "text", packets=count, bytes=octets))
    return Firewall(ns, rules=tuple(made))


def test_rules_have_a_history_too() -> None:
    history = History(2)
    meter = RuleMeter(history)
    meter.feed([rules(1, a=10, b=5, silent=None)], 1000.0)
    meter.feed([rules(1, a=30, b=2, silent=None)], 1010.0)  # b was reset
    found = history.of([(1, "a")], HOUR, 1009.0)
    assert found is not None and found.values[-1].tolist() == [2.0, 160.0]
    assert np.isnan(history.of([(1, "b")], HOUR, 1009.0).values).all()
    assert history.of([(1, "silent")], HOUR, 1009.0) is None


def test_rules_that_were_unreadable_cause_no_spike() -> None:
    history = History(2)
    meter = RuleMeter(history)
    for at, tables in ((1000.0, [rules(1, a=10)]), (1010.0, []), (1020.0, [rules(1, a=10**6)])):
        meter.feed(tables, at)
    found = history.of([(1, "a")], HOUR, 1020.0)
    assert found is None or np.isnan(found.values).all()
