"""A change that is killed or refused at any step leaves the network as it was."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core import state
from core.apply import entries, journal, run
from core.operations import (
    AddAddress,
    AddRoute,
    CreateBridge,
    CreateNamespace,
    CreateVeth,
    JoinNamespace,
    NetnsTarget,
    Operation,
    SetBridge,
    SetLink,
    SetPort,
    SetRules,
    SetSysctl,
    undo_of,
)
from core.state import StateError
from tests.support.host import ThrowawayHost
from tests.support.state import state as host_state
from tui.cli.session import ChangeSession

pytestmark = pytest.mark.root

_EMPTY = "table inet vnet\ndelete table inet vnet\n"
_RULES = _EMPTY + (
    "table inet vnet {\n\tchain post {\n\t\ttype nat hook postrouting priority 100;\n"
    "\t\tip saddr 10.77.0.0/24 masquerade\n\t}\n}\n"
)


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def names(inside_host: ThrowawayHost) -> Iterator[tuple[str, str, str]]:
    """Return the host's name, and two that the change will create."""
    web, log = inside_host.full("web"), inside_host.full("log")
    yield inside_host.name, web, log
    for name in (web, log):
        if Path(f"/run/netns/{name}").exists():
            inside_host.names.append(name)


def steps_of(web: str, log: str) -> tuple[Operation, ...]:
    inside = NetnsTarget(web)
    return (
        CreateBridge("br-t", alias="vnet:kind=nat net=t", mtu=1400),
        AddAddress("br-t", "10.77.0.1/24"),
        AddAddress("br-t", "fd00:77::1/64"),
        SetLink("br-t", "up", "up", "down"),
        CreateNamespace(web),
        CreateVeth("v-web", "eth0", peer_place=inside, mtu=1400, alias="vnet:net=t"),
        SetLink("v-web", "master", "br-t", ""),
        SetPort("v-web", "isolated", True, False),
        SetLink("v-web", "up", "up", "down"),
        AddAddress("eth0", "10.77.0.2/24", inside),
        SetLink("eth0", "up", "up", "down", inside),
        AddRoute("default", "eth0", "10.77.0.1", inside),
        JoinNamespace(log, web),
        SetSysctl("net.ipv4.ip_forward", "1", "0"),
        SetBridge("br-t", "stp_state", 1, 0),
        SetRules(_RULES, _EMPTY),
    )


COUNT = len(steps_of("a", "b"))


def test_done_and_undone(names: tuple[str, str, str], inside_host: ThrowawayHost) -> None:
    before = host_state(names)
    outcome = run.apply("a network", steps_of(*names[1:]))
    assert outcome.done, outcome.errors
    assert inside_host.json("ip -j -d link show br-t")[0]["linkinfo"]["info_data"]["stp_state"] == 1
    assert inside_host.json("bridge -j -d link show dev v-web")[0]["isolated"] is True
    assert "masquerade" in inside_host.run("nft list ruleset")
    entry = next(journal.history())
    assert (entry.title, entry.end, entry.begun) == ("a network", "done", COUNT)
    assert run.undo(entry).end == "undone"
    assert host_state(names) == before
    assert next(journal.history()).end == "undone"


@pytest.mark.parametrize("at", range(COUNT))
def test_killed_after_any_step(at: int, names: tuple[str, str, str]) -> None:
    before = host_state(names)
    child = os.fork()
    if child == 0:
        seen = 0

        def kill_here(_: Operation) -> None:
            nonlocal seen
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

        run.apply("killed", steps_of(*names[1:]), progress=kill_here)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (entry,) = journal.open_entries()
    assert entry.begun == at + 1
    assert run.undo(entry).errors == ()
    assert host_state(names) == before
    assert journal.open_entries() == ()


def kill_before(at: int, body: Callable[[Callable[[Operation], None]], object]) -> None:
    """Do something in a child that is killed before the operation of that number."""
    child = os.fork()
    if child == 0:
        left = at

        def kill_here(_: Operation) -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        try:
            body(kill_here)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("at", range(COUNT))
def test_an_undo_killed_at_any_step_is_continued(at: int, names: tuple[str, str, str]) -> None:
    before = host_state(names)
    assert run.apply("undone", steps_of(*names[1:])).done
    entry = next(journal.history())
    kill_before(at, lambda progress: run.undo(entry, progress=progress))
    (found,) = journal.open_entries()
    assert (found.end, found.undoing, len(found.undone)) == ("", COUNT, max(0, at - 1))
    rest: list[Operation] = []
    assert run.undo(found, progress=rest.append).errors == ()
    assert len(rest) == COUNT - max(0, at - 1)
    assert host_state(names) == before
    assert journal.open_entries() == ()


