"""Keys that act on the selected row, while the filter hides all rows."""

from __future__ import annotations

import pytest

from tests.support.snapshots import small_host
from tests.ui.change_service import change_dashboard
from tests.ui.driver import dashboard

HIDDEN = "nothing is selected. Try: Esc, which clears the filter"


@pytest.mark.parametrize("view", ["containers", "doctor"])
async def test_reading_keys_act_on_no_hidden_row(view: str) -> None:
    async with dashboard(small_host()) as person:
        await person.type(f":{view}⏎")
        await person.eventually(" row")
        for key in ("w", "F", "I", "x", "C"):
            await person.type("/zzzz⏎")
            await person.eventually("No row matches zzzz")
            assert person.dashboard.ref is None
            await person.press(key)
            await person.eventually(HIDDEN)
            assert len(person.app.screen_stack) == 1 and not person.dashboard.prompt.display
            await person.press("escape")
            await person.until(lambda: person.dashboard.ref is not None)
            person.dashboard.notify("another notice")


@pytest.mark.parametrize("view", ["containers", "links"])
async def test_changes_act_on_no_hidden_row(view: str) -> None:
    async with change_dashboard() as (person, _):
        await person.type(f":{view}⏎")
        for key in "deDmP":
            await person.type("/zzzz⏎")
            await person.eventually("No row matches zzzz")
            await person.press(key)
            await person.eventually(HIDDEN)
            assert len(person.app.screen_stack) == 1
            await person.press("escape")
            await person.until(lambda: person.dashboard.ref is not None)
            person.dashboard.notify("another notice")


async def test_the_selection_comes_back_with_its_row() -> None:
    async with dashboard(small_host()) as person:
        await person.type(":containers⏎")
        await person.type("j")
        selected = person.dashboard.ref
        await person.type("/zzzz⏎")
        assert selected is not None and person.dashboard.ref is None
        await person.press("escape")
        assert person.dashboard.ref == selected
