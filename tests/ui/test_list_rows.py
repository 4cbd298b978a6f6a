"""Order, folding and lookup of rows; layout of columns."""

from __future__ import annotations

import pytest

from core.model import Ref
from tui.views.formatting import cut_end
from tui.views.lists import GAP, ListRows, lay_out
from tui.views.rows import Cell, Column, Row
from tui.widgets.form import options_text

COLUMNS = (Column("name", "name", 10), Column("rate", "rate", 6))


def row(name: str, rate: float | None = None, depth: int = 0, aliases: tuple[Ref, ...] = ()) -> Row:
    text = "–" if rate is None else f"{rate:.0f}"
    return Row(Ref("link", (name,)), (Cell(name), Cell(text, sort=rate)), depth=depth, aliases=aliases)


def names(rows: ListRows) -> list[str]:
    return [row.cells[0].text for row in rows]


def test_names_sort_in_natural_order() -> None:
    rows = ListRows([row("veth10"), row("Veth2"), row("veth1"), row("br0")], COLUMNS)
    assert names(rows.sorted_by("name", False)) == ["br0", "veth1", "Veth2", "veth10"]


def test_numbers_sort_by_value_and_blanks_are_last() -> None:
    rows = ListRows([row("a", 9), row("b"), row("c", 100), row("d", 20)], COLUMNS)
    assert names(rows.sorted_by("rate", False)) == ["a", "d", "c", "b"]
    assert names(rows.sorted_by("rate", True)) == ["c", "d", "a", "b"]


def test_sorting_is_stable_in_both_directions() -> None:
    rows = ListRows([row("a", 1), row("b", 1), row("c", 0), row("d", 1)], COLUMNS)
    assert names(rows.sorted_by("rate", False)) == ["c", "a", "b", "d"]
    assert names(rows.sorted_by("rate", True)) == ["a", "b", "d", "c"]


def test_ports_stay_under_their_bridge() -> None:
    rows = ListRows(
        [row("br1"), row("x2", depth=1), row("x1", depth=1), row("br0"), row("x3", depth=1)], COLUMNS
    )
    assert names(rows.sorted_by("name", False)) == ["br0", "x3", "br1", "x1", "x2"]
    assert names(rows.sorted_by("name", True)) == ["br1", "x2", "x1", "br0", "x3"]


def test_an_unknown_column_changes_nothing() -> None:
    rows = ListRows([row("b"), row("a")], COLUMNS)
    assert rows.sorted_by("nothing", False) is rows


def test_folding_hides_rows_below() -> None:
    rows = ListRows(
        [row("br0"), row("x", depth=1), row("y", depth=2), row("br1"), row("z", depth=1)], COLUMNS
    )
    assert names(rows.folded({Ref("link", ("br0",))})) == ["br0", "br1", "z"]


def test_a_filtered_child_without_its_parent_is_not_put_under_another() -> None:
    rows = ListRows([row("web-br"), row("other"), row("web-port", depth=1)], COLUMNS)
    assert [(each.cells[0].text, each.depth) for each in rows.matching("web")] == [
        ("web-br", 0),
        ("web-port", 0),
    ]


def test_index_by_reference_and_alias() -> None:
    alias = Ref("link", ("far",))
    rows = ListRows([row("a"), row("b", aliases=(alias,))], COLUMNS)
    assert rows.index(Ref("link", ("b",))) == 1
    assert rows.index(alias) == 1
    assert rows.index(Ref("link", ("gone",))) is None


WIDE = (
    Column("a", "A", 10, grow=1),
    Column("b", "B", 8, priority=2),
    Column("c", "C", 12, grow=3, priority=1),
    Column("d", "D", 6),
)


def width_of(placed: tuple) -> int:
    return sum(each.width for each in placed) + GAP * (len(placed) - 1)


@pytest.mark.parametrize("width", range(1, 200))
def test_columns_never_need_more_than_the_width(width: int) -> None:
    placed = lay_out(WIDE, width)
    assert placed and width_of(placed) <= max(width, 1)
    assert all(each.width >= 1 for each in placed)


