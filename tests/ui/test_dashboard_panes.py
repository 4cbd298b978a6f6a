"""Panes, copying, themes and overlays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.model import Host, PacketSizes, Problem, Ref
from core.topology import Topology
from tests.support.snapshots import small_host
from tests.ui.driver import FedSource, Person, dashboard
from tui import keys, themes
from tui.presenter import Presenter
from tui.screens.dialogs import lines_of, sections_of
from tui.views import registry
from tui.views.formatting import wrapped
from tui.views.links import common_sections
from tui.views.rows import Cell, Detail, Section
from tui.widgets.detail import detail_lines

NAMES = [view.name for view in registry.VIEWS]


# ---- panes, copying, themes, overlays


async def test_tab_changes_the_pane_and_plus_zooms() -> None:
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


async def test_enter_follows_a_line_of_the_detail() -> None:
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


async def test_t_goes_through_the_themes() -> None:
    async with dashboard() as person:
        seen = [person.app.theme]
        for _ in themes.THEMES:
            await person.press("t")
            seen.append(person.app.theme)
        assert seen == ["vnet-dark", "vnet-light", "vnet-ansi", "vnet-dark"]


async def test_no_color_uses_only_default_colours(monkeypatch: pytest.MonkeyPatch) -> None:
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
        # Help lists the keys for changes even before W allows changes.
        scopes = person.dashboard.key_scopes() | {"change"}
        scopes |= set() if "flows" in scopes else {"fast"}
        await person.press("question_mark")
        for action in keys.ACTIONS:
            assert (action.help in person.text) == (action.scope in scopes), action
        for view in registry.VIEWS:
            assert f":{view.name} " in person.text, "every view can be jumped to"
            if view.name == name:
                assert all(term in person.text for term, _ in view.list.help)
        await person.press("escape")
        assert len(person.app.screen_stack) == 1


@pytest.mark.parametrize("panel", ["question_mark", "exclamation_mark", "L"])
@pytest.mark.parametrize("key", ["q", "escape"])
async def test_q_and_esc_close_a_panel_and_not_the_program(panel: str, key: str) -> None:
    async with dashboard() as person:
        await person.press(panel)
        assert len(person.app.screen_stack) == 2
        await person.press(key)
        assert len(person.app.screen_stack) == 1 and person.app.is_running


def test_a_key_has_one_meaning_everywhere() -> None:
    # The arrow keys have a second meaning, only in recordings: they move along the time line.
    actions = [action for action in keys.ACTIONS if action.name not in ("later", "earlier")]
    pressed = [key for action in actions for key in action.keys]
    assert len(pressed) == len(set(pressed))
    assert not set(pressed) & set("123456789")
    captured = [key for action in keys.CAPTURE_ACTIONS for key in action.keys]
    assert len(captured) == len(set(captured)) and not set(captured) & set(keys.MOVES)


def test_every_action_has_a_method() -> None:
    from tui.app import VnetApp
    from tui.screens.capture import CaptureScreen
    from tui.screens.dashboard import Dashboard
    from tui.widgets.detail import DetailPane
    from tui.widgets.table import MainPane

    for action in keys.ACTIONS:
        owners = (MainPane, DetailPane) if action.scope in ("lines", "fold") else (Dashboard,)
        owners = (VnetApp,) if action.scope == "app" else owners
        assert all(hasattr(owner, f"action_{action.name}") for owner in owners), action
    assert all(hasattr(CaptureScreen, f"action_{action.name}") for action in keys.CAPTURE_ACTIONS)


def test_help_of_the_overview_has_no_keys_for_sorting() -> None:
    view = registry.VIEWS[0]
    assert view.number == 1
    said = sections_of(view.list, [], {"any", "list", "lines"})
    assert not any(meaning == "reverse the order" for _, entries in said for _, meaning in entries)


async def test_problems_are_counted_and_listed() -> None:
    problem = Problem("nat", "[b]nft[/b] is not installed", "no\x1b such file", "apt-get install nftables")
    snapshot = replace(small_host(), part_problems={"nat": (problem,)})
    async with dashboard(snapshot) as person:
        assert " 3 findings " in person.lines[0] and " 1 not read " in person.lines[0]
        await person.press("exclamation_mark")
        assert "[b]nft[/b] is not installed" in person.text
        assert "apt-get install nftables" in person.text
        await person.press("exclamation_mark")
        assert "apt-get" not in person.text


async def test_problems_with_the_same_reason_show_it_once() -> None:
    every = [Problem("links", f"ns{number} cannot be read", "no right", "sudo", number) for number in (1, 2)]
    lines = lines_of([], [*every, Problem("nat", "no nft", "no file", "install it")], "", 80)
    text = ["".join(part for part, _ in line) for line, _ in lines]
    assert text == [
        "Not read", "links: ns1 cannot be read", "links: ns2 cannot be read", "  no right", "  Try: sudo",
        "nat: no nft", "  no file", "  Try: install it",
    ]  # fmt: skip


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
        await person.until(lambda: "show Overview" in person.text, "the entries")
        places = [person.text.index(f"show {title} ") for title in ("Overview", "Bridges", "Veth pairs")]
        assert places == sorted(places), "views first, in their order"
        await person.pilot.press("escape")


@pytest.mark.parametrize("before", [(), ("question_mark",), ("slash", "w"), ("colon",), ("tab",)])
@pytest.mark.parametrize("key", ["ctrl+c", "ctrl+q"])
async def test_control_c_and_q_quit_from_anywhere(key: str, before: tuple[str, ...]) -> None:
    async with dashboard() as person:
        await person.pilot.press("5", *before)
        await person.pilot.press(key)
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


async def test_a_new_theme_recolours_every_line() -> None:
    async with dashboard() as person:
        await person.press("5")
        before = colours(person)
        await person.press("t")
        await person.pilot.pause(0.05)
        after = colours(person)
        assert len(before) == len(after)
        assert all(old.isdisjoint(new) for old, new in zip(before, after, strict=True))


def colours(person: Person) -> list[set[str]]:
    """Return the background colours of each line."""
    strips = person.app.screen._compositor.render_strips()
    return [{str(segment.style.bgcolor) for segment in strip if segment.style} for strip in strips]


# ---- messages, copying, the palette, details


async def test_a_repeated_message_replaces_the_footer_once() -> None:
    async with dashboard(size=(80, 24)) as person:
        for _ in range(5):
            await person.type(":nosuchview⏎")
        assert sum('can\'t go to "nosuchview"' in line for line in person.lines) == 1
        assert 'can\'t go to "nosuchview"' in "".join(person.lines[-3:])
        assert ":veths" in "".join(person.lines[-3:])
        assert not person.app._notifications


async def test_copying_the_item_of_a_line() -> None:
    async with dashboard() as person:
        await person.type(":ct dport:8080⏎")
        await person.press("y")
        assert person.app.clipboard.startswith("198.51.100.9:50000 -> [DNAT 192.0.2.1:8080] -> web1 ")
        await person.type(":veth name:veth-web1⏎")
        await person.press("y")
        assert set(person.app.clipboard.split(" ↔ ")) == {"veth-web1 in host", "eth0 in web1"}


async def test_the_palette_names_every_view_and_not_itself() -> None:
    async with dashboard() as person:
        entries = {entry.title: entry.help for entry in person.app.get_system_commands(person.app.screen)}
        assert entries["Bridges"] == "show Bridges (2)"
        assert entries["Networks"] == "show Networks (4)" and entries["Links"] == "show Links (:links)"
        assert "Palette" not in entries
        assert "below" not in entries["Filter"]


def test_a_detail_lists_and_marks_each_link_once() -> None:
    one, other = Ref("link", (1, 1)), Ref("link", (1, 2))
    long = Cell("a text that is far too long for one line of the detail")
    detail = Detail("thing", (Section("Links", (("eth0", long, one),)),), (("eth0", one), ("eth1", other)))
    lines = list(detail_lines(detail, 30))
    followed = [line for line in lines if line.ref == one]
    assert len(followed) > 1 and [line.marked for line in followed] == [True, *[False] * (len(followed) - 1)]
    assert [line.text for line in lines if line.ref == other] == ["eth1"]


def test_offloads_are_counted_not_listed() -> None:
    topology = Topology(small_host())
    link = next(link for link in topology.snapshot.links() if link.name == "eth0")
    sections = common_sections(topology, replace(link, offloads=("tso", "gso", "gro")), None)
    assert ("offloads", "3 on") in [(label, cell.text) for label, cell, _ in sections[-1].lines]
    assert sections[0].title == "Link" and "ifindex" not in [label for label, _, _ in sections[0].lines]


def test_packet_sizes_are_shown_if_the_kernel_reports_them() -> None:
    topology = Topology(small_host())
    link = next(link for link in topology.snapshot.links() if link.name == "eth0")
    shown = {}
    for sizes in (PacketSizes(), PacketSizes(65536, 65536, 65536, 65536), PacketSizes(9, 8, 7, 6)):
        sections = common_sections(topology, replace(link, sizes=sizes), None)
        shown[sizes.gso] = {label: cell.text for label, cell, _ in sections[-1].lines}
    assert "GSO, GRO" not in shown[0] and "GSO, GRO IPv4" not in shown[65536]
    assert shown[65536]["GSO, GRO"] == "65536, 65536 bytes"
    assert (shown[9]["GSO, GRO"], shown[9]["GSO, GRO IPv4"]) == ("9, 8 bytes", "7, 6 bytes")


def test_a_number_stays_with_its_unit() -> None:
    assert wrapped("receives 300 kbit/s, sends 12 bit/s", 14) == ["receives", "300 kbit/s,", "sends 12 bit/s"]


def test_a_problem_of_several_namespaces_is_shown_once() -> None:
    every = [Problem("nat", "the rules could not be read", "no right", "run as root", ns) for ns in (1, 2)]
    shown = ["".join(text for text, _ in line) for line, _ in lines_of([], every, "", 80)]
    assert [one for one in shown if "could not be read" in one] == [
        "nat: the rules could not be read (2 namespaces)"
    ]


@pytest.mark.parametrize("delay", [0.0, 1e-9, 0.01])
async def test_updates_are_shown_however_short_the_pause_before_them(
    delay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Presenter, "delay", delay)
    async with dashboard() as person:
        for name in ("one", "two"):
            await person.feed(replace(small_host(), host=Host(name)))
            await person.eventually(name)
