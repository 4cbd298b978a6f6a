"""Model cards of real containers, compared with the kernel."""

from __future__ import annotations

import os

import pytest

from core.collect.engines import read_docker
from core.collect.host import read_host
from core.collect.links import read_nets
from core.collect.namespaces import read_namespaces
from core.model import NAMESPACE_KINDS, ModelCard, Snapshot
from core.modelcard import cards
from tests.docker.engine import DockerHost

pytestmark = pytest.mark.root


def cards_by_name(engine: DockerHost) -> dict[str, ModelCard]:
    """Return the cards by container name."""
    namespaces, _ = read_namespaces()
    docker = read_docker(engine.socket)
    snapshot = Snapshot(
        host=read_host(),
        namespaces=namespaces,
        nets=read_nets(namespaces.values()),
        engines={"docker": docker},
    )
    found = cards(snapshot)
    return {container.name: found[container.uid] for container in docker.containers}


def test_every_model(inside_docker_host: DockerHost) -> None:
    engine = inside_docker_host
    engine.run("network", "create", "-o", "com.docker.network.bridge.name=user0", "user-net")
    engine.run("network", "create", "--internal", "inner")
    engine.container("br")
    engine.container("us", "--network", "user-net")
    engine.container("in", "--network", "inner")
    engine.container("no", "--network", "none")
    engine.container("ho", "--network", "host")
    side = engine.container("jo", "--network", "container:br")
    engine.run("create", "--name", "new", "busybox:local", "ls")
    found = cards_by_name(engine)
    assert {name: card.model for name, card in found.items()} == {
        "br": "bridged", "us": "bridged", "in": "bridged", "no": "closed", "ho": "open", "jo": "joined",
        "new": "unknown",
    }  # fmt: skip
    assert found["br"].joined_with == (f"docker:{side}",)
    assert found["jo"].joined_with == (found["br"].container,)
    assert not [card for card in found.values() if card.joined_dead]
    assert "docker0 on the host" in found["br"].why
    assert "user0 on the host" in found["us"].why
    port = next(
        link["ifname"] for link in engine.host.json("ip -j -d link show master user0")
    )  # the only port of that bridge
    assert port in found["us"].why


def test_the_matrix(inside_docker_host: DockerHost) -> None:
    engine = inside_docker_host
    engine.container("aa")
    engine.container("bb", "--network", "container:aa", "--ipc", "host", "--pid", "container:aa")
    engine.container("cc", "--network", "host", "--uts", "host")
    pids = {name: engine.pid(name) for name in ("aa", "bb", "cc")}
    found = cards_by_name(engine)
    for name, card in found.items():
        assert [use.kind for use in card.namespaces] == list(NAMESPACE_KINDS)
        for use in card.namespaces:
            mine = os.readlink(f"/proc/{pids[name]}/ns/{use.kind}")
            others = {
                found[other].container
                for other in pids
                if other != name and os.readlink(f"/proc/{pids[other]}/ns/{use.kind}") == mine
            }
            assert mine == f"{use.kind}:[{use.inode}]"
            assert use.with_host == (mine == os.readlink(f"/proc/self/ns/{use.kind}"))
            assert set(use.with_containers) == (set() if use.with_host else others)


def netns(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def test_the_joined_container_is_restarted(inside_docker_host: DockerHost) -> None:
    engine = inside_docker_host
    engine.container("app")
    engine.container("side", "--network", "container:app")
    assert not cards_by_name(engine)["side"].joined_dead
    engine.run("restart", "app")
    assert netns(engine.pid("app")) != netns(engine.pid("side"))
    found = cards_by_name(engine)
    assert (found["side"].model, found["side"].joined_dead) == ("joined", True)
    assert "app" in found["side"].why and "restarted with a new one" in found["side"].why
    assert found["side"].joined_with == found["app"].joined_with == ()
    engine.run("restart", "side")
    assert netns(engine.pid("app")) == netns(engine.pid("side"))
    assert not cards_by_name(engine)["side"].joined_dead


def test_the_joined_container_is_stopped_and_removed(inside_docker_host: DockerHost) -> None:
    engine = inside_docker_host
    gone = engine.container("app")
    engine.container("side", "--network", "container:app")
    engine.run("stop", "app")
    card = cards_by_name(engine)["side"]
    assert card.joined_dead and "isn't running (exited)" in card.why
    engine.run("rm", "app")
    card = cards_by_name(engine)["side"]
    assert card.joined_dead and f" {gone[:12]}, which no longer exists" in card.why
    engine.container("app")
    assert cards_by_name(engine)["side"].joined_dead, "a namesake is another container"
