"""However much a user without rights holds, a look for namespaces stays short, and says what it left out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from core.collect import namespaces
from tests.kernel.traps import trap
from tests.support.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.kernel_has("user_namespaces")]

# One deep look: how many links were read for it, and what it found.
_LOOK = """
import json, os
from core.collect.namespaces import read_namespaces
read, links = os.readlink, []
os.readlink = lambda path: links.append(path) or read(path)
found, problems = read_namespaces()
spaces = [[space.names, len(space.pids), len(space.mounts), space.held_fds] for space in found.values()]
said = [f"{problem.what}: {problem.why}" for problem in problems]
print(json.dumps({"links": len(links), "problems": said, "found": spaces}))
"""
# Holds a namespace that nothing else leads to, as another user than the trap's.
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
    """A machine with a named namespace, and one that a descriptor of another user holds."""
    made = Machine(VNET_ENGINES="none")
    made.run("ip netns add web")
    words = made.words(
        "setpriv", "--reuid=4321", "--regid=4321", "--clear-groups", sys.executable, "-c", _HOLDER
    )
    try:
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            yield made
            holder.communicate("\n")
    finally:
        made.close()


def look(machine: Machine) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(machine.run([sys.executable, "-c", _LOOK]))
    return told


@pytest.mark.parametrize(
    ("kind", "most", "said"),
    [
        (
            "descriptors",
            namespaces.MOST_DESCRIPTORS,
            f"it has more than {namespaces.MOST_DESCRIPTORS} descriptors",
        ),
        ("threads", namespaces.MOST_THREADS, f"it has more than {namespaces.MOST_THREADS} threads"),
        ("mounts", 0, "it has a list of mounts longer than 1 MiB"),
    ],
)
def test_a_process_that_holds_too_much_is_left_and_named(
    machine: Machine, kind: str, most: int, said: str
) -> None:
    before = look(machine)
    with trap(machine, kind):
        beside = look(machine)
    (problem,) = [one for one in beside["problems"] if "namespaces held by process" in one]
    assert problem.endswith(said)
    assert beside["links"] <= before["links"] + most + 100
    assert all(space in beside["found"] for space in before["found"] if space[0] or space[3])
    assert all(mounts < 100 for _, _, mounts, _ in beside["found"])


def test_many_processes_share_a_budget_that_spares_what_is_in_a_namespace_of_its_own(
    machine: Machine,
) -> None:
    before = look(machine)
    assert [space for space in before["found"] if space[3]]
    with trap(machine, "processes"):
        beside = look(machine)
    assert any(
        one.startswith("can't look for all namespaces held by processes of users other than root")
        and one.endswith("most of it for processes of user 1234")
        for one in beside["problems"]
    )
    assert beside["links"] < 100 * 8_000
    assert all(space in beside["found"] for space in before["found"] if space[0] or space[3])


def test_roots_own_processes_are_looked_through_whole(machine: Machine) -> None:
    with trap(machine, "descriptors", user=0):
        found = look(machine)
    assert found["links"] > 19_000 and not [one for one in found["problems"] if "descriptors" in one]
