"""`vnet-tui accelerate`, `fastpath` and the agent with real traffic."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from core.recording import Recording
from tests.support.machine import PROGRAM, Machine, ok, read_json, refused
from tests.support.ready import running
from tests.support.service import SERVICE
from tests.support.terminal import Terminal
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.root

_LIBERAL = "net.netfilter.nf_conntrack_tcp_be_liberal"
_SERVE = """
import socket
s = socket.create_server(("0.0.0.0", 7000))
print("ready", flush=True)
while True:
    c, _ = s.accept()
    while data := c.recv(4096):
        c.sendall(data)
"""
_TALK = """
import socket, sys
c = socket.create_connection((sys.argv[1], 7000), 60); c.settimeout(60)
def say():
    for _ in range(100):
        c.sendall(b"x" * 100); got = b""
        while len(got) < 100:
            got += c.recv(100 - len(got))
say(); print("ready", flush=True)
for line in sys.stdin:
    say(); print("said", flush=True)
"""


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Yield a machine with the network shop, with web (10.91.0.2) and db (10.91.0.3)."""
    made = Machine()
    try:
        network(made, "shop", "10.91.0", "web", "db")
        yield made
    finally:
        made.vnet("accelerate", "--off", "--yes")
        made.close()


def network(machine: Machine, name: str, subnet: str, *containers: str) -> None:
    """Create a network like vnet's, without its rules, and containers from .2 on."""
    bridge = f"br-{name}"
    lines = [
        f"link add {bridge} type bridge", f"link set {bridge} alias vnet:net={name}",
        f"addr add {subnet}.1/24 dev {bridge}", f"link set {bridge} up",
    ]  # fmt: skip
    for number, each in enumerate(containers, 2):
        machine.run(f"ip netns add {each}")
        lines += [
            f"link add v-{each} type veth peer name eth0 netns {each}",
            f"link set v-{each} master {bridge} up",
        ]
        machine.run("ip -batch -", text="\n".join(lines))
        lines = []
        inside = f"addr add {subnet}.{number}/24 dev eth0\nlink set eth0 up\n"
        machine.run("ip -batch -", each, text=f"{inside}route add default via {subnet}.1")


