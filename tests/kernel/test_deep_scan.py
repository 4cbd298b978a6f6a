"""When plans need a search of all processes for namespaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.apply import run
from core.collect import namespaces
from core.collect.snapshot import read_snapshot
from core.model import Part
from core.operations import SetLink
from core.plan import Plan, Refused
from core.plan.requests import CreateNetwork
from core.topology import Topology
from tests.kernel.holders import holder, shell
from tests.support.host import ThrowawayHost
from tests.support.state import state
from tui.cli import perform

pytestmark = pytest.mark.root

STEP = SetLink("lo", "alias", "seen", "")


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


@pytest.fixture
def hidden(inside_host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch) -> int:
    """Yield the inode of a namespace that only another process's descriptor keeps.

    No other namespace but the host's is visible: others on the machine could have links to it, too.
    """
    inside_host.namespace("hidden")
    inode = inside_host.inode_of("hidden")
    read = namespaces.read_namespaces

    def read_two(deep: bool = True) -> Any:
        found, problems = read(deep)
        return {ns: space for ns, space in found.items() if ns in (inode, inside_host.inode)}, problems

    monkeypatch.setattr(namespaces, "read_namespaces", read_two)
    return inode


def held(host: ThrowawayHost) -> tuple[str, ...]:
    """Return the command of a process that alone keeps the namespace alive.

    The namespace's name is removed.
    """
    path = f"/run/netns/{host.full('hidden')}"
    return shell(f"exec 7< {path}\nip netns del {host.full('hidden')}")


def test_an_unreferenced_namespace_needs_a_deep_scan(inside_host: ThrowawayHost, hidden: int) -> None:
    with holder(*held(inside_host)):
        shallow, deep = (read_snapshot((Part.LINKS,), deep=deep) for deep in (False, True))
        assert hidden not in shallow.namespaces and hidden not in shallow.nets
        assert hidden in deep.namespaces and hidden in deep.nets
        assert {inside_host.inode, *shallow.nets} <= {*deep.nets}


def test_a_link_to_an_unknown_namespace_causes_a_deep_scan(inside_host: ThrowawayHost, hidden: int) -> None:
    inside_host.run(f"ip link add v0 type veth peer name inner netns {inside_host.full('hidden')}")
    with holder(*held(inside_host)):
        snapshot = read_snapshot((Part.LINKS,), deep=False)
        assert hidden in snapshot.namespaces
        topology = Topology(snapshot)
        (outer,) = (link for link in snapshot.nets[inside_host.inode].links.values() if link.name == "v0")
        peer = topology.peer(outer)
        assert peer is not None and (peer.ns, peer.name) == (hidden, "inner")


@pytest.mark.parametrize("ask_deep", [False, True])
@pytest.mark.parametrize(
    ("kind", "reads"),
    [
        ("plain", [False]),
        ("guarded", [False, True]),
        ("refused", [False, True]),
        ("refused once", [False, True]),
    ],
)
def test_refusals_and_guarded_plans_scan_deep(
    kind: str, reads: list[bool], ask_deep: bool, inside_host: ThrowawayHost, hidden: int
) -> None:
    seen: list[bool] = []

    def planner(topology: Topology) -> Plan | Refused:
        seen.append(hidden in topology.snapshot.namespaces)
        if kind == "refused" or (kind == "refused once" and not seen[-1]):
            return Refused(("no",))
        return Plan("see", (STEP,), guarded=kind == "guarded")

    with holder(*held(inside_host)):
        made, outcome = perform.attempt(
            planner, perform.LIGHT, lambda _: True, lambda plan: run.apply(plan.title, plan.steps), ask_deep
        )
    assert seen == ([True] if ask_deep else reads)
    assert isinstance(made, Refused) == (kind == "refused")
    assert (outcome is None) == (kind == "refused")


def test_a_card_with_a_hidden_macvlan_is_left_alone(inside_host: ThrowawayHost, hidden: int) -> None:
    """The kernel would refuse the bridge port half-way through the change."""
    inside_host.run("ip link add up0 type veth peer name far")
    inside_host.run("ip addr add 192.0.2.2/24 dev up0")
    inside_host.run("ip link set up0 up")
    inside_host.run(f"ip link add mv0 link up0 netns {inside_host.full('hidden')} type macvlan")
    with holder(*held(inside_host)):
        assert hidden not in read_snapshot((Part.LINKS,), deep=False).namespaces
        before = state([inside_host.name])
        made, outcome = perform.attempt(
            lambda topology: perform.plan_requests(
                [CreateNetwork("wire", "nic-bridged", uplink="up0")], topology
            ),
            perform.LIGHT,
            lambda _: True,
            perform.run_plan,
        )
        assert isinstance(made, Refused) and outcome is None
        assert [one for one in made.reasons if "because of the macvlan mv0" in one], made.reasons
        assert state([inside_host.name]) == before
