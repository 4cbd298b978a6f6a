"""Read-only commands give up their rights, and read everything without them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.machine import PROGRAM, ROOT, Machine, ok
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

# Becomes this command line and tries to change things; prints its capabilities and what it could do.
_TRY = """
import os, socket, subprocess, sys
from contextlib import suppress
from pathlib import Path
from tui.cli import confine
from tui.cli.parser import make_parser
confine(make_parser().parse_args(sys.argv[1:]))
done = []
for path in ("/run/x", "/etc/vnet-x", "/proc/sys/net/ipv4/ip_forward", "mine"):
    with suppress(OSError):
        Path(path).write_text("1")
        done.append(path)
for words in (("nft", "list", "tables"), ("ip", "link", "add", "x", "type", "bridge"), ("touch", "/run/y"),
              ("modprobe", "nothing"), ("chown", "1", "mine"), ("setpriv", "--reuid=1", "true")):
    with suppress(OSError):
        if not subprocess.run(words, capture_output=True).returncode:
            done.append(words[0])
with suppress(OSError), socket.socket() as tcp:
    tcp.bind(("127.0.0.1", 0))
    done.append("tcp")
status = Path("/proc/self/status").read_text().split("CapBnd:")[1].split()
print(status[0], *done)
"""
_UNCONFINED = "import sys; from tui.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def shared() -> Iterator[Machine]:
    made = Machine(VNET_ENGINES="none")
    try:
        ok(made, "network create shop --subnet 10.91.0.0/24")
        ok(made, "container create web --network shop")
        ok(made, "publish web 8080:80")
        made.run("iptables -A FORWARD -d 10.91.0.9 -j DROP")
        ok(made, f"dump {made.folder}/now.vnet")
        yield made
    finally:
        made.close()


def confined_result(machine: Machine, *arguments: str) -> tuple[int, set[str]]:
    """Return its bounding set and what it could do, started in the machine's folder."""
    words = ["env", "-C", str(machine.folder), f"PYTHONPATH={ROOT}", sys.executable, "-c", _TRY, *arguments]
    mask, *done = machine.run(words).split()
    machine.run("ip link del x", check=False)
    return int(mask, 16), set(done)


def test_show_and_flows_keep_only_capabilities_for_reading(shared: Machine) -> None:
    """The rights to read rules and to enter namespaces also allow changing them.

    These can't be dropped.
    """
    for command in ("show", "flows"):
        mask, done = confined_result(shared, command)
        assert mask.bit_count() == 6, "of capabilities(7): five, and reading others' files"
        assert {"nft", "ip"} <= done and not done & {"modprobe", "chown", "setpriv"}
    assert confined_result(shared, "show", "--from", "x")[0].bit_count() == 1


def test_a_read_only_dashboard_writes_only_in_its_folder(shared: Machine) -> None:
    mask, done = confined_result(shared, "--read-only")
    assert mask.bit_count() == 7 and done == {"mine", "nft", "ip", "tcp"}


@pytest.mark.parametrize("arguments", [("--from", "x"), ("replay", "x")])
def test_reading_a_file_needs_no_capabilities(shared: Machine, arguments: tuple[str, ...]) -> None:
    mask, done = confined_result(shared, *arguments)
    assert mask.bit_count() == 2 and done == {"mine"}


def test_the_output_is_the_same_with_all_capabilities(shared: Machine) -> None:
    confined, whole = wait_until(lambda: _read_while_still(shared), "nothing changes while it is read")
    assert confined == whole and len(confined["nat"]) > 2


def _read_while_still(machine: Machine) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the output without and with all rights.

    None if the kernel changed meanwhile, as when it adds a route.
    """
    before, confined, after = (
        stable(json.loads(machine.run([sys.executable, *program, "show", "all", "--json"])))
        for program in (("-c", _UNCONFINED), PROGRAM[1:], ("-c", _UNCONFINED))
    )
    return (confined, after) if before == after else None


def stable(shown: dict[str, Any]) -> dict[str, Any]:
    """Remove times, counters, and processes that come and go."""
    for one in shown["namespaces"]:
        one["pids"] = one["held_fds"] = one["command"] = None
    for entry in shown["conntrack"]["entries"] if isinstance(shown.get("conntrack"), dict) else ():
        entry["timeout"] = None
    return shown | {"taken_at": None, "conntrack": None}


def test_a_read_only_dashboard_can_record(shared: Machine) -> None:
    words = ["env", "-C", str(shared.folder), f"PYTHONPATH={ROOT}", *PROGRAM]
    with Terminal(shared.words(*words, "--read-only"), **shared.environment) as terminal:
        terminal.wait_for("br-shop")
        terminal.press("W")
        terminal.wait_for("opened with --read-only")
        terminal.press("R")
        terminal.wait_for("Recording to")
        recorded = wait_until(lambda: next(shared.folder.glob("*.vnetrec"), None), "the recording")
        terminal.press("R")
        terminal.wait_for("ended")
        terminal.press("q")
        assert terminal.read_to_the_end() == 0
    with Terminal(shared.words(*words, "replay", str(recorded)), **shared.environment) as terminal:
        terminal.wait_for("br-shop")
        terminal.press("q")
        assert terminal.read_to_the_end() == 0


def test_writing_and_read_only_exclude_each_other(shared: Machine) -> None:
    with Terminal(shared.words(*PROGRAM, "--read-only", "--write"), **shared.environment) as terminal:
        terminal.wait_for("exclude each other")
        assert terminal.read_to_the_end() == 1
