"""Networks of drivers other than bridge, created by a real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.docker.engine import DockerHost
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root


def shown(engine: DockerHost) -> dict[str, Any]:
    """Return the output of `show all` on the engine's host."""
    done = engine.host.vnet("show", "all", "--json", DOCKER_HOST=engine.url)
    assert done.returncode in (0, 1), done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture
def swarm(docker_host: DockerHost) -> Iterator[DockerHost]:
    """Yield the engine as a swarm."""
    docker_host.host.run("ip link add up7 type veth peer name far7")
    docker_host.host.run("ip addr add 192.0.2.71/24 dev up7")
    docker_host.host.run("ip link set up7 up")
    docker_host.run("swarm", "init", "--advertise-addr", "192.0.2.71")
    yield docker_host
    docker_host.run("rm", "-f", *docker_host.run("ps", "-aq").split())
    docker_host.run("swarm", "leave", "--force")
    wait_until(lambda: _is_gone(docker_host, "docker_gwbridge"), "the bridge that only a swarm needs")
    docker_host.host.run("ip link del up7")


def _is_gone(engine: DockerHost, network: str) -> bool:
    engine.run("network", "rm", network, check=False)
    return network not in engine.run("network", "ls", "--format", "{{.Name}}").split()


def test_an_overlay_is_shown_once(swarm: DockerHost) -> None:
    swarm.run("network", "create", "-d", "overlay", "--attachable", "--subnet", "10.66.1.0/24", "ov1")
    swarm.container("inside", "--network", "ov1")
    found = shown(swarm)
    claiming = [one for one in found["networks"] if "10.66.1.0/24" in one["subnets"]]
    assert [(one["name"], one["engine"], one["kind"], one["bridge"]) for one in claiming] == [
        ("ov1", "docker", "overlay", "br0")
    ]
    (overlay,) = claiming
    assert overlay["namespace"] == f"1-{overlay['id'][:10]}"
    labels = {one["label"] for one in found["namespaces"]}
    assert {overlay["namespace"], "ingress_sbox"} <= labels
    names = {one["uid"]: one["name"] for one in found["containers"]}
    assert [names[uid] for uid in overlay["members"]] == ["inside"]


def test_a_macvlan_network_on_a_nic_is_not_an_overlap(docker_host: DockerHost) -> None:
    docker_host.host.run("ip link add up8 type veth peer name far8")
    docker_host.host.run("ip addr add 10.78.0.2/24 dev up8")
    docker_host.run(
        "network", "create", "-d", "macvlan", "-o", "parent=up8", "--subnet", "10.78.0.0/24", "lan"
    )
    found = shown(docker_host)
    assert not [one for one in found["findings"] if one["sentence"].startswith("lan (")]
    (lan,) = [one for one in found["networks"] if one["name"] == "lan"]
    assert (lan["kind"], lan["parent"], lan["gateway_mode"]) == ("macvlan", "up8", {})
    docker_host.run("network", "rm", "lan")
    docker_host.host.run("ip link del up8")
