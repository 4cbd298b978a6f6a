"""Check that users with own namespaces can't block vnet-tui or pose as others."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.serialize import unpack
from tests.kernel.hostile_traps import trap
from tests.support.machine import Machine, ok, read_json

pytestmark = [pytest.mark.root, pytest.mark.kernel_has("user_namespaces")]

_FUSE = pytest.mark.kernel_has("fuse")
_TRAPS = (
    "name of a mount",
    "no name",
    "swapped",
    pytest.param("file system that never answers", marks=_FUSE),
)
_DEVICES = ("/dev/loop-control", "/dev/kmsg")
# Prints opened files that are neither regular files nor folders to standard error.
_WATCHED = """
import os, stat, sys
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and not (arguments[2] or 0) & os.O_PATH:
        try:
            mode = os.stat(arguments[0]).st_mode
        except OSError:
            return
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode) and arguments[0] != os.devnull:
            print("opened:", arguments[0], file=sys.stderr)
sys.addaudithook(watch)
from tui.cli import main
main()
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Create a machine with one container."""
    made = Machine(VNET_ENGINES="none")
    try:
        ok(made, "network create shop")
        ok(made, "container create web --network shop")
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("kind", _TRAPS)
def test_no_command_opens_or_waits_for_files_that_are_no_namespaces(machine: Machine, kind: str) -> None:
    dump = machine.folder / "dump"
    with trap(machine, kind):  # no process writes to the FIFO: a command that opened it would block
        for _ in range(3 if kind == "swapped" else 1):
            links = read_json(machine, "show links")["links"]
            assert {("lo", "web"), ("eth0", "web")} <= {(one["name"], one["namespace"]) for one in links}
            ok(machine, f"dump {dump}")
            assert "web" in [
                name for ns in unpack(dump.read_bytes()).namespaces.values() for name in ns.names
            ]
            assert "web" in ok(machine, "undo --dry-run")


def test_a_change_can_be_undone_despite_a_trap(machine: Machine) -> None:
    with trap(machine, "name of a mount"):
        ok(machine, "container create db --network shop")
        ok(machine, "undo")
        assert "db" not in machine.run("ip netns list")


@pytest.mark.parametrize("kind", ["name of a mount", "no name", "mount", *_DEVICES])
def test_only_files_and_namespaces_are_opened(machine: Machine, kind: str) -> None:
    if kind.startswith("/") and not Path(kind).exists():
        kind = "/dev/zero"
    with trap(machine, kind):
        done = subprocess.run(
            machine.words(sys.executable, "-c", _WATCHED, "show", "links"),
            env=machine.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert "opened:" not in done.stderr
    assert "web" in done.stdout


def test_a_namespace_that_a_user_mounted_is_entered(machine: Machine) -> None:
    with trap(machine, "mount") as folder:
        (found,) = [one for one in read_json(machine, "show namespaces")["namespaces"] if _at(one, folder)]
        links = read_json(machine, "show links")["links"]
        assert [one["name"] for one in links if one["ns"] == found["inode"]] == ["lo"]


def _at(namespace: dict[str, object], folder: Path) -> bool:
    return str(folder) in shlex.join(str(value) for value in namespace.values())
