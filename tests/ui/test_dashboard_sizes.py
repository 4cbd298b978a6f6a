"""Terminals of every size, and text from outside."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

from core.model import Snapshot
from tests.support.snapshots import hostile_host, small_host
from tests.ui.driver import Person, dashboard
from tui.views import registry

NAMES = [view.name for view in registry.VIEWS]


# ---- sizes and hostile text


def fits(person: Person, size: tuple[int, int]) -> None:
    lines = person.lines
    assert len(lines) == size[1]
    assert all(cell_len(line) == size[0] for line in lines)
    assert not any(char in person.text for char in "\x1b\u202e")


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 60), (8, 3), (3, 2), (1, 1)])
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


async def test_resizing_keeps_the_selected_row() -> None:
    async with dashboard() as person:
        await person.press("3", "j", "j")
        name = person.row()
        for size in ((40, 10), (80, 24), (8, 3), (200, 60), (109, 15), (130, 40)):
            await person.pilot.resize_terminal(*size)
            await person.settle()
            fits(person, size)
            assert person.row() == name


async def test_at_40x10_the_list_and_its_filter_are_visible() -> None:
    async with dashboard(size=(40, 10)) as person:
        await person.press("5")
        await person.type("/name:web⏎")
        assert "filtered 2 of" in person.text
        assert "web1" in person.text


async def test_at_80x24_networks_show_gateways_and_connections_show_ports() -> None:
    async with dashboard(size=(80, 24)) as person:
        await person.type(":networks⏎")
        assert "gateway" in person.lines[2]
        await person.type(":conntrack⏎")
        rows = [line for line in person.lines if re.match(r".(tcp|udp) .* [→←] ", line)]
        assert rows and all(re.search(r":[0-9]+ +[→←] .*:[0-9]+ ", line) for line in rows), rows


async def test_ascii_mode_draws_only_ascii() -> None:
    async with dashboard(ascii_only=True) as person:
        for name in NAMES:
            person.dashboard.go_to(name)
            await person.settle()
            assert person.text.isascii(), [line for line in person.lines if not line.isascii()]
        await person.press("question_mark")
        assert person.text.isascii()


async def test_lists_show_a_message_before_any_data() -> None:
    async with dashboard(Snapshot()) as person:
        for number in "23456789":
            await person.press(number)
            assert person.dashboard.table.message


async def test_columns_are_not_cut_if_only_few_fit() -> None:
    async with dashboard(size=(40, 10)) as person:
        await person.press("5")
        heading = person.lines[2].split()
        assert heading[:2] == ["container", "model"] and not any("…" in title for title in heading)
        assert "1-9 Containers" in person.lines[1]


async def test_a_short_list_leaves_room_for_the_detail() -> None:
    async with dashboard(size=(80, 24)) as person:
        await person.press("5")
        rows = len(person.dashboard.table.rows)
        assert person.dashboard.table.size.height == rows + 1
        assert "5 con " in person.lines[1] and f"{rows} rows" in person.lines[1]
        assert "container" in person.lines[2], "no line for breadcrumbs that say no more than the tab"
        await person.type("/nothing at all⏎")
        assert "Esc shows all" in person.text


async def test_a_large_terminal_gives_most_room_to_the_list() -> None:
    async with dashboard(size=(200, 60)) as person:
        await person.press("5")
        assert person.dashboard.pane.size.width < 60


async def test_the_legend_is_visible_at_35_lines() -> None:
    async with dashboard(size=(130, 35), ascii_only=True) as person:
        assert "* bridged" in person.text


@pytest.mark.parametrize("width", [80, 100, 130])
async def test_tabs_keep_their_position(width: int) -> None:
    async with dashboard(size=(width, 24)) as person:
        seen = set()
        for view in "123456789":
            await person.press(view)
            line = person.lines[1]
            seen.add(tuple(line.find(f" {number} ") for number in (2, 5, 9)))
        assert len(seen) == 1, seen
