"""Differences between two readings of a real Docker host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from core.collect.snapshot import PARTS, read_snapshot
from core.diff.compare import differences
from core.model import Part, Snapshot
from tests.docker.engine import DockerHost
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

NET, SUBNET = "diffnet", "10.66.0.0/24"


@pytest.fixture
def shop(inside_docker_host: DockerHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerHost]:
    """A network with a container that publishes a port, and one beside it."""
    engine = inside_docker_host
    monkeypatch.setenv("DOCKER_HOST", engine.url)
    make_network(engine)
    try:
        make_containers(engine)
        yield engine
    finally:
        engine.remove_containers()


def make_network(engine: DockerHost) -> None:
    engine.run("network", "create", "--subnet", SUBNET, NET)


def make_containers(engine: DockerHost, *options: str) -> None:
    engine.container("web", "--network", NET, "--ip", "10.66.0.2", "-p", "8066:80", *options)
    engine.container("db", "--network", NET, "--ip", "10.66.0.3")


def read(engine: DockerHost) -> Snapshot:
    """Read the host once its containers' links are up, and those of earlier tests are gone."""
    found: list[Snapshot] = []

    def is_up() -> bool:
        found.append(read_snapshot(PARTS - {Part.CONNTRACK}))
        links = found[-1].nets[engine.inode].links.values()
        ports = [link for link in links if link.port]
        is_docker0_unused = all(link.state != "up" for link in links if link.name == "docker0")
        return bool(ports) and all(link.state == "up" for link in ports) and is_docker0_unused

    wait_until(is_up)
    return only_docker(found[-1])


def only_docker(found: Snapshot) -> Snapshot:
    """Leave out the namespaces of programs that run beside the engine."""
    docker = found.engines["docker"]
    kept = {found.host.netns, *(one.netns for one in docker.containers)}
    parts = {
        name: {ns: part for ns, part in getattr(found, name).items() if ns in kept}
        for name in ("namespaces", "nets", "firewalls", "listeners")
    }
    return replace(found, engines={"docker": docker}, **parts)


def sentences(old: Snapshot, new: Snapshot) -> list[str]:
    return [each.sentence for each in differences(old, new)]


def test_nothing_differs_after_all_was_made_again(shop: DockerHost) -> None:
    """Other ids, addresses at random, names of links and bridges; other processes."""
    old = read(shop)
    shop.remove_containers()  # and networks
    make_network(shop)
    make_containers(shop)
    new = read(shop)
    assert {one.id for one in old.containers()}.isdisjoint(one.id for one in new.engines["docker"].containers)
    assert sentences(old, new) == []


def test_one_restart_is_the_only_difference(shop: DockerHost) -> None:
    old = read(shop)
    shop.run("restart", "-t", "0", "db")
    assert sentences(old, read(shop)) == ["container db was restarted"]


def test_a_stopped_container_comes_first(shop: DockerHost) -> None:
    old = read(shop)
    shop.run("stop", "-t", "0", "web")
    found = sentences(old, read(shop))
    assert found[0] == "container web stopped (exited)", found
    assert not any("namespace" in each or "veth" in each for each in found), found


def test_a_port_that_is_no_longer_published(shop: DockerHost) -> None:
    old = read(shop)
    shop.run("rm", "-f", "web")
    shop.container("web", "--network", NET, "--ip", "10.66.0.2")
    found = sentences(old, read(shop))
    assert any(each.startswith("container web no longer publishes") for each in found), found
