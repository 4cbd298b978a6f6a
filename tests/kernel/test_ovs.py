"""Check Open vSwitch bridges of a real database, and errors.

The datapath is in user space.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.collect import ovs
from core.collect.ovs import read_flows, read_ovs, with_normal
from core.model import OvsBridge, OvsPort
from tests.kernel.reading import links_of
from tests.support.host import ThrowawayHost
from tests.support.ovs import switch_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def switch(host: ThrowawayHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThrowawayHost]:
    """Create a host with a running Open vSwitch, found through OVS_RUNDIR."""
    monkeypatch.setenv("OVS_RUNDIR", str(tmp_path))
    with switch_of(host, tmp_path):
        yield host


def vsctl(host: ThrowawayHost, arguments: str | list[str]) -> str:
    """Run ovs-vsctl on the host's own database."""
    words = arguments if isinstance(arguments, list) else shlex.split(arguments)
    return host.run(["ovs-vsctl", "--timeout=60", *words])


def only_bridge() -> OvsBridge:
    """Return the only bridge; there must be no problem."""
    (bridge,), problems = read_ovs()
    assert problems == ()
    return bridge


def port(name: str) -> OvsPort:
    """Return a port of the only bridge."""
    return {port.name: port for port in only_bridge().ports}[name]


def test_bridges_ports_and_tags(switch: ThrowawayHost) -> None:
    switch.run("ip link add v0 type veth peer name w0")
    switch.run("ip link set v0 up")
    switch.run("ip link set w0 up")
    vsctl(switch, "add-br br0 -- set bridge br0 datapath_type=netdev fail_mode=secure rstp_enable=true")
    vsctl(switch, "add-port br0 v0 tag=10")
    vsctl(switch, "add-port br0 in0 trunks=5,7,6 -- set interface in0 type=internal")
    vsctl(switch, "br-set-external-id br0 made-by a-test")
    bridge = only_bridge()
    assert {bridge.name} == set(vsctl(switch, "list-br").split())
    assert {p.name for p in bridge.ports} - {"br0"} == set(vsctl(switch, "list-ports br0").split())
    assert (bridge.datapath, bridge.fail_mode, bridge.stp, bridge.rstp) == ("netdev", "secure", False, True)
    assert bridge.external_ids == {"made-by": "a-test"}
    assert (port("v0").tag, port("v0").trunks) == (10, ())
    assert (port("in0").tag, port("in0").trunks) == (None, (5, 6, 7))
    printed = {entry["ifname"]: entry for entry in switch.json("ip -j link")}
    for name, kind in (("v0", "system"), ("in0", "internal"), ("br0", "internal")):
        (interface,) = port(name).interfaces
        assert (interface.kind, interface.ifindex) == (kind, printed[name]["ifindex"])
        assert interface.mac == printed[name]["address"] == links_of(switch)[name].mac
        assert interface.admin_up == ("UP" in printed[name]["flags"])


def test_patches_tunnels_bonds_and_broken_ports(switch: ThrowawayHost) -> None:
    vsctl(switch, "add-br br0 -- set bridge br0 datapath_type=netdev")
    vsctl(switch, "add-port br0 pa -- set interface pa type=patch options:peer=pb")
    vsctl(switch, "add-port br0 vx -- set interface vx type=vxlan options:remote_ip=10.0.0.9 options:key=7")
    vsctl(switch, "add-bond br0 bond0 in0 in1 bond_mode=balance-slb"
                  " -- set interface in0 type=internal -- set interface in1 type=internal")  # fmt: skip
    vsctl(switch, "add-port br0 nowhere vlan_mode=native-untagged tag=3")
    (patch,), (tunnel,), (broken,) = (port(name).interfaces for name in ("pa", "vx", "nowhere"))
    assert (patch.kind, patch.options) == ("patch", {"peer": "pb"})
    assert (tunnel.kind, tunnel.options) == ("vxlan", {"remote_ip": "10.0.0.9", "key": "7"})
    assert "No such device" in broken.error
    assert (broken.ifindex, broken.ofport) == (None, None)
    assert (port("nowhere").vlan_mode, port("nowhere").tag) == ("native-untagged", 3)
    assert [interface.name for interface in port("bond0").interfaces] == ["in0", "in1"]
    assert port("bond0").bond_mode == "balance-slb"


