"""History in time slots: no values are lost or invented, and memory is bounded."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from core.rates import HOUR, MINUTE, MINUTES, History

START = 100_000.0


def fed(*seconds: float, history: History | None = None, figure: float = 8.0) -> History:
    """Return a history of one series "a", fed a constant at these seconds after START."""
    history = history or History(1)
    for since, until in pairwise(seconds):
        history.feed(["a"], np.array([[figure]]), START + since, START + until)
    return history


def values(history: History, key: str = "a", window=MINUTE, now: float = 0.0) -> np.ndarray:
    past = history.of([key], window, START + now)
    assert past is not None
    return past.values[:, 0]


def known(history: History, **more) -> list[float]:
    found = values(history, **more)
    return found[~np.isnan(found)].tolist()


def test_slots_without_readings_are_unknown() -> None:
    history = fed(10, 11, 12)
    assert np.isnan(values(history, now=12)[:-3]).all()
    assert known(history, now=12) == [8.0, 8.0]
    assert history.of(["b"], MINUTE, START) is None


def test_readings_at_irregular_times_add_up() -> None:
    history = History(1)
    moments = START + np.cumsum(np.random.default_rng(7).uniform(0.3, 2.7, 100))
    counted = 0.0
    for number, (since, until) in enumerate(pairwise(moments)):
        figure = float(number % 5)
        counted += figure * (until - since)
        history.feed(["a"], np.array([[figure]]), float(since), float(until))
    for window in (MINUTES, HOUR):
        past = history.of(["a"], window, float(moments[-1]))
        means = past.values[:, 0]
        first, last = moments[0], moments[-1]
        starts = (past.newest - window.slots + 1 + np.arange(window.slots)) * window.step
        inside = np.clip(np.minimum(last, starts + window.step) - np.maximum(first, starts), 0, None)
        assert np.nansum(means * inside) == pytest.approx(counted, rel=1e-4)


def test_a_long_pause_between_readings_is_their_average() -> None:
    history = fed(0, 1, 31, 32)
    assert known(history, now=32) == [8.0] * 32
    assert known(history, window=HOUR, now=32) == [8.0] * 4


def test_a_pause_longer_than_the_window_fills_it_once() -> None:
    history = fed(0, 1, 100_000)
    assert known(history, now=100_000, window=MINUTES) == pytest.approx([8.0] * (MINUTES.slots - 1))
    assert len(known(history, now=100_000, window=HOUR)) == HOUR.slots - 1


def test_values_older_than_an_hour_are_dropped() -> None:
    history = fed(*range(20))
    fed(19, *range(25, 5000, 10), history=history, figure=1.0)
    assert set(known(history, window=HOUR, now=4995)) == {1.0}
    assert len(known(history, window=HOUR, now=4995)) == HOUR.slots


def test_an_earlier_window_does_not_show_later_values() -> None:
    history = fed(0, 1, 2, 3)
    fed(3, 4, 5, history=history, figure=99.0)
    assert 99.0 not in known(history, now=2.5)


def test_a_row_with_a_nan_is_ignored() -> None:
    history = History(2)
    history.feed(["a", "b"], np.array([[1.0, 2.0], [np.nan, 5.0]]), START, START + 1)
    assert known(history, now=1) == [1.0]
    assert known(history, key="b", now=1) == []


def test_readings_at_the_same_time_add_nothing() -> None:
    history = fed(10, 10, 9, 8)
    assert len(history) == 0


def test_series_add_up_if_any_is_known() -> None:
    history = History(1)
    history.feed(["a", "b"], np.array([[1.0], [2.0]]), START, START + 1)
    history.feed(["b"], np.array([[4.0]]), START + 1, START + 2)
    past = history.of(["a", "b", "gone"], MINUTE, START + 1.5)
    assert past is not None
    assert past.values[-2:, 0].tolist() == [3.0, 4.0]


def test_the_least_recently_fed_series_is_replaced() -> None:
    history = History(1, most=3)
    for second, keys in enumerate((["a", "b", "c"], ["a", "c"], ["a", "c", "d"])):
        history.feed(keys, np.full((len(keys), 1), 5.0), START + second, START + second + 1)
    assert history.of(["b"], MINUTE, START + 3) is None
    assert len(history) == 3 and history.dropped == 0
    assert known(history, key="d", now=3) == [5.0]  # not b's
    assert known(history, now=3) == [5.0] * 3


def test_more_series_than_fit_keep_the_first_ones() -> None:
    history = History(1, most=3)
    for second in range(3):
        history.feed([*"abcde"], np.ones((5, 1)), START + second, START + second + 1)
    assert history.dropped == 2
    assert [known(history, key=key, now=3) for key in "abc"] == [[1.0] * 3] * 3
    assert history.of(["e"], MINUTE, START + 3) is None


def test_expired_series_are_replaced_before_memory_grows() -> None:
    history = History(1, most=100)
    fed(0, 1, history=history)
    history.feed(["b"], np.ones((1, 1)), START + 4000, START + 4001)
    assert len(history) == 1


def test_a_thousand_links_take_less_than_14_megabytes() -> None:
    assert 1000 * History(4).bytes_of_one < 14e6
