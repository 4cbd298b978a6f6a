"""A demo lab of several hosts: the key H and the palette go from one to the next."""

from __future__ import annotations

import json
import os

import pytest

from core.lab import LabSettings, lab
from tests.support.machine import PROGRAM
from tests.support.terminal import Terminal, command_line
from tests.ui.driver import Person, dashboard
from tui.cli import main
from tui.cli.lab_hosts import given_hosts
from tui.services import LabHosts, Services

NAMES = ("demo-1", "demo-2", "demo-3")


def services(asked: list[tuple[int, str]], current: int = 0, view: str = "") -> Services:
    return Services(lab_hosts=LabHosts(NAMES, current, view, lambda host, view: asked.append((host, view))))


async def ended(person: Person) -> None:
    while person.app.is_running:
        await person.pilot.pause(0.01)


@pytest.mark.parametrize(("current", "following"), [(0, 1), (1, 2), (2, 0)])
async def test_h_asks_for_the_next_host_in_the_same_view(current: int, following: int) -> None:
    asked: list[tuple[int, str]] = []
    async with dashboard(services=services(asked, current), size=(80, 24)) as person:
        assert " H Host " in person.lines[-1]
        await person.type("4")
        await person.pilot.press("H")
        await ended(person)
    assert asked == [(following, "networks")] and person.app.return_code == 0


async def test_the_palette_goes_to_any_other_host() -> None:
    asked: list[tuple[int, str]] = []
    async with dashboard(services=services(asked, 1)) as person:
        listed = {one.title: one for one in person.app.get_system_commands(person.app.screen)}
        assert [title for title in listed if title.startswith("Go to host")] == [
            "Go to host demo-1", "Go to host demo-3"
        ]  # fmt: skip
        listed["Go to host demo-3"].callback()
        await ended(person)
    assert asked == [(2, "overview")]


async def test_the_dashboard_opens_in_the_given_view() -> None:
    async with dashboard(services=services([], view="routes")) as person:
        assert person.dashboard.view.name == "routes"


@pytest.mark.parametrize("view", ["", "nonsense"])
async def test_an_unknown_view_is_the_first_one(view: str) -> None:
    async with dashboard(services=services([], view=view)) as person:
        assert person.dashboard.view.name == "overview"


async def test_h_is_in_the_help() -> None:
    async with dashboard(services=services([]), size=(200, 60)) as person:
        await person.press("question_mark")
        assert "next host" in person.text


async def test_elsewhere_there_is_no_other_host() -> None:
    async with dashboard(size=(200, 60)) as person:
        assert "Host " not in person.lines[-1]
        await person.press("H")
        assert person.app.is_running
        listed = [one.title for one in person.app.get_system_commands(person.app.screen)]
        assert "Host" not in listed and not any("Go to host" in title for title in listed)
        await person.press("question_mark")
        assert "this help" in person.text and "next host" not in person.text


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "3", '{"names": 1, "current": 0, "view": "", "report": 2}',
     '{"names": ["a"], "current": "x", "view": "", "report": 2}',
     '{"names": ["a"], "current": 0, "view": "", "report": 987654}'],
)  # fmt: skip
def test_a_wrong_variable_is_ignored(text: str) -> None:
    assert given_hosts(text) is None


def test_a_request_reaches_the_launcher() -> None:
    request, report = os.pipe()
    os.set_inheritable(report, True)
    given = {"names": NAMES, "current": 1, "view": "flows", "report": report}
    hosts = given_hosts(json.dumps(given))
    assert hosts is not None and (hosts.names, hosts.current, hosts.view) == (NAMES, 1, "flows")
    assert not os.get_inheritable(report)
    hosts.request(2, "nat")
    assert os.read(request, 100) == b"2 nat"
    os.close(request)
    os.close(report)


# ---- the command line


@pytest.mark.parametrize("text", ["0", "10", "-1", "three", "", "1.5", "²"])
def test_wrong_numbers_of_hosts(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["demo", "--hosts", text])
    printed = capsys.readouterr().err
    assert end.value.code == 2 and printed.startswith("usage: vnet-tui demo")
    assert "argument --hosts" in printed


def test_faults_are_for_a_single_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--hosts", "3", "--fault", "raw-drop"]) == 1
    assert capsys.readouterr().err == (
        "vnet-tui: can't inject faults into several hosts: they are made for the single host. "
        "Try: vnet-tui demo --fault NAME\n"
    )


def test_one_host_is_the_usual_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[LabSettings] = []
    monkeypatch.setattr(lab, "main", lambda _command, settings, *_: built.append(settings) or 0)
    assert main(["demo", "--hosts", "1", "true"]) == 0
    assert main(["demo", "true"]) == 0
    assert built[0] == built[1] and built[0].ranges == ()


@pytest.mark.parametrize("words", [(), ("true",)])
def test_without_root_an_error_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["demo", "--hosts", "3", *words]) == 1
    assert capsys.readouterr().err.endswith(
        "can't build the demo lab: needs root. Try: sudo vnet-tui demo --hosts 3\n"
    )


# ---- the whole program


@pytest.mark.root
def test_h_goes_round_the_hosts_of_a_real_lab() -> None:
    with Terminal([*PROGRAM, "demo", "--hosts", "2", "--no-traffic"], columns=100) as terminal:
        terminal.wait_for("proxy1")
        terminal.press("4")
        terminal.wait_for("overlay")
        for name in ("demo-2", "demo-1"):
            seen = len(terminal.output)
            terminal.press("H")
            terminal.wait_for(f" {name} ", since=seen)
            terminal.wait_for("overlay", since=seen)
        seen = len(terminal.output)
        terminal.press("W")
        terminal.wait_for("WRITE", since=seen)
        terminal.press("q")
        assert terminal.read_to_the_end() == 0


@pytest.mark.root
def test_h_works_after_a_shell_in_a_container() -> None:
    """The dashboard's process group has the terminal then, and the launcher is in another one."""
    with Terminal([*PROGRAM, "demo", "--hosts", "2", "--no-traffic"], columns=100) as terminal:
        terminal.wait_for("proxy1")
        terminal.press(":proxy1\r")
        terminal.settle(1)
        terminal.press("x")
        terminal.settle()
        seen = len(terminal.output)
        terminal.press("echo inside-$((20 + 3))\r")
        terminal.wait_for("inside-23", since=seen)
        terminal.press("exit\r")
        terminal.wait_for("Help", since=seen)
        terminal.settle()
        seen = len(terminal.output)
        terminal.press("H")
        terminal.wait_for(" demo-2 ", since=seen)
        terminal.wait_for("Help", since=seen)
        terminal.press("q")
        assert terminal.read_to_the_end() == 0


@pytest.mark.root
def test_a_killed_dashboard_ends_the_lab() -> None:
    with Terminal([*PROGRAM, "demo", "--hosts", "2", "--no-traffic"], columns=100) as terminal:
        terminal.wait_for("proxy1")
        inner = [one for one in terminal.processes() if command_line(one)[-1:] == ["tui.cli"]]
        inner[0].kill()  # its children have its command line until their exec
        assert terminal.read_to_the_end() == 128 + 9
