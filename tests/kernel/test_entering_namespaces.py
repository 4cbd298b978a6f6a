"""Entering an unnamed namespace by any of its remaining processes."""

from __future__ import annotations

import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from core.apply import run
from core.collect.snapshot import read_snapshot
from core.model import Part
from core.netlink.netns import NamespaceGone
from core.operations import NetnsTarget
from core.operations.executor import Executor, inside
from core.plan import Plan, plan_all
from core.plan.requests import ChangeLink
from core.topology import Topology
from tests.support.ready import running

pytestmark = pytest.mark.root

_VISIT = ("nsenter", "-t")


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


def sleeping(*words: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """Start a process that runs until the end of the block."""
    return running(["setpriv", "--pdeathsig", "KILL", *words, "sh", "-c", "echo ready; exec sleep 1000"])


@pytest.mark.parametrize("leaves", ["the lower", "the higher"])
def test_a_process_that_leaves_between_plan_and_change(leaves: str) -> None:
    with sleeping("unshare", "--net") as first, sleeping(*_VISIT, str(first.pid), "--net") as second:
        leaving, staying = (first, second) if leaves == "the lower" else (second, first)
        inode = Path(f"/proc/{first.pid}/ns/net").stat().st_ino
        topology = Topology(read_snapshot((Part.WIRING,), deep=True))
        loopback = next(iter(topology.snapshot.nets[inode].links.values()))
        plan = plan_all((ChangeLink(loopback.key, alias="marked"),), topology)
        assert isinstance(plan, Plan) and plan.steps
        leaving.kill()
        leaving.wait()
        outcome = run.apply(plan.title, plan.steps)
        assert outcome.done, outcome.errors
        command = ["nsenter", "-t", str(staying.pid), "--net", "ip", "-o", "link", "show", "lo"]
        assert "alias marked" in subprocess.check_output(command, text=True)


def test_a_process_in_another_namespace_is_not_used() -> None:
    with sleeping("unshare", "--net") as one, sleeping("unshare", "--net") as other:
        inode = Path(f"/proc/{one.pid}/ns/net").stat().st_ino
        one.kill()
        one.wait()
        with pytest.raises(NamespaceGone), inside(NetnsTarget(pid=one.pid, inode=inode, others=(other.pid,))):
            pass
        with Executor() as kernel, pytest.raises(NamespaceGone):
            kernel.descriptor(NetnsTarget(pid=one.pid, inode=inode, others=(other.pid,)))
