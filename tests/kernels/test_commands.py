"""The main commands on a kernel: what they make is there and carries traffic, and undo takes it back."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import DockerHost
from tests.docker.place import remove_stale
from tests.support.echo import answer, serving
from tests.support.machine import PROGRAM, ROOT, Machine, addresses, ok, picture, read_json, uplink
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def place() -> Iterator[Machine]:
    """A machine with a way out, and a namespace of its own that is on no network."""
    made = Machine(VNET_ENGINES="none")
    try:
        uplink(made)
        made.run("ip netns add db")
        yield made
    finally:
        made.close()


def test_a_network_is_made_used_accelerated_and_taken_back(place: Machine) -> None:
    before = picture(place)
    ok(place, "network create shop --subnet 10.91.0.0/24 --subnet fd91::/64")
    ok(place, "attach db shop --address 10.91.0.9")
    ok(place, "publish db 8080:80")
    assert addresses(place, "eth0", "db")[0] == "10.91.0.9/24"
    (network,) = read_json(place, "show networks")["networks"]
    assert (network["name"], network["bridge"]) == ("shop", "br-shop")
    assert "8080" in ok(place, "show nat") and "br-shop" in ok(place, "show links")
    with serving(place, "db"):
        assert answer(place, "192.0.2.2", 8080, "world") == "192.0.2.1"
        assert ok(place, "accelerate shop --yes").endswith("Accelerated: shop.\n")
        assert answer(place, "192.0.2.2", 8080, "world") == "192.0.2.1"
        wait_until(lambda: read_json(place, "fastpath status")["state"] == "on", "on")
        ok(place, "accelerate --off --yes")
    for _ in range(3):
        ok(place, "undo")
    assert picture(place) | {"forward": ""} == before | {"forward": ""}


def test_the_demo_is_built_and_looked_at() -> None:
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
