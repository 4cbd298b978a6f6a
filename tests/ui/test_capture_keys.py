"""The capture screen: packets as lines, pause, filter, file, and its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from core.capture.lines import PacketLine
from core.capture.targets import Target
from core.topology import Topology
from tests.support.snapshots import small_host
from tests.ui.driver import FedSource, Person, dashboard, patient_keys
from tui.app import VnetApp
from tui.command import CommandError
from tui.services import CaptureState, Services


class FedCapture:
    """A capture whose packets the test makes."""

    def __init__(self) -> None:
        self.state = CaptureState()
        self.filters: list[str] = []
        self.saved: list[Path] = []
        self.stopped = False

    def add(self, count: int) -> None:
        self.state = replace(self.state, last=self.state.last + count)

    def lines(self, first: int, last: int) -> list[PacketLine]:
        numbers = range(max(first, self.state.first), min(last, self.state.last))
        line = PacketLine("12:00:00.123456", "eth0", "", "db:5432", "TCP", "[SYN] Len=0", "")
        return [line._replace(source=f"web1:{number}", comment=f"n{number}") for number in numbers]

    def set_filter(self, text: str) -> None:
        if text == "bad":
            raise CommandError("can't compile the filter 'bad': syntax error. Try: man pcap-filter")
        self.filters.append(text)

    def save(self, path: Path) -> None:
        self.saved.append(path)
        self.state = replace(self.state, file=path.name)

    def end_file(self) -> None:
        self.state = replace(self.state, file="", notice="Wrote 3 packets to a file")

    def stop(self) -> None:
        self.stopped = True


class FedService:
    """A service that starts one capture, or refuses."""

    def __init__(self, lacks: str = "") -> None:
        self.capture, self.lacks = FedCapture(), lacks
        self.targets: list[Target] = []

    def missing_rights(self) -> str:
        return self.lacks

    def start(self, target: Target, topology: Topology, filter_text: str) -> FedCapture:
        self.targets.append(target)
        return self.capture


@asynccontextmanager
async def capturing(
    service: FedService, view: str = "containers", size: tuple[int, int] = (130, 40)
) -> AsyncIterator[Person]:
    """Open the dashboard, go to a view, and press C on its first row."""
    source = FedSource(small_host())
    app = VnetApp(source, services=Services(capture=lambda: service))
    with patient_keys():
        async with app.run_test(size=size) as pilot:
            person = Person(app, pilot, source)
            presenter = person.dashboard.presenter
            await person.until(lambda: source.started and presenter.current_update, "the first update")
            await person.settle()
            person.dashboard.go_to(view)
            await person.settle()
            await person.press("C")
            yield person


async def test_packets_appear_and_the_cursor_follows_them() -> None:
    service = FedService()
    async with capturing(service) as person:
        await person.eventually("No packets yet")
        assert [target.title for target in service.targets] == [f"container {person.row()}"]
        service.capture.add(100)
        await person.eventually("web1:99")
        assert "100 packets" in person.text and "n99" in person.text and "web1:10 " not in person.text
        await person.press("g")
        await person.eventually("web1:0 ")
        service.capture.add(100)
        await person.eventually("200 packets")
        assert "web1:199" not in person.text, "the cursor isn't at the end"
        await person.press("G")
        await person.eventually("web1:199")


async def test_pause_holds_the_display_only() -> None:
    service = FedService()
    async with capturing(service) as person:
        service.capture.add(5)
        await person.eventually("web1:4")
        await person.press("p")
        service.capture.add(5)
        await person.eventually("10 packets")
        assert "PAUSED" in person.text and "web1:9" not in person.text
        await person.press("p")
        await person.eventually("web1:9")
        assert "PAUSED" not in person.text


async def test_old_packets_leave_memory() -> None:
    service = FedService()
    async with capturing(service) as person:
        service.capture.add(50)
        await person.eventually("web1:49")
        await person.press("g")
        service.capture.state = replace(service.capture.state, first=40, last=60, dropped=7)
        await person.eventually("web1:40 ")
        assert "web1:39" not in person.text and "7 dropped" in person.text


async def test_a_filter_is_applied_or_refused() -> None:
    service = FedService()
    async with capturing(service) as person:
        await person.eventually("No packets yet")
        await person.press("/")
        await person.press(*"port 53", "⏎")
        await person.eventually("/port 53")
        assert service.capture.filters == ["port 53"]
        await person.press("/")
        await person.press("ctrl+u", *"bad", "⏎")
        await person.eventually("can't compile the filter 'bad': syntax error")
        await person.eventually("/port 53")
        await person.press("/", "escape")
        assert service.capture.filters == ["port 53"] and not service.capture.stopped


async def test_w_begins_and_completes_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    service = FedService()
    async with capturing(service) as person:
        await person.eventually("No packets yet")
        await person.press("w")
        await person.eventually("saving vnet-capture-")
        (path,) = service.capture.saved
        assert path.parent == tmp_path and path.suffix == ".pcapng"
        await person.press("w")
        await person.eventually("Wrote 3 packets to a file")
        assert "saving" not in person.text


async def test_escape_ends_the_capture() -> None:
    service = FedService()
    async with capturing(service) as person:
        await person.eventually("No packets yet")
        await person.press("question_mark")
        await person.eventually("write packets to a pcapng file")
        await person.press("escape")
        assert not service.capture.stopped
        await person.press("escape")
        await person.until(lambda: service.capture.stopped, "the end")
        await person.until(lambda: person.app.screen is person.dashboard, "the dashboard")


async def test_the_end_and_failures_are_shown() -> None:
    service = FedService()
    async with capturing(service) as person:
        await person.eventually("No packets yet")
        service.capture.state = CaptureState(ended="the end of web1/eth0, which no longer exists")
        await person.eventually("The capture ended: the end of web1/eth0, which no longer exists.")
    lacking = FedService("can't capture packets: this process lacks CAP_NET_RAW. Try: run it with sudo")
    async with capturing(lacking) as person:
        await person.eventually("this process lacks CAP_NET_RAW")
        await person.press("w", "p", "/", "escape", "escape")


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (200, 60)])
async def test_sizes(size: tuple[int, int]) -> None:
    service = FedService()
    async with capturing(service, "networks", size) as person:
        service.capture.add(500)
        await person.eventually("web1:499"[: max(4, size[0] // 12)])
        assert all(len(line) <= size[0] for line in person.lines)


async def test_files_and_items_without_links_are_refused() -> None:
    async with dashboard() as person:
        await person.press("C")
        await person.eventually("can't capture packets of a file")
    service = FedService()
    async with capturing(service, "events") as person:
        await person.eventually("can't capture")
        assert not service.targets


async def test_the_prompt_stays_open_for_a_mistyped_filter() -> None:
    service = FedService()
    async with capturing(service) as person:
        await person.eventually("No packets yet")
        await person.type("/bad⏎")
        await person.eventually("can't compile the filter 'bad'")
        await person.type("q")
        assert len(person.app.screen_stack) == 2, "q is typed into the filter"
        await person.type("⏎")
        await person.until(lambda: service.capture.filters == ["badq"], "the filter")
        await person.press("q")
        await person.until(lambda: len(person.app.screen_stack) == 1, "the end of the capture")
