"""Check networks on bridges of Open vSwitch, with real daemons and packets."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.operations import OvsAddBridge
from core.operations.executor import Executor
from tests.support.killing import COUNTED, KILL_AT
from tests.support.machine import Machine, link, ok, read_json, refused, uplink
from tests.support.ovs import DATAPATH, ovs_state, start_database, start_switch, stop, vsctl
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

CREATE = f"network create shop --kind ovs --datapath {DATAPATH} --subnet 10.91.0.0/24"


@pytest.fixture
def empty() -> Iterator[Machine]:
    """Create a machine with a running Open vSwitch and an uplink."""
    machine = Machine()
    try:
        uplink(machine)
        start_database(machine)
        start_switch(machine)
        yield machine
    finally:
        machine.close()


@pytest.fixture
def shop(empty: Machine) -> Machine:
    """Create the network shop, with web and db in VLAN 10, log in VLAN 20, and api."""
    ok(empty, CREATE)
    for name, vlan in (("web", 10), ("db", 10), ("log", 20), ("api", 0), ("app", 0)):
        ok(empty, f"container create {name}")
        ok(empty, f"attach {name} shop" + (f" --vlan {vlan}" if vlan else ""))
    return empty


def address(machine: Machine, name: str) -> str:
    """Return the address of a container."""
    found = link(machine, "eth0", name)["addr_info"]
    return str(next(one["local"] for one in found if one["family"] == "inet"))


def pings(machine: Machine, source: str, to: str) -> bool:
    """Return whether a container gets an answer from an address."""
    return "1 received" in machine.run(f"ping -c1 -W2 {to}", inside=source, check=False)


def tags(machine: Machine) -> dict[str, str]:
    """Return the VLAN of each port, as Open vSwitch has it."""
    lines = vsctl(machine, "--format=csv --no-headings --columns=name,tag list port").splitlines()
    return {name: tag.strip("[]") for name, tag in (line.split(",") for line in lines)}


def test_a_network_is_a_bridge_with_a_gateway(empty: Machine) -> None:
    printed = ok(empty, f"{CREATE} --mtu 1400 --dry-run")
    in_user_space = " -- set bridge br-shop datapath_type=netdev" if DATAPATH == "netdev" else ""
    assert f"ovs-vsctl add-br br-shop{in_user_space} -- set" in printed
    before = ovs_state(empty)
    ok(empty, f"{CREATE} --mtu 1400")
    assert vsctl(empty, "list-br").split() == ["br-shop"]
    assert vsctl(empty, "get bridge br-shop datapath_type").strip('"\n') == DATAPATH.replace("system", "")
    own = link(empty, "br-shop")
    assert (own["mtu"], "UP" in own["flags"]) == (1400, True)
    assert [one["local"] for one in own["addr_info"] if one["scope"] == "global"] == ["10.91.0.1"]
    assert own["address"] in vsctl(empty, "get bridge br-shop other_config:hwaddr")
    assert "masquerade" in empty.run("nft list table inet vnet")
    shown = read_json(empty, "show networks")["networks"]
    assert [(one["name"], one["kind"], one["bridge"]) for one in shown] == [("shop", "ovs", "br-shop")]
    ok(empty, "undo")
    assert ovs_state(empty) == before | {"forward": ovs_state(empty)["forward"]}


def test_only_containers_of_one_vlan_reach_each_other(shop: Machine) -> None:
    assert tags(shop) == {"br-shop": "", "v-web": "10", "v-db": "10", "v-log": "20", "v-api": "", "v-app": ""}
    assert pings(shop, "web", address(shop, "db"))
    assert pings(shop, "api", address(shop, "app"))
    assert pings(shop, "api", "10.91.0.1")
    for source, to in (("web", "log"), ("web", "api"), ("log", "db"), ("api", "web")):
        assert not pings(shop, source, address(shop, to)), (source, to)
    assert not pings(shop, "web", "10.91.0.1")
    assert "default" not in shop.run("ip route", inside="web")


def test_tcp_nat_and_published_ports(shop: Machine) -> None:
    shop.run("ip route add 10.91.0.0/24 via 192.0.2.2", inside="world")
    serve = "busybox nc -l -p 80 -e echo hello"
    for server, client, to in (("api", "app", address(shop, "api")), ("world", "api", "192.0.2.1")):
        assert _talk(shop, serve, server, client, to, 80) == "hello\n"
    ok(shop, "publish api 8080:80")
    assert _talk(shop, serve, "api", "world", "192.0.2.2", 8080) == "hello\n"
    assert "can't be reached" in refused(shop, "publish", "web", "8081:80")


def _talk(machine: Machine, serve: str, server: str, client: str, to: str, port: int) -> str:
    """Return what a TCP server sends to a client."""
    with subprocess.Popen(machine.words(*serve.split(), inside=server)) as running:
        wait_until(lambda: ":80 " in machine.run("ss -Hltn", inside=server))
        try:
            return machine.run(f"busybox nc -w 5 {to} {port}", inside=client, check=False, text="")
        finally:
            running.terminate()


@pytest.mark.parametrize(
    "command",
    ["network rm shop --yes", "detach web shop", "attach spare shop --vlan 7", "container rm web",
     "move api shop side", "cleanup --yes"],
)  # fmt: skip
def test_undo_restores_all(shop: Machine, command: str) -> None:
    ok(shop, "container create spare")
    ok(shop, f"network create side --kind ovs --datapath {DATAPATH} --subnet 10.92.0.0/24")
    before = ovs_state(shop)
    ok(shop, command)
    assert ovs_state(shop) != before
    ok(shop, "undo")
    assert ovs_state(shop) == before
    assert pings(shop, "web", address(shop, "db"))
    assert pings(shop, "api", "10.91.0.1")


@pytest.mark.parametrize(
    "command", [f"network create new --kind ovs --datapath {DATAPATH} --subnet 10.93.0.0/24 --mtu 1400",
                "attach spare shop --vlan 7", "detach web shop", "network rm shop --yes"],
)  # fmt: skip
def test_printed_commands_do_the_same(shop: Machine, command: str) -> None:
    ok(shop, "container create spare")
    typed = ok(shop, f"{command} --dry-run")
    ok(shop, command)
    by_plan = _without_macs(ovs_state(shop))
    ok(shop, "undo")
    shop.run(["bash", "-euc", typed])
    assert _without_macs(ovs_state(shop)) == by_plan


def _without_macs(state: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in state.items() if name != "forward"}


def test_an_exported_network_is_applied(shop: Machine) -> None:
    ok(shop, "detach log shop")
    text = ok(shop, "export")
    before = ovs_state(shop)
    assert ('datapath = "netdev"' in text) == (DATAPATH == "netdev") and "vlan = 10" in text
    file = shop.folder / "net.toml"
    file.write_text(text)
    assert "nothing to do" in ok(shop, f"apply {file} --yes")
    ok(shop, "cleanup --yes")
    assert vsctl(shop, "list-br") == ""
    ok(shop, f"apply {file} --yes")
    assert ovs_state(shop) == before
    file.write_text(text.replace("vlan = 10", "vlan = 30").replace("mtu = 1500", "mtu = 1400"))
    ok(shop, f"apply {file} --yes")
    assert sorted(tags(shop).values()) == ["", "", "", "30", "30"]
    for name in ("br-shop", "v-api"):
        assert link(shop, name)["mtu"] == 1400
    assert pings(shop, "web", address(shop, "db"))


def test_without_a_daemon_nothing_is_changed(empty: Machine) -> None:
    before = ovs_state(empty)
    stop(empty, "ovs-vswitchd")
    words = CREATE.split()
    reason = "Open vSwitch isn't running. Try: systemctl start openvswitch-switch"
    error = refused(empty, *words)
    assert "can't create the Open vSwitch bridge br-shop" in error and reason in error
    assert ovs_state(empty) == before
    stop(empty, "ovsdb-server")
    assert refused(empty, *words) == f"vnet-tui: can't create the network shop: {reason}\n"
    start_database(empty)
    assert ovs_state(empty) == before


def test_without_open_vswitch_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with Executor() as executor, pytest.raises(OSError, match=r"isn't installed\. Try: apt install"):
        OvsAddBridge("br-shop").execute(executor)


def test_other_networks_keep_their_rules_while_it_is_stopped(shop: Machine) -> None:
    stop(shop, "ovsdb-server")
    rules = shop.run("nft -s list table inet vnet")
    error = refused(shop, "network", "create", "other")
    assert "shop" in error and "Open vSwitch" in error
    assert shop.run("nft -s list table inet vnet") == rules
    start_database(shop)
    ok(shop, "network create other")


@pytest.mark.skipif(DATAPATH == "system", reason="the kernel has a datapath")
def test_a_missing_kernel_datapath_is_explained(empty: Machine) -> None:
    before = ovs_state(empty)
    error = refused(empty, "network", "create", "shop", "--kind", "ovs")
    assert "openvswitch module" in error and "--datapath netdev" in error
    assert ovs_state(empty) == before


def test_what_an_undo_could_not_restore_is_kept(shop: Machine) -> None:
    vsctl(shop, "add-port br-shop vx0 -- set interface vx0 type=vxlan options:remote_ip=192.0.2.9")
    before = ovs_state(shop)
    assert "ovs-vsctl del-port br-shop vx0" in refused(shop, "network", "rm", "shop")
    assert ovs_state(shop) == before
    vsctl(shop, "del-port br-shop vx0")
    shop.run("ip link add own0 type veth peer name own1")
    vsctl(shop, "add-port br-shop own0 trunks=5,6")
    before = ovs_state(shop)
    ok(shop, "network rm shop --yes")
    assert "own0" in [one["ifname"] for one in shop.json("ip -j link")]
    ok(shop, "undo")
    assert ovs_state(shop) == before


def test_a_port_that_lost_its_link_does_not_disturb(shop: Machine) -> None:
    shop.run("ip link del v-web")
    wait_until(lambda: vsctl(shop, "get interface v-web ifindex").strip() in ("0", "[]"))
    ok(shop, "attach web shop --vlan 20")
    assert tags(shop)["v-web"] == "20"
    assert pings(shop, "web", address(shop, "log"))
    ok(shop, "network rm shop --yes")
    assert vsctl(shop, "list-br") == ""


def test_the_network_survives_a_restart_of_the_daemon(shop: Machine) -> None:
    stop(shop, "ovs-vswitchd")
    start_switch(shop)
    wait_until(lambda: "br-shop" in shop.run("ip -br link"))
    assert [one["name"] for one in read_json(shop, "network ls")["networks"]] == ["shop"]
    ok(shop, "network rm shop --yes")
    assert vsctl(shop, "list-br") == ""


@pytest.mark.parametrize(
    "command", [f"network create new --kind ovs --datapath {DATAPATH} --subnet 10.93.0.0/24",
                "attach spare shop --vlan 7", "detach web shop", "network rm shop --yes"],
)  # fmt: skip
def test_recover_undoes_a_killed_change(shop: Machine, command: str) -> None:
    ok(shop, "container create spare")
    before, file = ovs_state(shop), Path(shop.folder, "calls")
    shop.environment[COUNTED] = str(file)
    ok(shop, command)
    calls = int(file.read_text())
    del shop.environment[COUNTED]
    title = read_json(shop, "history")["changes"][0]["title"]
    ok(shop, "undo")
    assert ovs_state(shop) == before
    for at in sorted(random.Random(7).sample(range(1, calls), 8)):
        shop.environment[KILL_AT] = str(at)
        killed = shop.vnet(*command.split())
        del shop.environment[KILL_AT]
        assert killed.returncode == -9
        ok(shop, "recover")
        while (last := read_json(shop, "history")["changes"][0])["end"] == "done" and last["title"] == title:
            ok(shop, "undo")  # it was killed after its last step
        assert ovs_state(shop) == before, f"killed at {at} of {calls}"


def verdict(machine: Machine, source: str, target: str) -> str:
    """Return the verdict of `why`, and its sentence."""
    done = machine.vnet("why", source, target, "--json")
    assert "Traceback" not in done.stderr
    answer = json.loads(done.stdout)
    return f"{answer['verdict']}: {answer['sentence']}"


def test_why_agrees_with_real_packets(shop: Machine) -> None:
    for source in ("web", "log", "api"):
        for target in ("db", "log", "app"):
            if source != target:
                found = verdict(shop, source, target)
                assert found.startswith("pass") == pings(shop, source, address(shop, target)), found
                assert found.startswith(("pass", "stop")), found
    assert verdict(shop, "api", "host").startswith("pass") and pings(shop, "api", "10.91.0.1")
    assert verdict(shop, "web", "host").startswith("stop") and not pings(shop, "web", "10.91.0.1")


def test_why_is_uncertain_about_flows(shop: Machine) -> None:
    shop.run("ovs-ofctl add-flow br-shop priority=9,icmp,actions=drop")
    assert not pings(shop, "api", address(shop, "app"))
    for source, target in (("api", "app"), ("api", "host"), ("web", "db"), ("web", "log"), ("host", "api")):
        found = verdict(shop, source, target)
        assert found.startswith("unknown") and ("flow" in found), (source, target, found)
    shop.run("ovs-ofctl del-flows br-shop icmp")
    assert verdict(shop, "api", "app").startswith("pass")
    shop.run("ip addr flush dev eth0", inside="app")
    shop.run("ip addr add 10.91.0.99/24 dev eth0", inside="db")
    vsctl(shop, "add-port br-shop vx0 -- set interface vx0 type=vxlan options:remote_ip=192.0.2.9")
    found = shop.vnet("why", "api", "10.91.0.77", "--json").stdout
    assert json.loads(found)["verdict"] == "unknown", "it may be behind the tunnel"


def test_vlans_are_no_finding(shop: Machine) -> None:
    found = read_json(shop, "doctor")["findings"]
    assert [
        one["sentence"] for one in found if "VLAN" in one["sentence"] or "br-shop" in one["sentence"]
    ] == []


def test_containers_on_it_are_bridged(shop: Machine) -> None:
    (card,) = [
        one["card"] for one in read_json(shop, "show containers")["containers"] if one["name"] == "web"
    ]
    assert card["model"] == "bridged" and "Open vSwitch bridge br-shop" in card["why"]
