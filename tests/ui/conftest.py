"""Small machines for tests of commands that change networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.machine import Machine, ok


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Yield a machine without any network."""
    made = Machine()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Machine]:
    """Yield one machine for tests that change nothing.

    It has the network `shop`; the container `web` is attached to it and publishes port 8080.
    """
    made = Machine()
    try:
        ok(made, "network create shop --subnet 10.91.0.0/24")
        ok(made, "container create web --network shop")
        ok(made, "publish web 8080:80")
        yield made
    finally:
        made.close()
