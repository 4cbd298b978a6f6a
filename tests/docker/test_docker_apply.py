"""Changes of Docker networks that are killed, refused or fail leave nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.apply import journal, run
from core.collect.snapshot import read_snapshot
from core.model import Part
from core.operations import (
    CreateBridge,
    DockerConnect,
    DockerCreateNetwork,
    DockerDisconnect,
    DockerRemoveNetwork,
    Operation,
    SetLink,
)
from core.operations.executor import Executor
from core.plan import Plan, plan_all
from core.plan.requests import Detach, Request
from core.topology import Topology
from tests.docker.bad_engine import BadEngine, http
from tests.docker.engine import DockerHost
from tests.support.state import state

pytestmark = [pytest.mark.root, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]

SHOP = DockerCreateNetwork("shop", ("10.201.0.0/24",), ("10.201.0.1",), mtu=1400, bridge="br-shop")
OLD = DockerCreateNetwork("old", ("10.202.0.0/24",), ("10.202.0.1",), internal=True, bridge="br-old")
KEEP = DockerCreateNetwork("keep", ("10.203.0.0/24",), ("10.203.0.1",), bridge="br-keep")


def steps_of() -> tuple[Operation, ...]:
    return (
        CreateBridge("br-t", alias="vnet:net=t"),
        SHOP,
        DockerConnect("shop", "app", "10.201.0.5", aliases=("api",)),
        DockerDisconnect(DockerConnect("keep", "app", "10.203.0.7", aliases=("db",))),
        DockerRemoveNetwork(OLD),
        SetLink("br-t", "up", "up", "down"),
    )


COUNT = len(steps_of())


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


@pytest.fixture
def engine(inside_docker_host: DockerHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerHost]:
    """An engine with a container on the network "keep" and an empty network "old"."""
    engine = inside_docker_host
    monkeypatch.setenv("DOCKER_HOST", engine.url)
    assert run.apply("what is there", (OLD, KEEP)).done
    engine.container("app", "--network", "keep", "--ip", "10.203.0.7", "--network-alias", "db")
    yield engine
    engine.host.run("ip link del br-t", check=False)


def full_state(engine: DockerHost) -> dict[str, Any]:
    """Return the state of host, container and Docker networks.

    Left out is what the engine chooses again: MAC addresses of bridges and veths, names of veths, rule order.
    """
    inspected = json.loads(engine.run("network", "inspect", *engine.run("network", "ls", "-q").split()))
    ends = json.loads(engine.run("inspect", "-f", "{{json .NetworkSettings.Networks}}", "app"))
    inside = f"nsenter -t {engine.pid('app')} -n ip -j addr"
    host = state([engine.namespace])[engine.namespace]
    links = [host["links"][name] | host["addresses"][name] for name in sorted(host["links"])]
    return {
        "links": {
            link["ifname"]: [link.get("mtu"), link.get("ifalias"), _locals(link)]
            for link in links
            if not link["ifname"].startswith("veth")
        },
        "veths": sum(link["ifname"].startswith("veth") for link in links),
        "rules": sorted(json.dumps(rule, sort_keys=True) for rule in host["rules"]["nftables"]),
        "sysctls": host["sysctls"],
        "networks": {one["Name"]: [one[key] for key in ("IPAM", "Internal", "Options")] for one in inspected},
        "ends": {
            name: [end["IPAddress"], mac_of(end, engine), sorted({*(end["Aliases"] or ())} & {"db", "api"})]
            for name, end in ends.items()
        },
        "inside": [_locals(link) for link in engine.host.json(inside)],
    }


def mac_of(end: dict[str, Any], engine: DockerHost) -> str:
    """Return a MAC address derived from the IPv4 address, "" if it is random.

    Docker chooses a random one since 28.
    """
    return "" if engine.version >= (28, 0) else str(end["MacAddress"])


def _locals(link: dict[str, Any]) -> list[str]:
    return sorted(one["local"] for one in link["addr_info"] if one["scope"] != "link")


def test_done_and_undone(engine: DockerHost) -> None:
    before = full_state(engine)
    outcome = run.apply("docker", steps_of())
    assert outcome.done, outcome.errors
    after = full_state(engine)
    assert after["networks"].keys() == before["networks"].keys() - {"old"} | {"shop"}
    assert after["ends"]["shop"][0] == "10.201.0.5"
    assert after["ends"].keys() == {"shop"}
    assert engine.host.json("ip -j link show br-shop")[0]["ifname"] == "br-shop"
    assert run.undo(next(journal.history())).errors == ()
    assert full_state(engine) == before


def killed_at(step: int, after: float) -> None:
    """Apply the steps in a process that is killed some seconds after it begins a step."""
    child = os.fork()
    if child == 0:
        seen = 0

        def kill_here(_: Operation) -> None:
            nonlocal seen
            if seen == step and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            if seen == step:
                threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
            seen += 1

        run.apply("killed", steps_of(), progress=kill_here)
        time.sleep(after)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (-signal.SIGKILL, 1)


@pytest.mark.parametrize("at", range(COUNT))
def test_killed_after_any_step(at: int, engine: DockerHost) -> None:
    before = full_state(engine)
    killed_at(at, 0.0)
    (entry,) = journal.open_entries()
    assert entry.begun == at + 1
    assert run.undo(entry).errors == ()
    assert full_state(engine) == before
    assert journal.open_entries() == ()


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_killed_during_a_docker_request(at: int, engine: DockerHost) -> None:
    before = full_state(engine)
    killed_at(at, 0.015)
    entry = next(journal.history())
    assert run.undo(entry).errors == ()
    assert full_state(engine) == before


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_docker_answers_500(
    at: int, engine: DockerHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = full_state(engine)
    steps = steps_of()
    real = run.execute

    def execute(operation: Operation, kernel: Executor) -> None:
        if operation is not steps[at]:
            return real(operation, kernel)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/broken")
        try:
            with Executor() as other:
                return real(operation, other)
        finally:
            monkeypatch.setenv("DOCKER_HOST", engine.url)

    monkeypatch.setattr(run, "execute", execute)
    with BadEngine(tmp_path / "broken", _broken):
        outcome = run.apply("refused", steps)
    assert outcome.end == "undone", outcome.errors
    assert outcome.errors == (f"can't {steps[at].describe()}: Docker says: out of luck",)
    assert full_state(engine) == before


def _broken(path: str) -> Iterator[bytes]:
    if path.endswith("/version"):
        yield http(b'{"ApiVersion": "1.41"}')
    else:
        yield http(b'{"message": "out of luck"}', "500 Internal Server Error")


def test_docker_stops_half_way(engine: DockerHost) -> None:
    before = full_state(engine)
    steps = steps_of()

    def stop_here(operation: Operation) -> None:
        if operation is steps[3]:
            engine.stop()

    try:
        outcome = run.apply("stopped", steps, progress=stop_here)
        assert outcome.end == "failed"
        assert steps[3].describe() in outcome.errors[0]
        assert "Docker" in outcome.errors[0]
        assert "br-t" not in engine.host.run("ip link"), "what is not Docker's is taken back at once"
    finally:
        engine.start()
    engine.run("start", "app")
    (entry,) = journal.open_entries()
    assert run.undo(entry).errors == ()
    assert journal.open_entries() == ()
    assert full_state(engine) == before


def planned(*requests: Request) -> Plan:
    found = plan_all(requests, Topology(read_snapshot((Part.LINKS, Part.CONTAINERS))))
    assert isinstance(found, Plan), found
    return found


@pytest.mark.parametrize("network", ["auto", "bridge", "keep"])
def test_a_detachment_is_undone_if_docker_allows_it(engine: DockerHost, network: str) -> None:
    """Docker refuses addresses on networks whose subnet it chose itself."""
    engine.run("network", "create", "auto")
    engine.container("other", "--network", network)
    plan = planned(Detach("other", network))
    assert ("may have another address" in " ".join(plan.warnings)) == (network != "keep")
    assert run.apply(plan.title, plan.steps).done
    assert "other" not in engine.run("network", "inspect", network)
    assert run.undo(next(journal.history())).errors == ()
    assert "other" in engine.run("network", "inspect", network)
    # A chosen address leads to an error.
    if network == "auto":
        chosen = DockerConnect("auto", "app", "172.31.255.9")
        assert "can't" in run.apply("chosen", (chosen,)).errors[0]


def test_another_programs_network_is_not_removed(engine: DockerHost) -> None:
    engine.run("network", "create", "shop")
    before = full_state(engine)
    outcome = run.apply("in the way", steps_of())
    assert outcome.end == "undone"
    assert "File exists" in outcome.errors[0] or "exists already" in outcome.errors[0]
    assert full_state(engine) == before


def test_docker_is_absent(engine: DockerHost, monkeypatch: pytest.MonkeyPatch) -> None:
    before = full_state(engine)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    outcome = run.apply("nobody", steps_of())
    assert outcome.end == "undone"
    assert "Docker isn't running" in outcome.errors[0]
    monkeypatch.setenv("DOCKER_HOST", engine.url)
    assert full_state(engine) == before
