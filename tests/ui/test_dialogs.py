"""Dialogs: repeated keys, the preview of commands, and confirmations."""

from __future__ import annotations

import pytest

from tests.ui.change_forms import closed, keys
from tests.ui.change_service import change_dashboard, past_change
from tests.ui.test_fast_keys import fast_path_dashboard, select


@pytest.mark.parametrize("no", ["n", "q", "escape"])
@pytest.mark.parametrize("opens", ["d", "u", "n", "question_mark", "!", "L"])
async def test_a_second_key_that_closes_a_dialog_does_nothing(opens: str, no: str) -> None:
    async with change_dashboard(journal=(past_change("first"),)) as (person, changes):
        await person.type(":veth⏎")
        await person.press(opens)
        opened = person.app.screen
        assert len(person.app.screen_stack) == 2
        await person.press(no, no, "escape", "escape")
        await person.until(lambda: opened not in person.app.screen_stack, "the dialog's end")
        await person.press("escape", "8")
        await person.until(lambda: person.dashboard.view.name == "flows", "the other view")
        assert person.app.is_running and not changes.done and not changes.undone


@pytest.mark.parametrize("no", ["n", "q", "escape"])
async def test_a_second_key_that_closes_the_fast_path_dialog_does_nothing(no: str) -> None:
    async with fast_path_dashboard() as (person, fast_path):
        await select(person, "networks", "app")
        await person.press("f", no, no, no)
        await person.press("8")
        await person.until(lambda: person.dashboard.view.name == "flows", "the other view")
        assert len(person.app.screen_stack) == 1 and not fast_path.fast.is_running


@pytest.mark.parametrize("size", [(40, 10), (80, 12)])
async def test_the_first_enter_shows_the_commands_if_they_are_hidden(size: tuple[int, int]) -> None:
    async with change_dashboard(size) as (person, changes):
        await keys(person, "n")
        assert "ip link add" not in person.text
        await person.eventually("Enter: show commands")
        await person.press("enter")
        await person.eventually("ip link add")
        assert not changes.done and "Enter or y: apply" in person.text
        await person.press("escape")
        await person.until(lambda: "ip link add" not in person.text, "the fields again")
        await person.press("enter")
        await person.eventually("ip link add")
        assert not changes.done
        await person.press("enter")
        await person.until(lambda: len(changes.done) == 1, "the change")


async def test_hidden_lines_of_the_preview_are_counted() -> None:
    async with change_dashboard((80, 24)) as (person, changes):
        await keys(person, "n")
        preview = person.app.screen.preview  # type: ignore[attr-defined]
        hidden = len(preview.text) - preview.size.height + 1
        assert hidden > 1 and f"+{hidden} more, PgDn" in person.text
        for _ in range(20):
            await person.press("pagedown")
        assert "more, PgDn" not in person.text and preview.text[-1][-1][0] in person.text
        assert not changes.done


async def test_enter_does_not_confirm_and_a_hint_says_so() -> None:
    async with change_dashboard(journal=(past_change("first"),)) as (person, changes):
        await person.type(":veth⏎")
        for opens in ("d", "u"):
            await keys(person, opens)
            if opens == "u":
                await person.eventually("br-old")
                await person.press("enter")
                await keys(person)
            await person.press("enter")
            await person.eventually("y: apply, n: cancel")
            assert not changes.done and not changes.undone
            await person.press("n")
            await person.press("escape")
            await closed(person)
    async with fast_path_dashboard() as (person, fast_path):
        await select(person, "networks", "app")
        await person.press("f")
        await person.eventually("Apply?")
        await person.press("enter")
        await person.eventually("y: apply, n: cancel")
        await person.press("y")
        await person.until(lambda: fast_path.fast.is_running, "the fast path")


async def test_undo_selects_the_newest_change_that_can_be_undone() -> None:
    journal = (past_change("third", "undone"), past_change("second", "undone"), past_change("first"))
    async with change_dashboard(journal=journal) as (person, changes):
        await person.press("u")
        await person.eventually("first")
        await person.press("enter")
        await keys(person)
        await person.press("y")
        await person.until(lambda: changes.undone == ["first"], "the undo")
