"""Commands that change networks, on a small machine."""

from __future__ import annotations

import pytest

from tests.support.echo import answer, ask, serving
from tests.support.machine import (
    PROGRAM,
    Machine,
    addresses,
    link,
    machine_state,
    ok,
    read_json,
    refused,
    uplink,
)
from tests.support.terminal import Terminal
from tui.cli.change import ports_of

pytestmark = pytest.mark.root


def test_a_network_is_created_and_removed(machine: Machine) -> None:
    before = machine_state(machine)
    ok(machine, "network create shop --subnet 10.91.0.0/24 --subnet fd91::/64 --gateway 10.91.0.7 --mtu 1400")
    made = link(machine, "br-shop")
    assert (made["mtu"], made["linkinfo"]["info_kind"]) == (1400, "bridge")
    assert addresses(machine, "br-shop") == ["10.91.0.7/24", "fd91::1/64"]
    assert "masquerade" in machine.run("nft list table inet vnet")
    assert machine.run("sysctl -n net.ipv4.ip_forward") == "1\n"
    ok(machine, "network rm shop")
    after = machine_state(machine)
    assert after | {"forward": ""} == before | {"forward": ""}


def test_removal_asks_before_it_detaches_containers(machine: Machine) -> None:
    ok(machine, "network create shop")
    ok(machine, "container create web --network shop")
    ok(machine, "publish web 8080:80")
    state = machine.environment["VNET_STATE"]
    for reply, left in (("n", True), ("y", False)):
        with Terminal(machine.words(*PROGRAM, "network", "rm", "shop"), VNET_STATE=state) as terminal:
            terminal.wait_for("[y/N]")
            assert "web is detached from shop" in terminal.output.decode()
            assert terminal.output.count(b"switch hairpin of the port v-web off") == 1
            terminal.press(f"{reply}\r")
            assert terminal.read_to_the_end() == 0
        assert bool([one for one in machine.json("ip -j link") if one["ifname"] == "br-shop"]) == left
    assert 'network "shopp" doesn\'t exist' in refused(machine, "network", "rm", "shopp")


def test_network_kinds_bridges_and_joins(machine: Machine) -> None:
    ok(machine, "network create vault --kind internal --bridge inner0 --ipv6")
    assert len(addresses(machine, "inner0")) == 2
    ok(machine, "network create lan --kind routed")
    (vault, lan) = sorted(read_json(machine, "network ls")["networks"], key=lambda one: one["kind"])
    assert (vault["name"], vault["bridge"], lan["name"], lan["kind"]) == ("vault", "inner0", "lan", "routed")
    ok(machine, "network join vault lan")
    assert read_json(machine, "network ls")["networks"][0]["joined"] == ["vault"]
    ok(machine, "network part lan vault")
    assert read_json(machine, "network ls")["networks"][0]["joined"] == []


def test_vlan_filtering_is_set_if_the_kernel_supports_it(machine: Machine) -> None:
    done = machine.vnet("network", "create", "lab", "--vlan-filtering")
    if done.returncode:
        assert "CONFIG_BRIDGE_VLAN_FILTERING" in done.stderr and "without VLAN filtering" in done.stderr
        assert "br-lab" not in machine.run("ip link")
    else:
        assert link(machine, "br-lab")["linkinfo"]["info_data"]["vlan_filtering"] == 1


def test_networks_are_listed(shared: Machine) -> None:
    (shop,) = read_json(shared, "network ls")["networks"]
    assert shop["subnets"] == ["10.91.0.0/24"] and shop["engine"] == "vnet"
    (web,) = shop["containers"]
    assert web["addresses"] == addresses(shared, "eth0", "web") and web["published"] == ["tcp/8080"]
    lines = ok(shared, "network ls").splitlines()
    assert lines[0].split() == ["NAME", "ENGINE", "KIND", "SUBNETS", "BRIDGE", "CONTAINERS"]
    assert lines[1].split() == ["shop", "vnet", "nat", "10.91.0.0/24", "br-shop", "web"]


