"""Provide the rig of the packet tests: loaded once, emptied for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.netlink.netns import entered
from tests.datapath.rig import Rig
from tests.support.host import ThrowawayHost


@pytest.fixture(scope="package")
def loaded_rig() -> Iterator[Rig]:
    """Load the program on a host with a bridge and an uplink `up0`.

    The bridge `b0` has the ports `p1` and `p2`.
    """
    host = ThrowawayHost()
    try:
        _build(host)
        with entered(f"/run/netns/{host.name}"):
            rig = Rig(host)
        yield rig
        rig.close()
    finally:
        host.close()


@pytest.fixture
def rig(loaded_rig: Rig) -> Iterator[Rig]:
    """Return the rig with empty maps, with the test inside its host."""
    with entered(f"/run/netns/{loaded_rig.host.name}"):
        loaded_rig.reset()
        yield loaded_rig


def _build(host: ThrowawayHost) -> None:
    host.run("ip link add b0 type bridge")
    for name in ("p1", "p2", "up0"):
        host.run(f"ip link add {name} type veth peer name far-{name}")
        host.run(f"ip link set {name} up")
        host.run(f"ip link set far-{name} up")
    for name in ("p1", "p2"):
        host.run(f"ip link set {name} master b0")
    host.run("ip link set b0 up")