@pytest.mark.parametrize("at", range(0, COUNT, 4))
def test_killed_while_a_failed_change_is_undone(
    at: int, names: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host_state(names)
    steps, real = steps_of(*names[1:]), run.execute

    def refusing(operation: Operation, kernel: object) -> None:
        if operation is steps[-1]:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        if operation == undo_of(steps[:-1])[at]:
            os.kill(os.getpid(), signal.SIGKILL)
        real(operation, kernel)

    with monkeypatch.context() as patched:
        patched.setattr(run, "execute", refusing)
        kill_before(COUNT, lambda progress: run.apply("refused", steps))
    (found,) = journal.open_entries()
    assert (found.undoing, found.in_flight) == (COUNT - 1, {at})
    assert run.undo(found).errors == ()
    assert host_state(names) == before


def test_recover_finishes_partly_executed_steps_of_an_undo(
    names: tuple[str, str, str], inside_host: ThrowawayHost
) -> None:
    """Killed between bridge and tag, and between a name and its namespace."""
    made = (CreateNamespace(names[1]), CreateBridge("br-t", alias="vnet:net=t"))
    assert run.apply("made", made).done
    before = host_state(names)
    assert run.apply("deleted", undo_of(made)).done
    entry = next(journal.history())
    writer = journal.reopen(entry)
    for number in range(2):  # each of them truncated
        writer.undoing(2)
        writer.undo(number)
    writer.close()
    inside_host.run("ip link add br-t type bridge")
    Path("/run/netns", names[1]).touch()
    (found,) = journal.open_entries()
    assert run.undo(found).errors == ()
    assert _without_macs(host_state(names)) == _without_macs(before)


def _without_macs(value: object) -> object:
    if isinstance(value, dict):
        drawn = ("address", "bridge_id", "root_id", "designated_root")
        return {key: _without_macs(one) for key, one in value.items() if key not in drawn}
    return [_without_macs(one) for one in value] if isinstance(value, list) else value


def test_a_change_of_another_process_is_in_progress_and_not_open(inside_host: ThrowawayHost) -> None:
    ready, report = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with state.writers_lock():
                journal.NewEntryWriter("slow", (CreateBridge("br-t"),)).begin(0)
                os.write(report, b"x")
                signal.pause()
        finally:
            os._exit(1)
    os.close(report)
    assert os.read(ready, 1) == b"x"
    try:
        assert [entry.end for entry in journal.latest(9)] == ["under way"]
        assert [one.is_open for one in ChangeSession().history()] == [False]
        slow = next(journal.history())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert [entry.end for entry in journal.latest(9)] == [""]
    assert [one.is_open for one in ChangeSession().history()] == [True]
    journal.mark(slow, "done")
    with pytest.raises(state.Busy, match="it has finished meanwhile"):
        run.undo(slow)


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EBUSY, errno.ENOSPC])
@pytest.mark.parametrize("at", range(0, COUNT, 3))
def test_refused_at_any_step(
    at: int, number: int, names: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host_state(names)
    steps = steps_of(*names[1:])
    real = run.execute

    def refusing(operation: Operation, kernel: object) -> None:
        if operation is steps[at]:
            raise OSError(number, os.strerror(number))
        real(operation, kernel)

    monkeypatch.setattr(run, "execute", refusing)
    outcome = run.apply("refused", steps)
    assert outcome.end == "undone"
    assert outcome.errors == (f"can't {steps[at].describe()}: {os.strerror(number)}",)
    assert outcome.undone_commands == tuple(undo.command() for undo in undo_of(steps[:at]))
    assert host_state(names) == before


def test_an_undo_does_not_remove_a_link_of_another_program(
    names: tuple[str, str, str], inside_host: ThrowawayHost
) -> None:
    inside_host.run("ip link add br-t type bridge")
    outcome = run.apply("in the way", steps_of(*names[1:]))
    assert outcome.end == "undone"
    assert "br-t" in outcome.errors[0]
    assert inside_host.json("ip -j link show br-t")


def test_one_writer_at_a_time(
    names: tuple[str, str, str], inside_host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_GRACE", 0.2)
    with state.writers_lock(), pytest.raises(state.Busy, match=f"under way .PID {os.getpid()}"):
        run.apply("second", steps_of(*names[1:]))
    assert "br-t" not in inside_host.run("ip link")


def test_a_state_directory_that_cannot_be_written_changes_nothing(
    names: tuple[str, str, str], inside_host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VNET_STATE", "/proc/no-such-place")
    with pytest.raises(StateError, match="nothing was changed"):
        run.apply("nowhere", steps_of(*names[1:]))
    assert "br-t" not in inside_host.run("ip link")


def test_a_full_disk_changes_nothing(
    names: tuple[str, str, str], inside_host: ThrowawayHost, state_directory: Path
) -> None:
    state_directory.mkdir()
    inside_host.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "full", str(state_directory)])
    try:
        (state_directory / "journal").mkdir()
        with (state_directory / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError):
            while True:
                ballast.write(bytes(4096))
        with pytest.raises(StateError, match="No space left"):
            run.apply("full", steps_of(*names[1:]))
        assert "br-t" not in inside_host.run("ip link")
        assert not list((state_directory / "journal").iterdir())
    finally:
        inside_host.run(["umount", str(state_directory)])


def test_a_reboot_removes_what_the_kernel_held(
    names: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host_state(names)
    assert run.apply("before the restart", steps_of(*names[1:])).done
    done = next(journal.history())
    monkeypatch.setattr(entries, "boot_id", lambda: "another run of the kernel")
    entry = next(journal.history())
    assert (entry.end, entry.steps, entry.errors) == ("undone", (), ("the machine was restarted since",))
    assert journal.open_entries() == ()
    assert run.undo(done).end == "undone"  # it changes nothing: the current state isn't what it made
    assert host_state(names) != before
    monkeypatch.undo()


def test_changes_in_the_same_millisecond_keep_their_order() -> None:
    ids = [journal.NewEntryWriter(f"change {number}", ()).entry_id for number in range(200)]
    assert ids == sorted(ids)


def test_the_journal_keeps_open_entries_and_removes_the_oldest_others(
    inside_host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_MAX_ENTRIES", 3)
    cut_off = journal.NewEntryWriter("cut off", (SetSysctl("net.ipv4.ip_forward", "1", "0"),))
    cut_off.begin(0)
    cut_off.close()
    for number in range(6):
        assert run.apply(f"change {number}", (SetSysctl("net.ipv4.ip_forward", "1", "0"),)).done
    titles = [entry.title for entry in journal.history()]
    assert titles[0] == "change 5"
    assert "cut off" in titles
    assert len(titles) <= 5
