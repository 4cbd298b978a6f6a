"""Apply the fix of a finding, by the command's function and in the dashboard."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from core.apply import journal, run
from core.model import LinkKey
from core.model.fix import Fix, FixLink, FixSysctl
from tests.support.host import ThrowawayHost
from tests.ui.change_forms import closed, dialog_shows, host_dashboard, shows
from tests.ui.change_service import change_dashboard
from tests.ui.driver import Person
from tui.cli.repair import apply_fix
from tui.command import CommandError

pytestmark = pytest.mark.root
ADVICE = Fix("start the service in web", command="docker logs web")


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


@pytest.fixture
def broken(inside_host: ThrowawayHost) -> ThrowawayHost:
    """Return a host whose link up0 is down."""
    inside_host.run("ip link add up0 type veth peer name far0")
    return inside_host


def _up(host: ThrowawayHost) -> Fix:
    index = host.json("ip -j link show up0")[0]["ifindex"]
    return Fix("set up0 up", (FixLink(LinkKey(host.inode, index), "up", "up"),))


def _is_up(host: ThrowawayHost) -> bool:
    return "UP" in host.json("ip -j link show up0")[0]["flags"]


def _options(**values: bool) -> argparse.Namespace:
    return argparse.Namespace(**values)


def test_a_fix_is_applied_and_can_be_undone(
    broken: ThrowawayHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply_fix(_options(yes=True), _up(broken)) == 0
    assert _is_up(broken)
    assert "set up0 in the host up" in capsys.readouterr().out
    entry = next(iter(journal.history()))
    assert entry.title == "set up0 up"
    assert run.undo(entry).end == "undone"
    assert not _is_up(broken)


def test_a_dry_run_changes_nothing(broken: ThrowawayHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert apply_fix(_options(dry_run=True), _up(broken)) == 0
    assert "ip link set up0 up" in capsys.readouterr().out
    assert not _is_up(broken)


def test_a_fix_asks_first(broken: ThrowawayHost, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match=r"no terminal\. Try: --yes"):
        apply_fix(_options(), _up(broken))
    monkeypatch.setattr("tui.cli.console.is_interactive", lambda: True)
    for answer in (False, True):
        monkeypatch.setattr("tui.cli.console.answers_yes", lambda question, answer=answer: answer)
        assert apply_fix(_options(), _up(broken)) == 0
        assert _is_up(broken) == answer


def test_what_is_already_repaired_is_refused(
    broken: ThrowawayHost, capsys: pytest.CaptureFixture[str]
) -> None:
    fix = _up(broken)
    broken.run("ip link set up0 up")
    assert apply_fix(_options(yes=True), fix) == 1
    assert "can't set up0 up: it is already so: nothing to do" in capsys.readouterr().err


def test_an_advice_can_not_be_applied() -> None:
    with pytest.raises(CommandError, match=r"can't start the service in web: .*\. Try: docker logs web"):
        apply_fix(_options(yes=True), ADVICE)


@asynccontextmanager
async def _opened(host: ThrowawayHost, fix: Fix, size: tuple[int, int]) -> AsyncIterator[Person]:
    async with host_dashboard(size) as person:
        person.dashboard.changes.repair(fix)
        await dialog_shows(person, "ip link set up0 up")
        yield person


@pytest.mark.parametrize("size", [(80, 24), (130, 40)])
async def test_the_dashboard_applies_and_undoes_a_fix(broken: ThrowawayHost, size: tuple[int, int]) -> None:
    async with _opened(broken, _up(broken), size) as person:
        assert not _is_up(broken)
        await person.press("y")
        await closed(person)
        assert _is_up(broken)
        await shows(person, "u: undo")
        await person.press("u")
        await shows(person, "set up0 up")
        await person.press("enter")
        await person.until(lambda: "y: " in person.text, "the question")
        await person.press("y")
        await person.until(lambda: not _is_up(broken), "the undo")


async def test_escape_leaves_everything_as_it_is(broken: ThrowawayHost) -> None:
    async with _opened(broken, _up(broken), (130, 40)) as person:
        await person.press("escape")
        await closed(person)
        assert not _is_up(broken)


async def test_the_dashboard_shows_why_there_is_no_repair() -> None:
    async with change_dashboard() as (person, service):
        host = next(ns for ns, space in service.snapshot.namespaces.items() if space.is_host)
        person.dashboard.changes.repair(Fix("set it up", (FixLink(LinkKey(host, 9999), "up", "up"),)))
        await dialog_shows(person, "can't set it up: it no longer exists")
        await person.press("escape")
        await closed(person)
        person.dashboard.changes.repair(ADVICE)
        await shows(person, "Try: docker logs web")
        await person.press("W")
        person.dashboard.changes.repair(Fix("set it", (FixSysctl(host, "net.ipv4.ip_forward", "1", "0"),)))
        await person.settle()
        await closed(person)
        assert service.done == []
