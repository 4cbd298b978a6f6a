"""The filter accepts every column's title as a key, in every view."""

from __future__ import annotations

import re

import pytest

from core.model import Ref
from core.update import Update
from tests.support.snapshots import small_host
from tests.ui.driver import dashboard
from tui.view_model import ViewData, ViewModel, ViewState
from tui.views import query, registry
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Row


def _shown(view: registry.View, text: str = "") -> ViewData:
    view_model = ViewModel()
    view_model.apply_update(Update(small_host()), ())
    return view_model.view_data(view.list, ViewState(filter=text))


CASES = [
    (view, column.name, title)
    for view in registry.VIEWS
    for column in _shown(view).columns
    for title in query.titles((column,))
]


@pytest.mark.parametrize(("view", "name", "title"), CASES, ids=[f"{v.name}-{t}" for v, _, t in CASES])
def test_a_title_is_a_key_of_the_filter(view: registry.View, name: str, title: str) -> None:
    everything = _shown(view)
    assert not list(query.remarks(f"{title}:1", _keys(everything)))
    taken = title in {column.name for column in everything.columns}  # by a column with this name
    place = [column.name for column in everything.columns].index(title if taken else name)
    texts = [everything.rows.row(number).cells[place].text for number in range(len(everything.rows))]
    word = next((text for text in texts if text.strip() and '"' not in text), None)
    if name == "port" and word is not None:
        word = next(iter(re.findall(r"\d+", word)), None)  # ports are numbers
    if word is None or view.name in ("flows", "conntrack"):
        return  # columns of arrays have their own terms, which have their own tests
    found = _shown(view, f'{title}:"{word}"')
    got = {found.rows.row(number).cells[place].text for number in range(len(found.rows))}
    assert any(word.casefold() in text.casefold() for text in got)


def _keys(shown: ViewData) -> set[str]:
    keys = shown.rows.keys() if len(shown.rows) else ()
    return set(keys) | query.titles(shown.columns).keys()


def test_every_column_with_a_title_is_tested() -> None:
    tested = {(view.name, name) for view, name, _ in CASES}
    for view in registry.VIEWS:
        for column in _shown(view).columns:
            assert not column.title or (view.name, column.name) in tested


COLUMNS = (Column("name", "entry", 5), Column("hits", "hits", 5))
ROWS = ListRows(
    [
        Row(Ref("nat", (name,)), (Cell(name), Cell(text, sort=figure)))
        for name, text, figure in (("a", "7", 7), ("b", "12", 12), ("c", "1.2k", 1200), ("d", "–", None))
    ],
    COLUMNS,
)


@pytest.mark.parametrize(
    ("text", "names"),
    [("hits:>10", "bc"), ("hits:<10", "a"), ("hits:>=12", "bc"), ("hits:>1k", "c"), ("!hits:>10", "ad"),
     ("entry:a", "a"), ("!entry:a", "bcd")],
)  # fmt: skip
def test_comparisons_of_numbers_and_titles_as_keys(text: str, names: str) -> None:
    assert "".join(row.cells[0].text for row in ROWS.matching(text)) == names


@pytest.mark.parametrize("key", ["bytes", "packets", "timeout"])
def test_comparisons_in_the_conntrack_view(key: str) -> None:
    view = next(view for view in registry.VIEWS if view.name == "conntrack")
    assert len(_shown(view, f"{key}:>0").rows) + len(_shown(view, f"{key}:<=0").rows) == len(
        _shown(view).rows
    )
    assert not len(_shown(view, f"{key}:>999T").rows)


async def test_a_negated_term_with_an_unknown_column_is_reported() -> None:
    async with dashboard() as person:
        await person.type(":veth⏎/!nosuch:8080⏎")
        assert "can't filter by nosuch: there is no such column" in person.text
    async with dashboard() as person:
        await person.type(":containers⏎/!published:8080⏎")
        assert "can't filter" not in person.text
