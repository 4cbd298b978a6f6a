"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.fastlab import FastLab
from tests.support.fastpath import Guard, leftovers, two_containers_and_an_uplink
from tests.support.host import ThrowawayHost
from tests.support.waiting import eventually


@pytest.fixture(params=[False, True], ids=["kernel", "fast"])
def lab(request: pytest.FixtureRequest) -> Iterator[FastLab]:
    """Yield a lab for one test, which runs twice: without and with the fast path."""
    with FastLab() as made:
        if request.param:
            made.accelerate()
        yield made


@pytest.fixture
def bridge_host(host: ThrowawayHost) -> Iterator[ThrowawayHost]:
    """Yield a host with two containers on a bridge and an uplink; the fast path must leave nothing there."""
    two_containers_and_an_uplink(host)
    with Guard(host, "world", "eth0"):
        yield host
        assert eventually(lambda: not leftovers(host)), leftovers(host)
