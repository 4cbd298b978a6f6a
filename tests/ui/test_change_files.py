"""Networks from a file, previews and undo by commands, on a simulated machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.machine import PROGRAM, Machine, addresses, machine_state, ok, read_json, refused, uplink
from tests.support.needs import AS_NOBODY
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root


FILE = """\
joined = [["lab", "shop"]]

[network.shop]
subnets = ["10.91.0.0/24", "fd91::/64"]
nat66 = true

[network.lab]
kind = "internal"
subnets = ["10.92.0.0/24"]

[container.web]
[container.log]
model = "joined"
joined_with = "web"

[[attach]]
container = "web"
network = "shop"
addresses = ["10.91.0.5"]

[[publish]]
container = "web"
host_ports = 8080
container_ports = 80
"""


def test_apply_creates_what_a_file_describes_once(machine: Machine) -> None:
    file = machine.folder / "net.toml"
    file.write_text(FILE)
    assert "there is no terminal" in refused(machine, "apply", str(file))
    assert machine.json("ip -j netns list") == []
    ok(machine, f"apply {file} --yes")
    assert addresses(machine, "eth0", "log") == ["10.91.0.5/24", "fd91::2/64"]
    assert "tcp dport 8080" in machine.run("nft list chain inet vnet publish")
    made = machine_state(machine)
    assert "nothing to do" in ok(machine, f"apply {file}")
    written = ok(machine, "export")
    assert "nothing to do" in ok(machine, "apply - --prune", text=written)
    ok(machine, "cleanup --yes")
    assert machine.json("ip -j netns list") == [] and machine.run("nft list tables") == ""
    ok(machine, "apply - --yes", text=written)
    assert machine_state(machine) == made


def test_apply_changes_the_mtu_in_place(machine: Machine) -> None:
    def mtus() -> list[tuple[str, int, int]]:
        shown = [*machine.json("ip -j link show type bridge"), *machine.json("ip -j link show type veth")]
        shown += machine.json("ip -j link show type veth", "web")
        return sorted((one["ifname"].partition("@")[0], one["ifindex"], one["mtu"]) for one in shown)

    file = machine.folder / "net.toml"
    file.write_text(FILE)
    ok(machine, f"apply {file} --yes")
    before = mtus()
    assert {mtu for _, _, mtu in before} == {1500}
    file.write_text(FILE.replace("[network.shop]", "[network.shop]\nmtu = 1400"))
    steps = [step["command"] for step in read_json(machine, f"apply {file} --dry-run")["steps"]]
    inner, port, bridge = steps
    assert "eth0 mtu 1400" in inner and "v-web mtu 1400" in port and "br-shop mtu 1400" in bridge
    ok(machine, f"apply {file} --yes")
    grown = {name for name, _, mtu in mtus() if mtu == 1400}
    assert grown == {"br-shop", "v-web", "eth0"}
    assert [(name, index) for name, index, _ in mtus()] == [(name, index) for name, index, _ in before]
    assert "nothing to do" in machine.vnet("apply", str(file), "--dry-run").stderr
    ok(machine, "undo")
    assert mtus() == before
    file.write_text(FILE.replace("[network.shop]", "[network.shop]\nmtu = 70"))
    assert "out of range" in refused(machine, "apply", str(file), "--yes")


def test_prune_removes_what_is_not_in_the_file(machine: Machine) -> None:
    file = machine.folder / "net.toml"
    file.write_text(FILE)
    ok(machine, f"apply {file} --yes")
    file.write_text('[network.lab]\nkind = "internal"\n')
    assert "nothing to do" in ok(machine, f"apply {file}")
    ok(machine, f"apply {file} --prune --yes")
    assert [one["name"] for one in read_json(machine, "network ls")["networks"]] == ["lab"]
    assert machine.json("ip -j netns list") == []


def test_apply_shows_the_difference_and_asks(machine: Machine) -> None:
    file = machine.folder / "net.toml"
    file.write_text('[network.shop]\nsubnets = ["10.91.0.0/24"]\n')
    for answer, there in (("n", False), ("y", True)):
        with Terminal(machine.words(*PROGRAM, "apply", str(file)), **machine.environment) as terminal:
            terminal.wait_for("[y/N]")
            assert "create the bridge br-shop" in terminal.output.decode()
            terminal.press(f"{answer}\n")
            terminal.settle(quiet=1.0)
        assert ("br-shop" in machine.run("ip link")) is there


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[network.shop]\nkind = "nat"\nsubnet = "10.9.0.0/24"\n', 3, 'unknown key "subnet"'),
        ("[netwrok.shop]\n", 1, 'unknown table "netwrok"'),
        ('[network.shop]\nmtu = "big"\n', 2, "must be an integer"),
        ("[network.shop\n", 1, "line 1"),
    ],
)
def test_errors_in_a_file_name_the_line(shared: Machine, text: str, line: int, words: str) -> None:
    file = shared.folder / "bad.toml"
    file.write_text(text)
    said = refused(shared, "apply", str(file), "--yes")
    assert f"line {line}" in said and words in said


def test_errors_of_unreadable_files(shared: Machine) -> None:
    assert "No such file" in refused(shared, "apply", "/nonexistent.toml")
    (shared.folder / "binary").write_bytes(b"\xff\xfe")
    assert "UTF-8" in refused(shared, "apply", str(shared.folder / "binary"))
    assert "No such file" in refused(shared, "export", "/nonexistent/net.toml")


COMMANDS = [
    "network create lab --ipv6", "network create lab --kind internal --subnet 10.92.0.0/24 --mtu 1400",
    "container create log --network shop", "container create log --joined-with web", "publish web 9000-9002",
    "unpublish 8080", "detach web shop", "container rm web", "network rm shop", "link set v-web --mtu 1400",
    "port set v-web isolated on", "bridge set br-shop stp_state 1", "cleanup", "undo",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_prints_the_commands_and_changes_nothing(shared: Machine, command: str) -> None:
    before = machine_state(shared)
    printed = ok(shared, f"{command} --dry-run")
    whole = read_json(shared, f"{command} --dry-run")
    assert printed == "".join(f"{step['command']}\n" for step in whole["steps"]) != ""
    assert whole["dry_run"] is True and whole["change"] is None
    assert machine_state(shared) == before


def test_the_printed_commands_have_the_same_result() -> None:
    """Compare two machines: one changed by the printed commands, one by the program."""
    commands = ["network create shop --subnet 10.91.0.0/24", "container create web --network shop",
                "publish web 8080:80", "container rm web"]  # fmt: skip
    by_shell, by_program = Machine(), Machine()
    try:
        for command in commands:
            by_shell.run(["sh", "-e", "-c", ok(by_shell, f"{command} --dry-run")])
            whole = read_json(by_program, command)
            assert whole["change"]["end"] == "done"
            assert machine_state(by_shell) == machine_state(by_program)
    finally:
        by_shell.close()
        by_program.close()


@pytest.mark.needs("nobody")
def test_a_dry_run_needs_no_rights(shared: Machine) -> None:
    done = shared.vnet("network", "create", "lab", "--dry-run", before=AS_NOBODY)
    assert done.returncode == 0 and "ip link add br-lab" in done.stdout
    done = shared.vnet("network", "create", "lab", before=AS_NOBODY)
    assert (done.returncode, done.stdout) == (1, "")
    assert "CAP_NET_ADMIN" in done.stderr and "CAP_SYS_ADMIN" in done.stderr


def test_history_and_undo(machine: Machine) -> None:
    before = machine_state(machine)
    first = read_json(machine, "network create shop")["change"]["id"]
    second = read_json(machine, "container create web --network shop")["change"]["id"]
    lines = ok(machine, "history").splitlines()
    assert [line.split()[0] for line in lines] == [second, first] and "done" in lines[0]
    assert second in refused(machine, "undo", first)
    ok(machine, f"undo {second}")
    assert machine.json("ip -j netns list") == []
    ok(machine, "undo")
    assert machine_state(machine) == before
    changes = read_json(machine, "history")["changes"]
    assert [one["end"] for one in changes] == ["undone", "undone"]
    assert any("br-shop" in step["command"] for step in changes[1]["steps"])
    assert "no change to undo" in refused(machine, "undo")
    assert "undone already" in refused(machine, "undo", first)
    assert "no such change" in refused(machine, "undo", "../../etc/passwd")


def test_a_failed_change_is_undone(machine: Machine) -> None:
    machine.run("mount --bind /proc/sys /proc/sys")
    machine.run("mount -o remount,ro,bind /proc/sys")
    before = machine_state(machine)
    said = refused(machine, "network", "create", "shop")
    assert "can't set net.ipv4.ip_forward" in said and "as it was before" in said
    assert machine_state(machine) == before


def test_rules_that_cannot_be_read_are_not_replaced(machine: Machine) -> None:
    ok(machine, "network create shop")
    ok(machine, "container create web --network shop")
    before = machine_state(machine)
    machine.run("mount --bind /bin/false /usr/sbin/nft")
    said = refused(machine, "publish", "web", "8080")
    machine.run("umount /usr/sbin/nft")
    assert "vnet-tui's own rules couldn't be read" in said
    assert machine_state(machine) == before


def test_recover_undoes_or_forgets_interrupted_changes(machine: Machine) -> None:
    before = machine_state(machine)
    killed = machine.vnet(before=(sys.executable, "-c", _KILLED))
    assert killed.returncode == -9 and machine_state(machine) != before
    assert "vnet-tui recover" in refused(machine, "network", "create", "lab")
    assert "br-shop" in ok(machine, "recover --dry-run")
    ok(machine, "recover")
    assert machine_state(machine) == before
    machine.vnet(before=(sys.executable, "-c", _KILLED))
    ok(machine, "container create web --auto-undo")
    assert [one["ifname"] for one in machine.json("ip -j link")] == ["lo"]
    assert "nothing to do" in ok(machine, "recover")
    machine.vnet(before=(sys.executable, "-c", _KILLED))
    ok(machine, "recover --forget")
    ok(machine, "network create lab --kind internal")
    assert "br-shop" in machine.run("ip link")


# Creates a network with vnet's code, and kills itself before the last step.
_KILLED = """
import os, sys
from core.apply import run
from core.operations import *
steps = (CreateBridge("br-shop", alias="vnet:net=shop kind=internal"), SetLink("br-shop", "up", "up", "down"),
         AddAddress("br-shop", "10.9.0.1/24"))