def started(
    machine: Machine, code: str, inside: str, *words: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run one of our programs in a namespace of the machine; yield it when ready."""
    run = machine.words("setpriv", "--pdeathsig", "KILL", sys.executable, "-c", code, *words, inside=inside)
    return running(run)


def say(talk: subprocess.Popen[str]) -> None:
    """Send a hundred questions with answers on the open connection."""
    assert talk.stdin and talk.stdout
    talk.stdin.write("\n")
    talk.stdin.flush()
    assert talk.stdout.readline() == "said\n"


def status(machine: Machine) -> dict[str, Any]:
    return dict(read_json(machine, "fastpath status"))


def daemon_status(machine: Machine) -> dict[str, Any]:
    """Return the daemon's status answer, empty if off.

    It is read from the control socket, which is quicker than the command.
    """
    with socket.socket(socket.AF_UNIX) as there, suppress(OSError):
        there.settimeout(PATIENCE)
        there.connect(str(next(Path(f"/proc/{machine.pid}/root/run/vnet-tui").glob("*.sock"), "")))
        there.sendall(b'{"do": "status"}\n')
        return dict(json.loads(there.makefile().readline() or "{}"))
    return {}


def is_as_before(machine: Machine) -> bool:
    """Return whether nothing of the fast path is left."""
    return (
        machine.run(f"sysctl -n {_LIBERAL}").strip() == "0"
        and "vnet_fastpath" not in machine.run("nft list tables")
        and not any(each.get("name") == "vnet_fastpath" for each in machine.json("bpftool -j net")[0]["tc"])
        and machine.run("ls /run/vnet-tui", check=False) == ""
    )


def doctor(machine: Machine) -> list[str]:
    """Return what `doctor` finds about the fast path."""
    found = json.loads(machine.vnet("doctor", "--json").stdout)["findings"]
    return [f"{one['severity']}: {one['sentence']}" for one in found if one["kind"] == "fast path"]


def end(agent: subprocess.Popen[Any]) -> None:
    """Ask an agent inside a machine to end, and wait until it has."""
    (child,) = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    assert agent.wait(PATIENCE) == 0


def packets(machine: Machine, verdict: str = "FAST") -> int:
    return int(daemon_status(machine)["verdicts"].get(verdict, 0))


def test_a_network_is_accelerated_by_name_counted_and_restored(machine: Machine) -> None:
    with started(machine, _SERVE, "db"), started(machine, _TALK, "web", "10.91.0.3") as talk:
        text = ok(machine, "accelerate shop --yes")
        for words in (
            "Checksums and TCP windows",
            "0xff000000 of the ct mark",
            "inet vnet_fastpath",
            "v-web (container)",
            "--off",
        ):
            assert words in text
        assert text.endswith("Accelerated: shop.\n")
        wait_until(lambda: say(talk) or packets(machine) > 200, "the fast path")
        found = status(machine)
        assert (found["state"], found["targets"], found["bridges"]) == ("on", ["shop"], ["br-shop"])
        assert {one["name"]: one["role"] for one in found["links"]} == {
            "v-web": "container",
            "v-db": "container",
        }
        assert found["flows"] >= 2 and 0 < found["share"] <= 1 and found["verdicts"]["FAST"]["words"]
        text = ok(machine, "fastpath status")
        assert "fast path: on" in text and "forwarded by the fast path" in text and "v-web" in text
        flow = wait_until(lambda: fast_flow(machine), "the flow's path")
        assert flow["path"] == "fast" and flow["packets"][0] >= 100 and flow["bytes"][0] >= 100 * 100
        wait_until(lambda: recorded(machine) >= 2, "the fast path's flows in a recording")
        ok(machine, "accelerate --off --yes")
        wait_until(lambda: is_as_before(machine), "the state before")
        say(talk)
        assert "off" in ok(machine, "fastpath status")


def fast_flow(machine: Machine) -> dict[str, Any] | None:
    flows = read_json(machine, "flows")["flows"]
    return next((one for one in flows if one["responder"]["port"] == 7000 and one["path"] == "fast"), None)


def recorded(machine: Machine) -> int:
    """Return the most accelerated flows in a moment of a new recording."""
    path = machine.folder / "now.vnetrec"
    ok(machine, f"record {path} --for 4s")
    recording = Recording(path)
    moments = [recording.moment(place) for place in range(len(recording.frames))]
    recording.close()
    path.unlink()
    return max(len(one.fast.entries) if one.fast else 0 for one in moments)


def test_in_a_pid_namespace_our_rules_are_recognized(machine: Machine) -> None:
    ok(machine, "accelerate shop --yes")
    wait_until(lambda: daemon_status(machine).get("state") == "on", "on")

    def stays() -> bool:
        generation = daemon_status(machine)["generation"]
        ok(machine, "fastpath status")
        return bool(daemon_status(machine)["generation"] == generation)

    wait_until(stays, "the same generation")  # a late daemon begins one by itself
    generation = daemon_status(machine)["generation"]
    machine.run("nft add table ip others")
    wait_until(lambda: daemon_status(machine)["generation"] not in (0, generation), "the next generation")


def test_accelerate_shows_the_changes_and_asks_first(machine: Machine) -> None:
    assert "Accelerate shop (bridge br-shop):" in ok(machine, "accelerate shop --dry-run")
    assert "there is no terminal" in refused(machine, "accelerate", "shop")
    assert is_as_before(machine) and status(machine)["state"] == "off"
    assert 'can\'t accelerate "nonsense"' in refused(machine, "accelerate", "nonsense", "--yes")
    assert "no bridge or network is named" in refused(machine, "accelerate")
    assert "nothing to do" in ok(machine, "accelerate --off")
    assert "can't change the fast path: it is off" in refused(machine, "accelerate", "--capture", "10.91.0.2")
    assert "--capture takes neither networks" in refused(
        machine, "accelerate", "shop", "--capture", "10.91.0.2"
    )


def test_networks_are_added_and_removed_one_by_one(machine: Machine) -> None:
    network(machine, "lan", "10.92.0", "api")
    ok(machine, "accelerate shop --yes")
    ok(machine, "accelerate br-lan --yes")
    assert daemon_status(machine)["targets"] == ["shop", "lan"]
    assert "accelerated already" in ok(machine, "accelerate lan --yes")
    assert "v-db (container), v-web (container)" in ok(machine, "accelerate shop --off --yes")
    assert daemon_status(machine)["targets"] == ["lan"]
    assert {one["name"] for one in daemon_status(machine)["ports"]} == {"v-api"}
    ok(machine, "accelerate all --yes")
    ok(machine, "accelerate lan --off --yes")
    assert daemon_status(machine)["targets"] == ["shop"], "of all, the others stay"
    text = ok(machine, "accelerate all --off --yes")
    assert "The fast path is off" in text and is_as_before(machine)


def test_captured_and_invalid_addresses(machine: Machine) -> None:
    with started(machine, _SERVE, "db"), started(machine, _TALK, "web", "10.91.0.3") as talk:
        ok(machine, "accelerate shop --yes")
        wait_until(lambda: say(talk) or packets(machine) > 200, "the fast path")
        assert "10.91.0.3" in ok(machine, "accelerate --capture 10.91.0.3")
        before = packets(machine)
        say(talk)
        assert packets(machine) == before and packets(machine, "CAPTURED") >= 100
        assert daemon_status(machine)["captured"] == ["10.91.0.3"]
        assert "can't capture nonsense: it isn't an IP address" in refused(
            machine, "accelerate", "--capture", "nonsense"
        )
        ok(machine, "accelerate --release 10.91.0.3")
        wait_until(lambda: say(talk) or packets(machine) > before, "the fast path again")


@pytest.mark.needs("tcpdump")
def test_a_capture_sees_accelerated_connections(machine: Machine) -> None:
    path = machine.folder / "web.pcapng"
    with started(machine, _SERVE, "db"), started(machine, _TALK, "web", "10.91.0.3") as talk:
        ok(machine, "accelerate shop --yes")
        wait_until(lambda: say(talk) or packets(machine) > 200, "the fast path")
        answers = "dst host 10.91.0.2 and greater 150"
        words = machine.words(*PROGRAM, "capture", "v-web", answers, "-c", "100", "-w", str(path))
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as capture:
            assert capture.stderr is not None and "capturing" in capture.stderr.readline()
            assert daemon_status(machine)["captured"] == ["10.91.0.2"]
            say(talk)  # answers leave by the host's end of the veth, which the fast path skips
            assert "100 packets" in capture.communicate(timeout=PATIENCE)[1]
        read = ["tcpdump", "-nr", str(path), answers]
        done = subprocess.run(read, capture_output=True, text=True, check=True)
        assert len(done.stdout.splitlines()) == 100
        assert daemon_status(machine)["captured"] == []
        before = packets(machine)
        wait_until(lambda: say(talk) or packets(machine) > before, "the fast path again")


def test_the_reason_of_a_pause_is_shown_before_and_after(machine: Machine) -> None:
    machine.run("nft add table ip mine")
    machine.run(["nft", "add chain ip mine some { type filter hook forward priority 0; }"])
    machine.run("nft add rule ip mine some limit rate 10/second accept")
    assert "It would be paused now" in ok(machine, "accelerate shop --dry-run")
    assert "paused" in ok(machine, "accelerate shop --yes")
    assert daemon_status(machine)["state"] == "paused" and daemon_status(machine)["reasons"]
    (found,) = doctor(machine)
    assert found.startswith("warn: The fast path is paused") and "ip mine some" in found
    machine.run("nft delete table ip mine")
    wait_until(lambda: daemon_status(machine).get("state") == "on", "on")
    assert not doctor(machine)


def test_a_daemon_that_does_not_answer_is_turned_off(machine: Machine) -> None:
    ok(machine, "accelerate shop --yes")
    machine.run(["kill", "-STOP", str(daemon_status(machine)["pid"])])
    text = ok(machine, "accelerate --off --yes")
    assert "doesn't answer" in text and "The process was killed" in text
    assert is_as_before(machine)


def test_doctor_names_a_link_that_another_program_filters(machine: Machine) -> None:
    machine.run("tc qdisc add dev v-web clsact")
    machine.run("tc filter add dev v-web ingress protocol all prio 5 u32 match u32 0 0 flowid 1:1")
    ok(machine, "accelerate shop --yes")
    assert doctor(machine) == [
        "warn: The fast path leaves the packets of v-web to the kernel: "
        "another program or filter is attached to its ingress."
    ]
    machine.run("tc qdisc del dev v-web clsact")
    wait_until(lambda: not doctor(machine), "no finding")


def test_strict_is_turned_on_and_off(machine: Machine) -> None:
    """Rules about invalid packets are named before; with --strict they pause it."""
    assert "nothing is accelerated" in refused(machine, "accelerate", "--strict", "--yes")
    machine.run("nft add table ip mine")
    machine.run(["nft", "add chain ip mine some { type filter hook forward priority 0; }"])
    machine.run("nft add rule ip mine some ct state invalid drop")
    assert "These rules match on invalid packets" in ok(machine, "accelerate shop --dry-run")
    assert "because it is strict: ip mine some" in ok(machine, "accelerate shop --strict --dry-run")
    ok(machine, "accelerate shop --strict --yes")
    assert (daemon_status(machine)["state"], daemon_status(machine)["strict"]) == ("paused", True)
    assert "Strict mode is turned off" in ok(machine, "accelerate --no-strict --yes")
    wait_until(lambda: daemon_status(machine).get("state") == "on", "on")
    assert "strict:" not in ok(machine, "fastpath status")
    ok(machine, "accelerate --strict --yes")
    wait_until(lambda: daemon_status(machine).get("state") == "paused", "paused")
    assert "strict:" in ok(machine, "fastpath status")
    assert "accelerated already" in ok(machine, "accelerate shop --strict --yes")


def accelerated_and_killed(machine: Machine) -> None:
    """Kill both processes of a fast path at once."""
    ok(machine, "accelerate shop --yes")
    daemon = daemon_status(machine)["pid"]
    supervisor = machine.run(f"ps -o ppid= -p {daemon}").strip()
    machine.run(f"kill -9 {supervisor} {daemon}")
    wait_until(lambda: not daemon_status(machine), "the end of both")


def test_recover_cleans_up_after_killed_processes(machine: Machine) -> None:
    accelerated_and_killed(machine)
    assert "vnet-tui recover" in ok(machine, "fastpath status")
    assert [one.partition(";")[0] for one in doctor(machine)] == [
        "warn: A killed fast path left settings behind"
    ]
    assert "cleans up after a killed fast path" in machine.vnet("recover", "--dry-run").stderr
    assert not is_as_before(machine)
    assert "cleaned up" in ok(machine, "recover")
    assert is_as_before(machine)
    assert "nothing to do" in ok(machine, "recover")
    assert not machine.vnet("recover", "--dry-run").stderr


def test_recover_lists_its_clean_up_as_json(machine: Machine) -> None:
    accelerated_and_killed(machine)
    assert "cleaned up" in read_json(machine, "recover")["fast_path"]
    assert "fast_path" not in read_json(machine, "recover")


def test_two_simultaneous_starts_share_one_daemon(machine: Machine) -> None:
    network(machine, "other", "10.92.0", "cache")
    both = [
        subprocess.Popen(machine.words(*PROGRAM, "accelerate", name, "--yes"), env=machine.environment)
        for name in ("shop", "other")
    ]
    assert [one.wait(PATIENCE) for one in both] == [0, 0]
    assert set(daemon_status(machine)["targets"]) == {"shop", "other"}


def test_the_check_lists_requirements(machine: Machine) -> None:
    found = read_json(machine, "fastpath check")
    assert found["usable"] is True and all(one["met"] for one in found["requirements"] if one["needed"])
    assert "the fast path can be turned on" in ok(machine, "fastpath check")
    done = machine.vnet(
        "fastpath", "check", "--json", before=("setpriv", "--bounding-set", "-all", "--inh-caps=-all")
    )
    lacking = [one for one in json.loads(done.stdout)["requirements"] if not one["met"]]
    assert done.returncode == 1 and any("CAP_NET_ADMIN" in one["name"] for one in lacking)
    assert all(one["found"] and one["follows"] and one["try"] for one in lacking)


def test_doctor_says_why_the_agent_can_not_start_it(machine: Machine) -> None:
    assert not doctor(machine)
    inode = machine.run("stat -Lc %i /proc/self/ns/net").strip()
    machine.run("mkdir -p /run/vnet-tui")
    lock = machine.words("flock", f"/run/vnet-tui/fastpath-{inode}.lock", "sh", "-c", "echo ready; read x")
    words = machine.words(*PROGRAM, "agent", "--accelerate", "shop")
    quiet = {"stdout": subprocess.DEVNULL, "env": machine.environment}
    with running(lock) as holder, subprocess.Popen(words, **quiet) as agent:
        try:
            wait_until(lambda: doctor(machine), "the finding")
            (found,) = doctor(machine)
            assert found == "warn: The agent can't turn the fast path on for shop."
            assert "already accelerates this namespace" in ok(machine, "fastpath status")
            assert holder.stdin
            holder.stdin.write("\n")
            holder.stdin.flush()
            wait_until(lambda: daemon_status(machine).get("state") == "on", "on")
            wait_until(lambda: not doctor(machine), "no finding")
            end(agent)
        finally:
            agent.kill()
    assert is_as_before(machine)


@pytest.mark.needs("systemd-analyze")
def test_the_agent_runs_it_under_its_unit_and_ends_it(machine: Machine) -> None:
    path = machine.folder / "agent.service"
    path.write_text(ok(machine, "agent --unit --accelerate shop"))
    words = machine.words(*SERVICE, str(path))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as agent:
        try:
            wait_until(lambda: daemon_status(machine).get("state") == "on", "on")
            first = daemon_status(machine)["pid"]
            machine.run(f"kill -9 {first}")
            wait_until(
                lambda: status(machine)["state"] == "on" and status(machine)["pid"] != first, "another one"
            )
            end(agent)
        finally:
            agent.kill()
        assert agent.stdout and "its process ended" in agent.stdout.read()
    assert is_as_before(machine)


def test_adding_to_a_daemon_of_another_program_warns_of_its_end(machine: Machine) -> None:
    network(machine, "other", "10.92.0", "cache")
    words = machine.words(*PROGRAM, "agent", "--accelerate", "shop")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, env=machine.environment) as agent:
        try:
            wait_until(lambda: daemon_status(machine).get("state") == "on", "on")
            assert "ends with the dashboard or agent" in ok(machine, "accelerate other --yes")
            assert status(machine)["tied"] and "ends:" in ok(machine, "fastpath status")
            end(agent)
        finally:
            agent.kill()
    assert is_as_before(machine)
    ok(machine, "accelerate other --yes")
    assert not status(machine)["tied"] and "ends:" not in ok(machine, "fastpath status")


def test_fields_of_the_status_are_documented(machine: Machine) -> None:
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    page = page.partition("What `fastpath status --json` prints")[2].partition("## The dump file")[0]
    ok(machine, "accelerate shop --yes")
    for field in status(machine):
        assert f"| `{field}` |" in page, field
    for field in read_json(machine, "fastpath check")["requirements"][0]:
        assert f"`{field}`" in page, field


@pytest.mark.parametrize("killed", [False, True])
def test_a_daemon_started_by_the_dashboard_ends_with_it(machine: Machine, killed: bool) -> None:
    with Terminal(machine.words(*PROGRAM, "--write"), **machine.environment) as terminal:
        terminal.wait_for("br-shop")
        terminal.wait_for("WRITE")
        terminal.press("gf")
        terminal.wait_for("Accelerate all bridges")
        terminal.wait_for("Apply?")
        terminal.press("y")
        terminal.wait_for("fast path on")
        wait_until(lambda: daemon_status(machine).get("state") == "on", "on")
        assert daemon_status(machine)["targets"] == ["all"]
        if killed:
            os.kill(terminal.program().pid, signal.SIGKILL)
        else:
            terminal.press("q")
        wait_until(lambda: is_as_before(machine), "the state before")
        assert b"Traceback" not in terminal.output


def test_a_running_daemon_is_used_by_the_dashboard_and_outlives_it(machine: Machine) -> None:
    ok(machine, "accelerate shop --yes")
    with Terminal(machine.words(*PROGRAM, "--write"), **machine.environment) as terminal:
        terminal.wait_for("fast path on")
        terminal.press(":networks name:shop\r")
        terminal.wait_for("10.91.0.0/24")
        terminal.press("q")
        assert terminal.read_to_the_end() == 0
    assert daemon_status(machine)["targets"] == ["shop"]
