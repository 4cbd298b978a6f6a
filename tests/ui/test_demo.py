"""The recorded demo that ships with the program, and the key E that opens it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest

from core.diagnose import findings
from core.model import Snapshot
from core.recording import Moment, Recording
from core.topology import Topology
from tests.support.host_builder import HOST, HostBuilder
from tests.support.machine import PROGRAM
from tests.support.needs import AS_NOBODY
from tests.support.recordings import record, sample_updates
from tests.support.snapshots import empty_host, small_host
from tests.support.terminal import Terminal
from tests.ui.driver import FedSource, Person, dashboard
from tui.app import VnetApp
from tui.cli.dashboard import RECORDING
from tui.sources import ReplaySource

ROOT = Path(__file__).parents[2]
NOBODY = AS_NOBODY if os.geteuid() == 0 else ()
OFFER = "E opens the demo"
SIZES = [(80, 24), (130, 40)]


# ---- the recording


@pytest.fixture(scope="module")
def moments() -> list[Moment]:
    recording = Recording(RECORDING)
    assert recording.notice == ""
    return [recording.moment(place) for place in range(len(recording.frames))]


def test_the_recording_is_small_and_ships_with_the_package() -> None:
    assert RECORDING.stat().st_size < 500_000
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert any(fnmatch(RECORDING.name, pattern) for pattern in packaged["tui"])


def test_the_recording_is_complete_and_shows_only_the_lab(moments: list[Moment]) -> None:
    for moment in moments:
        assert moment.snapshot.host.hostname == "demo-lab" and moment.snapshot.problems == ()
        assert {one.name for one in moment.snapshot.engines.values() if one.state == "ok"} == {"plain"}


def test_the_recording_shows_all_models_flows_and_changes(moments: list[Moment]) -> None:
    recording = Recording(RECORDING)
    assert 60 <= recording.frames[-1].mono - recording.frames[0].mono <= 120
    models = {card.model for card in Topology(moments[-1].snapshot).cards.values()}
    assert {"bridged", "routed", "joined", "closed", "open"} <= models
    assert len(moments[-1].snapshot.conntracks[moments[-1].snapshot.host.netns].entries) > 50
    assert any(moment.fast is not None and len(moment.fast.entries) for moment in moments)
    sentences = "\n".join(change.sentence for moment in moments for change in moment.changes)
    for words in (
        "appeared",
        "is gone",
        "the MTU of",
        "a rule was added",
        "was set down",
        "is up (was down)",
    ):
        assert words in sentences
    kinds = [{one.kind for one in findings(Topology(moment.snapshot))} for moment in moments]
    assert any("mtu" in each for each in kinds) and any("mtu" not in each for each in kinds), (
        "one comes and goes"
    )
    both = [moment.stats.rows["rx_bytes"].sum() for moment in moments if moment.stats is not None]
    assert both[-1] > both[0] + 1_000_000


# ---- how it is replayed


@asynccontextmanager
async def demo_dashboard(path: Path, size: tuple[int, int], words: str = "Why.") -> AsyncIterator[Person]:
    """Run the dashboard on a recording that plays automatically."""
    source = ReplaySource(Recording(path))
    source.loop_with_banner("Recorded demo", words)
    app = VnetApp(source)
    async with app.run_test(size=size, notifications=True) as pilot:
        yield Person(app, pilot, FedSource())


@pytest.mark.parametrize("size", [(40, 10), (60, 16), *SIZES])
async def test_the_recording_plays_automatically_and_says_why(size: tuple[int, int]) -> None:
    words = "Can't build the lab: needs CAP_NET_ADMIN and CAP_SYS_ADMIN. Try: docker run --privileged"
    async with demo_dashboard(RECORDING, size, words) as person:
        await person.eventually("demo-lab")
        player = person.dashboard.player
        assert player is not None
        while player.position.place < 3:
            await person.pilot.pause(0.05)
        lines = [line for line in person.lines if "Recorded demo" in line or "docker run" in line]
        said = " ".join(line.strip() for line in lines)
        assert said.startswith("Recorded demo  Can't build")
        if size[0] >= 80:
            assert said.endswith(words)
        assert "1x" in person.lines[-2] or size[0] < 80, "the time line stays in sight"


async def test_the_demo_starts_over_at_its_end(tmp_path: Path) -> None:
    record(tmp_path / "story.vnetrec", sample_updates())
    async with demo_dashboard(tmp_path / "story.vnetrec", (80, 24)) as person:
        player = person.dashboard.player
        assert player is not None
        player.faster(6)
        places = [0]
        while not (places[-1] == 0 and max(places) == 5):
            places.append(player.position.place)
            await person.pilot.pause(0.01)
        assert player.position.playing


async def test_the_demo_pauses_if_a_key_went_to_its_end(tmp_path: Path) -> None:
    record(tmp_path / "story.vnetrec", sample_updates())
    async with demo_dashboard(tmp_path / "story.vnetrec", (80, 24)) as person:
        player = person.dashboard.player
        assert player is not None and player.position.playing
        await person.press("dollar_sign")
        assert (player.position.place, player.position.playing) == (5, False)
        await person.press("space")
        assert player.position.playing


async def test_another_recording_starts_paused_and_has_no_banner(tmp_path: Path) -> None:
    record(tmp_path / "story.vnetrec", sample_updates())
    app = VnetApp(ReplaySource(Recording(tmp_path / "story.vnetrec")))
    async with app.run_test(size=(80, 24)) as pilot:
        person = Person(app, pilot, FedSource())
        await person.eventually("eth0")
        player = person.dashboard.player
        assert player is not None and not player.position.playing
        assert not person.dashboard.banner.display
        await person.type(":fastpath⏎")
        assert "Files and recordings don't contain" in person.text
        assert "the kernel forwards everything" not in person.text


# ---- the offer


def without_rights(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot read without the right to enter other namespaces."""
    return replace(snapshot, host=replace(snapshot.host, missing_capabilities=("CAP_SYS_ADMIN",)))


