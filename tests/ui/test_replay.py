"""The time line of a recording: keys, the bar, and the views at each moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.model import CONNTRACK_DTYPE, FASTFLOW_DTYPE, STATS_DTYPE, FastFlows, LinkStats
from core.recording import Recording
from core.serialize import CorruptFile
from core.update import Update
from tests.support.host_builder import HOST
from tests.support.recordings import join_frames, record, sample_updates, split_frames
from tests.ui.driver import FedSource, Person, patient_keys
from tui.app import VnetApp
from tui.sources import ReplaySource
from tui.views import registry

UPDATES = sample_updates()
VIEW_NAMES = [view.name for view in registry.VIEWS]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "story.vnetrec"
    record(path, UPDATES)
    return path


@asynccontextmanager
async def replayed(path: Path, size: tuple[int, int] = (130, 40)) -> AsyncIterator[Person]:
    """Run the dashboard on a recording."""
    source = ReplaySource(Recording(path), path.name)
    app = VnetApp(source)
    with patient_keys():
        async with app.run_test(size=size, notifications=True) as pilot:
            person = Person(app, pilot, FedSource())
            await person.eventually("eth0")
            await person.settle()
            yield person


def player(person: Person) -> ReplaySource:
    found = person.dashboard.player
    assert found is not None
    return found


async def wait_for_moment(person: Person, place: int) -> None:
    """Wait until a moment is on the screen."""
    await person.until(lambda: player(person)._shown == place)
    wanted = UPDATES[place].snapshot
    await person.until(lambda: person.dashboard.presenter.context.snapshot.taken_at == wanted.taken_at)
    await person.settle()


async def test_arrow_keys_step_and_views_show_the_moment(file: Path) -> None:
    async with replayed(file) as person:
        await person.type(":links⏎")
        assert "1/6" in person.text and "late0" not in person.text
        for place in (1, 2, 3):
            await person.press("right")
            await wait_for_moment(person, place)
        await person.eventually("late0")
        assert "4/6" in person.text
        await person.press("left")
        await wait_for_moment(person, 2)
        await person.until(lambda: "late0" not in person.text)
        await person.press("left", "left", "left", "left")
        await wait_for_moment(person, 0)


async def test_keys_go_to_start_end_and_changes(file: Path) -> None:
    async with replayed(file) as person:
        await person.press("dollar_sign")
        await wait_for_moment(person, 5)
        await person.press("0")
        await wait_for_moment(person, 0)
        changed = [place for place, seen in enumerate(UPDATES) if seen.changes]
        for place in (*changed, 5):
            await person.press("]")
            await wait_for_moment(person, place)
        await person.press("[")
        await wait_for_moment(person, changed[-1])


async def test_flows_have_rates_without_a_step(tmp_path: Path) -> None:
    """The flows before the current moment are enough: no step is needed."""
    path = tmp_path / "counted.vnetrec"
    story = []
    for second, seen in enumerate(sample_updates()):
        table = seen.snapshot.conntracks[HOST]
        entries = table.entries.copy()
        entries["counted"] = True
        entries["bytes"] = second * 125_000
        tables = {HOST: replace(table, entries=entries)}
        story.append(replace(seen, snapshot=replace(seen.snapshot, conntracks=tables)))
    record(path, story)
    async with replayed(path) as person:
        await person.press("right", "right", "right")
        await person.until(lambda: player(person)._shown == 3)
        await person.type(":flows⏎")
        await person.eventually("2.0 Mbit/s")


async def test_a_message_says_that_there_is_no_further_change(file: Path) -> None:
    async with replayed(file) as person:
        await person.press("dollar_sign", "]")
        await person.eventually("No later change: this is the last moment.")
        await person.press("0", "[")
        await person.eventually("No earlier change: this is the first moment.")


@pytest.mark.parametrize("key", ["n", "W", "P", "d", "u"])
async def test_a_recording_cannot_be_changed(file: Path, key: str) -> None:
    async with replayed(file) as person:
        await person.press(key)
        await person.eventually("can't change networks: this is a recording")
        assert "Try: W" not in person.text


async def test_space_plays_to_the_end_and_pauses(file: Path) -> None:
    async with replayed(file) as person:
        for _ in range(4):
            await person.press("greater_than_sign")
        assert player(person).position.speed == 16
        assert "16x" in person.text
        await person.press("space")
        await wait_for_moment(person, 5)
        await person.until(lambda: not player(person).position.playing)
        await person.press(*["less_than_sign"] * 6)
        await person.press("space")  # from the start again, slowly
        assert player(person).position.playing
        assert player(person).position.place < 5
        await person.press("p")
        assert not player(person).position.playing


async def test_events_end_at_the_moment(file: Path) -> None:
    async with replayed(file) as person:
        await person.press("9")
        await person.eventually("Nothing has changed")
        await person.press("dollar_sign")
        await wait_for_moment(person, 5)
        await person.eventually("late0")
        events = len(person.dashboard.table.rows)
        assert events == sum(len(seen.changes) for seen in UPDATES)
        await person.press("left", "right", "left", "right")
        await wait_for_moment(person, 5)
        assert len(person.dashboard.table.rows) == events
        for _ in range(2):
            await person.press("[")
        await person.until(lambda: len(person.dashboard.table.rows) < events)


async def test_rates_at_a_moment_are_the_same_after_steps_and_jumps(file: Path) -> None:
    async with replayed(file) as person:
        for _ in range(5):
            await person.press("right")
        await wait_for_moment(person, 5)
        context = person.dashboard.presenter.context
        key = next(link.key for link in context.snapshot.links() if link.name == "eth0")
        stepped = context.rate(key)
        assert stepped is not None and stepped.rx_bps == 8000 * key.ifindex
        assert len(stepped.history) == 5
        await person.press("0")
        await wait_for_moment(person, 0)
        assert person.dashboard.presenter.context.rate(key) is None
        await person.press("dollar_sign")
        await wait_for_moment(person, 5)
        assert person.dashboard.presenter.context.rate(key) == stepped


@pytest.mark.parametrize("size", [(80, 24), (130, 40), (200, 60), (40, 10)])
async def test_every_view_at_every_size(file: Path, size: tuple[int, int]) -> None:
    async with replayed(file, size) as person:
        for name in VIEW_NAMES:
            person.dashboard.go_to(name)
            await person.settle()
            await person.press("right")
            await person.until(lambda: player(person)._shown == player(person).position.place)
            await person.settle()
            assert "can't show" not in person.text
            bar = person.lines[-2]
            assert "■" in bar and "/6" in bar and "●" in bar


async def test_a_click_on_the_time_line_goes_to_that_moment(file: Path) -> None:
    async with replayed(file) as person:
        bar = person.lines[-2]
        await person.pilot.click(offset=(bar.rindex("─"), len(person.lines) - 2))
        await wait_for_moment(person, 5)


async def test_help_lists_replay_keys_and_other_keys_are_refused(file: Path) -> None:
    async with replayed(file, (110, 100)) as person:
        await person.press("question_mark")
        assert "Time line" in person.text and "play or pause the recording" in person.text
        assert "a moment at which something changed" in person.text and "◆ change" in person.lines[-2]
        await person.press("escape")
        for key, words in (("R", "can't record a file"), ("W", "can't change networks")):
            await person.press(key)
            await person.eventually(words)
        assert "replay" in person.lines[0] and "story.vnetrec" in person.lines[0]


async def test_a_step_of_the_clock_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.vnetrec"
    record(path, UPDATES[:3], [(1.7e9, 50.0), (1.7e9 - 7199, 51.0), (1.7e9 - 7198, 52.0)])
    async with replayed(path) as person:
        await person.press("right")
        await person.eventually("clock set by -7200 s")
        await person.press("right")
        await person.until(lambda: "clock set" not in person.text)


async def test_a_truncated_recording_opens_with_a_notice(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "a.vnetrec"
    path.write_bytes(file.read_bytes()[:-150])
    async with replayed(path, (160, 40)) as person:
        await person.eventually("is truncated")


async def test_an_unreadable_moment_becomes_a_problem(tmp_path: Path, file: Path) -> None:
    parts = list(split_frames(file.read_bytes()))
    parts[1] = (*parts[1][:-1], b"\0\0\0\0")
    path = tmp_path / "a.vnetrec"
    path.write_bytes(join_frames(parts))
    with pytest.raises(CorruptFile):
        Recording(path).moment(1)
    async with replayed(path) as person:
        await person.press("right")
        await person.eventually("1 not read")
        await person.press("exclamation_mark")
        await person.eventually("can't read this moment of the recording")


async def test_every_view_shows_tables_of_random_bytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(7)

    def rows(dtype: np.dtype[Any]) -> np.ndarray:
        made = np.frombuffer(noise.bytes(dtype.itemsize * 40), dtype).copy()
        for name in ("counted", "live"):
            if name in (dtype.names or ()):
                made[name] = made[name].view("u1") & 1
        return made

    story = []
    for number in range(4):
        host = UPDATES[number].snapshot
        table = replace(host.conntracks[HOST], entries=rows(CONNTRACK_DTYPE), taken_at=1e15 * (number - 1))
        fast = rows(FASTFLOW_DTYPE)
        fast["path"] %= 4
        rates = replace(UPDATES[number].rates, counters=LinkStats(-1e15 * number, rows(STATS_DTYPE)))  # type: ignore[type-var]
        story.append(
            Update(replace(host, conntracks={HOST: table}), rates, (), fast=FastFlows(HOST, fast, 1e15))
        )
    path = tmp_path / "a.vnetrec"
    record(path, story)
    async with replayed(path) as person:
        for name in VIEW_NAMES:
            person.dashboard.go_to(name)
            await person.settle()
            for key in ("dollar_sign", "0", "right", "down", "right"):
                await person.press(key)
                await person.until(lambda: player(person)._shown == player(person).position.place)
                await person.settle()
            assert "can't show" not in person.text, name
