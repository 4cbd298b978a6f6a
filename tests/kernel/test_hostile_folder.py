"""Check that root runs nothing from folders that another user can write to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machine import Machine

pytestmark = pytest.mark.root

USER = 1234
INSTALLED = Path(sys.executable).with_name("vnet-tui")
PROGRAM = (sys.executable, "-P", "-m", "tui.cli")
ROOT = Path(__file__).parents[2]
_COMPILE = """
import sys
from pathlib import Path
from bpf import build
build.compiled_program(Path(sys.argv[1]))
print("done")
"""
TOOLS = (
    "nft",
    "iptables-save",
    "iptables-nft-save",
    "iptables-restore",
    "ip",
    "systemctl",
    "ovs-vsctl",
    "modprobe",
)


class Trap:
    """A folder of an unprivileged user; its modules and programs leave a trace if run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.trace = folder, folder / "TRACE"
        for name in ("json", "subprocess", "dataclasses", "ctypes", "numpy", "bcc", "sitecustomize"):
            (folder / f"{name}.py").write_text(f"open({str(self.trace)!r}, 'a').write({name!r})\n")
        for name in TOOLS:
            (folder / name).write_text(f"#!/bin/sh\necho {name} >>{self.trace}\nexit 1\n")
            (folder / name).chmod(0o755)
        os.chown(folder, USER, USER)

    def run(self, machine: Machine, *command: str, **environment: str) -> str:
        """Run a command there, which must succeed without a trace; return its output."""
        command = tuple(machine.words("env", f"--chdir={self.folder}", *command))
        done = subprocess.run(
            command, capture_output=True, text=True, check=False,
            env=machine.environment | {"PYTHONPATH": str(ROOT)} | environment, timeout=200,
        )  # fmt: skip
        assert not self.trace.exists(), self.trace.read_text()
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    made = Machine(VNET_ENGINES="none")
    yield made
    made.close()


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    folder = tmp_path / "users"
    folder.mkdir()
    return Trap(folder)


def test_the_trap_works(machine: Machine, trap: Trap) -> None:
    subprocess.run([sys.executable, "-c", "import json"], cwd=trap.folder, check=True)
    assert trap.trace.read_text() == "json"


@pytest.mark.skipif(not INSTALLED.exists(), reason="the program isn't installed beside its interpreter")
def test_the_installed_program_runs_nothing_from_the_folder(machine: Machine, trap: Trap) -> None:
    assert "lo" in trap.run(machine, str(INSTALLED), "show", "links")
    trap.run(machine, str(INSTALLED), "network", "create", "inst")


def test_changes_and_lists_run_nothing_from_the_folder(machine: Machine, trap: Trap) -> None:
    trap.run(machine, *PROGRAM, "network", "create", "shop")
    assert "shop" in trap.run(machine, *PROGRAM, "show", "networks")
    trap.run(machine, *PROGRAM, "undo")


@pytest.mark.needs("fastpath")
def test_the_fast_path_runs_nothing_from_the_folder(machine: Machine, trap: Trap) -> None:
    trap.run(machine, *PROGRAM, "network", "create", "quick")
    trap.run(machine, *PROGRAM, "accelerate", "quick", "--yes")
    assert "on" in trap.run(machine, *PROGRAM, "fastpath", "status")
    trap.run(machine, *PROGRAM, "accelerate", "--off", "--yes")


@pytest.mark.needs("fastpath", "bcc")
def test_compiling_runs_nothing_from_the_folder(machine: Machine, trap: Trap, tmp_path: Path) -> None:
    command = (sys.executable, "-P", "-c", _COMPILE, str(tmp_path / "cache"))
    assert trap.run(machine, *command) == "done\n"


def test_the_demo_lab_runs_nothing_from_the_folder(machine: Machine, trap: Trap) -> None:
    command = ("demo", "--no-traffic", "--")
    assert trap.run(machine, *PROGRAM, *command, "pwd").strip() == str(trap.folder)
    assert "v-web2" in trap.run(machine, *PROGRAM, *command, "vnet-tui", "show", "bridges")


def test_programs_of_another_user_are_not_run(machine: Machine, trap: Trap) -> None:
    path = f"{trap.folder}:{os.environ['PATH']}"
    trap.run(machine, *PROGRAM, "network", "create", "tools", PATH=path)
    assert "tools" in trap.run(machine, *PROGRAM, "show", "networks", PATH=path, VNET_ENGINES="")
    trap.run(machine, *PROGRAM, "demo", "--no-traffic", "--", "true", PATH=path)


def test_programs_of_root_in_the_path_are_run(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "nft").write_text(f'#!/bin/sh\ntouch {tmp_path}/run\nPATH=/usr/sbin:/usr/bin exec nft "$@"\n')
    (tmp_path / "nft").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(
        machine.words(*PROGRAM, "show", "nat"),
        env=machine.environment | {"PATH": path}, check=True, capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "run").exists()


def test_no_journal_is_written_to_a_folder_of_another_user(machine: Machine, tmp_path: Path) -> None:
    os.chown(tmp_path, USER, USER)
    done = subprocess.run(
        machine.words(*PROGRAM, "network", "create", "x"), capture_output=True, text=True, check=False,
        env=machine.environment | {"VNET_STATE": str(tmp_path / "state")},
    )  # fmt: skip
    assert done.returncode == 1
    assert "can't keep the journal in" in done.stderr and "VNET_STATE" in done.stderr
