"""Run a short soak test on a small host; `make soak` runs the full one."""

from __future__ import annotations

import pytest

from tests.soak.__main__ import run
from tests.soak.host import SMALL
from tests.soak.samples import Sample, growth
from tests.support.waiting import scaled

pytestmark = pytest.mark.root


@pytest.mark.timeout(scaled(600))
@pytest.mark.needs("fastpath")
def test_a_busy_host_is_shown_correctly_and_nothing_grows() -> None:
    """Memory is left out: it settles within minutes, not seconds."""
    result = run(10.0, SMALL, settled=False)
    assert not result.wrong, result.report()
    assert result.counts["containers"] > 10 and result.counts["flaps"] > 100
    assert result.samples.keys() == {"dashboard", "agent", "daemon", "supervisor"}


def test_growth_is_detected() -> None:
    still = [Sample(50.0 + number % 3, 5, 20 + number % 4, 13, 3) for number in range(30)]
    assert not growth(still)
    leaking = [Sample(50.0 + 3 * number, 5 + number, 20, 13 + number // 10, 3) for number in range(30)]
    assert [one.split()[0] for one in growth(leaking)] == ["threads", "maps", "memory"]
    assert [one.split()[0] for one in growth(leaking, settled=False)] == ["threads", "maps"]
