"""Check the storm guard in the driver of a NIC; veth plays the NIC."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf import syscall
from core.netlink.netns import entered
from tests.support.guarded_network import ANY, ARP, BROADCAST, GROUP, LOCAL, STP
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

RATE, BURST = 100, 50
LIMITS = ("--rate", str(RATE), "--burst", str(BURST), "--multicast", str(RATE))


class Lan:
    """A host with a NIC-bridged network; the other end of its NIC is in the namespace `wire`."""

    def __init__(self, host: ThrowawayHost) -> None:
        self.host = host
        self.name = host.name  # other test hosts on this machine are visible
        self.wire = host.namespace("wire")
        host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
        host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1", "wire")
        host.run(f"ip link add nic0 type veth peer name far netns {self.wire}")
        host.run("ip link set nic0 up")
        host.run("ip link set far up", "wire")
        self.vnet("network", "create", self.name, "--kind", "nic-bridged", "--uplink", "nic0")
        self.vnet("confirm")

    def vnet(self, *words: str) -> str:
        done = self.host.vnet(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def link(self, name: str = "nic0") -> Any:
        return self.host.json(f"ip -j link show {name}")[0]

    def mode(self, name: str = "nic0") -> int:
        """Return how XDP runs on a link: 0 not, 1 in the driver (ip-link(8))."""
        return int(self.link(name).get("xdp", {}).get("mode", 0))

    def received(self, name: str = "") -> int:
        return int(
            self.host.json(f"ip -j -s link show {name or f'br-{self.name}'}")[0]["stats64"]["rx"]["packets"]
        )

    def status(self) -> dict[str, Any]:
        printed = json.loads(self.vnet("storm", "guard", self.name, "status", "--json"))
        return {one["port"]: one for one in printed["ports"]}

    def send(self, destination: str, count: int, protocol: str = LOCAL) -> None:
        """Send frames from the wire."""
        frame = bytes.fromhex(f"{destination}{ANY}{protocol}") + bytes(50)
        with entered(f"/run/netns/{self.wire}"):
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            sender.bind(("far", 0))
        with sender:
            for _ in range(count):
                sender.send(frame)


@pytest.fixture
def lan(host: ThrowawayHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lan]:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))
    yield Lan(host)


VLAN_ARP = "8100002a0806"


@pytest.mark.parametrize(
    ("destination", "protocol", "kind"),
    [
        (BROADCAST, LOCAL, "broadcast"),
        (GROUP, LOCAL, "multicast"),
        (BROADCAST, ARP, "arp"),
        (BROADCAST, VLAN_ARP, "arp"),
    ],
)
def test_the_driver_lets_in_only_the_rate_and_burst(
    lan: Lan, destination: str, protocol: str, kind: str
) -> None:
    lan.vnet("storm", "guard", lan.name, "on", "--xdp", *LIMITS)
    assert lan.mode() == 1
    before, began = lan.received(), time.monotonic()
    lan.send(destination, 20_000, protocol)
    seconds = time.monotonic() - began
    wait_until(lambda: sum(_passed_and_dropped(lan, kind)) >= 20_000, "all frames")
    passed, dropped = _passed_and_dropped(lan, kind)
    assert passed + dropped == 20_000
    assert BURST <= passed <= BURST + RATE * (seconds + 1) + 5
    # What the driver drops isn't seen by the bridge, and what it passes isn't limited again.
    assert lan.received() - before == passed


def _passed_and_dropped(lan: Lan, kind: str) -> tuple[int, int]:
    found = lan.status()["nic0"]["classes"][kind]
    return found["passed"], found["dropped"]


def test_control_frames_and_unicast_pass(lan: Lan) -> None:
    lan.vnet("storm", "guard", lan.name, "on", "--xdp", *LIMITS)
    before = lan.link("nic0"), lan.received("nic0")
    lan.send(STP, 1000)
    lan.send("02aabbccdd09", 1000)
    wait_until(lambda: lan.received("nic0") - before[1] >= 2000, "all frames")
    assert all(one["passed"] == one["dropped"] == 0 for one in lan.status()["nic0"]["classes"].values())


def test_only_the_nic_has_it_and_off_and_undo_remove_it(lan: Lan) -> None:
    lan.vnet("container", "create", lan.host.full("web"), "--network", lan.name)
    lan.host.names.append(lan.host.full("web"))
    preview = lan.host.vnet("storm", "guard", lan.name, "on", "--xdp", *LIMITS, "--dry-run")
    assert preview.stdout.count("--xdp") == 1 and "nic0 may interrupt the link" in preview.stderr
    assert lan.mode() == 0
    lan.vnet("storm", "guard", lan.name, "on", "--xdp", *LIMITS)
    lan.vnet("container", "create", lan.host.full("db"), "--network", lan.name)
    lan.host.names.append(lan.host.full("db"))
    (_, *others) = sorted(lan.status(), key=lambda name: name != "nic0")
    assert [lan.status()[name]["xdp"] for name in ("nic0", *others)] == [True, False, False]
    assert [lan.mode(name) for name in ("nic0", *others)] == [1, 0, 0]
    # Other limits replace it, without or with the driver.
    lan.vnet("storm", "guard", lan.name, "on", "--rate", "9")
    assert lan.mode() == 0 and lan.status()["nic0"]["classes"]["arp"]["rate"] == 9
    lan.vnet("undo")
    assert lan.mode() == 1 and lan.status()["nic0"]["classes"]["arp"]["rate"] == RATE
    lan.vnet("storm", "guard", lan.name, "on", "--rate", "8", "--xdp")
    assert lan.mode() == 1 and lan.status()["nic0"]["classes"]["arp"]["rate"] == 8
    lan.vnet("storm", "guard", lan.name, "off")
    assert lan.mode() == 0 and not lan.status()["nic0"]["guarded"]
    lan.vnet("undo")
    assert lan.mode() == 1
    lan.vnet("network", "rm", lan.name)
    lan.vnet("confirm")
    assert lan.mode() == 0


def test_another_program_of_the_nic_stays(lan: Lan) -> None:
    ret = bytes.fromhex("b7000000020000009500000000000000")  # XDP_PASS
    program = syscall.load_program(syscall.PROG_XDP, ret, "theirs")
    number = syscall.object_id(program)
    with entered(f"/run/netns/{lan.host.full('host')}"):
        from bpf import xdp

        xdp.attach(program, socket.if_nametoindex("nic0"), "theirs")
    before = lan.link()
    done = lan.host.vnet("storm", "guard", lan.name, "on", "--xdp")
    assert done.returncode == 1
    assert (
        "another XDP program is attached to it. Try: vnet-tui storm guard nic0 on, without --xdp"
        in done.stderr
    )
    assert lan.link() == before and lan.link()["xdp"]["prog"]["id"] == number
    lan.vnet("storm", "guard", lan.name, "on")
    lan.vnet("storm", "guard", lan.name, "off")
    assert lan.link()["xdp"]["prog"]["id"] == number


def test_a_driver_without_xdp_is_refused(lan: Lan) -> None:
    lan.host.run("ip link add nic1 type vxlan id 5 local 192.0.2.1 dstport 4790")
    lan.host.run(f"ip link set nic1 master br-{lan.name} up")
    done = lan.host.vnet("storm", "guard", "nic1", "on", "--xdp")
    assert done.returncode == 1 and "its driver doesn't run XDP programs" in done.stderr
    assert "clsact" not in lan.host.run("tc qdisc show dev nic1")


def test_a_network_without_a_nic_is_refused(lan: Lan) -> None:
    lan.vnet("network", "create", "shop")
    lan.vnet("container", "create", lan.host.full("web"), "--network", "shop")
    lan.host.names.append(lan.host.full("web"))
    done = lan.host.vnet("storm", "guard", "shop", "on", "--xdp")
    assert done.returncode == 1 and "none of its ports is a NIC" in done.stderr