def test_several_bridges_are_sorted(switch: ThrowawayHost) -> None:
    for name in ("brz", "bra"):
        vsctl(switch, f"add-br {name} -- set bridge {name} datapath_type=netdev")
    assert [bridge.name for bridge in read_ovs()[0]] == ["bra", "brz"]


def test_a_database_may_be_named(
    switch: ThrowawayHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vsctl(switch, "add-br br0 -- set bridge br0 datapath_type=netdev")
    monkeypatch.delenv("OVS_RUNDIR")
    assert [bridge.name for bridge in read_ovs(f"unix:{tmp_path}/db.sock")[0]] == ["br0"]


def test_a_stopped_switch_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVS_RUNDIR", str(tmp_path))
    bridges, (problem,) = read_ovs()
    assert bridges == ()
    assert (problem.part, "connection failed" in problem.why, "systemctl start" in problem.try_) == (
        "ovs",
        True,
        True,
    )


def test_without_ovs_vsctl_there_are_no_bridges_and_no_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_ovs() == ((), ())


def test_controllers_bonds_and_ids(switch: ThrowawayHost) -> None:
    vsctl(switch, "add-br br0 -- set bridge br0 datapath_type=netdev protocols=OpenFlow13,OpenFlow15")
    vsctl(switch, "set-controller br0 tcp:127.0.0.1:6653 ptcp:16654:127.0.0.1")
    vsctl(switch, "add-bond br0 bond0 in0 in1 bond_mode=active-backup lacp=off external_ids:cabinet=7"
                  " -- set interface in0 type=internal -- set interface in1 type=internal")  # fmt: skip
    for name in ("in0", "in1"):
        switch.run(f"ip link set {name} up")
    bridge = only_bridge()
    assert [one.target for one in bridge.controllers] == ["ptcp:16654:127.0.0.1", "tcp:127.0.0.1:6653"]
    assert not any(one.is_connected for one in bridge.controllers)
    assert bridge.protocols == ("OpenFlow13", "OpenFlow15")
    assert (port("bond0").is_bond, port("bond0").lacp) == (True, "off")
    assert port("bond0").external_ids == {"cabinet": "7"}
    wait_until(lambda: port("bond0").bond_active in ("in0", "in1"))
    shown = switch.run("ovs-appctl bond/show bond0")
    assert f"member {port('bond0').bond_active}: enabled\n  active member" in shown


def test_flows_with_counters(switch: ThrowawayHost) -> None:
    vsctl(switch, "add-br br0 -- set bridge br0 datapath_type=netdev protocols=OpenFlow13")
    for flow in ("table=1,tcp,tp_dst=80,actions=drop", "table=1,actions=drop",
                 "table=1,priority=7,actions=drop",
                 "priority=9,in_port=LOCAL,idle_timeout=600,actions=resubmit(,1),NORMAL"):  # fmt: skip
        switch.run(f"ovs-ofctl -O OpenFlow13 add-flow br0 {flow}")
    switch.run("ip link set br0 up")
    switch.run("ip addr add 10.0.0.1/24 dev br0")
    switch.run("ping -c1 -W1 10.0.0.2", check=False)
    switch.run("ip link set br0 down")  # it sends by itself as well
    flows = read_flows(only_bridge())
    assert [(flow.table, flow.priority, flow.match, flow.actions) for flow in flows] == [
        (0, 9, "in_port=LOCAL", "resubmit(,1),NORMAL"), (0, 0, "", "NORMAL"),
        (1, 32768, "tcp,tp_dst=80", "drop"), (1, 32768, "", "drop"), (1, 7, "", "drop"),
    ]  # fmt: skip

    def is_printed() -> bool:
        """Compare counters, which lag behind the packets."""
        flow, *_ = read_flows(only_bridge())
        printed = switch.run("ovs-ofctl -O OpenFlow13 dump-flows br0").splitlines()
        (line,) = (line for line in printed if "priority=9" in line)
        return flow.packets > 0 and f"n_packets={flow.packets}, n_bytes={flow.bytes}" in line

    wait_until(is_printed, "the counters")


def test_what_keeps_a_bridge_from_switching_as_usual(switch: ThrowawayHost) -> None:
    vsctl(switch, "add-br br0 -- set bridge br0 datapath_type=netdev")
    vsctl(switch, "add-port br0 in0 -- set interface in0 type=internal")

    def is_normal() -> bool | None:
        (bridge,) = with_normal((only_bridge(),))
        return bridge.normal

    assert only_bridge().normal is None and is_normal()
    for setting, usual in (
        ("set bridge br0 stp_enable=true", "set bridge br0 stp_enable=false"),
        ("set bridge br0 rstp_enable=true", "set bridge br0 rstp_enable=false"),
        ("set port in0 vlan_mode=native-untagged", "clear port in0 vlan_mode"),
        ("set port in0 protected=true", "set port in0 protected=false"),
    ):
        vsctl(switch, setting)
        assert is_normal() is False, setting
        vsctl(switch, usual)
        assert is_normal(), usual
    switch.run("ovs-ofctl add-flow br0 priority=9,icmp,actions=drop")
    assert is_normal() is False
    switch.run("ovs-ofctl del-flows br0")
    assert is_normal() is False, "without flows all packets are dropped"


def test_show_lists_all_of_it(switch: ThrowawayHost) -> None:
    vsctl(switch, "add-br br0 -- set bridge br0 datapath_type=netdev")
    vsctl(switch, "add-port br0 vx0 tag=30 -- set interface vx0 type=vxlan options:remote_ip=192.0.2.9"
                  " options:key=77 options:local_ip=192.0.2.1")  # fmt: skip
    vsctl(switch, "add-bond br0 bond0 in0 in1 -- set interface in0 type=internal"
                  " -- set interface in1 type=internal")  # fmt: skip
    vsctl(switch, "add-port br0 gone trunks=5,6")
    vsctl(switch, ["set-controller", "br0", "unix:/tmp/\x1b[31mred"])
    shown = switch.vnet("show", "ovs")
    rows = {line.split()[0]: line for line in shown.stdout.splitlines()}
    assert "\x1b" not in shown.stdout and "netdev" in rows["br0"]
    for text in ("vxlan", "30", "192.0.2.9", "77", "local_ip=192.0.2.1"):
        assert text in rows["vx0"]
    assert "bond" in rows["bond0"] and "internal" in rows["in0"]
    assert "trunk 5 6" in rows["gone"] and "No such device" in rows["gone"]
    assert any("not connected" in line for line in shown.stdout.splitlines())
    (bridge,) = json.loads(switch.vnet("show", "ovs", "--json").stdout)["ovs"]
    assert {one["name"] for one in bridge["ports"]} == {"br0", *vsctl(switch, "list-ports br0").split()}
    assert len(bridge["controllers"]) == 1
    vsctl(switch, "del-controller br0")
    switch.run("ovs-ofctl add-flow br0 priority=5,tcp,tp_dst=80,actions=drop")
    printed = switch.vnet("show", "ovs", "--flows", "br0").stdout
    assert "tcp,tp_dst=80" in printed and "drop" in printed and "NORMAL" in printed
    document = json.loads(switch.vnet("show", "ovs", "--flows", "br0", "--json").stdout)
    assert [(flow["priority"], flow["actions"]) for flow in document["flows"]] == [(5, "drop"), (0, "NORMAL")]
    refused = switch.vnet("show", "ovs", "--flows", "br9")
    assert (refused.returncode, "can't read the flows of br9" in refused.stderr) == (1, True)


@pytest.mark.parametrize("answer", ["", "no json", '{"data": []}\n{}\n{}', "[]\n[]\n[]", "1\n2\n3"])
def test_an_answer_that_is_garbage_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str
) -> None:
    tool = tmp_path / "ovs-vsctl"
    tool.write_text(f"#!/bin/sh\ncat <<'EOF'\n{answer}\nEOF\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    bridges, (problem,) = read_ovs()
    assert (bridges, "unexpected output" in problem.why) == ((), True)


def test_a_switch_that_hangs_is_given_up(
    switch: ThrowawayHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = int((tmp_path / "server.pid").read_text())
    os.kill(server, signal.SIGSTOP)
    try:
        with monkeypatch.context() as hurried:
            hurried.setattr(ovs, "TIMEOUT", 1)
            bridges, (problem,) = ovs.read_ovs()
    finally:
        os.kill(server, signal.SIGCONT)
    assert (bridges, problem.part) == ((), "ovs")
    assert ovs.read_ovs() == ((), ())
