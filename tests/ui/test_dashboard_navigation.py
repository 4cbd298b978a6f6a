"""Navigation in the dashboard, before and while data arrives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.model import Change, link_ref
from tests.support.snapshots import empty_host, small_host
from tests.ui.driver import FedSource, dashboard
from tui.views import registry
from tui.views.registry import view_named

NAMES = [view.name for view in registry.VIEWS]


# ---- before and while data arrives


async def test_the_layout_is_shown_before_any_data() -> None:
    async with dashboard(source=FedSource()) as person:
        await person.pilot.pause()
        assert "vnet-tui" in person.lines[0]
        assert "1 Overview" in person.lines[1]
        assert "reading…" in person.text
        assert "Help" in person.lines[-1]


async def test_parts_appear_as_they_arrive() -> None:
    whole = small_host()
    async with dashboard(source=FedSource()) as person:
        await person.feed(replace(whole, engines={}, pending=frozenset({"containers", "conntrack"})))
        await person.type(":namespaces⏎")
        assert "docker container" not in person.text and "host" in person.text
        await person.press("5")
        assert "reading…" in person.text
        await person.feed(whole)
        assert "web1" in person.text and "reading…" not in person.text


async def test_an_empty_host_gets_hints() -> None:
    async with dashboard(empty_host()) as person:
        for number in "123567":
            await person.press(number)
            assert "reading…" not in person.text
        await person.press("2")
        assert "No bridge yet" in person.text


async def test_the_source_gets_the_demand_of_the_current_view() -> None:
    async with dashboard() as person:
        await person.press("7", "3")
        wanted = [view_named(name) for name in ("overview", "conntrack", "veths")]
        assert person.source.demands == [view.list.demand for view in wanted if view]
    assert person.source.stopped


# ---- navigation


@pytest.mark.parametrize("number", range(1, 10))
async def test_numbers_open_views(number: int) -> None:
    async with dashboard() as person:
        await person.press(str(number))
        view = registry.VIEWS[number - 1]
        assert view.number == number
        assert person.dashboard.view is view.list
        assert f" {number} {view.list.title}" in person.lines[1]


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("br", "bridges"), ("veth", "veths"), ("ns", "namespaces"), ("cont", "containers"),
        ("co", "containers"), ("nat", "nat"), ("ct", "conntrack"), ("rt", "routes"), ("ev", "events"),
        ("ov", "overview"), ("links", "links"), ("net", "networks"), ("VETH", "veths"),
    ],
)  # fmt: skip
async def test_colon_and_a_name_open_a_view(typed: str, name: str) -> None:
    async with dashboard() as person:
        await person.type(f":{typed}⏎")
        assert person.dashboard.view.name == name


async def test_a_name_can_be_followed_by_a_filter() -> None:
    async with dashboard() as person:
        await person.type(":cont name:web1⏎")
        assert person.dashboard.view.name == "containers"
        assert "filtered 1 of" in person.text


async def test_an_unknown_name_gets_a_message() -> None:
    async with dashboard() as person:
        await person.type(":xyzzy⏎")
        await person.eventually('can\'t go to "xyzzy": no view')
        assert person.dashboard.view.name == "overview"


async def test_tab_completes_a_name() -> None:
    async with dashboard() as person:
        await person.type(":conn")
        await person.press("tab", "enter")
        assert person.dashboard.view.name == "conntrack"


async def test_minus_goes_to_the_previous_view() -> None:
    async with dashboard() as person:
        await person.press("3", "6", "minus")
        assert person.dashboard.view.name == "veths"
        await person.press("minus")
        assert person.dashboard.view.name == "nat"


async def test_enter_follows_and_escape_goes_back() -> None:
    async with dashboard() as person:
        await person.type(":cont⏎")
        await person.type("/name:web1⏎")
        await person.press("escape")
        assert person.row() == "web1"
        await person.press("enter")
        assert person.dashboard.view.name in ("veths", "bridges", "links")
        assert "container web1 › " in person.lines[2]
        first = person.dashboard.ref
        await person.press("enter")
        assert person.dashboard.ref != first
        await person.press("escape")
        assert person.dashboard.ref == first
        await person.press("escape")
        assert (person.dashboard.view.name, person.row()) == ("containers", "web1")


async def test_enter_leads_from_a_veth_to_other_items() -> None:
    async with dashboard() as person:
        await person.type(":veth⏎")
        await person.type("/name:web1⏎")
        seen = []
        for _ in range(6):
            seen.append(person.dashboard.ref)
            await person.press("enter")
        kinds = {ref.kind for ref in seen if ref}
        assert len(set(seen)) == len(seen)
        assert {"link", "container"} <= kinds


async def test_keys_typed_at_once_act_in_their_order() -> None:
    async with dashboard() as person:
        await person.type(":cont⏎/web⏎j4G")
        assert person.dashboard.view.name == "networks"
        assert person.dashboard.table.cursor == len(person.dashboard.table.rows) - 1
        await person.press("5")
        assert "/web" in person.lines[2]
        assert person.dashboard.table.cursor == 1


async def test_returning_to_a_removed_item_shows_a_message() -> None:
    whole = small_host()
    async with dashboard(whole) as person:
        await person.type(":cont⏎jjj")
        name = person.row()
        await person.press("4")
        engines = {
            key: replace(engine, containers=tuple(one for one in engine.containers if one.name != name))
            for key, engine in whole.engines.items()
        }
        await person.feed(replace(whole, engines=engines))
        await person.press("5")
        await person.eventually("no longer in this list")
        assert person.row() not in ("", name)


async def test_a_filter_that_hides_the_selected_row_shows_no_message() -> None:
    """Not even if nothing matches while it is typed."""
    async with dashboard() as person:
        await person.type("6G/8081x")
        await person.eventually("0 of 5")
        await person.press("backspace")
        await person.eventually("1 of 5")
        assert "no longer in this list" not in person.text


# ---- links to several items, and to changed items


async def test_a_nat_entry_links_to_its_connections_and_esc_goes_back() -> None:
    async with dashboard() as person:
        await person.type(":nat port:8080⏎")
        assert "1 connection" in person.text
        await person.press("enter")
        assert person.dashboard.view.name == "conntrack"
        assert len(person.dashboard.table.rows) == 1
        assert "filtered 1 of 3  /nat:=" in person.lines[2]
        assert "published port" in person.lines[2] and " › Conntrack" in person.lines[2]
        await person.press("escape")
        assert person.dashboard.view.name == "nat"
        assert "8080" in person.lines[2]


async def test_the_connections_of_a_container_are_one_line_of_its_detail() -> None:
    async with dashboard() as person:
        await person.type(":cont name:=web1⏎")
        await person.press("tab")
        lines = person.dashboard.pane.lines
        (place,) = (place for place, line in enumerate(lines) if "connection" in line.text)
        assert lines[place].text == "2 connections"
        await person.press(*["j"] * place)
        await person.press("enter")
        assert "filtered 2 of 3  /ct:=web1" in person.lines[2]
        shown = [person.dashboard.table.rows.row(place).cells for place in range(2)]
        assert all(any("web1" in cell.text for cell in cells) for cells in shown)


async def test_esc_removes_a_typed_filter_before_it_goes_back() -> None:
    async with dashboard() as person:
        await person.type(":nat port:8080⏎")
        await person.press("enter")
        followed = person.dashboard.nav.current.state.filter
        await person.press("slash", "ctrl+u")
        await person.type("udp⏎")
        assert person.dashboard.nav.current.state.filter == "udp"
        await person.press("escape")
        assert (person.dashboard.view.name, person.dashboard.nav.current.state.filter) == (
            "conntrack",
            followed,
        )
        await person.press("escape")
        assert person.dashboard.view.name == "nat"


async def test_an_event_links_to_its_item() -> None:
    whole = small_host()
    link = next(link for link in whole.links() if link.name == "veth-web1")
    async with dashboard(whole) as person:
        await person.feed(whole, changes=(Change(1.0, "changed", link_ref(link.key), "it changed"),))
        await person.press("9", "enter")
        assert (person.dashboard.view.name, person.dashboard.ref) == ("veths", link_ref(link.key))


@pytest.mark.parametrize("keys", [("6",), ("enter",), ("escape",), ("6", "minus"), (":", "n", "s", "enter")])
async def test_the_list_has_the_focus_after_every_jump(keys: tuple[str, ...]) -> None:
    async with dashboard() as person:
        await person.type(":cont name:=web1⏎")
        await person.press("enter")
        await person.press("tab")
        if keys == ("enter",):
            lines = person.dashboard.pane.lines
            await person.press(*["j"] * next(place for place, line in enumerate(lines) if line.ref))
        await person.press(*keys)
        assert person.dashboard.table.has_focus


async def test_esc_returns_from_the_detail_if_only_one_pane_fits() -> None:
    async with dashboard(size=(40, 10)) as person:
        await person.press("5", "tab")
        assert not person.dashboard.query_one("#main").display
        await person.press("escape")
        assert person.dashboard.query_one("#main").display
        assert person.dashboard.table.has_focus and person.dashboard.view.name == "containers"
