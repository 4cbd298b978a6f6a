"""A container ends while it is being attached: nothing of the attachment stays."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.apply import journal, run
from core.collect.snapshot import read_snapshot
from core.model import Part
from core.operations import Operation
from core.plan import Plan, plan_all
from core.plan.requests import Attach, CreateNetwork
from core.topology import Topology
from tests.support.host import ThrowawayHost
from tests.support.state import state
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

# An unmanaged container: the first process of its own namespaces, the network namespace without a name.
CONTAINER = [
    "unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
    "sh", "-c", "hostname dying && exec sleep 1000",
]  # fmt: skip
STEPS = 6


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


@pytest.fixture
def container() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(CONTAINER)
    yield process
    process.kill()
    process.wait()


def read_topology() -> Topology:
    return Topology(read_snapshot((Part.LINKS, Part.CONTAINERS, Part.HOST_FIREWALL)))


def uid() -> str:
    found = [one.uid for one in read_topology().containers.values() if one.name == "dying"]
    return found[0] if found else ""


def planned(*requests: Attach | CreateNetwork) -> Plan:
    made = plan_all(requests, read_topology())
    assert isinstance(made, Plan), made
    return made


# The kernel also removes the host's end of the veth pair, a moment later.
@pytest.mark.parametrize(("at", "link"), [*((step, "") for step in range(STEPS)), (2, "v-dying")])
def test_a_container_ends_before_any_step(
    at: int, link: str, inside_host: ThrowawayHost, container: subprocess.Popen[bytes]
) -> None:
    network = planned(CreateNetwork("shop", subnets=("10.77.0.0/24",)))
    assert run.apply(network.title, network.steps).done
    # A bridge keeps what the kernel adds with the first port: a link-local address, larger packets.
    inside_host.run("ip link add first type veth peer name second")
    inside_host.run("ip link set first up master br-shop")
    inside_host.run("ip link set second up")
    wait_until(lambda: "fe80" in inside_host.run("ip -6 addr show dev br-shop -tentative"), "its address")
    inside_host.run("ip link del first")
    wait_until(uid, "the container to be in sight")
    plan = planned(Attach(uid(), "shop"))
    assert len(plan.steps) == STEPS
    before = state(inside_host.names)
    seen = 0

    def end_here(_: Operation) -> None:
        nonlocal seen
        if seen == at:
            container.kill()
            container.wait()
            wait_until(lambda: not Path(f"/proc/{pid}/ns/net").exists(), "the container to be gone")
            if link:
                inside_host.run(f"ip link del {link}", check=False)
        seen += 1

    pid = next(one.pid for one in read_topology().containers.values() if one.name == "dying")
    outcome = run.apply(plan.title, plan.steps, progress=end_here)
    assert outcome.end == "undone", outcome
    assert any("gone" in one or str(pid) in one for one in outcome.errors), outcome.errors
    wait_until(lambda: state(inside_host.names) == before, "nothing to be left")
    assert journal.open_entries() == ()
