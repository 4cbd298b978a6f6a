"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.fastlab import FastLab


@pytest.fixture(params=[False, True], ids=["kernel", "fast"])
def lab(request: pytest.FixtureRequest) -> Iterator[FastLab]:
    """Yield a lab for one test, which runs twice: without and with the fast path."""
    with FastLab() as made:
        if request.param:
            made.accelerate()
        yield made
