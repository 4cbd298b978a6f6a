"""Keys and texts of findings: mute, the repair in details, and the list of `!`."""

from __future__ import annotations

import pytest

from core.diagnose import findings, findings_by_id
from core.muted import muted_ids
from core.topology import Topology
from tests.support.snapshots import small_host
from tests.ui.change_service import change_dashboard
from tests.ui.driver import dashboard
from tui import keys


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path_factory.mktemp("state")))


@pytest.mark.parametrize("down", [0, 1])
async def test_muting_says_so_and_goes_to_the_next_finding(down: int) -> None:
    async with dashboard() as person:
        await person.type(":doctor⏎")
        await person.until(lambda: len(person.dashboard.table.rows) > 2, "the findings")
        await person.type("j" * down)
        rows = person.dashboard.table.rows
        muted, following = (rows.row(down + step).ref for step in (0, 1))
        await person.press("I")
        await person.eventually("I on it shows it again.")
        await person.until(lambda: person.dashboard.ref == following, "the next finding")
        assert muted_ids() == {muted.key[0]}
        await person.type("G")
        assert person.dashboard.ref == muted
        await person.press("I")
        await person.eventually("Shown again: ")
        await person.until(lambda: person.dashboard.presenter.context.muted == frozenset(), "no muted one")
        await person.settle()
        assert person.dashboard.ref == muted and muted_ids() == frozenset()


async def test_the_details_of_a_container_show_the_repair() -> None:
    topology = Topology(small_host())
    mtu = next(one for one in findings(topology) if one.kind == "mtu")
    assert mtu.fix is not None and mtu.fix.steps
    async with dashboard(size=(180, 40)) as person:
        await person.type(":web2⏎")
        await person.eventually("Findings")
        await person.eventually(mtu.fix.sentence[:30])
        line = next(line for line in person.lines if mtu.fix and mtu.fix.sentence[:30] in line)
        assert "F " in line.split(mtu.fix.sentence[:30])[0]


@pytest.mark.parametrize("size", [(80, 24), (130, 40)])
async def test_the_list_shows_severities_and_repairs(size: tuple[int, int]) -> None:
    topology = Topology(small_host())
    shown = [one for one in findings_by_id(topology, findings(topology)).values() if one.severity != "info"]
    repairable = next(place for place, one in enumerate(shown) if one.fix and one.fix.steps)
    fix = shown[repairable].fix
    assert repairable and fix is not None
    async with change_dashboard(size) as (person, _):
        await person.type("W!")
        await person.eventually("bad  ")
        await person.eventually("warn ")
        await person.eventually(f"F: {fix.sentence[:20]}")
        await person.type("j" * repairable)
        await person.press("F")
        await person.eventually(keys.READ_ONLY)
        assert len(person.app.screen_stack) == 2
        await person.press("escape")
        await person.type("W!" + "j" * repairable)
        await person.press("F")
        await person.eventually(" Repair ")
        assert len(person.app.screen_stack) == 3


@pytest.mark.parametrize(
    ("view", "text", "reason"),
    [
        ("links", "addr:zz", "can't filter by addr:zz: it is no address and no known name."),
        ("flows", "src:zz", "can't filter by src:zz: it is no address and no known name."),
        ("links", "mtu:>x", "can't filter by mtu:>x: it isn't a number or a range."),
        ("flows", "rate:>x", "can't filter by rate:>x: it isn't a number or a range."),
        ("links", '"no such', "a quote isn't closed"),
    ],
)
async def test_a_filter_that_can_match_nothing_says_why(view: str, text: str, reason: str) -> None:
    async with dashboard() as person:
        await person.type(f":{view}⏎")
        await person.eventually(" row")
        await person.type(f"/{text}⏎")
        await person.eventually("No row matches")
        await person.eventually(reason)
        assert person.text.count("can't filter by") == 1


async def test_a_name_of_an_owner_is_no_mistake() -> None:
    async with dashboard() as person:
        await person.type(":flows⏎")
        await person.eventually(" row")
        await person.type("/src:vault⏎")
        await person.eventually("No row matches")
        assert "can't filter" not in person.text
