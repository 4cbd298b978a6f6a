"""Forgetting connections from the dashboard: keys as a person presses them, asserted with conntrack(8)."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from core.apply import journal
from core.collect.snapshot import read_snapshot
from core.model import Part
from tests.support.host import ThrowawayHost
from tests.support.machine import Machine, ok, refused
from tests.ui.driver import Person, dashboard
from tests.ui.writer import prose
from tui.cli.session import ChangeSession

pytestmark = pytest.mark.root

MADE = "conntrack -I -p tcp -d 198.51.100.7 --dport 443 -t 300 --state ESTABLISHED -s"


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


@pytest.fixture
def tracked(inside_host: ThrowawayHost) -> ThrowawayHost:
    """A host with two connections."""
    for port in (4001, 4002):
        inside_host.run(f"{MADE} 192.0.2.9 --sport {port}")
    return inside_host


@asynccontextmanager
async def at_conntrack(host: ThrowawayHost, size: tuple[int, int] = (130, 40)) -> AsyncIterator[Person]:
    """The Conntrack view, the connection of port 4002 selected."""
    snapshot = read_snapshot((Part.LINKS, Part.CONTAINERS, Part.CONNTRACK))
    async with dashboard(snapshot, size, make_change_service=ChangeSession) as person:
        await person.type(":conntrack⏎")
        await person.type("/ns:host sport:4002⏎")
        await person.until(lambda: person.dashboard.table.ref is not None, "the connection")
        yield person


def ports(host: ThrowawayHost) -> list[str]:
    """The source ports that `conntrack -L` lists."""
    return sorted(line.partition("sport=")[2].split()[0] for line in host.run("conntrack -L").splitlines())


@pytest.mark.parametrize("size", [(80, 24), (130, 40)])
async def test_a_connection_is_forgotten(tracked: ThrowawayHost, size: tuple[int, int]) -> None:
    async with at_conntrack(tracked, size) as person:
        await person.press("W", "d")
        await person.until(lambda: "conntrack -D" in person.text, "the command")
        said = prose(person)
        assert "--sport 4002" in said and "passes all rules again" in said, person.text
        assert ports(tracked) == ["4001", "4002"], "nothing is done before a yes"
        await person.press("y")
        await person.until(lambda: len(person.app.screen_stack) == 1, "the form's end")
        assert ports(tracked) == ["4001"]
        await person.until(lambda: "Deleted" in person.text, "the word that it is done")
        assert "(u: undo)" not in person.text
        await person.press("u")
        await person.until(lambda: "has no undo" in prose(person), "why not")
        await person.press("enter")
        await person.settle()
        assert person.app.screen_stack[-1].__class__.__name__ == "HistoryScreen"
    (entry,) = journal.history()
    assert entry.end == "done" and entry.is_final


async def test_a_no_leaves_it(tracked: ThrowawayHost) -> None:
    async with at_conntrack(tracked) as person:
        await person.press("W", "d")
        await person.until(lambda: "conntrack -D" in person.text, "the command")
        await person.press("n")
        await person.until(lambda: len(person.app.screen_stack) == 1, "the form's end")
    assert ports(tracked) == ["4001", "4002"]
    assert [*journal.history()] == []


async def test_read_only_it_stays(tracked: ThrowawayHost) -> None:
    async with at_conntrack(tracked) as person:
        await person.press("d")
        await person.eventually("read-only")
        assert len(person.app.screen_stack) == 1
    assert ports(tracked) == ["4001", "4002"]


async def test_the_head_of_the_view(tracked: ThrowawayHost) -> None:
    limit = int(tracked.run("sysctl -n net.netfilter.nf_conntrack_max"))
    snapshot = read_snapshot((Part.LINKS, Part.CONTAINERS, Part.CONNTRACK))
    own = {tracked.inode: snapshot.conntracks[tracked.inode]}
    async with dashboard(replace(snapshot, conntracks=own)) as person:
        await person.type(":conntrack⏎")
        await person.eventually(f"2 of {limit:,} (under 1%) · no failures · top sources: 192.0.2.9 100%")
        head, titles = (next(place for place, line in enumerate(person.lines) if text in line)
                        for text in ("no failures", "inside"))  # fmt: skip
        assert titles == head + 1
        await person.press("j")
        assert person.dashboard.table.cursor == 1
        await person.type("/no-such-thing⏎")
        assert "no failures" in person.text and "No row matches" in person.text
        await person.type(":overview⏎")
        await person.settle()
        assert "no failures" not in person.text


def test_the_command_line_says_that_it_has_no_undo(machine: Machine) -> None:
    ok(machine, "network create shop")
    machine.run(f"{MADE} 192.0.2.9 --sport 4001")
    script = (
        "from core.apply import run; from core.operations import DeleteConnection as D, CreateBridge as B\n"
        "import subprocess\n"
        "words = ['conntrack', '-L', '-p', 'tcp', '-o', 'id']\n"
        "told = subprocess.run(words, capture_output=True, text=True).stdout\n"
        "one = int(told.split('id=')[1].split()[0])\n"
        "print(run.apply('forget it', (D('192.0.2.9', '198.51.100.7', 6, 4001, 443, one),)).end)"
    )
    assert machine.run([sys.executable, "-c", script]) == "done\n"
    assert machine.run("conntrack -L -p tcp") == ""
    told = refused(machine, "undo")
    assert '"forget it"' in told and "it has no undo" in told
    history = ok(machine, "history").splitlines()
    assert history[0].endswith("forget it") and "done" in history[0]
    ok(machine, f"undo {history[1].split()[0]}")
    assert machine.json("ip -j link show type bridge") == []