def test_attach_move_and_detach(machine: Machine) -> None:
    ok(machine, "network create shop --subnet 10.91.0.0/24")
    ok(machine, "network create lab --subnet 10.92.0.0/24")
    machine.run("ip netns add other")
    ok(machine, "attach other shop --address 10.91.0.9 --link net7")
    assert addresses(machine, "net7", "other") == ["10.91.0.9/24"]
    assert machine.json("ip -j route show default", "other")[0]["gateway"] == "10.91.0.1"
    ok(machine, "move other shop lab --address 10.92.0.8")
    assert addresses(machine, "net7", "other") == ["10.92.0.8/24"]
    ok(machine, "detach other lab")
    assert [one["ifname"] for one in machine.json("ip -j link", "other")] == ["lo"]


def test_undo_restores_secondary_addresses_after_the_primary(machine: Machine) -> None:
    ok(machine, "network create shop --subnet 10.91.0.0/24")
    ok(machine, "container create web --network shop")
    places = (("br-shop", ""), ("eth0", "web"))
    for name, inside in places:
        for address in ("10.91.0.101/24", "10.91.0.100/24", "10.99.0.1/24"):
            machine.run(f"ip addr add {address} dev {name}", inside)
    before = [link(machine, *place)["addr_info"] for place in places]
    assert [one.get("secondary", False) for one in before[0] if one["family"] == "inet"].count(True) == 2
    ok(machine, "network rm shop")
    ok(machine, "undo")
    assert [_global_addresses(link(machine, *place)["addr_info"]) for place in places] == [
        *map(_global_addresses, before)
    ]


def _global_addresses(found: list[dict[str, object]]) -> list[dict[str, object]]:
    return [one for one in found if one["scope"] == "global"]


def test_routes_of_a_container_on_joined_networks(machine: Machine) -> None:
    for words in ("shop --subnet 10.91.0.0/24 --subnet fd91::/64",
                  "vault --kind internal --subnet 10.92.0.0/24",
                  "cell --kind internal --subnet 10.93.0.0/24 --subnet fd93::/64"):  # fmt: skip
        ok(machine, f"network create {words}")
    ok(machine, "network join shop vault")
    ok(machine, "container create web --network shop")
    ok(machine, "attach web vault")
    # Joined while it is on both networks: cell already has one route to shop, its own.
    ok(machine, "attach web cell")
    ok(machine, "network join shop cell")
    ok(machine, "network join vault cell")
    routes = machine.json("ip -j route", "web")
    assert [one["dev"] for one in routes if one["dst"] == "10.91.0.0/24"] == ["eth0"]
    assert [one["dev"] for one in routes if one["dst"] == "10.92.0.0/24"] == ["eth1"]
    # A container that is only on internal networks gets each route once.
    ok(machine, "container create log --network vault")
    ok(machine, "attach log cell")
    routes = machine.json("ip -j route", "log")
    assert [one["gateway"] for one in routes if one["dst"] == "10.91.0.0/24"] == ["10.92.0.1"]
    ok(machine, "network part shop vault")
    ok(machine, "network part shop cell")
    assert not [one for one in machine.json("ip -j route", "log") if one["dst"] == "10.91.0.0/24"]


def test_a_network_is_found_by_its_name_and_its_bridge(machine: Machine) -> None:
    ok(machine, "network create shop --bridge s0 --subnet 10.91.0.0/24")
    ok(machine, "container create web --network shop")
    (shop,) = [one for one in read_json(machine, "show networks")["networks"] if one["bridge"] == "s0"]
    assert shop["name"] == "shop"
    ok(machine, "detach web s0")
    ok(machine, "network rm s0")
    assert "s0" not in machine.run("ip link")


