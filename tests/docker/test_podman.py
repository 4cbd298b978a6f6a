"""The podman collector, compared with `podman inspect` and the kernel."""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import Any

import pytest

from core.collect.engines import read_docker, read_podman
from core.model import NAMESPACE_KINDS, Container, Engine
from tests.docker.engine import IMAGE
from tests.docker.podman_engine import PodmanHost

pytestmark = pytest.mark.root


def inspect(podman: PodmanHost, name: str) -> dict[str, Any]:
    """Return what `podman inspect` prints about a container."""
    return dict(json.loads(podman.run("container", "inspect", name))[0])


def containers(podman: PodmanHost) -> dict[str, Container]:
    found = read_podman(podman.socket)
    assert (found.state, found.problems) == ("ok", ())
    assert found.version == podman.run("--version").split()[-1]
    return {container.name: container for container in found.containers}


def assert_as_inspected(container: Container, inspected: dict[str, Any]) -> None:
    """Compare everything that both have."""
    assert container.uid == f"podman:{inspected['Id']}"
    assert container.name == inspected["Name"]
    assert container.state == inspected["State"]["Status"]
    assert container.pid == (inspected["State"]["Pid"] or None)
    assert container.image == inspected["ImageName"]
    assert container.labels == (inspected["Config"].get("Labels") or {})
    assert container.command == " ".join(inspected["Config"]["Cmd"])
    created = datetime.fromisoformat(inspected["Created"][:19] + "+00:00")
    assert datetime.fromisoformat(container.created) == created


def test_containers(podman_host: PodmanHost) -> None:
    podman_host.run("network", "create", "--disable-dns", "user-net")
    web = podman_host.container(
        "web", "-p", "8080:80", "-p", "127.0.0.1:53:53/udp", "--label", "a=[b]\x1b\u202e"
    )
    podman_host.container("no", "--network", "none")
    podman_host.container("ho", "--network", "host")
    podman_host.container("us", "--network", "user-net")
    podman_host.container("jo", "--network", "container:web")
    podman_host.run("create", "--name", "new", "--network", "user-net", IMAGE, "ls")
    found = containers(podman_host)
    assert {name: container.network_mode for name, container in found.items()} == {
        "web": "podman", "no": "none", "ho": "host", "us": "user-net", "jo": f"container:{web}",
        "new": "user-net",
    }  # fmt: skip
    for name, container in found.items():
        inspected = inspect(podman_host, name)
        assert_as_inspected(container, inspected)
        if name in ("web", "us"):
            [end] = container.endpoints
            [(network, expected)] = inspected["NetworkSettings"]["Networks"].items()
            assert end.network == network
            assert end.ipv4 == f"{expected['IPAddress']}/{expected['IPPrefixLen']}"
            assert (end.gateway, end.mac) == (expected["Gateway"], expected["MacAddress"])
    ports = {(p.l4_proto, p.host_ip, p.host_port, p.container_port) for p in found["web"].ports}
    assert ports == {("tcp", "", 8080, 80), ("udp", "127.0.0.1", 53, 53)}
    assert found["jo"].ports == found["jo"].endpoints == ()


def test_namespaces(podman_host: PodmanHost) -> None:
    podman_host.container("own")
    podman_host.container("open", "--network", "host", "--pid", "host")
    found = containers(podman_host)
    for name, container in found.items():
        pid = inspect(podman_host, name)["State"]["Pid"]
        links = {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in NAMESPACE_KINDS}
        assert {kind: f"{kind}:[{inode}]" for kind, inode in container.namespaces.items()} == links
    assert found["open"].netns == podman_host.host.inode


def test_networks(podman_host: PodmanHost) -> None:
    create = ("network", "create", "--disable-dns", "--label", "a=b")
    podman_host.run(
        *create, "--subnet", "10.203.0.0/24", "--opt", "mtu=1400", "--interface-name", "nm0", "named"
    )
    podman_host.run(*create, "--internal", "inner")
    podman_host.container("one", "--network", "named")
    podman_host.container("two", "--network", "inner")
    podman_host.container("three")
    found = {network.name: network for network in read_podman(podman_host.socket).networks}
    bridges = {link["ifname"] for link in podman_host.host.json("ip -j link show type bridge")}
    assert found.keys() == {"podman", "named", "inner"}
    for name, network in found.items():
        [inspected] = json.loads(podman_host.run("network", "inspect", name))
        assert (network.engine, network.id, network.driver) == (
            "podman",
            inspected["id"],
            inspected["driver"],
        )
        assert network.internal == inspected["internal"] == (name == "inner")
        assert network.labels == inspected.get("labels", {})
        assert list(network.subnets) == [subnet["subnet"] for subnet in inspected["subnets"]]
        assert list(network.gateways) == [
            subnet["gateway"] for subnet in inspected["subnets"] if "gateway" in subnet
        ]
        assert (network.ns, network.bridge) == (podman_host.host.inode, inspected["network_interface"])
    assert {network.bridge for network in found.values()} == bridges
    assert (found["named"].mtu, found["named"].bridge) == (1400, "nm0")


def test_the_service_stopped_and_started_again(podman_host: PodmanHost) -> None:
    podman_host.container("lives")
    podman_host.stop()
    stopped = read_podman(podman_host.socket)
    assert (stopped.state, stopped.containers) == ("stopped", ())
    assert "podman.socket" in stopped.problems[0].try_
    podman_host.start()
    assert containers(podman_host)["lives"].pid == inspect(podman_host, "lives")["State"]["Pid"]


def test_a_pod(podman_host: PodmanHost) -> None:
    infra = (
        "--infra-image",
        f"localhost/{IMAGE}",
        "--infra-command",
        "sleep 100000",
        "--infra-name",
        "infra",
    )
    podman_host.run("pod", "create", "--name", "pod", *infra)
    podman_host.container("one", "--pod", "pod")
    podman_host.container("two", "--pod", "pod")
    found = containers(podman_host)
    assert found.keys() == {"infra", "one", "two"}
    for name in ("one", "two"):
        assert found[name].network_mode == f"container:{found['infra'].id}"
        assert found[name].netns == found["infra"].netns
    podman_host.run("pod", "rm", "-f", "-t", "0", "pod")


def test_podman_in_place_of_docker_is_not_shown_twice(podman_host: PodmanHost) -> None:
    podman_host.container("one")
    assert read_docker(podman_host.socket) == Engine("docker", "absent")
