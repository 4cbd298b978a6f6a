"""The guard: a NIC becomes a bridge port while a user is connected through it."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from core import state
from core.apply import guard, journal, run
from core.operations import (
    AddAddress,
    AddNeighbour,
    AddRoute,
    CreateBridge,
    DeleteAddress,
    DeleteNeighbour,
    DeleteRoute,
    Operation,
    SetLink,
)
from core.tools import PACKAGES
from tests.support.host import ThrowawayHost
from tests.support.state import state as host_state
from tests.support.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.root, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]

HOST, OUTSIDE, SAME_NETWORK = "192.0.2.2", "192.0.2.1", "192.0.2.9"
MAC, ELSEWHERE = "02:00:00:00:02:02", "02:00:00:00:02:09"


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def wired(inside_host: ThrowawayHost) -> ThrowawayHost:
    """Yield a host with a NIC to a network outside."""
    host = inside_host
    host.namespace("outside")
    for inside in ("host", "outside"):  # the kernel adds its own addresses at once
        for which in ("all", "default"):
            host.run(f"sysctl -qw net.ipv6.conf.{which}.accept_dad=0", inside)
    host.run(f"ip link add eth0 address {MAC} type veth peer name wire netns {host.full('outside')}")
    for command in (
        f"ip addr add {HOST}/24 brd + dev eth0",
        "ip addr add 2001:db8::2/64 dev eth0 nodad",
        "ip link set eth0 up",
        f"ip route add default via {OUTSIDE}",
        "ip route add default via 2001:db8::1",
        f"ip route add 198.51.100.0/24 via {OUTSIDE} src {HOST} metric 50",
        f"ip neigh add {SAME_NETWORK} lladdr {ELSEWHERE} dev eth0",
    ):
        host.run(command)
    for command in (
        f"ip addr add {OUTSIDE}/24 dev wire",
        "ip addr add 2001:db8::1/64 dev wire nodad",
        "ip link set wire up",
    ):
        host.run(command, inside="outside")
    # The kernel's own changes in the first moments are no difference.
    for inside in ("host", "outside"):
        wait_until(lambda: _ready(host, inside), "the link-local addresses")  # noqa: B023
    return host


def _ready(host: ThrowawayHost, inside: str) -> bool:
    addresses = host.run("ip addr", inside)
    return "fe80:" in addresses and "tentative" not in addresses


def bridging() -> tuple[Operation, ...]:
    v6 = "2001:db8::2/64"
    routes = (
        AddRoute("198.51.100.0/24", "eth0", OUTSIDE, metric=50, source=HOST),
        AddRoute("default", "eth0", OUTSIDE),
        AddRoute("default", "eth0", "2001:db8::1", family=6),
    )
    there = tuple(
        AddRoute(way.dst, "br-lan", way.gateway, metric=way.metric, source=way.source, family=way.family)
        for way in routes
    )
    broadcast = "192.0.2.255"
    return (
        CreateBridge("br-lan", mac=MAC, alias="vnet:net=lan kind=nic-bridged uplink=eth0"),
        SetLink("br-lan", "up", "up", "down"),
        *(DeleteRoute(way) for way in routes),
        DeleteNeighbour(AddNeighbour("eth0", SAME_NETWORK, ELSEWHERE)),
        DeleteAddress("eth0", v6),
        DeleteAddress("eth0", f"{HOST}/24", broadcast=broadcast),
        SetLink("eth0", "master", "br-lan", ""),
        AddAddress("br-lan", f"{HOST}/24", broadcast=broadcast),
        AddAddress("br-lan", v6),
        AddNeighbour("br-lan", SAME_NETWORK, ELSEWHERE),
        *reversed(there),
    )


STEPS = len(bridging())
WINDOW = 6.0  # seconds to confirm a change, and for what is done meanwhile


class Session:
    """Exchange numbered records over TCP from outside, checked at both ends."""

    def __init__(self, host: ThrowawayHost) -> None:
        self.echoed = 0
        self.error = ""
        self._stop = threading.Event()
        listener = socket.create_server((HOST, 0))
        self._threads = [
            threading.Thread(target=self._serve, args=(listener,)),
            threading.Thread(target=self._type, args=(host.full("outside"), listener.getsockname()[1])),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Session:
        self.moves()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def moves(self) -> None:
        """Wait until records are exchanged again; fail if the connection broke."""
        before = self.echoed
        wait_until(lambda: self.error or self.echoed > before + 5, "the session to go on")
        assert not self.error

    def _serve(self, listener: socket.socket) -> None:
        with listener, listener.accept()[0] as connection:
            while data := connection.recv(8):
                connection.sendall(data)

    def _type(self, outside: str, port: int) -> None:
        try:
            with open(f"/run/netns/{outside}") as there:
                os.setns(there.fileno(), os.CLONE_NEWNET)
            with socket.create_connection((HOST, port), PATIENCE) as connection:
                connection.settimeout(PATIENCE)
                number = 0
                while not self._stop.wait(0.005):
                    number += 1
                    connection.sendall(struct.pack("!Q", number))
                    (back,) = struct.unpack("!Q", connection.recv(8, socket.MSG_WAITALL))
                    assert back == number
                    self.echoed = number
        except (OSError, AssertionError, struct.error) as error:
            self.error = f"{type(error).__name__}: {error}"


@pytest.fixture
def session(wired: ThrowawayHost) -> Iterator[Session]:
    with Session(wired) as running:
        yield running


def no_guard_left() -> bool:
    """Return whether every guard process of this test has ended."""
    return not guard_processes()


def guard_processes() -> list[psutil.Process]:
    here = os.environ["VNET_STATE"]
    return [one for one in psutil.process_iter() if any(here in word for word in _words(one))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
    except psutil.Error:
        return []


def in_a_child(body: Callable[[], object]) -> int:
    """Run a function in a child process; return its pid."""
    child = os.fork()
    if child == 0:
        try:
            body()
        finally:
            os._exit(1)
    return child


def killed(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def waits_for_a_lock(pid: int) -> bool:
    """Return whether a process is blocked in flock(2)."""
    lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(words[1:3] == ["->", "FLOCK"] and words[5] == str(pid) for words in lines)


def on_bridge(host: ThrowawayHost) -> bool:
    return host.json("ip -j link show eth0")[0].get("master") == "br-lan"


def test_an_unconfirmed_change_is_undone(wired: ThrowawayHost, session: Session) -> None:
    before = host_state(wired.names)
    outcome = guard.guarded_apply("bridge eth0", bridging(), seconds=WINDOW)
    assert outcome.done, outcome.errors
    assert on_bridge(wired)
    (pending,) = guard.pending_guards()
    assert (pending.entry_id, pending.title, pending.alive) == (outcome.entry_id, "bridge eth0", True)
    assert pending.seconds_left is None or 0 < pending.seconds_left <= WINDOW
    session.moves()
    assert on_bridge(wired), "the session ran across the bridge"
    wait_until(lambda: not guard.pending_guards() and no_guard_left(), "the guard to revert")
    assert host_state(wired.names) == before
    assert next(journal.history()).end == "undone"
    assert not guard.confirm(outcome.entry_id), "too late"
    session.moves()


def test_a_confirmed_change_stays(wired: ThrowawayHost, session: Session) -> None:
    outcome = guard.guarded_apply("bridge eth0", bridging(), seconds=60)
    assert guard.confirm(outcome.entry_id)
    assert guard.pending_guards() == ()
    wait_until(no_guard_left, "the guard to end, which alone could take it back")
    assert on_bridge(wired)
    (address,) = wired.json("ip -j -4 addr show dev br-lan")[0]["addr_info"]
    assert (address["local"], address["broadcast"]) == (HOST, "192.0.2.255")
    assert next(journal.history()).end == "done"
    session.moves()
    assert not guard.confirm(outcome.entry_id), "it is confirmed already"
    assert run.undo(next(journal.history())).end == "undone"
    session.moves()


def test_killed_while_an_undo_is_confirmed(wired: ThrowawayHost, session: Session) -> None:
    """The guard does nothing; the next reader of the journal finishes the undo."""
    before = host_state(wired.names)
    made = run.apply("bridge eth0", bridging())
    (entry,) = journal.history()
    undone = guard.guarded_undo(entry, seconds=60)

    def confirm() -> None:
        journal._finish_confirmed_undos = lambda: os.kill(os.getpid(), signal.SIGKILL)
        guard.confirm(undone.entry_id)

    assert killed(in_a_child(confirm))
    wait_until(no_guard_left, "the guard to end")
    assert guard.pending_guards() == ()
    assert [(one.entry_id, one.end) for one in journal.history()] == [(made.entry_id, "undone")]
    assert host_state(wired.names) == before
    session.moves()


def test_killed_right_after_the_change(wired: ThrowawayHost, session: Session) -> None:
    before = host_state(wired.names)
    ready, report = os.pipe()

    def change() -> None:
        guard.guarded_apply("bridge eth0", bridging(), seconds=WINDOW)
        os.write(report, b"x")
        os.kill(os.getpid(), signal.SIGKILL)

    child = in_a_child(change)
    assert os.read(ready, 1) == b"x"
    assert killed(child)
    assert on_bridge(wired)
    wait_until(no_guard_left, "the guard to revert")
    assert host_state(wired.names) == before
    session.moves()


@pytest.mark.parametrize("at", range(1, STEPS, 3))
def test_killed_in_the_middle(at: int, wired: ThrowawayHost, session: Session) -> None:
    before = host_state(wired.names)
    seen = 0

    def kill_here(_: Operation) -> None:
        nonlocal seen
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    # Sixty seconds would remain, but it doesn't wait for a dead caller.
    child = in_a_child(lambda: guard.guarded_apply("bridge eth0", bridging(), 60, kill_here))
    assert killed(child)
    wait_until(no_guard_left, "the guard to revert")
    assert host_state(wired.names) == before
    assert next(journal.history()).end == "undone"
    session.moves()


def test_a_caller_that_hangs_half_way_is_ended(wired: ThrowawayHost) -> None:
    before = host_state(wired.names)

    def hang(step: Operation) -> None:
        if isinstance(step, DeleteAddress):
            time.sleep(60)

    child = in_a_child(lambda: guard.guarded_apply("bridge eth0", bridging(), 0.7, hang))
    assert killed(child)
    wait_until(no_guard_left, "the guard to revert")
    assert host_state(wired.names) == before


def test_a_refused_change_needs_no_guard(wired: ThrowawayHost) -> None:
    wired.run("ip link add br-lan type bridge")
    before = host_state(wired.names)
    assert guard.guarded_apply("bridge eth0", bridging(), 60).end == "undone"
    wait_until(no_guard_left, "the guard to end")
    assert host_state(wired.names) == before
    assert guard.pending_guards() == ()


def test_the_guard_waits_for_another_writer(wired: ThrowawayHost) -> None:
    before = host_state(wired.names)
    outcome = guard.guarded_apply("bridge eth0", bridging(), seconds=WINDOW / 2)
    with state.writers_lock():
        wait_until(lambda: not guard.pending_guards(), "the guard's time to be up")
        (process,) = guard_processes()
        wait_until(lambda: waits_for_a_lock(process.pid), "the guard to wait for us")
        assert on_bridge(wired)
        assert not guard.confirm(outcome.entry_id)
    wait_until(no_guard_left, "the guard to revert")
    assert host_state(wired.names) == before


def test_a_guard_undoes_the_change_on_sigterm(wired: ThrowawayHost) -> None:
    before = host_state(wired.names)
    guard.guarded_apply("bridge eth0", bridging(), seconds=60)
    (process,) = guard_processes()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    wait_until(no_guard_left, "the guard to revert")
    assert host_state(wired.names) == before


def test_a_guard_killed_during_its_undo(wired: ThrowawayHost) -> None:
    before = host_state(wired.names)
    outcome = guard.guarded_apply("bridge eth0", bridging(), seconds=60)
    (process,) = guard_processes()
    path = Path(os.environ["VNET_STATE"], "journal", f"{outcome.entry_id}.jsonl")
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while b'"undo"' not in path.read_bytes() and time.monotonic() < deadline:
        pass
    process.kill()
    wait_until(no_guard_left, "the guard to be dead")
    for entry in journal.open_entries():
        assert entry.undoing == STEPS
        assert run.undo(entry).errors == ()
    assert host_state(wired.names) == before
    assert next(journal.history()).end == "undone"


def test_a_guard_keeps_no_descriptors_of_its_caller(wired: ThrowawayHost, tmp_path: Path) -> None:
    held = (tmp_path / "held").open("w")
    os.set_inheritable(held.fileno(), True)
    outcome = guard.guarded_apply("bridge eth0", bridging(), seconds=60)
    (process,) = guard_processes()
    descriptors = Path(f"/proc/{process.pid}/fd").iterdir()
    mine = tmp_path / "state/guards" / f"{outcome.entry_id}.json"
    found = sorted(os.readlink(path) for path in descriptors)
    assert found == sorted([*["/dev/null"] * 3, "anon_inode:[pidfd]", str(mine)])
    assert os.getsid(process.pid) != os.getsid(0)
    assert process.ppid() != os.getpid()
    assert process.cwd() == "/"
    assert process.memory_info().rss < psutil.Process().memory_info().rss / 2
    assert guard.confirm(outcome.entry_id)
    wait_until(no_guard_left, "the guard to end")
    held.close()


def test_a_guard_works_without_the_callers_folder_and_import_path(
    wired: ThrowawayHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host_state(wired.names)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("VNET_STATE", "state")
    guard.guarded_apply("bridge eth0", bridging(), seconds=60)
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))
    (process,) = guard_processes()
    given = process.environ()
    assert (given["PYTHONPATH"], given["VNET_STATE"]) == (str(PACKAGES), str(tmp_path / "state"))
    process.terminate()
    wait_until(lambda: not guard.pending_guards() and no_guard_left(), "the guard to revert")
    assert next(journal.history()).end == "undone"
    assert host_state(wired.names) == before


def test_without_a_guard_nothing_is_changed(wired: ThrowawayHost, monkeypatch: pytest.MonkeyPatch) -> None:
    before = host_state(wired.names)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(guard.GuardError, match="nothing was changed"):
        guard.guarded_apply("bridge eth0", bridging())
    assert host_state(wired.names) == before
    assert journal.open_entries() == ()


def test_a_killed_guard_is_reported(wired: ThrowawayHost) -> None:
    outcome = guard.guarded_apply("bridge eth0", bridging(), seconds=60)
    (process,) = guard_processes()
    process.kill()
    wait_until(lambda: not guard.pending_guards()[0].alive, "the guard to be dead")
    assert guard.confirm(outcome.entry_id)
    assert guard.pending_guards() == ()