def test_models_of_plain_containers(machine: Machine) -> None:
    ok(machine, "network create shop")
    ok(machine, "container create web --network shop --address 10.64.0.77")
    ok(machine, "container create log --joined-with web")
    ok(machine, "container create alone")
    ok(machine, "container create wide --model open")
    inodes = {name: machine.run(f"stat -Lc %i /run/netns/{name}") for name in ("web", "log", "alone", "wide")}
    assert inodes["web"] == inodes["log"] != inodes["alone"]
    assert inodes["wide"] == machine.run("stat -Lc %i /proc/self/ns/net")
    assert addresses(machine, "eth0", "log") == ["10.64.0.77/24"]
    assert [one["ifname"] for one in machine.json("ip -j link", "alone")] == ["lo"]
    for name in ("log", "wide", "alone", "web"):
        ok(machine, f"container rm {name}")
    assert machine.json("ip -j netns list") == []


def test_traffic_and_published_ports(machine: Machine) -> None:
    uplink(machine)
    ok(machine, "network create shop --subnet 10.91.0.0/24")
    ok(machine, "network create vault --kind internal --subnet 10.92.0.0/24")
    ok(machine, "container create web --network shop")
    ok(machine, "container create till --network shop")
    ok(machine, "container create safe --network vault")
    with serving(machine, "world"), serving(machine, "web"):
        assert answer(machine, "192.0.2.1", 80, "web") == "192.0.2.2"
        assert ask(machine, "192.0.2.1", 80, "safe") == ask(machine, "10.91.0.2", 80, "safe") == ""
        ok(machine, "publish web 8080:80")
        assert answer(machine, "192.0.2.2", 8080, "world") == "192.0.2.1"
        assert answer(machine, "127.0.0.1", 8080) and answer(machine, "192.0.2.2", 8080)
        assert answer(machine, "192.0.2.2", 8080, "till") and answer(machine, "192.0.2.2", 8080, "web")
        ok(machine, "unpublish tcp/8080")
        assert ask(machine, "192.0.2.2", 8080, "world") == ask(machine, "127.0.0.1", 8080) == ""
        ok(machine, "publish web 192.0.2.2:81:80/tcp --network shop")
        assert (
            answer(machine, "192.0.2.2", 81, "world") == "192.0.2.1" and ask(machine, "127.0.0.1", 81) == ""
        )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("8080:80", ("", "8080", "80", "tcp")),
        ("53/udp", ("", "53", "", "udp")),
        ("127.0.0.1:53:5353/udp", ("127.0.0.1", "53", "5353", "udp")),
        ("127.0.0.1:8000-8010", ("127.0.0.1", "8000-8010", "", "tcp")),
        ("[2001:db8::1]:80:8080", ("2001:db8::1", "80", "8080", "tcp")),
        ("sctp/[::]:9", ("::", "9", "", "sctp")),
    ],
)
def test_parsing_of_ports(text: str, parts: tuple[str, ...]) -> None:
    assert ports_of(text) == parts


def test_settings_of_links_bridges_and_ports(machine: Machine) -> None:
    machine.run("ip link add br7 type bridge")
    machine.run("ip netns add other")
    machine.run("ip link add p7 type veth peer name eth0 netns other")
    machine.run("ip link set p7 master br7")
    ok(machine, "link set p7 --up --mtu 1300 --alias 'two words' --name q7")
    changed = link(machine, "q7")
    assert (changed["mtu"], changed["ifalias"], "UP" in changed["flags"]) == (1300, "two words", True)
    ok(machine, "link set eth0 --ns other --up")
    assert "UP" in link(machine, "eth0", "other")["flags"]
    ok(machine, "bridge set br7 ageing_time 12300")
    assert link(machine, "br7")["linkinfo"]["info_data"]["ageing_time"] == 12300
    ok(machine, "port set q7 isolated on")
    assert machine.json("bridge -j -d link show dev q7")[0]["isolated"] is True
    ok(machine, "link rm q7")
    assert {one["ifname"] for one in machine.json("ip -j link")} == {"lo", "br7"}
    ok(machine, "undo")
    restored = link(machine, "q7")
    assert (restored["ifalias"], restored["master"]) == ("two words", "br7")
