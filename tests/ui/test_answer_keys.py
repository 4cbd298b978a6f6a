"""Keys in the answer to "can A reach B?", and the object that F and w take from a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.collect.snapshot import read_snapshot
from core.model import Change, LinkKey, link_ref
from tests.support.host import ThrowawayHost
from tests.support.host_builder import HOST
from tests.support.snapshots import small_host
from tests.ui.change_forms import PARTS, host_dashboard
from tests.ui.change_service import change_dashboard
from tests.ui.driver import dashboard
from tests.ui.test_diff_view import with_link
from tui import keys


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.root
@pytest.mark.parametrize("size", [(80, 24), (130, 40)])
async def test_the_answer_stays_and_is_asked_again_after_a_repair(
    inside_host: ThrowawayHost, size: tuple[int, int]
) -> None:
    inside_host.run("ip link add br0 type bridge")
    inside_host.run("ip addr add 10.9.0.1/24 dev br0")
    inside_host.run("ip link set br0 up")
    inside_host.run("ip link set lo up")
    name = inside_host.container("web", "br0", "10.9.0.2/24")
    inside_host.run("ip link set v-web down")
    async with host_dashboard(size, write=False) as person:
        await person.type(f":{name}⏎")
        await person.until(lambda: person.dashboard.ref is not None and name in person.text)
        await person.press("w")
        await person.eventually(f"w {name} →")
        await person.type("host⏎")
        await person.eventually("F: fix")
        theme = person.app.theme
        await person.press("F")
        await person.eventually(keys.READ_ONLY)
        await person.press("W")
        await person.eventually("Changes are allowed: F previews the repair")
        await person.press("F")
        await person.eventually("ip link set v-web up")
        assert len(person.app.screen_stack) == 3
        await person.press("y")
        await person.until(lambda: person.source.refreshes, "the request for a new snapshot")
        assert "UP" in inside_host.json("ip -j link show v-web")[0]["flags"]
        person.source.feed(read_snapshot(PARTS))
        await person.eventually("Repaired, and asked again")
        await person.eventually(f"{name} can reach")
        assert "F: fix" not in person.text and "t: probe" in person.text
        assert len(person.app.screen_stack) == 2 and person.app.theme == theme


async def test_a_repair_that_does_not_exist_is_said_in_the_answer() -> None:
    async with dashboard() as person:
        await person.type("5/vault⏎")
        await person.until(lambda: person.row() == "vault", "the filter")
        await person.type("wweb1 80/tcp⏎")
        await person.eventually("is not reachable from vault because")
        await person.press("F")
        await person.eventually("can't repair this: vnet-tui has no repair for it")
        assert len(person.app.screen_stack) == 2


@pytest.mark.parametrize("view", ["diff", "events"])
async def test_the_repair_of_a_difference_is_that_of_its_object(view: str) -> None:
    before = small_host()
    after = with_link(before, "eth0", state="down", admin_up=False)
    index = next(one.ifindex for one in before.nets[HOST].links.values() if one.name == "eth0")
    event = Change(1.0, "changed", link_ref(LinkKey(HOST, index)), "eth0 was set down")
    async with change_dashboard(snapshot=after) as (person, _):
        await person.feed(before)
        await person.type("M")
        await person.feed(after, changes=(event,))
        await person.type(f":{view}⏎")
        await person.eventually("was set down")
        await person.press("F")
        await person.eventually("ip link set eth0 up")
        assert len(person.app.screen_stack) == 2
