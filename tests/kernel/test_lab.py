"""Check the demo lab with the system's own tools, and that it leaves nothing."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.lab import Lab, LabError, LabSettings, lab
from tests.kernel.lab_sandbox import run_scenario
from tests.support.lab_inside import Inside
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def inside() -> Iterator[Inside]:
    with Lab() as lab:
        yield Inside(lab)


def addresses(links: list[dict[str, Any]], name: str) -> set[str]:
    link = next(link for link in links if link["ifname"] == name)
    return {f"{at['local']}/{at['prefixlen']}" for at in link["addr_info"] if at["scope"] == "global"}


def test_the_host_has_its_networks_and_uplink(inside: Inside) -> None:
    links = inside.json("ip", "-j", "addr")
    assert addresses(links, "br-shop") == {"172.18.0.1/16"}
    assert addresses(links, "br-blog") == {"172.19.0.1/24", "fd19:b10c::1/64"}
    assert addresses(links, "br-data") == {"10.89.0.1/24"}
    assert addresses(links, "eth0") == {"192.0.2.10/24", "2001:db8::10/64"}
    ports = {link["ifname"]: link["master"] for link in inside.json("ip", "-j", "link") if "master" in link}
    assert ports == {
        "v-web1": "br-shop", "v-web2": "br-shop", "v-api": "br-shop", "v-api1": "br-data",
        "v-db": "br-data", "v-cache": "br-data", "v-blog": "br-blog",
    }  # fmt: skip
    assert inside.run("hostname") == "demo-lab\n"


def test_containers_are_in_all_four_models(inside: Inside) -> None:
    processes = inside.processes()
    host = processes["lab"]
    assert processes["vault"]["net"] == inside.netns("vault")
    assert [link["ifname"] for link in inside.json("ip", "-j", "-n", "vault", "link")] == ["lo"]
    assert processes["postgres"]["net"] == inside.netns("db")
    assert {link["ifname"] for link in inside.json("ip", "-j", "-n", "api", "link")} == {"lo", "eth0", "eth1"}
    assert processes["fluent-bit"]["net"] == inside.netns("web1")
    assert processes["blackbox"]["net"] == host["net"]
    for kind in ("pid", "mnt", "uts", "ipc"):
        assert len({processes[name][kind] for name in ("blackbox", "fluent-bit", "vault", "lab")}) == 4


def test_eight_containers_beside_the_sidecars_and_the_internet(inside: Inside) -> None:
    names = set(inside.run("ls", "/run/netns").split())
    assert names == {"web1", "web2", "api", "db", "cache", "blog", "vault", "internet"}


def test_a_published_port_answers_the_internet(inside: Inside) -> None:
    for url in (
        "http://192.0.2.10:8080/1234", "http://192.0.2.10:8081/1234",
        "http://192.0.2.10:8090/1234", "http://[2001:db8::10]:8090/1234",
    ):  # fmt: skip
        assert eventually(lambda url=url: inside.fetch("internet", url) == 1234), url
    assert inside.rule("shop front page on web1")[1] > 0


def test_the_nat_networks_reach_the_internet(inside: Inside) -> None:
    assert eventually(lambda: inside.fetch("web1", "http://203.0.113.80:443/77") == 77)
    assert eventually(lambda: inside.fetch("blog", "http://[2001:db8:80::80]:443/77") == 77)


def test_the_internal_network_has_no_uplink(inside: Inside) -> None:
    assert inside.json("ip", "-j", "-n", "db", "route", "show", "default") == []
    before = inside.rule("br-data is internal")[1]
    inside.run("ip", "-n", "db", "route", "add", "default", "via", "10.89.0.1")
    try:
        assert inside.fetch("db", "http://203.0.113.80:443/77") == -1
    finally:
        inside.run("ip", "-n", "db", "route", "del", "default")
    assert inside.rule("br-data is internal")[1] > before


def test_traffic_flows_at_a_bounded_rate(inside: Inside) -> None:
    links = ("eth0", "v-web1", "v-api1", "v-cache", "v-blog")
    began = time.monotonic()
    before = {link: inside.counter(link) for link in links}
    for link in links:
        assert eventually(lambda link=link: inside.counter(link) > before[link]), link
    assert eventually(lambda: time.monotonic() - began > 3)
    rate = (inside.counter("eth0") - before["eth0"]) / (time.monotonic() - began)
    assert rate < 250_000  # bytes per second: 2 Mbit/s


def test_conntrack_has_every_protocol_and_ended_flows(inside: Inside) -> None:
    def table(*options: str) -> str:
        return inside.run("conntrack", "-L", *options)

    for protocol in ("tcp", "udp", "icmp"):
        assert eventually(lambda protocol=protocol: "src=" in table("-p", protocol)), protocol
    assert eventually(
        lambda: "dst=192.0.2.10" in table("--src-nat") and "src=172.18.0.2" in table("--dst-nat")
    )
    assert eventually(lambda: "tcp" in table("-f", "ipv6"))
    assert eventually(lambda: "ESTABLISHED" in table("-p", "tcp") and "TIME_WAIT" in table("-p", "tcp"))
    assert "bytes=" in table() and "delta-time=" in table()


def test_fault_mtu_mismatch(inside: Inside) -> None:
    mtus = {link["ifname"]: link["mtu"] for link in inside.json("ip", "-j", "link")}
    assert (mtus["br-blog"], mtus["v-blog"]) == (1400, 1400)
    assert inside.json("ip", "-j", "-n", "blog", "link", "show", "eth0")[0]["mtu"] == 1500
    before = inside.counter("v-blog", "dropped")
    assert eventually(lambda: inside.counter("v-blog", "dropped") > before)


def test_fault_dead_joined_namespace(inside: Inside) -> None:
    processes = inside.processes()
    exporter = processes.pop("redis_exporter")
    assert "VNET_NETWORK_MODE=container:cache" in exporter["environ"]
    assert exporter["net"] not in {process["net"] for process in processes.values()}
    assert exporter["net"] != inside.netns("cache") == processes["redis-server"]["net"]


def test_fault_forward_drop(inside: Inside) -> None:
    rule, before = inside.rule("web2 stays in during the audit")
    assert {"drop": None} in rule["expr"] and rule["chain"] == "forward"
    assert inside.fetch("web2", "http://203.0.113.80:443/77") == -1
    assert inside.rule("web2 stays in during the audit")[1] > before
    assert eventually(lambda: inside.fetch("web2", "http://172.18.0.4:8000/77") == 77)


def test_fault_overlapping_subnet(inside: Inside) -> None:
    subnets = {
        route["dev"]: ipaddress.ip_network(route["dst"])
        for route in inside.json("ip", "-j", "route") if route["dst"] != "default"
    }  # fmt: skip
    assert subnets["br-old"].subnet_of(subnets["br-shop"])


def test_nothing_of_the_machine_is_visible_inside(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    assert inside.run("ls", "/run").split() == ["netns"]
    mounts = [line.split() for line in inside.run("cat", "/proc/self/mountinfo").splitlines()]
    named = {int(fields[3][5:-1]) for fields in mounts if fields[3].startswith("net:[")}
    assert named == {inside.netns(name) for name in inside.run("ls", "/run/netns").split()}
    assert "pytest" not in inside.processes()
    monkeypatch.setenv("DOCKER_HOST", "unix:///elsewhere")
    assert "DOCKER_HOST" not in inside.run("env")


def test_a_command_inside_keeps_its_folder_and_exit_code(inside: Inside) -> None:
    assert inside.run("pwd").strip() == os.getcwd()
    assert inside.lab.run_inside(["sh", "-c", "exit 7"]) == 7
    assert os.readlink("/proc/self/ns/pid_for_children") == os.readlink("/proc/self/ns/pid")


_DEMO = "import sys; from core.lab.lab import main; sys.exit(main(sys.argv[1:]))"


def catches(pid: int, number: int) -> bool:
    """Return whether a process handles that signal (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def launch_demo(script: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _DEMO, "sh", "-c", script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_the_launcher_forwards_sigterm() -> None:
    launcher = launch_demo("trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done")
    assert launcher.stdout is not None and launcher.stdout.readline() == "up\n"
    assert eventually(lambda: catches(launcher.pid, signal.SIGTERM))
    launcher.terminate()
    assert launcher.wait(timeout=PATIENCE) == 5


def test_the_launcher_stops_and_continues_with_its_command() -> None:
    launcher = launch_demo("echo up; kill -STOP $$; exit 6")
    assert launcher.stdout is not None and launcher.stdout.readline() == "up\n"
    _, status = os.waitpid(launcher.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    launcher.send_signal(signal.SIGCONT)
    assert launcher.wait(timeout=PATIENCE) == 6


def test_a_command_ended_by_a_signal_gives_the_code_that_a_shell_gives() -> None:
    assert launch_demo("kill -KILL $$").wait(timeout=PATIENCE) == 128 + signal.SIGKILL


def test_an_orderly_end_leaves_nothing() -> None:
    seen = run_scenario("orderly")
    assert len(seen["during"]["namespaces"]) > len(seen["before"]["namespaces"]) + 8
    assert seen["after"] == seen["before"]


@pytest.mark.parametrize("scenario", ["killed", "killed_while_building"])
def test_a_killed_launcher_leaves_nothing(scenario: str) -> None:
    seen = run_scenario(scenario)
    assert len(seen["during"]["namespaces"]) > len(seen["before"]["namespaces"]) + 8
    assert seen["after"] == seen["before"]
    assert seen["again"] == 0


def test_two_labs_are_separate(inside: Inside) -> None:
    with Lab(LabSettings(traffic=False, namespaces=3)) as lab:
        other = Inside(lab)
        assert {process["net"] for process in inside.processes().values()}.isdisjoint(
            process["net"] for process in other.processes().values()
        )
        other.run("ip", "link", "del", "br-shop")
        assert eventually(lambda: inside.fetch("internet", "http://192.0.2.10:8080/55") == 55)
    assert inside.fetch("internet", "http://192.0.2.10:8080/55") == 55


def test_a_lab_without_traffic_has_servers_and_further_namespaces() -> None:
    with Lab(LabSettings(traffic=False, namespaces=3)) as lab:
        inside = Inside(lab)
        assert eventually(lambda: inside.fetch("internet", "http://192.0.2.10:8080/55") == 55)
        flows = inside.run("conntrack", "-L", "-p", "tcp").splitlines()
        assert flows and all("dport=8080" in flow for flow in flows)
        assert {"extra000", "extra001", "extra002"} < set(inside.run("ls", "/run/netns").split())
        link = inside.json("ip", "-j", "-n", "extra002", "addr", "show", "eth0")[0]
        assert link["operstate"] == "UP" and link["addr_info"][0]["local"] == "10.99.0.3"


def test_an_address_moves_with_changes() -> None:
    def holders() -> list[str]:
        outputs = {name: inside.run("ip", "-n", name, "addr", "show", "eth0") for name in ("web1", "web2")}
        return [name for name, text in outputs.items() if "172.18.0.100/32" in text]

    with Lab(LabSettings(traffic=False, changes=0.2)) as lab:
        inside = Inside(lab)
        assert eventually(lambda: holders() == ["web1"])
        assert eventually(lambda: holders() == ["web2"])
        inside.run("ip", "netns", "del", "web1")
        assert eventually(lambda: inside.fetch("internet", "http://192.0.2.10:8081/55") == 55)


def test_without_root_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match=r"needs root\. Try: sudo vnet-tui demo"):
        lab.main(["true"])


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LabError, match="ip isn't installed"):
        Lab().start()


def test_a_tmux_server_outside_is_unreachable(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMUX", "/tmp/tmux-0/default,1,0")
    assert inside.run("sh", "-c", "echo $TMUX $TMUX_TMPDIR") == "/run\n"


def test_the_lab_has_its_own_journal(inside: Inside) -> None:
    folder = inside.run(
        "sh", "-c", 'mkdir -p "$VNET_STATE" && touch "$VNET_STATE/here" && echo "$VNET_STATE"'
    )
    assert inside.run("ls", folder.strip()) == "here\n"
    assert not Path(folder.strip(), "here").exists()
