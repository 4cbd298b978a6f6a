"""Docker's part in a change: killed, refused or left alone by the engine, nothing of it remains."""

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
from core.ops import (
    CreateBridge,
    DockerConnect,
    DockerCreateNetwork,
    DockerDisconnect,
    DockerRemoveNetwork,
    Operation,
    SetLink,
)
from tests.docker.bad_engine import BadEngine, http
from tests.docker.engine import DockerHost
from tests.state import state

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
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


@pytest.fixture
def engine(inside_docker_host: DockerHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerHost]:
    """An engine with a container on the network "keep" and an empty network "old"."""
    engine = inside_docker_host
    monkeypatch.setenv("DOCKER_HOST", engine.url)
    for network in (OLD, KEEP):
        engine.run(*network.command().split()[1:])
    engine.container("app", "--network", "keep", "--ip", "10.203.0.7", "--network-alias", "db")
    yield engine
    engine.host.run("ip link del br-t", check=False)


def whole(engine: DockerHost) -> dict[str, Any]:
    """The host's network, the container's, and the networks as Docker tells them."""
    told = json.loads(engine.run("network", "inspect", *engine.run("network", "ls", "-q").split()))
    ends = json.loads(engine.run("inspect", "-f", "{{json .NetworkSettings.Networks}}", "app"))
    host = state([engine.namespace])[engine.namespace]
    host["links"] = {name: link for name, link in host["links"].items() if not name.startswith("veth")}
    for part in ("addresses", "ports"):
        host[part] = {name: one for name, one in host[part].items() if not name.startswith("veth")}
    return {
        "host": host["links"] | host["addresses"] | {"rules": host["rules"], "sysctls": host["sysctls"]},
        "veths": len([name for name in engine.host.run("ip -o link").split() if name.startswith("veth")]),
        "networks": {
            one["Name"]: [one[key] for key in ("Driver", "IPAM", "Internal", "Options")] for one in told
        },
        "ends": {
            name: [end["IPAddress"], end["MacAddress"], sorted(set(end["Aliases"] or ()) & {"db", "api"})]
            for name, end in ends.items()
        },
        "addresses": [
            sorted(one["local"] for one in link["addr_info"])
            for link in json.loads(_inside(engine, "ip -j addr"))
            if not link["ifname"].startswith("lo")
        ],
    }


def _inside(engine: DockerHost, command: str) -> str:
    return engine.host.run(f"nsenter -t {engine.pid('app')} -n {command}")


def test_done_and_undone(engine: DockerHost) -> None:
    before = whole(engine)
    outcome = run.apply("docker", steps_of())
    assert outcome.done, outcome.errors
    after = whole(engine)
    assert after["networks"].keys() == before["networks"].keys() - {"old"} | {"shop"}
    assert after["ends"]["shop"][0] == "10.201.0.5"
    assert after["ends"].keys() == {"shop"}
    assert engine.host.json("ip -j link show br-shop")[0]["ifname"] == "br-shop"
    assert run.undo(next(journal.history())).errors == ()
    assert whole(engine) == before


def killed_at(step: int, after: float) -> None:
    """A process that applies the steps and is killed some seconds after it has begun a step."""
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
    before = whole(engine)
    killed_at(at, 0.0)
    (entry,) = journal.open_intents()
    assert entry.begun == at + 1
    assert run.undo(entry).errors == ()
    assert whole(engine) == before
    assert journal.open_intents() == ()


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_killed_while_docker_is_at_it(at: int, engine: DockerHost) -> None:
    before = whole(engine)
    killed_at(at, 0.015)
    entry = next(journal.history())
    assert run.undo(entry).errors == ()
    assert whole(engine) == before


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_docker_answers_500(
    at: int, engine: DockerHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = whole(engine)
    broken = BadEngine(
        tmp_path / "sock", lambda path: iter([http(_answer(path), "500 Internal Server Error")])
    )

    def breaking(operation: Operation) -> None:
        url = f"unix://{tmp_path}/sock" if operation is steps[at] else engine.url
        monkeypatch.setenv("DOCKER_HOST", url)

    steps = steps_of()
    real = run.execute

    def execute(operation: Operation, kernel: Any) -> None:
        if operation is steps[at]:
            with run.Kernel() as other:
                monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/sock")
                try:
                    return real(operation, other)
                finally:
                    monkeypatch.setenv("DOCKER_HOST", engine.url)
        return real(operation, kernel)

    monkeypatch.setattr(run, "execute", execute)
    with broken:
        outcome = run.apply("refused", steps)
    assert outcome.end == "undone", outcome.errors
    assert "Docker says: out of luck" in outcome.errors[0]
    assert whole(engine) == before


def _answer(_: str) -> bytes:
    return b'{"message": "out of luck"}'
