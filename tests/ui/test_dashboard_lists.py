"""Filter and order of lists, and a host that changes while the dashboard runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from textual.geometry import Region
from textual.widget import Widget

from core.model import Change, Ref
from tests.support.snapshots import HOST, rates_of, small_host
from tests.ui.driver import FedSource, dashboard
from tui.view_model import ViewModel
from tui.views import registry

NAMES = [view.name for view in registry.VIEWS]


# ---- filter and order


async def test_the_filter_shows_how_many_rows_match() -> None:
    async with dashboard() as person:
        await person.press("5")
        total = len(person.dashboard.table.rows)
        await person.type("/name:web")
        assert f"filtered 2 of {total}" in person.lines[2]
        await person.press("enter")
        assert f"filtered 2 of {total}  /name:web" in person.lines[2]
        await person.press("escape")
        assert f"{total} rows" in person.lines[2]


async def test_a_filter_without_matches_says_so() -> None:
    async with dashboard() as person:
        await person.press("5")
        await person.type("/[b]no such thing")
        assert "No row matches" in person.text
        assert "[b]no such thing" in person.text
        await person.press("escape")
        assert "web1" in person.text


async def test_editing_the_filter() -> None:
    async with dashboard() as person:
        await person.press("5")
        await person.type("/xweb1")
        await person.press("home", "delete", "end", "backspace", "2")
        assert person.dashboard.prompt.text == "web2"
        assert person.dashboard.nav.current.state.filter == "web2"
        await person.press("ctrl+w")
        assert person.dashboard.nav.current.state.filter == ""
        await person.press("backspace")
        assert not person.dashboard.prompt.display


async def test_sorting_by_columns_and_in_reverse() -> None:
    async with dashboard() as person:
        await person.type(":cont⏎")
        names = person.dashboard.table.visible_columns()
        await person.press("s")
        assert person.dashboard.nav.current.state.sort == names[0]
        assert "▲" in person.lines[3]
        rows = person.dashboard.table.rows
        forwards = [rows.row(place).cells[0].text for place in range(len(rows))]
        await person.press("S")
        assert "▼" in person.lines[3]
        rows = person.dashboard.table.rows
        assert [rows.row(place).cells[0].text for place in range(len(rows))] == forwards[::-1]
        await person.press("s")
        assert person.dashboard.nav.current.state.sort == names[1]


async def test_a_click_on_a_heading_sorts() -> None:
    async with dashboard() as person:
        await person.press("5")
        await person.pilot.click("MainPane", offset=(3, 0))
        await person.settle()
        assert person.dashboard.nav.current.state.sort == person.dashboard.table.visible_columns()[0]


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


async def test_the_cursor_follows_its_row_while_containers_come_and_go() -> None:
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


async def test_pause_freezes_the_lists() -> None:
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


async def test_while_parts_are_missing_it_shows_progress_and_no_findings() -> None:
    whole = small_host()
    early = replace(whole, engines={}, pending=frozenset({"containers", "firewall"}))
    async with dashboard(early) as person:
        assert "reading 5 of 7" in person.lines[0]
        assert "live" not in person.lines[0] and "finding" not in person.lines[0]
        await person.press("!")
        assert "Still reading: 5 of 7" in person.text and "No findings" not in person.text
        await person.press("escape")
        await person.feed(whole)
        assert "live" in person.lines[0] and "findings" in person.lines[0]


async def test_events_show_every_change_of_a_burst() -> None:
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

    def recorded_refresh(widget: Widget, *regions: Region, **how: bool) -> Widget:
        painted.append(widget)
        return refresh(widget, *regions, **how)

    async with dashboard(source=FedSource()) as person:
        await person.feed(whole, rates=rates)
        monkeypatch.setattr(Widget, "refresh", recorded_refresh)
        for name in NAMES:
            person.dashboard.go_to(name)
            await person.settle()
            painted.clear()
            await person.feed(replace(whole), rates=rates)
            assert painted == [], name


async def test_a_failing_view_shows_the_error_and_the_program_continues(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with dashboard() as person:

        def fail(*_: object) -> None:
            raise ValueError("[red]boom[/]\x1b")

        monkeypatch.setattr(ViewModel, "view_data", fail)
        await person.pilot.press("5")
        await person.eventually("[red]boom[/]")
        monkeypatch.undo()
        await person.press("4")
        assert "gateway" in person.text


# ---- invalid filters, details, order, events


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (":cont foo:bar⏎", "can't filter by foo: there is no such column. Try: addr,"),
        (":ct foo:bar⏎", "can't filter by foo: there is no such column. Try: addr,"),
        (":ct port:abc⏎", "can't filter by port:abc: it isn't a port"),
        (":ct port:80-70⏎", "can't filter by port:80-70: it isn't a port or a range. Try: port:8000-8010"),
        (":nat port:80-70⏎", "can't filter by port:80-70: it isn't a port or a range"),
        (":ct addr:10.0.0.0/99⏎", "can't filter by addr:10.0.0.0/99: it isn't a prefix"),
    ],
)
async def test_an_invalid_filter_is_explained(typed: str, said: str) -> None:
    async with dashboard() as person:
        await person.type(typed)
        assert said in " ".join(" ".join(line.partition("▏")[0].split()) for line in person.lines)


async def test_the_detail_is_empty_if_the_list_is() -> None:
    async with dashboard() as person:
        await person.press("5")
        await person.type("/no such thing⏎")
        await person.press("enter")
        assert person.dashboard.pane.lines == ()
        await person.feed(small_host())
        assert person.dashboard.pane.lines == ()
        await person.press("escape")
        assert person.dashboard.pane.lines


async def test_the_sorted_columns_heading_always_shows_its_arrow() -> None:
    async with dashboard(size=(80, 24)) as person:
        await person.press("7")
        for _ in range(4):
            await person.press("s")
            assert "▲" in person.text
            await person.press("S")
            assert "▼" in person.text
            await person.press("S")


async def test_events_show_the_whole_sentence() -> None:
    whole = small_host()
    sentence = "the MTU of veth v-web1 in host changed from 1500 to 1450"
    async with dashboard(whole, size=(80, 24)) as person:
        await person.feed(whole, changes=(Change(1.0, "changed", Ref("link", (HOST, 1)), sentence),))
        await person.press("9")
        assert sentence in person.text


async def test_events_show_the_sentence_on_the_smallest_terminal() -> None:
    whole = small_host()
    async with dashboard(whole, size=(40, 10)) as person:
        await person.feed(whole, changes=(Change(1.0, "added", Ref("link", (HOST, 1)), "v-web1 was added"),))
        await person.press("9")
        assert "v-web1 was added" in person.text


async def test_a_file_has_no_events_and_nothing_to_pause() -> None:
    source = FedSource(small_host(), live=False, title="host.vnet of 2026-01-02 03:04:05")
    async with dashboard(source=source) as person:
        assert "host.vnet of 2026-01-02 03:04:05" in person.lines[0]
        await person.press("9")
        assert "A file shows one moment" in person.text
        await person.press("p")
        assert "offline" in person.lines[0]
        await person.press("r")
        assert "can't read a file again" in person.text and not source.refreshes
        await person.press("1")
        assert "bit/s" not in person.text
