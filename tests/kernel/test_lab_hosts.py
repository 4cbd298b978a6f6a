"""Check a lab of several hosts with the system's own tools, and that it leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.lab import Lab, LabError, hosts, hosts_builder, hosts_lab
from core.lab.hosts_lab import HostsLab
from core.plan.vxlan import subnet_by_name, vni_by_name
from core.tools import find_tool
from tests.kernel.lab_sandbox import run_scenario
from tests.support.lab_inside import Inside
from tests.support.waiting import eventually

pytestmark = pytest.mark.root

TUNNEL = f"vx{vni_by_name(hosts.OVERLAY)}"
FLOOD = "00:00:00:00:00:00"


def addresses(lab: Lab, link: str, netns: str = "") -> set[str]:
    inside = ("-n", netns) if netns else ()
    found = Inside(lab).json("ip", "-j", *inside, "-4", "addr", "show", link)
    return {f"{one['local']}/{one['prefixlen']}" for one in found[0]["addr_info"]}


def overlay_address(lab: Lab, netns: str) -> str:
    return next(iter(addresses(lab, "eth0", netns))).partition("/")[0]


def pings(lab: Lab, netns: str, address: str) -> bool:
    words = ("ip", "netns", "exec", netns, "ping", "-c", "1", "-W", "1", address)
    return ", 1 received" in Inside(lab).run(*words, check=False)


def flooded_to(lab: Lab) -> set[str]:
    """Return the hosts to which a host's tunnel sends broadcasts."""
    entries = Inside(lab).json("bridge", "-j", "fdb", "show", "dev", TUNNEL)
    return {one["dst"] for one in entries if one["mac"] == FLOOD}


def others(number: int) -> set[str]:
    return {hosts.underlay_address(each) for each in (1, 2, 3) if each != number}


def reach_each_other(lab: HostsLab) -> None:
    """Assert that containers of different hosts reach each other."""
    one, two, three = lab.hosts
    api, db = overlay_address(one, "api"), overlay_address(two, "db")
    assert eventually(lambda: pings(one, "web1", db))
    assert eventually(lambda: Inside(two).fetch("web2", f"http://{api}:8000/321") == 321)
    assert eventually(lambda: Inside(three).fetch("cache", f"http://{db}:5432/321") == 321)


def find_no_etcd(*names: str) -> str:
    return "" if "etcd" in names else find_tool(*names)


