"""Delete conntrack entries with the dashboard's keys, checked with conntrack(8)."""

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
from tests.ui.change_forms import dialog_text
from tests.ui.driver import Person, dashboard
from tui.cli.session import ChangeSession
from tui.services import Services

pytestmark = pytest.mark.root

INSERT = "conntrack -I -p tcp -d 198.51.100.7 --dport 443 -t 300 --state ESTABLISHED -s"


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


@pytest.fixture
def tracked(inside_host: ThrowawayHost) -> ThrowawayHost:
    """Return a host with two connections."""
    for port in (4001, 4002):
        inside_host.run(f"{INSERT} 192.0.2.9 --sport {port}")
    return inside_host


@asynccontextmanager
async def at_conntrack(host: ThrowawayHost, size: tuple[int, int] = (130, 40)) -> AsyncIterator[Person]:
    """Run the dashboard in the conntrack view, the connection of port 4002 selected."""
    snapshot = read_snapshot((Part.LINKS, Part.CONTAINERS, Part.CONNTRACK))
    async with dashboard(snapshot, size, services=Services(change=ChangeSession)) as person:
        await person.type(":conntrack⏎")
        await person.type("/ns:host sport:4002⏎")
        await person.until(lambda: person.dashboard.table.ref is not None, "the connection")
        yield person


def ports(host: ThrowawayHost) -> list[str]:
    """Return the source ports that `conntrack -L` lists."""
    return sorted(line.partition("sport=")[2].split()[0] for line in host.run("conntrack -L").splitlines())


@pytest.mark.parametrize("size", [(80, 24), (130, 40)])
async def test_d_deletes_a_connection(tracked: ThrowawayHost, size: tuple[int, int]) -> None:
    async with at_conntrack(tracked, size) as person:
        await person.press("W", "d")
        await person.until(lambda: "conntrack -D" in person.text, "the command")
        said = dialog_text(person)
        assert "--sport 4002" in said and "passes all rules again" in said, person.text
        assert ports(tracked) == ["4001", "4002"], "nothing is done before a yes"
        await person.press("y")
        await person.until(lambda: len(person.app.screen_stack) == 1, "the form's end")
        assert ports(tracked) == ["4001"]
        await person.until(lambda: "Deleted" in person.text, "the message")
        assert "(u: undo)" not in person.text
        await person.press("u")
        await person.until(lambda: "has no undo" in dialog_text(person), "why not")
        await person.press("enter")
        await person.settle()
        assert person.app.screen_stack[-1].__class__.__name__ == "HistoryScreen"
    (entry,) = journal.history()
    assert entry.end == "done" and entry.is_final


async def test_no_keeps_the_connection(tracked: ThrowawayHost) -> None:
    async with at_conntrack(tracked) as person:
        await person.press("W", "d")
        await person.until(lambda: "conntrack -D" in person.text, "the command")
        await person.press("n")
        await person.until(lambda: len(person.app.screen_stack) == 1, "the form's end")
    assert ports(tracked) == ["4001", "4002"]
    assert [*journal.history()] == []


async def test_d_is_refused_while_read_only(tracked: ThrowawayHost) -> None:
    async with at_conntrack(tracked) as person:
        await person.press("d")
        await person.eventually("read-only")
        assert len(person.app.screen_stack) == 1
    assert ports(tracked) == ["4001", "4002"]


async def test_the_line_above_the_columns(tracked: ThrowawayHost) -> None:
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


def test_undo_refuses_a_deleted_connection(machine: Machine) -> None:
    ok(machine, "network create shop")
    machine.run(f"{INSERT} 192.0.2.9 --sport 4001")
    script = (
        "from core.apply import run; from core.operations import DeleteConnection as D, CreateBridge as B\n"
        "import subprocess\n"
        "words = ['conntrack', '-L', '-p', 'tcp', '-o', 'id']\n"
        "output = subprocess.run(words, capture_output=True, text=True).stdout\n"
        "one = int(output.split('id=')[1].split()[0])\n"
        "print(run.apply('forget it', (D('192.0.2.9', '198.51.100.7', 6, 4001, 443, one),)).end)"
    )
    assert machine.run([sys.executable, "-c", script]) == "done\n"
    assert machine.run("conntrack -L -p tcp") == ""
    output = refused(machine, "undo")
    assert '"forget it"' in output and "it has no undo" in output
    history = ok(machine, "history").splitlines()
    assert history[0].endswith("forget it") and "done" in history[0]
    ok(machine, f"undo {history[1].split()[0]}")
    assert machine.json("ip -j link show type bridge") == []
