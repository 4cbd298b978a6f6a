"""Faults of the demo lab on the command line and in the palette."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core.lab import LabSettings, lab
from core.lab.faults import FAULTS
from tests.support.machine import PROGRAM
from tests.support.terminal import Terminal
from tests.ui.driver import Person, dashboard
from tui.cli import main
from tui.cli.completion import script
from tui.cli.parser import make_parser
from tui.command import CommandError
from tui.services import LabFault, Services


@dataclass
class FakeFaults:
    """A service whose faults are injected at once, or refused."""

    active: set[str] = field(default_factory=set)
    refusal: str = ""

    def faults(self) -> list[LabFault]:
        return [LabFault(name, FAULTS[name].sentence, name in self.active) for name in FAULTS]

    def inject(self, name: str) -> None:
        if self.refusal:
            raise CommandError(self.refusal)
        self.active.add(name)

    def undo(self, name: str) -> None:
        self.active.remove(name)


def entries(person: Person) -> dict[str, str]:
    listed = person.app.get_system_commands(person.app.screen)
    return {entry.title: entry.help for entry in listed if "ault: " in entry.title}


async def choose(person: Person, words: str) -> None:
    """Choose the palette's best match."""
    await person.pilot.press("ctrl+p")
    await person.until(lambda: len(person.app.screen_stack) == 2, "the palette")
    await person.pilot.press(*(("space" if key == " " else key) for key in words))
    await person.until(lambda: words in person.text.lower() and "ault: " in person.text, "the entry")
    await person.pilot.press("enter")
    if len(person.app.screen_stack) == 2:  # the first Enter selects, the second runs
        await person.pilot.press("enter")


async def test_the_palette_injects_a_fault_and_undoes_it() -> None:
    service = FakeFaults()
    async with dashboard(services=Services(lab_faults=lambda: service)) as person:
        assert len(entries(person)) == len(FAULTS)
        await choose(person, "masquerade rule of br-shop")
        await person.until(lambda: service.active == {"masquerade-missing"}, "the fault")
        await person.eventually("Fault injected: The masquerade rule of br-shop is gone")
        assert next(iter(entries(person))) == "Undo fault: The masquerade rule of br-shop is gone"
        await choose(person, "undo fault")
        await person.until(lambda: not service.active, "the end of the fault")
        await person.eventually("Fault undone: The masquerade rule of br-shop is gone")


async def test_a_refusal_is_shown() -> None:
    service = FakeFaults(refusal="can't inject masquerade-missing in the demo lab: nft isn't installed")
    async with dashboard(services=Services(lab_faults=lambda: service)) as person:
        await choose(person, "masquerade rule of br-shop")
        await person.eventually("nft isn't installed")


async def test_elsewhere_the_palette_offers_no_fault() -> None:
    from tui.cli.lab_faults import LabFaults

    async with dashboard(services=Services(lab_faults=LabFaults)) as person:
        assert entries(person) == {}


@pytest.mark.root
def test_faults_in_a_real_lab() -> None:
    with Terminal([*PROGRAM, "demo", "--no-traffic", "--fault", "raw-drop"]) as terminal:
        terminal.wait_for("br-shop")
        terminal.press("\x10")
        terminal.press("undo fault: a rule in the raw")
        seen = len(terminal.output)
        terminal.press("\r")
        terminal.wait_for("Fault undone", since=seen)
        terminal.press("q")
        assert terminal.read_to_the_end() == 0


def settings_of(monkeypatch: pytest.MonkeyPatch, *words: str) -> LabSettings:
    """Return the settings of the lab that `vnet-tui demo WORDS` builds."""
    built: list[LabSettings] = []
    monkeypatch.setattr(lab, "main", lambda _command, settings, *_: built.append(settings) or 0)
    assert main(["demo", *words, "true"]) == 0
    (settings,) = built
    return settings


@pytest.mark.parametrize(
    ("words", "healthy", "faults"),
    [
        ("", False, ()),
        ("--fault none", True, ()),
        ("--fault demo", False, ()),
        ("--fault raw-drop", True, ("raw-drop",)),
        ("--fault raw-drop,ttl-1 --fault raw-drop,bridge-down", True, ("raw-drop", "ttl-1", "bridge-down")),
        ("--fault demo,raw-drop", False, ("raw-drop",)),
        ("--fault none,raw-drop", True, ("raw-drop",)),
    ],
)
def test_the_lab_of_an_option(
    monkeypatch: pytest.MonkeyPatch, words: str, healthy: bool, faults: tuple[str, ...]
) -> None:
    settings = settings_of(monkeypatch, *words.split())
    assert (settings.healthy, settings.faults) == (healthy, faults)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("raw-dorp", "--fault raw-drop"),
        ("service", "--fault service-dead"),
        ("frobnicate", "vnet-tui demo --list-faults"),
        ("\x1b[31mred", "vnet-tui demo --list-faults"),
    ],
)
def test_unknown_names_get_suggestions(
    capsys: pytest.CaptureFixture[str], name: str, suggestion: str
) -> None:
    assert main(["demo", "--fault", name]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("vnet-tui: can't inject the fault ") and f"Try: {suggestion}" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("words", ["--list-faults", "--fault list"])
def test_the_list_has_every_fault_with_a_sentence(capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert main(["demo", *words.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(FAULTS) + 2
    assert re.fullmatch(r"host-end-down +The host's end of web1's veth pair is down", lines[0])
    assert max(map(len, lines)) < 120


def test_without_rights_no_recording_replaces_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise lab.LabError("needs root", "sudo vnet-tui demo")

    monkeypatch.setattr("core.lab.check_rights", refuse)
    assert main(["demo", "--fault", "raw-drop"]) == 1
    assert "can't build the demo lab: needs root" in capsys.readouterr().err


def test_the_page_and_the_completion_name_every_fault() -> None:
    page = (Path(__file__).parents[2] / "docs/demo-lab.md").read_text()
    assert [name for name in FAULTS if f"`{name}`" not in page] == []
    for shell in ("bash", "zsh", "fish"):
        text = script(make_parser(), shell)
        assert [name for name in FAULTS if name not in text] == []


def test_each_fault_is_described() -> None:
    for name, fault in FAULTS.items():
        assert re.fullmatch(r"[a-z0-9-]+", name) and not fault.sentence.endswith(".")
        assert fault.steps and fault.probe.address and fault.culprit.name
        assert fault.probe.protocol == "icmp" or fault.probe.port
        assert len({one.sentence for one in FAULTS.values()}) == len(FAULTS)
