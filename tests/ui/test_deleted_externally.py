"""Repair and clean up after another program deleted a bridge or container."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.echo import ASK, serving
from tests.support.machine import Machine, addresses, machine_state, ok, read_json, refused, uplink
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

SHOP = "network create shop --subnet 10.91.0.0/24"


def answers(machine: Machine, address: str, inside: str = "") -> bool:
    words = machine.words(sys.executable, "-c", ASK, address, "8080", inside=inside)
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def ports(machine: Machine) -> dict[str, str]:
    return {one["ifname"]: one["master"] for one in machine.json("ip -j link") if "master" in one}


def delete_the_bridge(machine: Machine) -> None:
    uplink(machine)
    ok(machine, SHOP)
    ok(machine, "container create web --network shop")
    ok(machine, "publish web 8080:80")
    machine.run("ip link del br-shop")
    assert ports(machine) == {}


@pytest.mark.parametrize("way", ["create", "create as it was", "apply"])
def test_containers_are_attached_again_when_the_network_is_created_again(machine: Machine, way: str) -> None:
    uplink(machine)
    ok(machine, SHOP)
    ok(machine, "container create web --network shop")
    ok(machine, "publish web 8080:80")
    file = machine.folder / "net.toml"
    file.write_text(ok(machine, "export"))
    machine.run("ip link del br-shop")
    again = {"create": "network create shop", "create as it was": SHOP, "apply": f"apply {file} --yes"}[way]
    before = machine_state(machine) | {"rules": ""}  # the rules of the deleted bridge don't come back
    done = read_json(machine, again)
    assert any("web" in one and "attached again" in one for one in done["hits"]), done
    assert ports(machine) == {"v-web": "br-shop"}
    assert addresses(machine, "br-shop") == ["10.91.0.1/24"]
    with serving(machine, "web"):
        wait_until(lambda: answers(machine, "192.0.2.2"), "the port to answer")
        wait_until(lambda: answers(machine, "127.0.0.1"), "route_localnet, the new bridge's")
        wait_until(lambda: answers(machine, "192.0.2.2", inside="web"), "the hairpin, the new bridge's")
    ok(machine, "undo")
    assert machine_state(machine) | {"rules": ""} == before


def test_on_another_subnet_they_stay_disconnected_with_a_warning(machine: Machine) -> None:
    delete_the_bridge(machine)
    done = read_json(machine, "network create shop --subnet 10.92.0.0/24")
    assert any("web stays disconnected" in one for one in done["warnings"]), done
    assert ports(machine) == {}
    ok(machine, "detach web shop")
    ok(machine, "attach web shop")
    assert addresses(machine, "eth0", "web") == ["10.92.0.2/24"]
    assert ports(machine) == {"v-web": "br-shop"}


def test_a_container_is_detached_from_a_deleted_bridge(machine: Machine) -> None:
    delete_the_bridge(machine)
    assert "hasn't attached" in refused(machine, "detach", "world", "shop")
    ok(machine, "detach web shop")
    assert "eth0" not in machine.run("ip link", inside="web")
    assert not [one for one in machine.json("ip -j link") if one["ifname"] == "v-web"]
    assert "8080" not in machine.run("nft list ruleset"), "its port went with it"


def test_cleanup_works_without_the_bridge(machine: Machine) -> None:
    delete_the_bridge(machine)
    ok(machine, "cleanup --yes")
    assert "v-web" not in machine.run("ip link")
    assert "web" not in machine.run("ip netns")
    assert machine.run("nft list ruleset") == ""
    assert "nothing to do" in ok(machine, "cleanup --yes")


def test_an_address_with_a_published_port_is_not_assigned_again(machine: Machine) -> None:
    ok(machine, SHOP)
    ok(machine, "container create web --network shop")
    ok(machine, "publish web 8080:80")
    machine.run("ip netns del web")
    wait_until(lambda: "v-web" not in machine.run("ip link"), "the kernel to take the link away")
    ok(machine, "container create other --network shop")
    assert addresses(machine, "eth0", "other") == ["10.91.0.3/24"]
    ok(machine, "container create third")
    done = read_json(machine, "attach third shop --address 10.91.0.2")
    assert any("tcp/8080" in one and "unpublish" in one for one in done["warnings"]), done
    ok(machine, "detach third shop")
    ok(machine, "container create web --network shop")
    assert addresses(machine, "eth0", "web") == ["10.91.0.2/24"], "whose port it is"