def test_the_least_important_column_goes_first() -> None:
    assert [each.column.name for each in lay_out(WIDE, 42)] == ["a", "b", "c", "d"]
    assert [each.column.name for each in lay_out(WIDE, 40)] == ["a", "c", "d"]
    assert [each.column.name for each in lay_out(WIDE, 30)] == ["a", "b", "d"]
    assert [each.column.name for each in lay_out(WIDE, 18)] == ["a", "d"]


def test_remaining_width_goes_to_columns_that_grow() -> None:
    placed = lay_out(WIDE, 82)
    assert [each.width for each in placed] == [20, 8, 42, 6]
    assert width_of(placed) == 82


def test_width_goes_first_to_longer_texts() -> None:
    columns = (Column("a", "A", 10, grow=1), Column("b", "B", 10, grow=1), Column("c", "C", 5))
    fixed = 5 + 2 * GAP
    assert [each.width for each in lay_out(columns, 20 + fixed, {0: 4, 1: 16})] == [4, 16, 5]
    assert [each.width for each in lay_out(columns, 20 + fixed, {0: 16, 1: 4})] == [16, 4, 5]
    assert [each.width for each in lay_out(columns, 20 + fixed, {0: 40, 1: 40})] == [10, 10, 5]
    assert width_of(lay_out(columns, 40 + fixed, {0: 4, 1: 16})) == 40 + fixed


@pytest.mark.parametrize("width", range(1, 120, 3))
def test_columns_with_long_texts_fit_any_width(width: int) -> None:
    placed = lay_out(WIDE, width, {0: 300, 2: 0})
    assert width_of(placed) <= max(width, 1) and all(each.width >= 1 for each in placed)


def test_short_texts_leave_room_for_more_columns() -> None:
    assert [each.column.name for each in lay_out(WIDE, 40)] == ["a", "c", "d"]
    assert [each.column.name for each in lay_out(WIDE, 40, {0: 8, 2: 10})] == ["a", "b", "c", "d"]


def test_short_texts_leave_room_for_columns_that_grow() -> None:
    columns = (Column("name", "name", 10, grow=1), Column("verdict", "verdict", 14))
    rows = ListRows([Row(Ref("link", ("a",)), (Cell("a"), Cell("dnat")))], columns)
    assert [each.width for each in lay_out(columns, 40, rows.needs())] == [29, 9]


@pytest.mark.parametrize(
    ("text", "width", "wanted"),
    [
        ("web1 172.18.0.2:80", 18, "web1 172.18.0.2:80"),
        ("web1 172.18.0.2:80", 17, "web1:80"),
        ("blog [fd19:b10c::2]:443", 20, "blog:443"),
        ("web1-in-the-shop 172.18.0.2:80", 10, "web1-i…:80"),
        ("203.0.113.77:38703", 16, "203.0.113…:38703"),
        ("[2001:db8::1]:443", 14, "[2001:db…]:443"),
        ("web1 172.18.0.2", 12, "web1"),
        ("web1 fd19:b10c::2", 12, "web1"),
        ("fd19:b10c::2", 8, "fd19:b1…"),
        ("–", 1, "–"),
    ],
)
def test_an_end_that_is_cut_keeps_its_port(text: str, width: int, wanted: str) -> None:
    assert cut_end(text, width) == wanted


@pytest.mark.parametrize(
    ("width", "text"),
    [(40, "‹ › nat · routed · none"), (20, "‹ › nat · +2"), (12, "‹ › nat · +2"), (3, "‹ › +3")],
)
def test_options_that_do_not_fit_are_counted(width: int, text: str) -> None:
    assert options_text(("nat", "routed", "none"), width) == text


def test_filter_and_order_keep_the_widths_of_columns() -> None:
    columns = (Column("name", "name", 10, grow=1), Column("rate", "rate", 6, align="right"))
    rows = ListRows([row("a", 2), row("a-long-name-of-something", 1), row("x", 3, depth=1)], columns)
    assert rows.needs() == {0: len("a-long-name-of-something") + 4}, "with room for the mark of a fold"
    for others in (rows.matching("x"), rows.sorted_by("rate", True), rows.folded({Ref("link", ("a",))})):
        assert others.needs() == rows.needs()
