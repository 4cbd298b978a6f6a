"""`:name` goes to views and to items."""

from __future__ import annotations

import pytest

from tests.ui.driver import dashboard


@pytest.mark.parametrize(
    ("name", "view", "kind"),
    [
        ("web1", "containers", "container"),
        ("WEB1", "containers", "container"),
        ("app", "networks", "network"),
        ("br-app", "bridges", "link"),
        ("eth0", "links", "link"),
        ("veth-web1", "veths", "link"),
    ],
)
async def test_a_name_goes_to_an_item(name: str, view: str, kind: str) -> None:
    async with dashboard() as person:
        await person.type(f":{name}⏎")
        assert (person.dashboard.view.name, person.dashboard.ref and person.dashboard.ref.kind) == (
            view,
            kind,
        )
        assert name.casefold() in person.row().casefold()


async def test_an_unknown_name_lists_what_was_searched() -> None:
    async with dashboard() as person:
        await person.type(":nosuchthing⏎")
        assert 'can\'t go to "nosuchthing": no view, container, network, link or namespace' in person.text


async def test_help_lists_views_without_a_number() -> None:
    async with dashboard(size=(130, 90)) as person:
        await person.press("question_mark")
        for name in (":flows", ":links", ":networks", ":fastpath"):
            await person.eventually(name)
