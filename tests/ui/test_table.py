"""The virtual table: the cursor follows an item, only changed lines are painted."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from rich.cells import cell_len
from rich.style import Style
from textual import events
from textual.app import ComposeResult
from textual.message import Message
from textual.pilot import Pilot

from core.model import Ref
from tests.support.snapshots import HOSTILE_NAME
from tests.ui.driver import screen_lines
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Row, Rows
from tui.widgets.lines import TonedApp, strip_of
from tui.widgets.table import TableView

COLUMNS = (
    Column("name", "name", 12, grow=1),
    Column("rate", "rate", 8, align="right", priority=1),
    Column("state", "state", 6, priority=2),
)


def row(number: int, rate: float = 0.0, name: str = "", depth: int = 0) -> Row:
    cells = (Cell(name or f"thing{number}"), Cell(f"{rate:.0f}", sort=rate), Cell("up", "ok"))
    return Row(Ref("link", (number,)), cells, depth=depth)


def items(*numbers: int) -> ListRows:
    return ListRows([row(number) for number in numbers], COLUMNS)


class LazyRows:
    """Any number of rows, created on demand; counts how many were read."""

    def __init__(self, count: int, shift: int = 0) -> None:
        self.count, self.shift, self.reads = count, shift, 0

    def __len__(self) -> int:
        return self.count

    def row(self, index: int) -> Row:
        self.reads += 1
        return row(index + self.shift)

    def index(self, ref: Ref) -> int | None:
        place = int(ref.key[0]) - self.shift
        return place if 0 <= place < self.count else None

    def sorted_by(self, column: str, reverse: bool) -> Rows:
        return self

    def matching(self, query: str) -> Rows:
        return self


class TableApp(TonedApp):
    CSS_PATH = "../../tui/app.tcss"

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        from tui import themes

        for theme in themes.THEMES:
            self.register_theme(theme)
        self.theme = themes.DARK.name
        self.rows = rows
        self.posted: list[Message] = []

    def compose(self) -> ComposeResult:
        yield TableView()

    def on_mount(self) -> None:
        self.table = self.query_one(TableView)
        self.table.focus()
        self.table.show(COLUMNS, self.rows, None, 0)

    def on_table_view_opened(self, message: TableView.Opened) -> None:
        self.posted.append(message)

    def on_table_view_sort_asked(self, message: TableView.SortAsked) -> None:
        self.posted.append(message)

    def on_table_view_fold_asked(self, message: TableView.FoldAsked) -> None:
        self.posted.append(message)


@asynccontextmanager
async def table(rows: Rows, size: tuple[int, int] = (60, 20)) -> AsyncIterator[tuple[TableView, Pilot[None]]]:
    app = TableApp(rows)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        yield app.table, pilot


def at_cursor(table: TableView) -> str:
    chosen = table.selected_row()
    return chosen.cells[0].text if chosen else ""


# ---- the cursor follows an item


async def test_the_cursor_follows_its_item_when_others_come_and_go() -> None:
    async with table(items(*range(10, 30))) as (view, pilot):
        await pilot.press("j", "j", "j")
        assert at_cursor(view) == "thing13"
        view.update(items(*range(30)))
        assert at_cursor(view) == "thing13"
        view.update(items(13, 29, 1))
        assert at_cursor(view) == "thing13"


async def test_the_cursor_follows_its_item_when_the_order_changes() -> None:
    async with table(items(*range(200))) as (view, pilot):
        await pilot.press(*"jjjjj")
        view.update(items(*reversed(range(200))))
        await pilot.pause()
        assert at_cursor(view) == "thing5"
        assert any("▌thing5 " in line for line in screen_lines(pilot.app))


async def test_the_cursor_goes_to_the_neighbour_when_its_item_vanishes() -> None:
    async with table(items(1, 2, 3, 4, 5)) as (view, pilot):
        await pilot.press("j", "j")
        view.update(items(1, 2, 4, 5))
        assert at_cursor(view) == "thing4"
        view.update(items(1, 2))
        assert at_cursor(view) == "thing2"
        view.update(items(7, 8, 9))
        assert at_cursor(view) in ("thing7", "thing8")
        view.update(items())
        assert view.ref is None
        view.update(items(3))
        assert at_cursor(view) == "thing3"


async def test_lines_added_above_do_not_scroll_the_screen() -> None:
    async with table(items(*range(100, 200))) as (view, pilot):
        await pilot.press("ctrl+d", "ctrl+d", "ctrl+d", "j")
        await pilot.pause()
        before = screen_lines(pilot.app)
        view.update(items(*range(50, 200)))
        await pilot.pause()
        after = screen_lines(pilot.app)
        assert [line[:40] for line in after] == [line[:40] for line in before]


async def test_a_pinned_cursor_stays_on_the_first_line() -> None:
    async with table(items(3, 2, 1)) as (view, pilot):
        view.update(items(4, 3, 2, 1), pinned=True)
        assert at_cursor(view) == "thing4"
        await pilot.press("j")
        view.update(items(5, 4, 3, 2, 1), pinned=True)
        assert at_cursor(view) == "thing3"


async def test_visible_lines_stay_when_scrolled_away_from_the_cursor() -> None:
    async with table(items(*range(100))) as (view, pilot):
        view.scroll_by(40)
        await pilot.pause()
        top = view.rows.row(view.top).cells[0].text
        view.update(items(*range(-20, 100)))
        assert view.rows.row(view.top).cells[0].text == top
        assert at_cursor(view) == "thing0"


# ---- keys and mouse


async def test_keys_move_the_cursor() -> None:
    async with table(items(*range(100)), (60, 11)) as (view, pilot):
        for keys, place in (
            ("j", 1), ("down", 2), ("k", 1), ("up", 0), ("k", 0), ("G", 99), ("j", 99), ("g", 0),
            ("ctrl+d", 5), ("ctrl+u", 0), ("pagedown", 9), ("pageup", 0), ("end", 99), ("home", 0),
        ):  # fmt: skip
            await pilot.press(keys)
            assert view.cursor == place, keys
            assert view.top <= view.cursor < view.top + view.page


async def test_h_goes_to_the_parent_and_folds_it() -> None:
    rows = ListRows([row(1), row(2, depth=1), row(3, depth=1), row(4)], COLUMNS)
    async with table(rows) as (view, pilot):
        await pilot.press("j", "j", "h")
        assert at_cursor(view) == "thing1"
        await pilot.press("h")
        view.closed = frozenset({row(1).ref})
        await pilot.press("l")
        assert [(m.ref, m.closed) for m in pilot.app.posted] == [(row(1).ref, True), (row(1).ref, False)]


async def test_the_mouse_selects_opens_sorts_and_scrolls() -> None:
    async with table(items(*range(100))) as (view, pilot):
        await pilot.click(TableView, offset=(3, 5))
        assert at_cursor(view) == "thing4"
        await pilot.click(TableView, offset=(3, 5), times=2)
        await pilot.click(TableView, offset=(3, 0))
        await pilot.pause()
        opened, sort = pilot.app.posted
        assert opened.ref == row(4).ref
        assert sort.column == "name"
        await pilot.click(TableView, offset=(59, 19))
        assert view.top == 100 - view.page


async def test_the_wheel_scrolls_without_moving_the_cursor() -> None:
    async with table(items(*range(100))) as (view, pilot):
        view.post_message(events.MouseScrollDown(view, 3, 5, 0, 1, 0, False, False, False))
        await pilot.pause()
        assert (view.top, view.cursor) == (3, 0)


# ---- what is painted


@pytest.mark.parametrize("width", [1, 5, 10, 20, 40, 80, 130, 200])
async def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    names = [
        HOSTILE_NAME,
        "x" * 255,
        "日本語のコンテナ名前がとても長い",
        "שלום עולם",
        "e\u0301" * 40,
        "",
        "👩‍👩‍👧‍👦 family",
    ]
    rows = ListRows([row(number, name=name) for number, name in enumerate(names)], COLUMNS)
    async with table(rows, (width, 12)) as (_, pilot):
        lines = screen_lines(pilot.app)
        assert all(cell_len(line) == width for line in lines)
        assert not any(char in line for line in lines for char in "\x1b\n\u202e")


async def test_a_name_is_not_parsed_as_markup() -> None:
    async with table(ListRows([row(1, name=HOSTILE_NAME)], COLUMNS), (120, 10)) as (_, pilot):
        assert "[red]x[/]" in screen_lines(pilot.app)[1]


async def test_a_name_that_does_not_fit_ends_in_an_ellipsis() -> None:
    async with table(ListRows([row(1, name="n" * 300)], COLUMNS), (40, 5)) as (_, pilot):
        assert "nnn…" in screen_lines(pilot.app)[1]


async def test_only_visible_rows_are_read_of_a_hundred_thousand() -> None:
    rows = LazyRows(100_000)
    async with table(rows, (60, 20)) as (_view, pilot):
        for key in ("G", "g", "ctrl+d", "j", "j", "pagedown"):
            rows.reads = 0
            await pilot.press(key)
            assert rows.reads <= 2 * 20 + 4, key


async def test_equal_rows_paint_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with table(items(*range(50))) as (view, pilot):
        painted: list[int] = []
        monkeypatch.setattr(view, "refresh", lambda *regions, **_: painted.append(len(regions)))
        view.update(items(*range(50)))
        await pilot.pause()
        assert painted == []


async def test_only_lines_that_differ_are_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with table(items(*range(50))) as (view, _):
        regions: list = []
        monkeypatch.setattr(view, "refresh", lambda *found, **_: regions.extend(found))
        view.update(ListRows([row(n, rate=7 if n == 3 else 0) for n in range(50)], COLUMNS))
        assert [(region.y, region.height) for region in regions] == [(4, 1)]


async def test_the_cost_of_a_key_does_not_depend_on_the_number_of_rows() -> None:
    async def cost(count: int) -> float:
        rows = LazyRows(count)
        async with table(rows, (130, 40)) as (view, pilot):
            times = []
            for number in range(20):
                view.update(LazyRows(count, shift=-number))
                began = time.process_time()
                await pilot.press("j")
                times.append(time.process_time() - began)
            return statistics.median(times)

    small, large = await cost(100), await cost(100_000)
    assert large <= 3 * small


async def test_an_empty_table_shows_its_message_in_the_middle() -> None:
    async with table(items(), (60, 20)) as (view, pilot):
        view.message = "No bridge yet: a bridge is a switch inside the kernel. " * 2
        view.repaint()
        await pilot.pause()
        found = [line for line in screen_lines(pilot.app) if "bridge" in line]
        assert found and all(line.startswith("  ") for line in found)


@pytest.mark.parametrize(
    ("text", "width", "wanted"),
    [
        ("db 10.89.0.2:5432", 17, "db 10.89.0.2:5432"),
        ("db 10.89.0.2:5432", 16, "db 10.89.0.2:54…"),
        ("trailing  ", 8, "trailing"),
        ("本本本", 5, "本本…"),
        ("本本本", 4, "本 …"),
        ("ab", 1, "…"),
        ("ab", 0, ""),
        ("a", 3, "a  "),
    ],
)
def test_a_cut_line_ends_in_an_ellipsis(text: str, width: int, wanted: str) -> None:
    for spans in ([(text, Style.null())], [(letter, Style.null()) for letter in text]):
        strip = strip_of(spans, width)
        assert (strip.text.rstrip(), strip.cell_length) == (wanted.rstrip(), width)
