"""The view `:diff`: marks, files, recordings, and Enter on a difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.model import Link, Snapshot
from core.serialize import pack
from tests.support.host_builder import HOST
from tests.support.recordings import record, sample_updates
from tests.support.snapshots import HOSTILE_NAME, small_host
from tests.ui.driver import dashboard
from tests.ui.test_replay import replayed, wait_for_moment

NOW = small_host()


def with_link(snapshot: Snapshot, name: str, **fields: object) -> Snapshot:
    """Change fields of a link of the host."""
    net = snapshot.nets[HOST]
    link: Link = next(link for link in net.links.values() if link.name == name)
    links = {**net.links, link.ifindex: replace(link, **fields)}  # type: ignore[arg-type]
    return replace(snapshot, nets={**snapshot.nets, HOST: replace(net, links=links)})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def test_differences_since_a_mark_follow_the_host() -> None:
    async with dashboard(NOW) as person:
        await person.type("M")
        await person.type(":diff⏎")
        await person.eventually("No difference since the mark of")
        await person.feed(with_link(with_link(NOW, "eth0", mtu=1400), "eth0", state="down", admin_up=False))
        await person.eventually("2 differences since the mark of")
        lines = [line for line in person.lines if "eth0" in line and "eth0 in host" in line]
        assert "was set down" in lines[0] and "the MTU of" in lines[1], person.text
        await person.feed(NOW)
        await person.eventually("No difference since the mark of")


async def test_enter_opens_the_object_that_differs() -> None:
    async with dashboard(NOW) as person:
        await person.type("M")
        await person.feed(with_link(NOW, "eth0", mtu=1400))
        await person.type(":diff⏎")
        await person.eventually("1 difference since")
        await person.eventually("the MTU of")
        await person.press("enter")
        await person.until(lambda: person.dashboard.view.name == "links")
        await person.eventually("1400")
        assert person.dashboard.ref is not None and person.dashboard.ref.kind == "link"


async def test_without_a_mark_the_newest_file_is_compared(folder: Path) -> None:
    (folder / "yesterday.vnet").write_bytes(pack(with_link(NOW, "eth0", mtu=9000)))
    async with dashboard(NOW) as person:
        await person.type(":diff⏎")
        await person.eventually("1 difference since yesterday.vnet of")
        assert "from 9000 to 1500" in person.text


async def test_a_file_is_named(folder: Path) -> None:
    (folder / "a.vnet").write_bytes(pack(NOW))
    (folder / "b.vnet").write_bytes(pack(with_link(NOW, "eth0", mtu=9000)))
    async with dashboard(NOW) as person:
        await person.type(":diff b.vnet⏎")
        await person.eventually("1 difference since b.vnet of")
        await person.type(":diff a.vnet⏎")
        await person.eventually("No difference since a.vnet of")
        await person.type(":diff c.vnet⏎")
        await person.eventually("can't read c.vnet: No such file")


async def test_without_anything_to_compare_the_view_says_how() -> None:
    async with dashboard(NOW) as person:
        await person.type(":diff⏎")
        await person.eventually("Nothing to compare with yet. M marks this moment")


async def test_a_recording_is_compared_with_its_start(folder: Path) -> None:
    updates = sample_updates()
    record(folder / "story.vnetrec", updates)
    async with replayed(folder / "story.vnetrec") as person:
        await person.type(":diff⏎")
        await person.eventually("No difference since the start of the recording")
        await person.press("dollar_sign")
        await wait_for_moment(person, len(updates) - 1)
        await person.eventually("since the start of the recording")
        assert "late0" in person.text and "from 1400 to 1402" in person.text


async def test_a_mark_in_a_recording_replaces_its_start(folder: Path) -> None:
    updates = sample_updates()
    record(folder / "story.vnetrec", updates)
    async with replayed(folder / "story.vnetrec") as person:
        await person.press("dollar_sign")
        await wait_for_moment(person, len(updates) - 1)
        await person.type("M")
        await person.type(":diff⏎")
        await person.eventually("No difference since the mark of")


async def test_names_from_outside_are_text() -> None:
    async with dashboard(NOW) as person:
        await person.type("M")
        await person.feed(with_link(NOW, "eth0", alias=HOSTILE_NAME))
        await person.type(":diff⏎")
        await person.eventually("the alias of")
        assert "\x1b" not in person.text
