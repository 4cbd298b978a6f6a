"""The process by which a plan enters a namespace."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.plan.builder import PlanBuilder
from core.topology import Topology
from tests.support.snapshots import small_builder


@pytest.mark.parametrize("other_process", [2, 99_000])
def test_a_container_is_reached_by_its_own_process(other_process: int) -> None:
    """Other processes, with a lower or higher pid, may only be there for a moment."""
    builder = small_builder()
    container = next(one for one in builder.snapshot().containers() if one.name == "api")
    ns, pid = container.netns, container.pid
    assert ns and pid
    builder.spaces[ns] = replace(builder.spaces[ns], pids=tuple(sorted((other_process, pid))))
    plan = PlanBuilder(Topology(builder.snapshot()))
    assert plan.target("api").place == plan.netns_target(ns)
    assert (plan.netns_target(ns).pid, plan.netns_target(ns).others) == (pid, (other_process,))
