"""Docker networks and containers in forms and commands, with a real engine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker.engine import DockerHost
from tests.ui.change_forms import (
    apply_form,
    attach,
    host_dashboard,
    keys,
    make_network,
    select,
    shows,
    values,
)
from tests.ui.driver import Person
from tui.cli import main

pytestmark = pytest.mark.root

# Other hosts on the same machine may be visible.
SHOP, LAN, MINE = (f"{name}{os.getpid()}" for name in ("s", "l", "m"))


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


@pytest.fixture
def engine(inside_docker_host: DockerHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerHost]:
    monkeypatch.setenv("DOCKER_HOST", inside_docker_host.url)
    yield inside_docker_host
    inside_docker_host.host.run(f"ip link del br-{MINE}", check=False)
    inside_docker_host.host.run("nft delete table inet vnet", check=False)


def network(engine: DockerHost, name: str) -> dict[str, Any]:
    (inspected,) = json.loads(engine.run("network", "inspect", name))
    return dict(inspected)


def networks_of(engine: DockerHost, container: str) -> dict[str, Any]:
    return dict(json.loads(engine.run("inspect", "-f", "{{json .NetworkSettings.Networks}}", container)))


def names(engine: DockerHost) -> set[str]:
    return set(engine.run("network", "ls", "--format", "{{.Name}}").split())


def links(engine: DockerHost, container: str) -> dict[str, Any]:
    words = ["nsenter", "-t", str(engine.pid(container)), "-n", "ip", "-j", "addr"]
    return {one["ifname"]: one for one in json.loads(engine.host.run(words))}


async def make_docker_network(person: Person, name: str, subnet: str) -> None:
    """Create a Docker network by the form."""
    await keys(person, "n")
    await keys(person, *name, "tab", "tab", *subnet, "up", "up", "up", "right")
    assert values(person)["engine"] == "docker"
    await shows(person, f"create the Docker network {name} (nat)", "docker network create")
    await apply_form(person)


async def test_a_docker_network_and_a_container_on_it(engine: DockerHost) -> None:
    engine.container("app")
    async with host_dashboard() as person:
        await make_docker_network(person, SHOP, "10.201.0.0/24")
        inspected = network(engine, SHOP)
        assert inspected["IPAM"]["Config"] == [{"Subnet": "10.201.0.0/24", "Gateway": "10.201.0.1"}]
        await keys(person, "a")
        await keys(person, *"app", "tab", *SHOP)
        assert "link" not in values(person)
        await shows(person, f"attach app to {SHOP}", "docker network connect")
        await apply_form(person)
        assert networks_of(engine, "app")[SHOP]["IPAddress"] == "10.201.0.2"
        await select(person, "containers", "app")
        await keys(person, "D")
        await keys(person, "tab", *SHOP)
        await shows(person, f"detach app from {SHOP}")
        await apply_form(person)
        assert set(networks_of(engine, "app")) == {"bridge"}
        await select(person, "networks", SHOP)
        await keys(person, "d")
        await shows(person, f"remove the Docker network {SHOP}")
        await apply_form(person, "y")
        assert SHOP not in names(engine)


async def test_move_between_docker_networks_and_undo(engine: DockerHost) -> None:
    async with host_dashboard() as person:
        await make_docker_network(person, SHOP, "10.201.0.0/24")
        await make_docker_network(person, LAN, "10.202.0.0/24")
        engine.container("app", "--network", SHOP)
        await select(person, "containers", "app")
        await keys(person, "m")
        await keys(person, "tab", "tab", *LAN)
        await shows(person, "docker network connect", "docker network disconnect")
        assert values(person)["network"] == SHOP
        await apply_form(person)
        assert networks_of(engine, "app")[LAN]["IPAddress"] and set(networks_of(engine, "app")) == {LAN}
        await person.press("u")
        await shows(person, f"move app from {SHOP} to {LAN}")
        await person.press("enter")
        await shows(person, "y: apply")
        await apply_form(person, "y")
        assert set(networks_of(engine, "app")) == {SHOP}


async def test_a_docker_container_on_a_bridge_of_vnet(engine: DockerHost) -> None:
    engine.container("app")
    async with host_dashboard() as person:
        await make_network(person, MINE)
        await attach(person, "app", MINE)
        assert set(links(engine, "app")) == {"lo", "eth0", "eth1"}
        (bridge,) = engine.host.json(f"ip -j -4 addr show dev br-{MINE}")
        own = links(engine, "app")["eth1"]["addr_info"][0]["local"]
        assert own.rpartition(".")[0] == bridge["addr_info"][0]["local"].rpartition(".")[0]
        await select(person, "containers", "app")
        await keys(person, "P")
        await keys(person, "tab", *"8099")
        await shows(person, "publish tcp/8099 of app")
        await apply_form(person)
        assert "8099" in engine.host.run("nft list table inet vnet")
        await select(person, "containers", "app")
        await keys(person, "D")
        await keys(person, "tab", *MINE)
        await shows(person, f"detach app from {MINE}", "is no longer published")
        await apply_form(person)
        assert set(links(engine, "app")) == {"lo", "eth0"}


async def test_d_on_a_link_of_docker_detaches_by_docker(engine: DockerHost) -> None:
    engine.container("app")
    (port,) = (one["ifname"] for one in engine.host.json("ip -j link show master docker0"))
    async with host_dashboard() as person:
        await select(person, "links", port)
        await keys(person, "d")
        await shows(person, "detach app from bridge", "docker network disconnect bridge app")
        await apply_form(person, "y")
        assert networks_of(engine, "app") == {} and set(links(engine, "app")) == {"lo"}


async def test_plain_containers_are_refused_on_docker_networks(engine: DockerHost) -> None:
    name = engine.host.namespace("plain")
    async with host_dashboard() as person:
        await keys(person, "a")
        await keys(person, *name)
        await shows(person, "there is no network for it")
    engine.host.run(["ip", "netns", "del", name])


def test_docker_networks_by_command(engine: DockerHost, capsys: pytest.CaptureFixture[str]) -> None:
    engine.container("app")
    for words in (
        f"network create {SHOP} --engine docker --subnet 10.201.0.0/24",
        f"attach app {SHOP} --address 10.201.0.9",
        f"network create {LAN} --engine docker --subnet 10.202.0.0/24",
        f"move app {SHOP} {LAN}",
        f"move app {LAN} {SHOP} --address 10.201.0.9",
        f"network create {MINE} --subnet 10.203.0.0/24",
        f"attach app {MINE}",
    ):
        assert main(words.split()) == 0, capsys.readouterr().err
    assert networks_of(engine, "app")[SHOP]["IPAddress"] == "10.201.0.9"
    held = {end["local"] for link in links(engine, "app").values() for end in link["addr_info"]}
    assert "10.203.0.2" in held
    capsys.readouterr()
    assert main(["attach", "app", SHOP]) == 1
    assert f"already attached to {SHOP}" in capsys.readouterr().err
    assert main(["move", "app", SHOP, MINE]) == 1
    assert f"Try: vnet-tui attach app {MINE}, then vnet-tui detach app {SHOP}" in capsys.readouterr().err
    for words in (f"detach app {MINE}", f"detach app {SHOP}", f"network rm {SHOP}"):
        assert main(words.split()) == 0, capsys.readouterr().err
    assert set(links(engine, "app")) == {"lo", "eth0"} and SHOP not in names(engine)
    assert main(["network", "create", "x", "--engine", "docker", "--kind", "routed"]) == 1
    assert "Try: the engine vnet" in capsys.readouterr().err
    assert main(["network", "rm", "bridge"]) == 1
    assert (
        "can't remove the network bridge: it is one of Docker's built-in networks" in capsys.readouterr().err
    )
