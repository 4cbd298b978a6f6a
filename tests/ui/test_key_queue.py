"""Keys faster than any hand: repeats keep up, and what waited too long acts on nothing."""

from __future__ import annotations

import pytest
from textual import events

from tests.ui.driver import LATE, Person, dashboard
from tests.ui.planner import planning
from tui.widgets.table import TableView


def _typed(person: Person, key: str, age: float = 0.0) -> None:
    event = events.Key(key, key if len(key) == 1 else None)
    event.time -= age
    person.app.post_message(event)


async def test_repeats_of_a_movement_become_one_and_end_where_they_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with dashboard() as person:
        await person.type(":veth⏎")
        painted = []
        paint = TableView.paint
        monkeypatch.setattr(
            TableView, "paint", lambda self, *size: painted.append(size) or paint(self, *size)
        )
        count = len(person.dashboard.table.rows)
        await person.press(*["j"] * 500)
        assert person.dashboard.table.cursor == count - 1 > 2
        assert len(painted) < 50
        await person.press("k", "k", "j")
        assert person.dashboard.table.cursor == count - 2
        assert person.dashboard.ref == person.dashboard.table.ref == person.dashboard.pane.about


async def test_keys_that_waited_too_long_do_nothing_nor_do_those_typed_after_them() -> None:
    async with planning() as (person, _):
        await person.type(":veth⏎")
        for key, age in (("d", 2 * LATE), ("8", 0.5), ("d", 0.1)):
            _typed(person, key, age)
        await person.settle()
        assert person.dashboard.view.name == "veths" and len(person.app.screen_stack) == 1
        await person.press("8")
        assert person.dashboard.view.name == "flows"
