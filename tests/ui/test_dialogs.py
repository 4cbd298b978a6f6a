"""Every dialog: closed twice in one packet, the second key does no harm."""

from __future__ import annotations

import pytest

from tests.ui.planner import made_earlier, planning
from tests.ui.test_fast_keys import accelerating, select
from tests.ui.writer import closed, keys


@pytest.mark.parametrize("no", ["n", "q", "escape"])
@pytest.mark.parametrize("opens", ["d", "u", "n", "question_mark", "!", "L"])
async def test_a_dialog_told_twice_to_end_ends_once(opens: str, no: str) -> None:
    async with planning(journal=(made_earlier("first"),)) as (person, planner):
        await person.type(":veth⏎")
        await person.press(opens)
        opened = person.app.screen
        assert len(person.app.screen_stack) == 2
        await person.press(no, no, "escape", "escape")
        await person.until(lambda: opened not in person.app.screen_stack, "the dialog's end")
        await person.press("escape", "8")
        await person.until(lambda: person.dashboard.view.name == "flows", "the other view")
        assert person.app.is_running and not planner.done and not planner.taken_back


@pytest.mark.parametrize("no", ["n", "q", "escape"])
async def test_the_question_of_the_fast_path_too(no: str) -> None:
    async with accelerating() as (person, pretended):
        await select(person, "networks", "app")
        await person.press("f", no, no, no)
        await person.press("8")
        await person.until(lambda: person.dashboard.view.name == "flows", "the other view")
        assert len(person.app.screen_stack) == 1 and not pretended.fast.is_running


@pytest.mark.parametrize("size", [(40, 10), (80, 12)])
async def test_where_the_commands_are_out_of_sight_the_first_enter_shows_them(size: tuple[int, int]) -> None:
    async with planning(size) as (person, planner):
        await keys(person, "n")
        assert "ip link add" not in person.text
        await person.press("enter")
        await person.eventually("ip link add")
        assert not planner.done and "Enter or y: apply" in person.text
        await person.press("escape")
        await person.until(lambda: "ip link add" not in person.text, "the fields again")
        await person.press("enter")
        await person.eventually("ip link add")
        assert not planner.done
        await person.press("enter")
        await person.until(lambda: len(planner.done) == 1, "the change")


async def test_lines_below_the_last_one_in_sight_are_counted() -> None:
    async with planning((80, 24)) as (person, planner):
        await keys(person, "n")
        preview = person.app.screen.preview  # type: ignore[attr-defined]
        hidden = len(preview.text) - preview.size.height + 1
        assert hidden > 1 and f"+{hidden} more, PgDn" in person.text
        for _ in range(20):
            await person.press("pagedown")
        assert "more, PgDn" not in person.text and preview.text[-1][-1][0] in person.text
        assert not planner.done


async def test_enter_alone_answers_no_question_and_says_so() -> None:
    async with planning(journal=(made_earlier("first"),)) as (person, planner):
        await person.type(":veth⏎")
        for opens in ("d", "u"):
            await keys(person, opens)
            if opens == "u":
                await person.eventually("br-old")
                await person.press("enter")
                await keys(person)
            await person.press("enter")
            await person.eventually("y: apply, n: cancel")
            assert not planner.done and not planner.taken_back
            await person.press("n")
            await person.press("escape")
            await closed(person)
    async with accelerating() as (person, pretended):
        await select(person, "networks", "app")
        await person.press("f")
        await person.eventually("Apply?")
        await person.press("enter")
        await person.eventually("y: apply, n: cancel")
        await person.press("y")
        await person.until(lambda: pretended.fast.is_running, "the fast path")


async def test_undo_starts_on_the_newest_change_that_can_be_taken_back() -> None:
    journal = (made_earlier("third", "undone"), made_earlier("second", "undone"), made_earlier("first"))
    async with planning(journal=journal) as (person, planner):
        await person.press("u")
        await person.eventually("first")
        await person.press("enter")
        await keys(person)
        await person.press("y")
        await person.until(lambda: planner.taken_back == ["first"], "the undo")