def host_with_a_bridge() -> Snapshot:
    host = HostBuilder()
    host.link(HOST, "eth0", "physical", ("192.0.2.1/24",))
    host.bridge("docker0", ("172.17.0.1/16",))
    return host.snapshot()


def host_with_a_hidden_container() -> Snapshot:
    host = HostBuilder()
    host.container("plain", "secret", None)
    return without_rights(host.snapshot())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("snapshot", "why"),
    [
        (empty_host(), "No virtual network on this host yet"),
        (host_with_a_bridge(), "No container on this host yet"),
        (without_rights(empty_host()), "needs CAP_SYS_ADMIN"),
        (host_with_a_hidden_container(), "needs CAP_SYS_ADMIN"),
    ],
    ids=["empty", "bridge", "without_rights", "hidden"],
)
async def test_e_opens_the_demo_if_no_container_is_visible(
    snapshot: Snapshot, why: str, size: tuple[int, int]
) -> None:
    async with dashboard(snapshot, size) as person:
        assert why in person.text and OFFER in person.text
        assert person.lines[-1].startswith(" E Demo")
        await person.type("9")
        assert person.lines[-1].startswith(" E Demo")
        person.app.post_message(key_e())
        while person.app.is_running:
            await person.pilot.pause(0.01)
    assert person.app.wants_demo and person.app.return_code == 0


def key_e() -> object:
    from textual import events

    return events.Key("E", "E")


@pytest.mark.parametrize(
    "source",
    [
        FedSource(small_host()),
        FedSource(empty_host(), live=False),
        FedSource(replace(empty_host(), pending=frozenset({"containers"}))),
    ],
    ids=["containers", "file", "not read yet"],
)
async def test_e_does_nothing_if_the_demo_is_not_offered(source: FedSource) -> None:
    async with dashboard(source=source) as person:
        assert OFFER not in person.text and "E Demo" not in person.lines[-1]
        await person.press("E")
        assert person.app.is_running and not person.app.wants_demo


# ---- the whole program


@pytest.mark.needs("nobody")
def test_without_rights_the_dashboard_offers_the_recording_and_returns() -> None:
    with Terminal([*NOBODY, *PROGRAM], columns=100, VNET_ENGINES="none") as terminal:
        terminal.wait_for(OFFER)
        terminal.press("E")
        terminal.wait_for("Recorded demo")
        terminal.wait_for("Try: sudo vnet-tui demo")
        terminal.wait_for("br-shop")
        seen = len(terminal.output)
        terminal.press("q")
        terminal.wait_for(OFFER, since=seen)
        terminal.press("q")
        assert terminal.read_to_the_end() == 0


@pytest.mark.needs("nobody")
def test_without_rights_the_demo_is_the_recording() -> None:
    with Terminal([*NOBODY, *PROGRAM, "demo"], columns=100) as terminal:
        terminal.wait_for("Can't build the lab: needs root. Try: sudo vnet-tui demo")
        terminal.wait_for("br-shop")
        terminal.press("q")
        assert terminal.read_to_the_end() == 0
