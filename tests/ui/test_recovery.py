"""Interrupted changes, changes in progress, killed undos, unknown entries."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import forkserver
from tests.support.killing import KILL_AT
from tests.support.machine import Machine, machine_state, ok, read_json, refused
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

# Creates a network, and stops itself before the last step.
_STOPPED = """
import os
from core.apply import run
from core.operations import *
steps = (CreateBridge("br-slow", alias="vnet:net=slow kind=internal"), SetLink("br-slow", "up", "up", "down"),
         AddAddress("br-slow", "10.9.0.1/24"))
print(run.apply("slow", steps, lambda step: os.kill(os.getpid(), 19) if step is steps[-1] else None).end)
"""


@contextmanager
def stopped_change(machine: Machine) -> Iterator[subprocess.Popen[str]]:
    """Run a change that is stopped half-way."""
    words = machine.words(sys.executable, "-c", _STOPPED)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=machine.environment) as process:
        try:
            wait_until(lambda: stopped_pid(machine), "the change to stop in its middle")
            yield process
        finally:
            process.kill()


def stopped_pid(machine: Machine) -> str:
    """Return the PID, on the machine, of a stopped process."""
    lines = machine.run("ps -eo pid=,stat=,comm=").splitlines()
    return next((line.split()[0] for line in lines if line.split()[1].startswith("T")), "")


def test_a_change_in_progress_is_not_interrupted(machine: Machine) -> None:
    commands = (
        "recover",
        "recover --forget",
        "network create shop --auto-undo",
        "network create shop",
        "undo",
    )
    with stopped_change(machine) as process:
        assert "under way" in ok(machine, "history").split("slow")[0]
        (change,) = read_json(machine, "history")["changes"]
        with ThreadPoolExecutor(len(commands)) as pool:
            said = list(pool.map(lambda command: refused(machine, *command.split()), commands))
        assert all("under way" in each for each in said), said
        assert all("another change is under way (PID " in each for each in said[:-1]), said
        assert f"can't undo {change['id']}" in said[-1]
        process.send_signal(signal.SIGCONT)  # nsenter, which stopped as well, passes it on
        assert process.communicate()[0] == "done\n"
    assert "br-slow" in machine.run("ip link") and "br-shop" not in machine.run("ip link")
    assert "nothing to do" in ok(machine, "recover")
    assert f"Try: vnet-tui undo {change['id']}" in refused(machine, "recover", change["id"])
    assert read_json(machine, "history")["changes"][0]["end"] == "done"


def test_simultaneous_changes_wait_for_each_other(machine: Machine) -> None:
    names = [f"net{number}" for number in range(16)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: ok(machine, f"network create {name}"), names))
    made = read_json(machine, "network ls")["networks"]
    assert sorted(one["name"] for one in made) == sorted(names)
    assert len({subnet for one in made for subnet in one["subnets"]}) == len(names)


def run_killed(machine: Machine, command: str, at: int) -> None:
    environment = machine.environment | {KILL_AT: str(at)}
    assert forkserver.run(command.split(), environment, machine.namespaces).returncode == -9


def test_recover_finishes_a_killed_undo(machine: Machine) -> None:
    before = machine_state(machine)
    ok(machine, "network create shop")
    ok(machine, "container create web --network shop")
    run_killed(machine, "undo", 30)
    assert "undo interrupted" in ok(machine, "history")
    (change, _) = read_json(machine, "history")["changes"]
    assert (change["end"], change["undo_begun"]) == ("cut off", True)
    assert "vnet-tui recover" in refused(machine, "network", "create", "lab")
    run_killed(machine, "recover", 20)
    ok(machine, "network create lab --kind internal --auto-undo")
    assert machine.json("ip -j netns list") == [] and "v-web" not in machine.run("ip link")
    assert "nothing to do" in ok(machine, "recover")
    ok(machine, "undo")
    ok(machine, "undo")
    assert machine_state(machine) | {"forward": ""} == before | {"forward": ""}


def test_an_entry_of_another_version_blocks_changes(machine: Machine) -> None:
    ok(machine, "network create shop")
    (made,) = Path(machine.environment["VNET_STATE"], "journal").iterdir()
    lines = made.read_text().splitlines()
    strange = made.with_name("000002-20261127-201608-aa.jsonl")
    intent = json.loads(lines[0]) | {"steps": [{"op": "FlyToMoon"}]}
    strange.write_text(f'{json.dumps(intent)}\n{{"begin": 0}}\n')
    for command in ("network create lab", "network create lab --auto-undo", "recover", "undo"):
        said = refused(machine, *command.split())
        assert str(strange) in said and "FlyToMoon" in said and "recover --forget" in said, command
    assert "unreadable" in ok(machine, "history")
    ok(machine, "recover --forget")
    ok(machine, "network create lab")
    assert "br-shop" in machine.run("ip link")


def test_odd_files_in_the_journal_are_ignored(machine: Machine) -> None:
    ok(machine, "network create shop")
    journal = Path(machine.environment["VNET_STATE"], "journal")
    (journal / "x.jsonl").symlink_to("/nonexistent")
    (journal / "y.jsonl").mkdir()
    (journal / "z.jsonl").write_text("")
    for command in ("history", "history --json", "recover", "network create lab", "undo", "undo"):
        ok(machine, command)


def test_a_file_of_attachments_nested_too_deeply_is_ignored(machine: Machine) -> None:
    folder = Path(machine.environment["VNET_STATE"])
    folder.mkdir()
    (folder / "wanted.json").write_text("[" * 200_000)
    ok(machine, "network create shop")
    ok(machine, "container create web --network shop")
