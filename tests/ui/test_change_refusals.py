"""Refused commands give a reason and change nothing."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from tests.support.machine import PROGRAM, ROOT, Machine, machine_state, ok, refused
from tui.cli import main

pytestmark = pytest.mark.root


LONG = "a" * 16
BAD = [
    *((f"network create {shlex.quote(name)}", "name") for name in
      ("", LONG, "..", "a/b", "two words", "[bold]", "'-x'", "käse", "a;reboot", "$(id)", "\x1b[1m")),
    *((f"network create lab --subnet {subnet}", words) for subnet, words in (
        ("10.91.0.0/25", "overlaps"), ("10.92.0.1/24", "host bits"), ("10.92.0.0/32", "single address"),
        ("0.0.0.0/0", "every address"), ("fe80::/64", "link-local"), ("ff00::/64", "multicast"),
        ("::ffff:10.0.0.0/120", "IPv4"), ("fd00::1%eth0/64", "zone"), ("rubbish", "isn't a subnet"))),
    ("network create shop", "already"), ("network rm nothing", "doesn't exist"),
    ("network create lab --mtu 7", "out of range"), ("network create lab --nat66", "NAT66"),
    ("network create lab --kind nic-bridged --uplink nope", "no link"),
    ("network create lab --engine docker", "Docker"), ("network join shop shop", "the same network"),
    ("attach missing shop", "no container"), ("attach web nothing", "doesn't exist"),
    ("attach web shop", "already"), ("move web shop shop", "already"),
    ("detach web nothing", "doesn't exist"),
    ("container create web", "already"), ("container create log --network nothing", "doesn't exist"),
    ("container create log --network shop --address 10.91.0.2", "in use"),
    ("container create log --network shop --address 10.9.0.2", "is not in"),
    ("container create log --model joined", "needs the name"), ("container rm missing", "no named namespace"),
    ("publish web 8080", "already"), ("publish web 99999", "out of range"),
    ("publish web 1:2:3:4:5", "parts"),
    ("publish web 80/quic", "unknown protocol"), ("publish web 9.9.9.9:80", "isn't an address of this host"),
    ("unpublish 9", "publish"), ("link set nope --up", "none of that name"),
    ("link set v-web --mtu 1", "range"), ("link set v-web --ns missing --up", "find the namespace"),
    ("bridge set br-shop rubbish 1", "unknown setting"),
    ("port set v-web rubbish on", "unknown flag"), ("undo nothing", "no such change"),
    ("recover nothing", "no such change"), ("tune nothing --big-tcp", "no bridge or network"),
    ("tune shop", "no option is given"), ("tune shop --big-tcp 7", "Try: 65536"),
    ("tune shop --big-tcp off", "already"), ("tune shop --rps zz", "isn't a CPU mask"),
    ("tune shop --rps ffffffff,ffffffff,ffffffff", "don't exist"),
]  # fmt: skip


# Runs command lines in one process; prints exit code, output and error of each as JSON.
_EACH = """
import contextlib, io, json, shlex, sys
from tui.cli import main
for command in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(shlex.split(command))
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@pytest.fixture(scope="module")
def said(shared: Machine) -> dict[str, tuple[int, str, str]]:
    """Return the output of each bad command, none of which changes anything."""
    before = machine_state(shared)
    commands = [command for command, _ in BAD]
    printed = shared.run([sys.executable, "-c", _EACH], text=json.dumps(commands))
    assert machine_state(shared) == before
    return dict(zip(commands, map(json.loads, printed.splitlines()), strict=True))


@pytest.mark.parametrize(("command", "words"), BAD)
def test_refusals_give_the_reason(said: dict[str, tuple[int, str, str]], command: str, words: str) -> None:
    code, out, err = said[command]
    assert (code, out) == (1, "")
    assert err.startswith("vnet-tui: ") and words in err and "\x1b" not in err


@pytest.mark.parametrize(
    "command",
    ["network", "network create", "network create --shop", "network create a --kind rubbish", "attach web",
     "bridge set br0 stp_state on", "port set p isolated maybe", "link set a --up --down", "apply",
     "tune", "tune shop --offloads maybe", "tune shop --big-tcp rubbish"],
)  # fmt: skip
def test_usage_errors(command: str) -> None:
    done = subprocess.run([*PROGRAM, *command.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and "usage: vnet-tui" in done.stderr


def test_refusals_as_json(shared: Machine) -> None:
    done = shared.vnet("network", "create", "a/b", "--json")
    assert done.returncode == 1
    (reason,) = json.loads(done.stdout)["refused"]
    assert reason.startswith("can't create the network a/b: ") and '"/"' in reason


def test_a_state_directory_that_cannot_be_written(machine: Machine) -> None:
    machine.environment["VNET_STATE"] = "/proc/nowhere"
    assert "nothing was changed" in refused(machine, "network", "create", "shop")
    assert "br-shop" not in machine.run("ip link")


def test_a_second_instance_names_the_process_that_holds_the_lock(machine: Machine) -> None:
    code = "from core.state import writers_lock\nwith writers_lock(): print('held', flush=True); input()"
    words = machine.words(sys.executable, "-c", code)
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=machine.environment
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        assert "another change is under way (PID" in refused(machine, "network", "create", "shop")
        holder.communicate("\n")
    ok(machine, "network create shop")


@pytest.mark.parametrize("option", [["--read-only"], ["--from", "host.vnet"]])
@pytest.mark.parametrize("words", [["network", "create", "x"], ["undo"], ["accelerate"], ["demo"], ["agent"]])
def test_changes_are_refused_with_read_only_options(
    option: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*option, *words]) == 1
    assert f"can't run {words[0]} with {option[0]}" in capsys.readouterr().err
