"""Uncertain changes: unwritable journal, reused ids, failed undo, stale state."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from core.apply import journal, run
from core.operations import (
    HOST,
    AddAddress,
    AddNeighbour,
    AddRoute,
    CreateBridge,
    CreateNamespace,
    CreateVeth,
    DeleteAddress,
    DeleteRoute,
    NetnsTarget,
    Operation,
    PersistAttachment,
    SetLink,
    attachments,
)
from core.operations.values import from_record, to_record
from tests.support.host import ThrowawayHost
from tests.support.state import state

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def bridge(place: NetnsTarget = HOST) -> tuple[Operation, ...]:
    return (
        CreateBridge("br-t", place, alias="vnet:net=t"),
        AddAddress("br-t", "10.77.0.1/24", place),
        SetLink("br-t", "up", "up", "down", place),
    )


@pytest.mark.parametrize("at", range(3))
def test_the_disk_is_full_half_way_through_a_change(
    at: int, inside_host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(inside_host.names)
    real = journal.NewEntryWriter.begin

    def full(record: journal.NewEntryWriter, step: int) -> None:
        if step == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(record, step)

    monkeypatch.setattr(journal.NewEntryWriter, "begin", full)
    outcome = run.apply("full", bridge())
    assert outcome.end == "undone"
    assert "No space left" in outcome.errors[0]
    assert state(inside_host.names) == before


def test_a_reused_pid_in_another_namespace_counts_as_ended(inside_host: ThrowawayHost) -> None:
    path = f"/run/netns/{inside_host.namespace('box')}"
    box = Path(path).stat().st_ino
    process = subprocess.Popen(["nsenter", f"--net={path}", "sleep", "100"])
    try:
        while Path(f"/proc/{process.pid}/ns/net").stat().st_ino != box:
            pass
        assert run.apply("inside", bridge(NetnsTarget(pid=process.pid, inode=box))).done
        (entry,) = journal.history()
        record = Path(os.environ["VNET_STATE"], "journal", f"{entry.entry_id}.jsonl")
        # As if that process had ended and another one, elsewhere, had its number.
        record.write_text(record.read_text().replace(f'"inode": {box}', f'"inode": {box + 1}'))
        assert run.undo(entry).end == "undone"
        assert inside_host.json("ip -j link show br-t", inside="box")
    finally:
        process.kill()
        process.wait()


def test_a_failed_undo_is_offered_again(inside_host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(inside_host.names)
    assert run.apply("bridge", bridge()).done
    with monkeypatch.context() as patched:
        patched.setattr(run, "execute", _refuse)
        outcome = run.undo(next(journal.history()))
    assert outcome.end == "failed"
    assert len(outcome.errors) == 3, "each of them is reported"
    (entry,) = journal.open_entries()
    assert run.undo(entry).end == "undone"
    assert state(inside_host.names) == before
    assert journal.open_entries() == ()


def _refuse(operation: Operation, kernel: object) -> None:
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def test_a_refused_step_is_not_undone_later(
    inside_host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program's namespace is in the way, and an undo fails: it must survive."""
    theirs = inside_host.namespace("theirs")
    steps = (*bridge(), CreateNamespace(theirs))
    real = run.execute

    def execute(operation: Operation, kernel: object) -> None:
        if operation == steps[0].inverse()[0]:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        real(operation, kernel)

    with monkeypatch.context() as patched:
        patched.setattr(run, "execute", execute)
        assert run.apply("in the way", steps).end == "failed"
    (entry,) = journal.open_entries()
    assert run.undo(entry).end == "undone"
    assert Path(f"/run/netns/{theirs}").exists()
    assert "br-t" not in inside_host.run("ip link")


def test_an_entry_that_was_undone_meanwhile(inside_host: ThrowawayHost) -> None:
    """Undoing twice, from a list that was read before, does no harm."""
    before = state(inside_host.names)
    assert run.apply("bridge", bridge()).done
    entry = next(journal.history())
    assert run.undo(entry).end == "undone"
    assert run.undo(entry).end == "undone"
    assert state(inside_host.names) == before


COMMANDS: tuple[Operation, ...] = (
    CreateBridge("br-c"),
    SetLink("br-c", "up", "up", "down"),
    AddAddress("br-c", "10.78.0.1/24", broadcast="10.78.0.255"),
    AddAddress("br-c", "10.79.0.1/24", prefix_route=False, scope="link"),
    AddAddress("br-c", "fd00:78::1/64"),
    AddAddress("br-c", "fd00:79::1/64", prefix_route=False),
    AddRoute("10.80.0.0/24", "br-c"),
    AddRoute("10.81.0.0/24", "br-c", "10.78.0.2", metric=7, source="10.78.0.1"),
    AddRoute("10.82.0.0/24", "br-c", "10.78.0.2", protocol="static"),
    AddRoute("fd00:81::/64", "br-c", "fd00:78::2", family=6, metric=1024),
    AddNeighbour("br-c", "10.78.0.9", "02:00:00:00:00:09"),
    DeleteRoute(AddRoute("10.80.0.0/24", "br-c")),
    DeleteAddress("br-c", "10.79.0.1/24", scope="link", prefix_route=False),
)


def test_the_commands_describe_the_operations(inside_host: ThrowawayHost) -> None:
    other = inside_host.namespace("typed")
    inside_host.run("ip link set lo up", inside="typed")
    for count in range(1, len(COMMANDS) + 1):
        step = COMMANDS[count - 1]
        assert run.apply(step.describe(), (step,)).done
        inside_host.run(["sh", "-c", step.command()], inside="typed")
        ours, typed = state([inside_host.name])[inside_host.name], state([other])[other]
        for part in ("addresses", "routes", "routes6", "neighbours"):
            assert _without_macs(ours[part]) == _without_macs(typed[part]), step.command()


def _without_macs(value: object) -> str:
    """Remove a bridge's MAC and its link-local address, which are random."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k != "address"}
        return str({k: _without_macs(v) for k, v in kept.items()})
    if isinstance(value, list):
        return str(sorted(_without_macs(one) for one in value if "fe80::" not in str(one)))
    return str(value)


def test_persistent_attachments_round_trip() -> None:
    place = NetnsTarget(pid=42, inode=4711)
    steps = (CreateVeth("v-app", "eth1", peer_place=place), AddAddress("eth1", "10.0.0.2/24", place))
    want = PersistAttachment("docker:abc", "shop", steps)
    assert from_record(to_record(want)) == want
    attachments.save_attachment(want)
    attachments.save_attachment(PersistAttachment("docker:abc", "shop", steps[:1]))
    attachments.save_attachment(want)
    assert attachments.read_attachments() == (want,)
    now = NetnsTarget(pid=43, inode=4712)
    moved = want.steps_at(now)
    assert moved == (
        CreateVeth("v-app", "eth1", peer_place=now),
        AddAddress("eth1", "10.0.0.2/24", now),
    )
    attachments.remove_attachment(want)
    assert attachments.read_attachments() == ()
