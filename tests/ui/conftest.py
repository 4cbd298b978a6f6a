"""Machines in small for the tests of the commands that change networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.machine import Machine, ok


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine without any network."""
    made = Machine()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Machine]:
    """One machine for tests that change nothing: the network `shop` with `web` and its port 8080 on it."""
    made = Machine()
    try:
        ok(made, "network create shop --subnet 10.91.0.0/24")
        ok(made, "container create web --network shop")
        ok(made, "publish web 8080:80")
        yield made
    finally:
        made.close()
