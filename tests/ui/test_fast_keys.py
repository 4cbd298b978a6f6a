"""The fast path in the dashboard: key, preview, banner, marks and view."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from bpf.requirements import HostFeatures, requirements
from core.model import FastPath, FastPort, Network, Requirement, Snapshot
from core.topology import Topology
from tests.support.snapshots import small_builder, small_host
from tests.support.waiting import PATIENCE
from tests.ui.change_service import FakeChangeService
from tests.ui.driver import FedSource, Person, dashboard
from tui.command import CommandError
from tui.services import FastPathPreview, Services
from tui.views import fastpath
from tui.views.fast_targets import BridgeChoice, added, removed
from tui.views.lists import lay_out
from tui.views.rows import ViewContext

WORDS = {"FAST": "forwarded by the fast path", "MTU": "larger than the egress MTU"}
VERDICTS = {"FAST": 970, "MTU": 30}
NEEDED = (
    Requirement("Linux 6.0 or newer", True, "Linux 6.12"),
    Requirement("BCC", False, "it is not installed", "the fast path stays off", "apt install python3-bpfcc"),
)


@dataclass
class FakeFastPathService:
    """Implement tui.services.FastPathService without a kernel; `go` delays changes."""

    topology: Topology
    fast: FastPath = field(default_factory=FastPath)
    go: threading.Event | None = None
    error: str = ""
    refused: tuple[str, ...] = ()
    closed: bool = False
    asked: list[bool] = field(default_factory=list)

    def status(self, closely: bool = False) -> FastPath:
        self.asked.append(closely)
        return self.fast

    def requirements(self) -> tuple[Requirement, ...]:
        return NEEDED

    def read_topology(self) -> Topology:
        return self.topology

    def preview(
        self, choices: tuple[BridgeChoice, ...], on: bool, topology: Topology, strict: bool | None = None
    ) -> FastPathPreview:
        after = added(choices, self.fast) if on else removed(choices, self.fast, topology)
        title = f"{'Accelerate' if on else 'Stop accelerating'} {', '.join(one.label for one in choices)}"
        links = ("veth-web1 (container)", "eth0 (uplink)")
        changes = ("The sysctl is 1 while it is on.", "Bits 0xff000000 of the ct mark say which rules.")
        notes = ("tcpdump sees less.", *(["It is strict."] if strict else []))
        return FastPathPreview(title, after, changes, links, notes, self.refused, strict=bool(strict))

    def perform(self, preview: FastPathPreview, progress: Callable[[str], None]) -> str:
        progress("Compiling the program for this kernel…")
        if self.go is not None:
            assert self.go.wait(PATIENCE)
        if self.error:
            raise CommandError(self.error)
        self.fast = accelerated(*preview.targets) if preview.targets else FastPath()
        return f"Accelerated: {', '.join(preview.targets)}." if preview.targets else "The fast path is off."

    def close(self) -> None:
        self.closed = True


def accelerated(*targets: str, **more: Any) -> FastPath:
    """Return the state of a fast path that is on for these networks."""
    ports = (
        FastPort("veth-web1", 4, "container", VERDICTS),
        FastPort("eth0", 2, "uplink", {}),
    )
    bridges = {"app": "br-app", "db": "br-db", "bridge": "docker0"}
    made = FastPath(
        "on", targets, bridges=tuple(bridges.get(one, one) for one in targets), ports=ports, pid=77,
        verdicts=VERDICTS, words=WORDS, flows=12, flows_limit=131_072, ns_per_packet=61.0,
    )  # fmt: skip
    return replace(made, **more)


@asynccontextmanager
async def fast_path_dashboard(
    snapshot: Snapshot | None = None, write: bool = True, size: tuple[int, int] = (130, 40), **more: Any
) -> AsyncIterator[tuple[Person, FakeFastPathService]]:
    """Run the dashboard with a fake fast path."""
    snapshot = snapshot or small_host()
    service = FakeFastPathService(Topology(snapshot), **more)
    async with dashboard(
        snapshot,
        size,
        services=Services(
            change=lambda: FakeChangeService(snapshot),
            fast_path=lambda: service,  # type: ignore[arg-type,return-value]
        ),
    ) as person:
        await person.until(lambda: service.asked, "the first question")
        if write:
            await person.press("W")
        yield person, service


async def select(person: Person, view: str, text: str) -> None:
    """Go to the first line of a view with this name."""
    await person.type(f":{view} name:{text}⏎")
    await person.until(lambda: person.row().startswith(text), text)


async def test_f_asks_first_and_lists_what_changes() -> None:
    async with fast_path_dashboard() as (person, service):
        await select(person, "networks", "app")
        await person.press("f")
        await person.eventually("Accelerate app (bridge br-app)")
        for words in (
            "The sysctl is 1",
            "ct mark",
            "veth-web1 (container)",
            "tcpdump sees less",
            "Apply? y / n",
        ):
            assert words in person.text
        await person.press("n")
        assert not service.fast.is_running and "fast path on" not in person.text


async def test_s_turns_strict_on_and_off() -> None:
    async with fast_path_dashboard() as (person, _):
        await select(person, "networks", "app")
        await person.press("f")
        await person.eventually("Apply?")
        assert "It is strict." not in person.text and "s: strict off" in person.text
        await person.press("s")
        await person.eventually("It is strict.")
        await person.eventually("s: strict on")
        await person.press("s")
        await person.until(lambda: "It is strict." not in person.text, "no longer strict")
        await person.eventually("Apply?")


async def test_yes_turns_it_on_and_every_view_has_the_banner() -> None:
    async with fast_path_dashboard() as (person, service):
        await select(person, "networks", "app")
        await person.press("f")
        await person.eventually("Apply?")
        await person.press("y")
        await person.eventually("Accelerated: app.")
        await person.eventually("» fast path on")
        assert service.fast.targets == ("app",)
        for view in ("1", "2", "3", "5", "6", "7", "8", "9"):
            await person.press(view)
            banner = [line for line in person.lines if "» fast path on" in line]
            assert len(banner) == 1 and "app" in banner[0] and "97% of 1.0k packets" in banner[0]


async def test_changes_of_its_state_are_events() -> None:
    async with fast_path_dashboard(fast=accelerated("app")) as (person, service):
        await person.eventually("» fast path on")
        await person.type(":events⏎")
        assert "turned on" not in person.text, "it was on before the dashboard started"
        steps = (
            (accelerated("app", state="paused", reasons=("rule 3: limit", "rule 4")),
             "fast path paused: rule 3: limit (and 1 more)"),
            (accelerated("app"), "fast path forwards again"),
            (accelerated("app", "db"), "fast path now accelerates: app, db"),
            (FastPath("silent"), "fast path: its process doesn't answer"),
            (FastPath(), "fast path stopped: the kernel forwards everything"),
            (accelerated("app"), "fast path turned on: app"),
        )  # fmt: skip
        for fast, words in steps:
            service.fast = fast
            await person.eventually(words)


async def test_f_on_an_accelerated_network_turns_it_off() -> None:
    async with fast_path_dashboard(fast=accelerated("app", "db")) as (person, service):
        await person.eventually("» fast path on")
        await select(person, "bridges", "br-app")
        await person.press("f")
        await person.eventually("Stop accelerating app (bridge br-app)")
        await person.press("y")
        await person.until(lambda: service.fast.targets == ("db",), "the other one alone")
        await select(person, "bridges", "br-db")
        await person.press("f")
        await person.eventually("Apply?")
        await person.press("y")
        await person.until(lambda: "» fast path" not in person.text, "the banner's end")


async def test_a_container_selects_its_networks_and_the_host_selects_all() -> None:
    async with fast_path_dashboard() as (person, service):
        await select(person, "containers", "api")
        await person.press("f")
        await person.eventually("Accelerate app (bridge br-app), db (bridge br-db)")
        await person.press("escape")
        await person.press("1", "g", "f")
        await person.eventually("Accelerate all bridges")
        await person.press("y")
        await person.until(lambda: service.fast.targets == ("all",), "all of them")


async def test_items_without_a_bridge_are_refused_with_a_reason() -> None:
    host = small_builder()
    host.networks.append(Network("docker", "net-lan", "lan", "macvlan", ns=None))
    async with fast_path_dashboard(host.snapshot()) as (person, _):
        await select(person, "networks", "lan")
        await person.press("f")
        await person.eventually("lan: macvlan connects containers to the NIC without a bridge")
        await select(person, "containers", "monitor")
        await person.press("f")
        await person.eventually("nothing is forwarded, so nothing to accelerate")
        await person.press("8", "f")
        await person.eventually("Try: select a bridge, a network, a container or a flow")


async def test_f_is_refused_while_read_only() -> None:
    async with fast_path_dashboard(write=False) as (person, _):
        await select(person, "networks", "app")
        await person.press("f")
        await person.eventually("can't change networks: the dashboard is read-only. Try: W")
        assert len(person.app.screen_stack) == 1


async def test_the_screen_works_during_compilation() -> None:
    go = threading.Event()
    async with fast_path_dashboard(go=go) as (person, _):
        await select(person, "networks", "app")
        await person.press("f")
        await person.eventually("Apply?")
        await person.press("y")
        await person.eventually("Compiling the program for this kernel…")
        await person.press("escape")
        assert len(person.app.screen_stack) == 2, "Esc does not leave a change in progress"
        go.set()
        await person.eventually("» fast path on")


async def test_errors_and_missing_requirements_are_shown() -> None:
    async with fast_path_dashboard(error="the program cannot be compiled: no BCC") as (person, service):
        await select(person, "networks", "app")
        await person.press("f")
        await person.eventually("Apply?")
        await person.press("y")
        await person.eventually("the program cannot be compiled: no BCC")
        await person.press("escape")
        service.refused = ("needs BCC, but it is not installed",)
        await person.press("f")
        await person.eventually("Not possible on this host")
        assert "needs BCC, but it is not installed" in person.text
        await person.press("y")
        assert not service.fast.is_running


@pytest.mark.parametrize("size", [(80, 24), (130, 40), (200, 60)])
async def test_the_banner_shows_the_reason_of_a_pause(size: tuple[int, int]) -> None:
    why = "rule in ip filter FORWARD: -m limit --limit 10/s -j ACCEPT"
    paused = accelerated("app", state="paused", reasons=(why, "IPsec policies"))
    async with fast_path_dashboard(fast=paused, size=size) as (person, service):
        await person.eventually("» fast path paused")
        banner = next(line for line in person.lines if "» fast path" in line)
        assert why[:30] in banner and len(banner) <= size[0]
        service.fast = accelerated("app", state="silent")
        await person.eventually("process doesn't answer")
        service.fast = accelerated("app", state="changing")
        await person.eventually("» fast path changing")


async def test_bridges_networks_and_the_overview_are_marked() -> None:
    async with fast_path_dashboard(fast=accelerated("app")) as (person, service):
        await person.eventually("» fast path on")
        for view, name in (("bridges", "br-app"), ("networks", "app")):
            await person.type(f":{view}⏎")
            await person.eventually("» on")
            (line,) = [line for line in person.lines if "» on" in line]
            assert name in line
        await person.press("1")
        await person.eventually("» fast ")
        service.fast = FastPath()
        await person.until(lambda: "»" not in person.text, "the marks' end")
        await person.press("2")
        assert "fast" not in person.lines[3]


@pytest.mark.parametrize("size", [(80, 24), (130, 40), (200, 60)])
async def test_the_view_shows_verdicts_by_link_and_requirements(size: tuple[int, int]) -> None:
    fast = accelerated("app", captured=("10.9.0.3",), refused={"veth9": "it is down"})
    async with fast_path_dashboard(fast=fast, size=size) as (person, service):
        await person.type(":fast⏎")
        await person.until(lambda: service.asked[-1], "a read with counters")
        for words in ("all links", "veth-web1", "97.0%", "61 ns a packet", "mtu", "12 flows"):
            await person.eventually(words)
        assert "» fast path" not in person.text, "the view shows what the banner would"
        await person.type(":fast verdict:mtu⏎")
        await person.until(lambda: person.row().startswith("mtu"), "the verdict")
        await person.eventually("larger than the egress MTU")
        await person.type(":fast BCC⏎")
        await person.until(lambda: person.row().startswith("BCC"), "the requirement")
        if size[0] > 100:
            await person.eventually("apt install python3-bpfcc")


@pytest.mark.parametrize("fast", [FastPath(), accelerated("app")], ids=["off", "on"])
def test_names_of_requirements_fit_into_80_columns(fast: FastPath) -> None:
    found = replace(fast, requirements=requirements(HostFeatures("6.12.43-amd64")))
    rows = fastpath.rows(ViewContext(Topology(small_host()), fast=found))
    (name,) = [each for each in lay_out(rows.columns, 78, rows.needs()) if each.column.name == "name"]
    assert all(2 * (row.depth + 1) + len(row.cells[0].text) <= name.width for row in rows)


async def test_f_in_its_view_turns_off_what_another_program_turned_on() -> None:
    async with fast_path_dashboard(fast=accelerated("app", "gone")) as (person, service):
        await person.type(":fast⏎")
        await person.eventually("all links")
        await person.press("f")
        await person.eventually("Stop accelerating app, gone")
        await person.press("y")
        await person.until(lambda: not service.fast.is_running, "the end")
        await person.eventually("fast path off")


async def test_the_service_is_closed_at_the_end_and_files_have_none() -> None:
    async with fast_path_dashboard() as (person, service):
        await person.press("q")
    assert service.closed
    source = FedSource(small_host(), live=False)
    services = Services(fast_path=lambda: pytest.fail("asked"))
    async with dashboard(source=source, services=services) as person:
        await person.press("f")
        assert len(person.app.screen_stack) == 1
        await person.type(":fastpath⏎")
        await person.eventually("Files and recordings don't contain the fast path's state")
        assert "to turn it on" not in person.text


async def test_hostile_names_stay_text() -> None:
    hostile = accelerated("[red]x[/]\x1b[31m", state="paused", reasons=("rule \x1b]0;boo\x07 \u202e",))
    async with fast_path_dashboard(fast=hostile) as (person, _):
        await person.eventually("» fast path paused")
        await person.type(":fast⏎")
        await person.eventually("all links")
        assert "\x1b" not in person.text and "\u202e" not in person.text


async def test_a_pause_is_a_finding_until_it_ends() -> None:
    async with fast_path_dashboard() as (person, fast_path):
        await person.press(":", *"doctor", "enter")
        await person.until(lambda: "MTU 1400" in person.text, "the findings")
        assert "fast path" not in person.text
        fast_path.fast = accelerated("app", state="paused", reasons=("a rule of filter limits",))
        await person.until(lambda: "paused, so the kernel forwards" in person.text, "the finding")
        assert "a rule of filter limits" in person.text
        fast_path.fast = accelerated("app")
        await person.until(lambda: "paused, so" not in person.text, "no finding")
