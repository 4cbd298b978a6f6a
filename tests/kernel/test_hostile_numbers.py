"""Check that scans stay short whatever a user holds, and name what is left out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from core.collect import namespaces
from tests.kernel.hostile_traps import trap
from tests.support.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.kernel_has("user_namespaces")]

# A deep scan: the number of links read, and its results.
_LOOK = """
import json, os
from core.collect.namespaces import read_namespaces
read, links = os.readlink, []
os.readlink = lambda path: links.append(path) or read(path)
found, problems = read_namespaces()
spaces = [[space.names, len(space.pids), len(space.mounts), space.held_fds] for space in found.values()]
problems_text = [f"{problem.what}: {problem.why}" for problem in problems]
print(json.dumps({"links": len(links), "problems": problems_text, "found": spaces}))
"""
# Holds a namespace without other references, as another user than the trap's.
_HOLDER = """
import os
os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
held = os.open("/proc/self/ns/net", os.O_RDONLY)
os.unshare(os.CLONE_NEWNET)
print("ready", flush=True)
os.read(0, 1)
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Create a machine with a named namespace, and one that only a descriptor holds.

    The descriptor is a user's.
    """
    made = Machine(VNET_ENGINES="none")
    made.run("ip netns add web")
    command = made.words(
        "setpriv", "--reuid=4321", "--regid=4321", "--clear-groups", sys.executable, "-c", _HOLDER
    )
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            yield made
            holder.communicate("\n")
    finally:
        made.close()


def scan(machine: Machine) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(machine.run([sys.executable, "-c", _LOOK]))
    return result


@pytest.mark.parametrize(
    ("kind", "limit", "message"),
    [
        (
            "descriptors",
            namespaces.MAX_DESCRIPTORS,
            f"it has more than {namespaces.MAX_DESCRIPTORS} descriptors",
        ),
        ("threads", namespaces.MAX_THREADS, f"it has more than {namespaces.MAX_THREADS} threads"),
        ("mounts", 0, "it has a list of mounts longer than 1 MiB"),
    ],
)
def test_a_process_above_the_limits_is_left_out_and_named(
    machine: Machine, kind: str, limit: int, message: str
) -> None:
    before = scan(machine)
    with trap(machine, kind):
        with_trap = scan(machine)
    (problem,) = [one for one in with_trap["problems"] if "namespaces held by process" in one]
    assert problem.endswith(message)
    assert with_trap["links"] <= before["links"] + limit + 100
    assert all(space in with_trap["found"] for space in before["found"] if space[0] or space[3])
    assert all(mounts < 100 for _, _, mounts, _ in with_trap["found"])


def test_many_processes_share_a_budget_and_those_in_other_namespaces_come_first(
    machine: Machine,
) -> None:
    before = scan(machine)
    assert [space for space in before["found"] if space[3]]
    with trap(machine, "processes"):
        with_trap = scan(machine)
    assert any(
        one.startswith("can't look for all namespaces held by processes of users other than root")
        and one.endswith("most of it for processes of user 1234")
        for one in with_trap["problems"]
    )
    assert with_trap["links"] < 100 * 8_000
    assert all(space in with_trap["found"] for space in before["found"] if space[0] or space[3])


def test_processes_of_root_are_scanned_completely(machine: Machine) -> None:
    with trap(machine, "descriptors", user=0):
        found = scan(machine)
    assert found["links"] > 19_000 and not [one for one in found["problems"] if "descriptors" in one]
