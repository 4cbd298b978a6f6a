"""Many keys at once: repeated keys are merged, late keys are dropped."""

from __future__ import annotations

import pytest
from textual import events

from tests.ui.change_service import change_dashboard
from tests.ui.driver import KEY_TIMEOUT, Person, dashboard
from tui.widgets.table import TableView


def post_key(person: Person, key: str, age: float = 0.0) -> None:
    event = events.Key(key, key if len(key) == 1 else None)
    event.time -= age
    person.app.post_message(event)


async def test_repeated_moves_are_merged_and_end_on_the_same_row(
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


async def test_late_keys_are_dropped_with_the_keys_typed_after_them() -> None:
    async with change_dashboard() as (person, _):
        await person.type(":veth⏎")
        for key, age in (("d", 2 * KEY_TIMEOUT), ("8", 0.5), ("d", 0.1)):
            post_key(person, key, age)
        await person.settle()
        assert person.dashboard.view.name == "veths" and len(person.app.screen_stack) == 1
        await person.press("8")
        assert person.dashboard.view.name == "flows"
