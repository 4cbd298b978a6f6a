"""Run the main commands on a kernel: objects exist, traffic passes, undo works."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import DockerHost
from tests.docker.engine_folder import remove_stale
from tests.support.echo import answer, serving
from tests.support.machine import PROGRAM, ROOT, Machine, addresses, machine_state, ok, read_json, uplink
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Yield a machine with an uplink, and a namespace that is on no network."""
    made = Machine(VNET_ENGINES="none")
    try:
        uplink(made)
        made.run("ip netns add db")
        yield made
    finally:
        made.close()


def test_a_network_is_created_used_accelerated_and_undone(machine: Machine) -> None:
    before = machine_state(machine)
    ok(machine, "network create shop --subnet 10.91.0.0/24 --subnet fd91::/64")
    ok(machine, "attach db shop --address 10.91.0.9")
    ok(machine, "publish db 8080:80")
    assert addresses(machine, "eth0", "db")[0] == "10.91.0.9/24"
    (network,) = read_json(machine, "show networks")["networks"]
    assert (network["name"], network["bridge"]) == ("shop", "br-shop")
    assert "8080" in ok(machine, "show nat") and "br-shop" in ok(machine, "show links")
    with serving(machine, "db"):
        assert answer(machine, "192.0.2.2", 8080, "world") == "192.0.2.1"
        assert ok(machine, "accelerate shop --yes").endswith("Accelerated: shop.\n")
        assert answer(machine, "192.0.2.2", 8080, "world") == "192.0.2.1"
        wait_until(lambda: read_json(machine, "fastpath status")["state"] == "on", "on")
        ok(machine, "accelerate --off --yes")
    for _ in range(3):
        ok(machine, "undo")
    assert machine_state(machine) | {"forward": ""} == before | {"forward": ""}


def test_the_demo_lab_is_built_and_shown() -> None:
    words = [*PROGRAM, "demo", "--no-traffic", *PROGRAM, "show", "networks"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=4 * PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "br-shop" in done.stdout


@pytest.mark.needs("docker")
def test_a_container_of_docker_is_attached_and_detached(tmp_path: Path) -> None:
    remove_stale()
    engine = DockerHost()
    try:
        engine.start()
        engine.import_image()
        engine.container("web", "--network", "none")
        environment = {"DOCKER_HOST": engine.url, "VNET_STATE": str(tmp_path)}
        for words in ("network create yard --subnet 10.93.0.0/24", "attach web yard --address 10.93.0.9"):
            done = engine.host.vnet(*words.split(), **environment)
            assert done.returncode == 0, done.stdout + done.stderr
        assert "10.93.0.9/24" in engine.run("exec", "web", "ip", "addr")
        wait_until(lambda: _pings(engine, "10.93.0.9"), "an answer of the container")
        done = engine.host.vnet("undo", **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "10.93.0.9" not in engine.run("exec", "web", "ip", "addr")
    finally:
        engine.close()


def _pings(engine: DockerHost, address: str) -> bool:
    return "1 received" in engine.host.run(f"ping -c1 -W1 {address}", check=False)