run.apply("cut off", steps, lambda step: os.kill(os.getpid(), 9) if step is steps[-1] else None)
"""


def test_cleanup_leaves_what_vnet_tui_did_not_create(machine: Machine) -> None:
    machine.run("ip netns add theirs")
    machine.run("ip link add br0 type bridge")
    machine.run("ip link set br0 alias 'made by vnet: not'")
    machine.run("nft add table ip theirs")
    machine.run("nft add chain ip theirs post { type nat hook postrouting priority 100 ; }")
    before = machine_state(machine)
    ok(machine, "network create shop")
    ok(machine, "container create web --network shop")
    ok(machine, "attach theirs shop")
    ok(machine, "publish theirs 8080")
    assert "there is no terminal" in refused(machine, "cleanup")
    ok(machine, "cleanup --yes")
    assert machine_state(machine) | {"forward": ""} == before | {"forward": ""}
    assert "nothing to do" in ok(machine, "cleanup --yes")


def test_export_refuses_a_name_that_is_not_utf_8(machine: Machine) -> None:
    """TOML is UTF-8. All other commands accept such a name."""
    ok(machine, "network create shop --subnet 10.91.0.0/24")
    machine.run(["sh", "-c", "ip netns add $(printf 'w\\377b')"])
    assert machine.vnet("attach", "w\udcffb", "shop").returncode == 0
    for where in ("-", f"{machine.folder}/net.toml"):
        assert "can't export a name that isn't UTF-8" in refused(machine, "export", where)
    assert not (machine.folder / "net.toml").exists()


def test_a_guarded_change_is_confirmed_or_undone(machine: Machine) -> None:
    uplink(machine)
    before = machine_state(machine)
    whole = read_json(machine, "network create lan --kind nic-bridged --uplink up0")
    assert whole["guarded"] is True and addresses(machine, "br-lan") == ["192.0.2.2/24"]
    assert machine.run("ping -c1 -W1 192.0.2.1")
    ok(machine, f"undo {whole['change']['id']}")
    assert machine_state(machine) == before
    assert "no change is waiting" in refused(machine, "confirm")
    done = machine.vnet("network", "create", "lan", "--kind", "nic-bridged", "--uplink", "up0")
    assert "vnet-tui confirm" in done.stderr
    assert ok(machine, "confirm") == "kept\n"
    assert "doesn't wait" in refused(machine, "confirm", "nothing")
    ok(machine, "network rm lan")
    ok(machine, "confirm")
    assert addresses(machine, "up0") == ["192.0.2.2/24"]


def test_an_undone_change_is_not_waiting_while_its_guard_ends(machine: Machine) -> None:
    uplink(machine)
    first = read_json(machine, "network create lan --kind nic-bridged --uplink up0")["change"]["id"]
    (guard,) = machine.run("pgrep -x vnet-guard").split()
    machine.run(f"kill -STOP {guard}")
    try:
        ok(machine, f"undo {first.partition('-')[0]}")
        assert "no change is waiting" in refused(machine, "confirm")
        read_json(machine, "network create lan --kind nic-bridged --uplink up0")
        assert ok(machine, "confirm") == "kept\n"
    finally:
        machine.run(f"kill -CONT {guard}")


def test_the_agent_restores_rules(machine: Machine) -> None:
    ok(machine, "network create shop")
    words = machine.words("setpriv", "--pdeathsig", "TERM", *PROGRAM, "agent")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=machine.environment) as agent:
        try:
            machine.run("nft flush ruleset")
            wait_until(lambda: "vnet nat shop" in machine.run("nft list ruleset"), "the rules to be back")
        finally:
            agent.kill()
