"""Delete a namespace that has processes, and undo that."""

from __future__ import annotations

import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.machine import Machine, machine_state, ok
from tests.support.ready import running

pytestmark = pytest.mark.root


def sleeping(machine: Machine) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run a process in the container api until the end of the block."""
    program = "echo ready; exec sleep 1000"
    return running(machine.words("setpriv", "--pdeathsig", "KILL", "sh", "-c", program, inside="api"))


def inode(machine: Machine, name: str) -> str:
    return machine.run(f"stat -L -c %i /run/netns/{name}").strip()


@pytest.fixture
def api(machine: Machine) -> Machine:
    """Return a machine with the container api on the network shop."""
    ok(machine, "network create shop --subnet 10.91.0.0/24")
    ok(machine, "container create api --network shop")
    return machine


def test_undo_restores_the_same_namespace(api: Machine) -> None:
    before, was = machine_state(api), inode(api, "api")
    with sleeping(api) as process:
        done = api.vnet("container", "rm", "api")
        assert done.returncode == 0 and "(sleep) keeps running without a network" in done.stderr
        assert api.run("ip netns list").strip() == ""
        ok(api, "undo")
        assert inode(api, "api") == was
        assert machine_state(api) == before
        # The process reaches its network again.
        pid = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        assert Path(f"/proc/{pid}/ns/net").stat().st_ino == int(was)
        entered = ["nsenter", "-t", pid, "--net"]
        subprocess.run([*entered, "ping", "-c1", "-W5", "10.91.0.1"], check=True, capture_output=True)


def test_undo_creates_a_namespace_if_its_processes_have_ended(api: Machine) -> None:
    before = machine_state(api)
    with sleeping(api):
        ok(api, "container rm api")
    # A new namespace with the same inode number must not be taken for the deleted one.
    api.run("ip netns add other")
    ok(api, "undo")
    assert inode(api, "api") != inode(api, "other")
    api.run("ip netns del other")
    assert machine_state(api) == before