@pytest.fixture(scope="module", params=["etcd", "frr", "static"])
def lab(request: pytest.FixtureRequest) -> Iterator[HostsLab]:
    """Return three hosts: with FRRouting and etcd, with FRRouting, and with neither."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "etcd":
            patch.setattr(hosts_lab, "find_tool", find_no_etcd)
        elif not find_tool("etcd"):
            pytest.skip("needs etcd (apt install etcd-server)")
        if request.param == "static":
            patch.setattr(hosts_builder, "_FRR_FOLDERS", ("/nowhere",))
        elif not hosts_lab.has_frr():
            pytest.skip("needs FRRouting's bgpd (apt install frr)")
        with HostsLab(3) as started:
            yield started


def test_each_host_is_separate(lab: HostsLab) -> None:
    for number, host in enumerate(lab.hosts, 1):
        assert Inside(host).run("hostname") == f"demo-{number}\n"
        assert addresses(host, "eth0") == {f"192.0.2.{10 + number}/24"}
        names = {f"proxy{number}", f"web{number}", ("api", "db", "cache")[number - 1]}
        assert set(Inside(host).run("ls", "/run/netns").split()) == names
        assert "lab" in Inside(host).run("cat", "/proc/1/comm")
        commands = [process["comm"] for process in Inside(host).all_processes()]
        assert commands.count("nginx") == 1 and "pytest" not in commands
    inodes = {Inside(host).run("stat", "-Lc", "%i", f"/proc/self/ns/{kind}") for host in lab.hosts
              for kind in ("net", "mnt", "pid", "uts", "ipc")}  # fmt: skip
    assert len(inodes) == 15


def test_the_overlay_is_made_by_vnet_tui(lab: HostsLab) -> None:
    for host in lab.hosts:
        links = {one["ifname"]: one for one in Inside(host).json("ip", "-j", "-d", "link", "show")}
        assert "kind=overlay" in links["br-shop"]["ifalias"]
        assert links[TUNNEL]["master"] == "br-shop" and links[TUNNEL]["ifalias"] == "vnet:tunnel=shop"
        (address,) = addresses(host, "br-shop")
        prefix = subnet_by_name("shop", 4)
        assert address.rpartition("/")[2] == prefix.rpartition("/")[2]
        assert address.startswith(prefix.rpartition(".")[0])


def test_the_hosts_flood_to_each_other(lab: HostsLab) -> None:
    for number, host in enumerate(lab.hosts, 1):
        assert eventually(lambda host=host, number=number: flooded_to(host) == others(number))


def test_containers_reach_those_of_other_hosts(lab: HostsLab) -> None:
    reach_each_other(lab)


def test_traffic_crosses_the_tunnels(lab: HostsLab) -> None:
    for host in lab.hosts:
        before = {direction: Inside(host).counter(TUNNEL, direction=direction) for direction in ("rx", "tx")}
        for direction, count in before.items():
            assert eventually(
                lambda host=host, direction=direction, count=count: (
                    Inside(host).counter(TUNNEL, direction=direction) > count + 10_000
                )
            )


def test_the_local_network_is_published_and_reaches_the_internet(lab: HostsLab) -> None:
    assert lab.underlay is not None
    for number, host in enumerate(lab.hosts, 1):
        assert eventually(
            lambda host=host, number=number: (
                Inside(host).fetch(f"proxy{number}", "http://203.0.113.1:443/77") == 77
            )
        )
        url = f"http://192.0.2.{10 + number}:8080/88"
        assert eventually(lambda url=url: Inside(lab.underlay).fetch("", url) == 88)


def test_sessions_are_established_where_frr_runs(lab: HostsLab) -> None:
    for number, host in enumerate(lab.hosts, 1):
        daemons = Inside(host).processes().keys() & {"zebra", "bgpd"}
        if not host.settings.frr:
            assert not daemons and not Inside(host).run("sh", "-c", "ls -d /run/frr || true")
            continue
        assert daemons == {"zebra", "bgpd"}

        def established(host: Lab = host) -> set[str]:
            words = ("vtysh", "-H", "/dev/null", "-c", "show bgp l2vpn evpn summary json")
            peers = json.loads(Inside(host).run(*words)).get("peers", {})
            return {name for name, row in peers.items() if row["state"] == "Established"}

        assert eventually(lambda number=number: established() == others(number))
        entries = Inside(host).json("bridge", "-j", "fdb", "show", "dev", TUNNEL)
        assert all("extern_learn" in one["flags"] for one in entries if one["mac"] != FLOOD and "dst" in one)


def test_hosts_and_addresses_are_in_etcd(lab: HostsLab) -> None:
    assert lab.underlay is not None
    if not lab.underlay.settings.etcd:
        assert "etcd" not in Inside(lab.underlay).processes()
        return
    start = "/vnet-tui/1/networks/shop/"
    words = ("etcdctl", "--endpoints", hosts.ETCD, "get", "--prefix", start)
    found = Inside(lab.underlay).run(*words, "--keys-only").split()
    leased = {
        overlay_address(host, name)
        for number, host in enumerate(lab.hosts, 1)
        for name in (f"web{number}", hosts.service(number)[0])
    }
    assert {key.removeprefix(start) for key in found} == {
        "definition",
        *(f"hosts/{hosts.underlay_address(number)}" for number in (1, 2, 3)),
        *(f"addresses/{address}" for address in leased),
    }
    for host in lab.hosts:  # whose agents renew the leases
        commands = [" ".join(process["words"]) for process in Inside(host).all_processes()]
        assert sum("-m tui.cli agent" in command for command in commands) == 1


def test_without_frr_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts_lab, "find_tool", lambda *_: "")
    said: list[str] = []
    with HostsLab(2, traffic=False, progress=said.append) as lab:
        assert "isn't installed" in said[0] and "Try: apt install frr" in said[0]
        assert eventually(lambda: flooded_to(lab.hosts[0]) == {"192.0.2.12"})


def test_a_failed_step_ends_the_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "desired_state", lambda *_: "[network.x]\nkind = 1\n")
    lab = HostsLab(2)
    with pytest.raises(LabError, match=r"demo-1: .*must be text"):
        lab.start()
    for host in lab.hosts:
        with pytest.raises(RuntimeError):
            _ = host.pid


def test_a_fourth_host_has_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts_builder, "_FRR_FOLDERS", ("/nowhere",))  # faster
    with HostsLab(4) as lab:
        address = overlay_address(lab.hosts[0], "web1")
        assert eventually(lambda: pings(lab.hosts[3], "worker4", address))


def test_an_orderly_end_leaves_nothing() -> None:
    seen = run_scenario("orderly", 3)
    assert len(seen["during"]["namespaces"]) > len(seen["before"]["namespaces"]) + 20
    assert seen["after"] == seen["before"]


@pytest.mark.parametrize("scenario", ["killed", "killed_while_building"])
def test_a_killed_launcher_leaves_nothing(scenario: str) -> None:
    seen = run_scenario(scenario, 3)
    assert len(seen["during"]["namespaces"]) > len(seen["before"]["namespaces"]) + 20
    assert seen["after"] == seen["before"]
    assert seen["again"] == 0


def test_a_command_runs_on_the_first_host() -> None:
    command = [sys.executable, "-m", "tui.cli", "demo", "--hosts", "2", "--no-traffic"]
    done = subprocess.run(
        [*command, "sh", "-c", "hostname; exit 7"], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (7, "demo-1\n"), done.stderr
    assert "demo lab: networks ..." in done.stderr
