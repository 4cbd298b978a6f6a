"""Formatting of numbers, durations and sparklines."""

from __future__ import annotations

import pytest

from tui.views import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bit/s"), (999.4, "999 bit/s"), (999.6, "1.0 kbit/s"), (12_400_000, "12.4 Mbit/s"),
        (99_960, "100 kbit/s"), (999_600_000, "1.0 Gbit/s"), (4e21, "4000 Ebit/s"),
    ],
)  # fmt: skip
def test_bits(value: float, text: str) -> None:
    assert formatting.bits(value) == text


def test_numbers_fit_their_columns() -> None:
    for power in range(18):
        for lead in (1, 9.994, 9.996, 9.9996):
            value = lead * 10**power
            assert len(formatting.bits(value)) <= 11
            assert len(formatting.count(value)) <= 7
            assert len(formatting.size(value)) <= 8


def test_one_is_singular() -> None:
    assert [formatting.several(number, "packet") for number in (0, 1, 2, 1200)] == [
        "0 packets", "1 packet", "2 packets", "1.2k packets",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (59, "59s"), (245, "4m 05s"), (7380, "2h 03m"), (86_400, "1d 00h"), (457_200, "5d 07h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


def test_age() -> None:
    assert formatting.age(100, 100.5) == "just now"
    assert formatting.age(100, 112) == "12s ago"
    assert formatting.age(200, 100) == "just now", "clocks may go back"


def test_sparkline_is_scaled_to_its_highest_value() -> None:
    assert formatting.sparkline([0, 50, 100]) == "▁▅█"
    assert formatting.sparkline([1, 2, 3, 4], width=2) == "▆█"
    assert formatting.sparkline([0, 0]) == "▁▁"
    assert formatting.sparkline([]) == ""


def test_an_ascii_sparkline_has_as_many_cells() -> None:
    drawn = "╭──┴──╮ │ ◆ web1 ▁▂▃▄▅▆▇█ → ↔ ≠ … ■□◐"
    plain = formatting.ascii_only(drawn)
    assert plain.isascii()
    assert len(plain) == len(drawn)
    assert formatting.ascii_only("Käse") == "Käse", "a name stays a name"
