"""The dashboard as a person uses it: keys pressed, the screen read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.cells import cell_len
from textual.geometry import Region
from textual.widget import Widget

from core.model import Change, Problem, Ref, Snapshot
from tests.snapshots import HOST, empty_host, hostile_host, rates_of, small_host
from tests.ui.driver import FedSource, Person, dashboard
from tui import keys, themes
from tui.present import views
from tui.screens.help import sections_of
from tui.stage import Stage

NAMES = [view.name for view in views.VIEWS]


# ---- before and while data comes


async def test_the_frame_is_there_before_any_data() -> None:
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
        await person.press("4")
        assert "docker container" not in person.text and "host" in person.text
        await person.press("5")
        assert "reading…" in person.text
        await person.feed(whole)
        assert "web1" in person.text and "reading…" not in person.text


async def test_a_host_without_anything_gets_hints() -> None:
    async with dashboard(empty_host()) as person:
        for number in "123567":
            await person.press(number)
            assert "reading…" not in person.text
        await person.press("2")
        assert "No bridge yet" in person.text


async def test_the_source_is_told_which_view_is_in_sight() -> None:
    async with dashboard() as person:
        await person.press("7", "3")
        assert person.source.shown == ["overview", "conntrack", "veths"]
    assert person.source.stopped


# ---- getting about


@pytest.mark.parametrize("number", range(1, 10))
async def test_numbers_open_views(number: int) -> None:
    async with dashboard() as person:
        await person.press(str(number))
        view = views.view_numbered(number)
        assert view is not None
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
async def test_views_by_name(typed: str, name: str) -> None:
    async with dashboard() as person:
        await person.type(f":{typed}⏎")
        assert person.dashboard.view.name == name


async def test_a_name_can_carry_a_filter() -> None:
    async with dashboard() as person:
        await person.type(":cont name:web1⏎")
        assert person.dashboard.view.name == "containers"
        assert "filtered 1 of" in person.text


async def test_an_unknown_name_is_answered_in_words() -> None:
    async with dashboard() as person:
        await person.type(":xyzzy⏎")
        await person.eventually("Nothing is called")
        assert person.dashboard.view.name == "overview"


async def test_tab_completes_a_name() -> None:
    async with dashboard() as person:
        await person.type(":conn")
        await person.press("tab", "enter")
        assert person.dashboard.view.name == "conntrack"


async def test_minus_goes_to_the_view_before() -> None:
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


async def test_the_way_from_a_cable_to_the_rules() -> None:
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
        assert person.dashboard.view.name == "namespaces"
        assert person.dashboard.table.cursor == len(person.dashboard.table.rows) - 1
        await person.press("5")
        assert "/web" in person.lines[2]
        assert person.dashboard.table.cursor == 1


# ---- filter and order


async def test_the_filter_says_how_much_it_leaves() -> None:
    async with dashboard() as person:
        await person.press("5")
        total = len(person.dashboard.table.rows)
        await person.type("/name:web")
        assert f"filtered 2 of {total}" in person.lines[2]
        await person.press("enter")
        assert f"filtered 2 of {total}  /name:web" in person.lines[2]
        await person.press("escape")
        assert f"{total} rows" in person.lines[2]


async def test_a_filter_that_leaves_nothing_says_so() -> None:
    async with dashboard() as person:
        await person.press("5")
        await person.type("/[b]no such thing")
        assert "No line matches" in person.text
        assert "[b]no such thing" in person.text
        await person.press("escape")
        assert "web1" in person.text


async def test_editing_the_filter() -> None:
    async with dashboard() as person:
        await person.press("5")
        await person.type("/xweb1")
        await person.press("home", "delete", "end", "backspace", "2")
        assert person.dashboard.prompt.text == "web2"
        assert person.dashboard.nav.here.state.filter == "web2"
        await person.press("ctrl+w")
        assert person.dashboard.nav.here.state.filter == ""
        await person.press("backspace")
        assert not person.dashboard.prompt.display


async def test_sorting_by_columns_and_backwards() -> None:
    async with dashboard() as person:
        await person.type(":cont⏎")
        names = person.dashboard.table.columns_in_sight()
        await person.press("s")
        assert person.dashboard.nav.here.state.sort == names[0]
        assert "▲" in person.lines[3]
        rows = person.dashboard.table.rows
        forwards = [rows.row(place).cells[0].text for place in range(len(rows))]
        await person.press("S")
        assert "▼" in person.lines[3]
        rows = person.dashboard.table.rows
        assert [rows.row(place).cells[0].text for place in range(len(rows))] == forwards[::-1]
        await person.press("s")
        assert person.dashboard.nav.here.state.sort == names[1]


async def test_a_click_on_a_heading_sorts() -> None:
    async with dashboard() as person:
        await person.press("5")
        await person.pilot.click("MainPane", offset=(3, 0))
        await person.settle()
        assert person.dashboard.nav.here.state.sort == person.dashboard.table.columns_in_sight()[0]


async def test_bridges_fold() -> None:
    async with dashboard() as person:
        await person.press("2", "g")
        before = len(person.dashboard.table.rows)
        await person.press("h")
        assert len(person.dashboard.table.rows) < before
        assert "▸" in person.text
        await person.press("l")
        assert len(person.dashboard.table.rows) == before


# ---- while the host changes


async def test_the_cursor_follows_the_thing_while_containers_come_and_go() -> None:
    whole = small_host()
    engine = next(name for name, found in whole.engines.items() if len(found.containers) > 3)
    containers = whole.engines[engine].containers
    fewer = replace(
        whole, engines={**whole.engines, engine: replace(whole.engines[engine], containers=containers[1:])}
    )
    async with dashboard(whole) as person:
        await person.type(":cont⏎")
        await person.press("j", "j", "j")
        name = person.row()
        for snapshot in (fewer, whole, fewer):
            await person.feed(snapshot)
            assert person.row() == name


async def test_pause_freezes_the_picture() -> None:
    whole = small_host()
    async with dashboard(whole) as person:
        await person.press("5", "p")
        assert "paused" in person.lines[0]
        await person.feed(replace(whole, engines={}))
        assert "web1" in person.text
        await person.type("/name:web1⏎")
        assert "filtered 1 of" in person.text
        await person.press("escape", "p")
        assert "live" in person.lines[0]
        assert "web1" not in person.text


async def test_changes_are_told_also_those_of_a_burst() -> None:
    whole = small_host()
    async with dashboard(whole) as person:
        await person.press("9")
        changes = [Change(1.0, "added", Ref("namespace", (HOST,)), f"change number {n}") for n in range(30)]
        for change in changes:
            person.source.feed(whole, changes=(change,))
        await person.feed(whole)
        assert len(person.dashboard.table.rows) == 30
        assert "change number 29" in person.text


async def test_nothing_is_painted_when_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small_host()
    rates = rates_of(whole)
    painted: list[Widget] = []
    refresh = Widget.refresh

    def noted(widget: Widget, *regions: Region, **how: bool) -> Widget:
        painted.append(widget)
        return refresh(widget, *regions, **how)

    async with dashboard(source=FedSource()) as person:
        await person.feed(whole, rates=rates)
        monkeypatch.setattr(Widget, "refresh", noted)
        for name in NAMES:
            person.dashboard.go_to(name)
            await person.settle()
            painted.clear()
            await person.feed(replace(whole), rates=rates)
            assert painted == [], name


async def test_a_picture_that_fails_is_told_and_the_program_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with dashboard() as person:

        def fail(*_: object) -> None:
            raise ValueError("[red]boom[/]\x1b")

        monkeypatch.setattr(Stage, "shown", fail)
        await person.pilot.press("5")
        await person.eventually("[red]boom[/]")
        monkeypatch.undo()
        await person.press("4")
        assert "namespace" in person.text


# ---- panes, copying, themes, overlays


async def test_tab_and_zoom() -> None:
    async with dashboard() as person:
        await person.press("5", "tab")
        assert person.dashboard.pane.has_focus
        await person.press("plus")
        assert not person.dashboard.query_one("#main").display
        await person.press("plus")
        assert person.dashboard.query_one("#main").display
        await person.press("tab", "plus")
        assert not person.dashboard.query_one("#side").display
        await person.press("tab")
        assert person.dashboard.pane.has_focus and person.dashboard.query_one("#side").display


async def test_a_line_of_the_detail_can_be_followed() -> None:
    async with dashboard() as person:
        await person.type(":cont name:web1⏎")
        await person.press("tab")
        lines = person.dashboard.pane.lines
        place = next(place for place, line in enumerate(lines) if line.ref is not None)
        await person.press(*["j"] * place)
        await person.press("enter")
        assert person.dashboard.ref == lines[place].ref
        assert person.dashboard.table.has_focus


async def test_copying_a_name_and_a_line() -> None:
    async with dashboard() as person:
        await person.type(":cont name:web1⏎")
        await person.press("y")
        assert person.app.clipboard == "web1"
        await person.eventually("Copied")
        await person.press("tab", "y")
        assert person.app.clipboard == person.dashboard.pane.lines[0].text


async def test_themes_in_turn() -> None:
    async with dashboard() as person:
        seen = [person.app.theme]
        for _ in themes.THEMES:
            await person.press("t")
            seen.append(person.app.theme)
        assert seen == ["vnet-dark", "vnet-light", "vnet-ansi", "vnet-dark"]


async def test_colours_of_the_terminal_alone_where_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with dashboard() as person:
        await person.press("5")
        strips = person.app.screen._compositor.render_strips()
        styles = [segment.style for strip in strips for segment in strip if segment.style]
        assert all(
            style.color is None or style.color.is_default
            for style in styles
        )  # fmt: skip
        assert any(style.reverse for style in styles)


@pytest.mark.parametrize("name", NAMES)
async def test_help_shows_the_keys_of_this_view_only(name: str) -> None:
    async with dashboard(size=(80, 200)) as person:
        person.dashboard.go_to(name)
        await person.settle()
        wheres = person.dashboard.wheres()
        await person.press("question_mark")
        for action in keys.ACTIONS:
            assert (action.help in person.text) == (action.where in wheres), action
        for view in views.VIEWS:
            if view.name == name:
                assert all(term in person.text for term, _ in view.list.help)
        await person.press("escape")
        assert len(person.app.screen_stack) == 1


def test_a_key_means_one_thing_everywhere() -> None:
    pressed = [key for action in keys.ACTIONS for key in action.keys]
    assert len(pressed) == len(set(pressed))
    assert not set(pressed) & set("123456789")


def test_every_action_can_be_run() -> None:
    from tui.app import VnetApp
    from tui.screens.dashboard import Dashboard
    from tui.widgets.detail import DetailPane
    from tui.widgets.overview import MainPane

    for action in keys.ACTIONS:
        owners = (MainPane, DetailPane) if action.where in ("lines", "fold") else (Dashboard,)
        owners = (VnetApp,) if action.where == "app" else owners
        assert all(hasattr(owner, f"action_{action.name}") for owner in owners), action


def test_the_overview_is_not_said_to_be_sortable() -> None:
    view = views.view_numbered(1)
    assert view is not None
    said = sections_of(view.list, [], {"any", "list", "lines"})
    assert not any(meaning == "reverse the order" for _, entries in said for _, meaning in entries)


async def test_problems_are_counted_and_told() -> None:
    problem = Problem("nat", "[b]nft[/b] is not installed", "no\x1b such file", "apt-get install nftables")
    snapshot = replace(small_host(), part_problems={"nat": (problem,)})
    async with dashboard(snapshot) as person:
        assert "1 problem " in person.lines[0]
        await person.press("exclamation_mark")
        assert "[b]nft[/b] is not installed" in person.text
        assert "apt-get install nftables" in person.text
        await person.press("exclamation_mark")
        assert "apt-get" not in person.text


async def test_refresh_asks_the_source() -> None:
    async with dashboard() as person:
        await person.press("r")
        assert person.source.refreshes == 1


async def test_a_file_is_offline() -> None:
    async with dashboard(source=FedSource(small_host(), live=False)) as person:
        assert "offline" in person.lines[0]


async def test_the_palette_offers_views_and_actions() -> None:
    async with dashboard() as person:
        entries = [entry.title for entry in person.app.get_system_commands(person.app.screen)]
        assert {"Conntrack", "Pause", "Filter", "Quit"} <= set(entries)
        await person.pilot.press("ctrl+p")
        await person.pilot.pause(0.1)
        assert len(person.app.screen_stack) == 2
        await person.pilot.press("escape")


@pytest.mark.parametrize("before", [(), ("question_mark",), ("slash", "w"), ("colon",), ("tab",)])
async def test_control_c_quits_from_anywhere(before: tuple[str, ...]) -> None:
    async with dashboard() as person:
        await person.pilot.press("5", *before)
        await person.pilot.press("ctrl+c")
        await person.pilot.pause(0.05)
        assert not person.app.is_running or person.app._exit


async def test_q_quits_but_can_be_typed() -> None:
    async with dashboard() as person:
        await person.press("5")
        await person.type("/q")
        assert person.dashboard.prompt.text == "q"
        await person.press("escape")
        await person.pilot.press("q")
        assert person.app._exit


async def test_a_click_on_a_tab_and_on_the_footer() -> None:
    async with dashboard() as person:
        await person.pilot.click("TabsBar", offset=(person.lines[1].index("Containers"), 0))
        await person.settle()
        assert person.dashboard.view.name == "containers"
        await person.pilot.click("FooterBar", offset=(person.lines[-1].index("Filter"), 0))
        assert person.dashboard.prompt.display


# ---- sizes and hostile text


def fits(person: Person, size: tuple[int, int]) -> None:
    lines = person.lines
    assert len(lines) == size[1]
    assert all(cell_len(line) == size[0] for line in lines)
    assert not any(char in person.text for char in "\x1b\u202e")


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 60), (8, 3)])
@pytest.mark.parametrize("make", [small_host, hostile_host])
async def test_every_view_fits_every_terminal(size: tuple[int, int], make: object) -> None:
    async with dashboard(make(), size=size) as person:  # type: ignore[operator]
        for name in NAMES:
            person.dashboard.go_to(name)
            await person.settle()
            fits(person, size)
        for key in ("j", "G", "tab", "j", "plus", "plus", "tab", "question_mark", "escape", "slash", "x"):
            await person.press(key)
            fits(person, size)


async def test_resizing_all_the_way_and_back() -> None:
    async with dashboard() as person:
        await person.press("3", "j", "j")
        name = person.row()
        for size in ((40, 10), (80, 24), (8, 3), (200, 60), (109, 15), (130, 40)):
            await person.pilot.resize_terminal(*size)
            await person.settle()
            fits(person, size)
            assert person.row() == name


async def test_at_40x10_the_list_and_its_badge_are_there() -> None:
    async with dashboard(size=(40, 10)) as person:
        await person.press("5")
        await person.type("/name:web⏎")
        assert "filtered 2 of" in person.text
        assert "web1" in person.text


async def test_ascii_mode_draws_with_ascii_alone() -> None:
    async with dashboard(ascii_only=True) as person:
        for name in NAMES:
            person.dashboard.go_to(name)
            await person.settle()
            assert person.text.isascii(), [line for line in person.lines if not line.isascii()]
        await person.press("question_mark")
        assert person.text.isascii()


async def test_a_terminal_that_shows_nothing_yet_has_no_rows() -> None:
    async with dashboard(Snapshot()) as person:
        for number in "23456789":
            await person.press(number)
            assert person.dashboard.table.message
