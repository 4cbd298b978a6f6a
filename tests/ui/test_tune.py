"""Tune by command and by form, checked with ip and ethtool."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.docker_dns import write_rules
from tests.support.host import ThrowawayHost
from tests.support.machine import Machine, link, ok, read_json
from tests.ui.change_forms import (
    BRIDGE,
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

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


def size(machine: Machine, name: str, inside: str = "") -> tuple[int, int]:
    found = link(machine, name, inside)
    return found["gso_max_size"], found["gro_ipv4_max_size"]


def test_tune_by_command(machine: Machine) -> None:
    ok(machine, "network create shop")
    ok(machine, "container create web --network shop")
    commands = ok(machine, "tune shop --big-tcp --br-netfilter off --dry-run").splitlines()
    assert "ip -n web link set dev eth0 gso_max_size 262144" in " ".join(commands)
    assert "sysctl -qw net.bridge.bridge-nf-call-iptables=0" in commands
    assert size(machine, "br-shop") == size(machine, "eth0", "web") == (65536, 65536)
    done = read_json(machine, "tune br-shop --big-tcp 131072 --br-netfilter off")
    assert "no longer sees packets between containers" in " ".join(done["warnings"])
    assert size(machine, "br-shop") == size(machine, "eth0", "web") == (131072, 131072)
    assert machine.run("sysctl -n net.bridge.bridge-nf-call-iptables") == "0\n"
    ok(machine, "tune shop --offloads off --rps all")
    (features,) = machine.json("ethtool --json -k v-web")
    assert not features["tcp-segmentation-offload"]["active"]
    assert machine.run("cat /sys/class/net/eth0/queues/rx-0/rps_cpus", "web") != "0\n"
    for _ in range(2):
        ok(machine, "undo")
    assert size(machine, "br-shop") == size(machine, "eth0", "web") == (65536, 65536)
    assert machine.run("sysctl -n net.bridge.bridge-nf-call-iptables") == "1\n"
    assert machine.run("cat /sys/class/net/eth0/queues/rx-0/rps_cpus", "web") == "0\n"


async def choose(person: Person, field: str, *pressed: str) -> None:
    """Go to a field, and press keys."""
    place = list(values(person)).index(field)
    here = person.app.screen.fields.place  # type: ignore[attr-defined]
    await keys(person, *["tab" if place > here else "up"] * abs(place - here), *pressed)


async def test_tune_by_form(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("web")
    inside_host.run("ip link add br-aaa type bridge")
    async with host_dashboard() as person:
        await make_network(person)
        await attach(person, name)
        before = inside_host.run("ip -d link show dev eth0", inside="web")
        await select(person, "networks", BRIDGE)
        await keys(person, "T")
        await shows(person, "nothing differs")
        assert values(person) == {
            "bridge": BRIDGE,
            "big_tcp": "off",
            "offloads": "",
            "br_netfilter": "on",
            "rps": "off",
        }
        await choose(person, "big_tcp", *"262144")
        await shows(person, "gso_max_size 262144", "only new connections use the new size")
        await choose(person, "br_netfilter", "left")
        await shows(person, "no longer sees packets")
        await apply_form(person)
        (link_now,) = inside_host.json("ip -j -d link show dev eth0", inside="web")
        assert link_now["gso_ipv4_max_size"] == 262144
        await select(person, "bridges", BRIDGE)
        await keys(person, "T")
        assert values(person)["big_tcp"] == "262144" and values(person)["br_netfilter"] == "off"
        await person.press("escape")
        await person.press("u")
        await shows(person, f"tune {BRIDGE}")
        await person.press("enter")
        await apply_form(person, "y")
        assert inside_host.run("ip -d link show dev eth0", inside="web") == before


async def test_tune_only_dns_by_form(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("web")
    async with host_dashboard() as person:
        await make_network(person)
        await attach(person, name)
        await select(person, "networks", BRIDGE)
        await keys(person, "T")
        assert "no_track_dns" not in values(person)
        await person.press("escape")
        write_rules(f"/run/netns/{name}")
        await keys(person, "T")
        await shows(person, "nothing differs", "no-track DNS")
        assert values(person)["no_track_dns"] == "off"
        await choose(person, "no_track_dns", "right")
        await shows(person, "table netdev vnet_untracked", "replace Docker's DNS rules")
        await apply_form(person)
        assert inside_host.run("nft list tables", inside="web") == "table netdev vnet_untracked\n"
        await keys(person, "T")
        assert values(person)["no_track_dns"] == "on"
        await person.press("escape")
        await person.press("u")
        await shows(person, f"tune {BRIDGE}")
        await person.press("enter")
        await apply_form(person, "y")
        assert inside_host.run("nft list tables", inside="web") == "table ip nat\n"
