"""A probe traces its packets while the fast path is on, and doesn't pause it."""

from __future__ import annotations

import pytest

from core.model import Namespace
from core.model.probe import ProbeRequest
from core.probe.run import probe
from tests.support.fastpath import FastPath, Talk
from tests.support.host import ThrowawayHost
from tests.support.waiting import scaled, wait_until

pytestmark = pytest.mark.root


def space(host: ThrowawayHost, short: str) -> Namespace:
    return Namespace(host.inode_of(short), entry=f"/run/netns/{host.full(short)}")


def test_fast_path_stays_on(bridge_host: ThrowawayHost) -> None:
    request = ProbeRequest(
        space(bridge_host, "a"), "192.0.2.2", "icmp", timeout=scaled(20),
        through=(space(bridge_host, "host"),), destination=space(bridge_host, "world"),
    )  # fmt: skip
    with FastPath(bridge_host, "br0") as fast, Talk(bridge_host, "a", "world", "192.0.2.2") as talk:
        wait_until(lambda: fast.forwards(talk), "an accelerated connection")
        before = fast.status()
        for _ in range(3):
            result = probe(request)
            assert result.outcome == "answered" and result.arrived and not result.problems
            assert ("nat", "post") in {(one.table, one.chain) for one in result.steps}
            assert fast.forwards(talk)
        after = fast.status()
        assert [after[key] for key in ("generation", "state")] == [
            before[key] for key in ("generation", "state")
        ]
        bridge_host.run(["nft", "add table inet other; add chain inet other c { counter; }"])
        wait_until(lambda: fast.status()["generation"] != before["generation"], "another program's change")
