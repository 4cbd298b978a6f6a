"""The overview on the screen: keys, mouse, updates, and repainted lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.support.snapshots import empty_host, many_namespaces, rates_of, small_builder, small_host
from tests.support.waiting import PATIENCE
from tests.ui.driver import FedSource
from tui.app import VnetApp
from tui.screens.dashboard import Dashboard
from tui.widgets.table import MainPane


async def settled(pilot: Any, holds: Callable[[MainPane], object] = lambda pane: len(pane.rows)) -> MainPane:
    """Return the pane, as soon as it has rows or another condition holds."""
    pane = pilot.app.screen.query_one(MainPane)
    end = time.monotonic() + PATIENCE
    while not holds(pane):
        assert time.monotonic() < end
        await pilot.pause(0.02)
    await pilot.pause()
    return pane


def name_of(pane: MainPane) -> str:
    row = pane.selected_row()
    return row.cells[0].text if row else ""


def shown(pane: MainPane) -> str:
    return "\n".join(pane.render_line(y).text.rstrip() for y in range(pane.size.height))


@pytest.mark.parametrize("size", [(80, 24), (200, 60), (40, 10)])
async def test_the_overview_is_drawn_at_every_size(size: tuple[int, int]) -> None:
    async with VnetApp(FedSource(small_host())).run_test(size=size) as pilot:
        pane = await settled(pilot)
        assert pane.rails is not None
        assert "host lab" in shown(pane) and "monitor" in shown(pane)


async def test_keys_move_by_position() -> None:
    async with VnetApp(FedSource(small_host())).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        names = [name_of(pane)]
        for key in ("j", "j", "l", "l", "j", "h", "k"):
            await pilot.press(key)
            names.append(name_of(pane))
        assert names == ["host lab", "monitor", "app", "api", "web1", "sidecar", "web1", "app"]
        await pilot.press("G")
        assert name_of(pane) == "orphan"
        await pilot.press("g")
        assert name_of(pane) == "host lab"


async def test_enter_follows_and_escape_returns() -> None:
    async with VnetApp(FedSource(small_host())).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        await pilot.press("j", "j", "l")
        assert name_of(pane) == "api"
        await pilot.press("enter")
        await settled(pilot, lambda pane: len(pane.rows) and pane.rails is None)  # a port of api, in a list
        await pilot.press("escape")
        await settled(pilot, lambda pane: pane.rails is not None)
        assert name_of(pane) == "api"


async def test_a_click_selects() -> None:
    async with VnetApp(FedSource(small_host())).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        item = next(item for item in pane.drawing.items if item.kind == "uplink" and item.rail == "net-app")
        await pilot.click(MainPane, offset=(item.x + 1, item.y - pane.top))
        assert pane.item == item


async def test_the_cursor_stays_on_its_item_of_its_network() -> None:
    source = FedSource(small_host())
    async with VnetApp(source).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        place = next(
            n for n, item in enumerate(pane.drawing.items) if item.rail == "net-db" and item.kind == "figure"
        )
        pane.move_to(place)
        assert name_of(pane) == "api"
        host = small_builder()
        ns = host.namespace(1, names=("aaa",))
        host.wire(
            ns, next(link for link in host.links[4026531840].values() if link.name == "br-app"), "v-aaa"
        )
        host.container("netns", "aaa", ns, id="aaa", namespaces={"net": ns})
        source.feed(host.snapshot())
        await settled(pilot, lambda pane: "aaa" in shown(pane))
        assert name_of(pane) == "api" and pane.item is not None and pane.item.rail == "net-db"


async def test_the_cursor_goes_to_another_item_if_its_own_is_removed() -> None:
    source = FedSource(small_host())
    async with VnetApp(source).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        await pilot.press("G")
        source.feed(empty_host())
        await settled(pilot, lambda pane: "No virtual network" in shown(pane))
        assert pane.item is not None


async def test_a_filter_turns_the_overview_into_a_list() -> None:
    async with VnetApp(FedSource(small_host())).run_test(size=(120, 40)) as pilot:
        pane = await settled(pilot)
        await pilot.press("slash", *"web", "enter")
        await settled(pilot, lambda pane: len(pane.rows) and pane.rails is None)
        assert {row.cells[0].text for row in (pane.rows.row(n) for n in range(len(pane.rows)))} == {
            "web1",
            "web2",
        }
        await pilot.press("escape")
        await settled(pilot, lambda pane: pane.rails is not None)


async def test_the_selected_item_stays_visible() -> None:
    async with VnetApp(FedSource(many_namespaces())).run_test(size=(80, 24)) as pilot:
        pane = await settled(pilot)
        assert pane.drawing.height > pane.size.height
        await pilot.press("G")
        item = pane.item
        assert item is not None and pane.top <= item.y < pane.top + pane.size.height
        assert "ns199" in shown(pane)
        for _ in range(5):
            await pilot.press("ctrl+u")
        item = pane.item
        assert item is not None and pane.top <= item.y < pane.top + pane.size.height
        await pilot.press("g")
        assert pane.top == 0


async def test_only_lines_that_differ_are_repainted() -> None:
    first = small_host()
    source = FedSource(first)
    async with VnetApp(source).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        source.feed(first, rates_of(first))
        screen = pilot.app.screen
        assert isinstance(screen, Dashboard)
        await settled(pilot, lambda pane: "Mbit/s" in shown(pane) and screen.up_to_date)
        before = list(pane._lines)
        again = replace(small_host(), taken_at=1.0)
        source.feed(again, rates_of(again, 16e6))
        await settled(pilot, lambda pane: pane._lines != before)
        differing = [y for y, line in enumerate(pane._lines) if line != before[y]]
        assert len(differing) <= 4, "one line a rail"


async def test_resizing_redraws() -> None:
    async with VnetApp(FedSource(small_host())).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        assert "╭" in shown(pane)
        await pilot.resize_terminal(80, 24)
        await settled(pilot, lambda pane: "╭" not in shown(pane))
        assert "╰╴" in shown(pane)
