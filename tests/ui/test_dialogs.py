"""Every dialog: closed twice in one packet, the second key does no harm."""

from __future__ import annotations

import pytest

from tests.ui.planner import made_earlier, planning
from tests.ui.test_fast_keys import accelerating, select
from tests.ui.writer import until


@pytest.mark.parametrize("no", ["n", "q", "escape"])
@pytest.mark.parametrize("opens", ["d", "u", "n", "question_mark", "!", "L"])
async def test_a_dialog_told_twice_to_end_ends_once(opens: str, no: str) -> None:
    async with planning(journal=(made_earlier("first"),)) as (person, planner):
        await person.type(":veth⏎")
        await person.press(opens)
        opened = person.app.screen
        assert len(person.app.screen_stack) == 2
        await person.press(no, no, "escape", "escape")
        await until(person, lambda: opened not in person.app.screen_stack, "the dialog's end")
        await person.press("escape", "8")
        await until(person, lambda: person.dashboard.view.name == "routes", "the other view")
        assert person.app.is_running and not planner.done and not planner.taken_back


@pytest.mark.parametrize("no", ["n", "q", "escape"])
async def test_the_question_of_the_fast_path_too(no: str) -> None:
    async with accelerating() as (person, pretended):
        await select(person, "networks", "app")
        await person.press("f", no, no, no)
        await person.press("8")
        await until(person, lambda: person.dashboard.view.name == "routes", "the other view")
        assert len(person.app.screen_stack) == 1 and not pretended.fast.is_running
