"""The overview on the screen: keys, mouse, updates under the cursor, and what is repainted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from core.model import Change, Snapshot
from core.rates import Rates
from tests.snapshots import empty_host, many_namespaces, rates_of, small_builder, small_host
from tui.app import VnetApp
from tui.source import Update
from tui.widgets.overview import MainPane


@dataclass
class Picture:
    """One update."""

    snapshot: Snapshot
    rates: Rates | None = None
    changes: tuple[Change, ...] = ()


@dataclass
class Still:
    """A source that shows what it is given."""

    snapshot: Snapshot
    live: bool = True
    told: list[Callable[[Update], None]] = field(default_factory=list)

    def start(self, on_update: Callable[[Update], None]) -> None:
        self.told.append(on_update)
        self.give(self.snapshot)

    def give(self, snapshot: Snapshot, bits: float = 8e6) -> None:
        self.told[0](Picture(snapshot, rates_of(snapshot, bits)))

    def stop(self) -> None: ...

    def refresh(self) -> None: ...

    def show(self, view: str) -> None: ...


async def settled(pilot: Any) -> MainPane:
    """The pane, once everything asked for is on the screen."""
    screen = pilot.app.screen
    for _ in range(200):
        await pilot.pause(0.01)
        if screen.desk.idle and len(screen.query_one(MainPane).rows):
            break
    await pilot.pause()
    return screen.query_one(MainPane)


def name_of(pane: MainPane) -> str:
    row = pane.selected_row()
    return row.cells[0].text if row else ""


def shown(pane: MainPane) -> str:
    return "\n".join(pane.render_line(y).text.rstrip() for y in range(pane.size.height))


@pytest.mark.parametrize("size", [(80, 24), (200, 60), (40, 10)])
async def test_it_is_drawn_at_every_size(size: tuple[int, int]) -> None:
    async with VnetApp(Still(small_host())).run_test(size=size) as pilot:
        pane = await settled(pilot)
        assert pane.rails is not None
        assert "host lab" in shown(pane) and "monitor" in shown(pane)


async def test_keys_move_by_place() -> None:
    async with VnetApp(Still(small_host())).run_test(size=(160, 60)) as pilot:
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


async def test_enter_follows_and_escape_comes_back() -> None:
    async with VnetApp(Still(small_host())).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        await pilot.press("j", "j", "l")
        assert name_of(pane) == "api"
        await pilot.press("enter")
        await settled(pilot)
        assert pane.rails is None, "a port of api, in a list"
        await pilot.press("escape")
        await settled(pilot)
        assert pane.rails is not None and name_of(pane) == "api"


async def test_the_mouse_selects() -> None:
    async with VnetApp(Still(small_host())).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        item = next(item for item in pane.picture.items if item.kind == "goal" and item.rail == "net-app")
        await pilot.click(MainPane, offset=(item.x + 1, item.y - pane.top))
        await settled(pilot)
        assert pane.item == item


async def test_the_cursor_stays_with_its_thing_on_its_rail() -> None:
    source = Still(small_host())
    async with VnetApp(source).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        place = next(
            n for n, item in enumerate(pane.picture.items) if item.rail == "net-db" and item.kind == "figure"
        )
        pane.move_to(place)
        assert name_of(pane) == "api"
        host = small_builder()
        ns = host.namespace(1, names=("aaa",))
        host.wire(
            ns, next(link for link in host.links[4026531840].values() if link.name == "br-app"), "v-aaa"
        )
        host.container("netns", "aaa", ns, id="aaa", namespaces={"net": ns})
        source.give(host.snapshot())
        await settled(pilot)
        assert "aaa" in shown(pane)
        assert name_of(pane) == "api" and pane.item is not None and pane.item.rail == "net-db"


async def test_what_is_removed_leaves_the_cursor_nearby() -> None:
    source = Still(small_host())
    async with VnetApp(source).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        await pilot.press("G")
        source.give(empty_host())
        await settled(pilot)
        for _ in range(50):
            await pilot.pause(0.02)
            if "No virtual network" in shown(pane):
                break
        assert "No virtual network" in shown(pane)
        assert pane.item is not None


async def test_a_filter_makes_it_a_list() -> None:
    async with VnetApp(Still(small_host())).run_test(size=(120, 40)) as pilot:
        pane = await settled(pilot)
        await pilot.press("slash", *"web", "enter")
        for _ in range(50):
            await pilot.pause(0.02)
            if pane.rails is None:
                break
        assert pane.rails is None
        assert {row.cells[0].text for row in (pane.rows.row(n) for n in range(len(pane.rows)))} == {
            "web1",
            "web2",
        }
        await pilot.press("escape")
        for _ in range(50):
            await pilot.pause(0.02)
            if pane.rails is not None:
                break
        assert pane.rails is not None


async def test_scrolling_keeps_the_selected_thing_in_sight() -> None:
    async with VnetApp(Still(many_namespaces())).run_test(size=(80, 24)) as pilot:
        pane = await settled(pilot)
        assert pane.picture.height > pane.size.height
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
    source = Still(small_host())
    async with VnetApp(source).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        before = list(pane._lines)
        source.give(replace(small_host(), taken_at=1.0), bits=16e6)
        await settled(pilot)
        await pilot.pause(0.2)
        differing = [y for y, line in enumerate(pane._lines) if line != before[y]]
        assert differing, "the rates"
        assert len(differing) <= 4, "one line a rail"


async def test_resizing_draws_anew() -> None:
    async with VnetApp(Still(small_host())).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        assert "╭" in shown(pane)
        await pilot.resize_terminal(80, 24)
        await settled(pilot)
        assert "╭" not in shown(pane) and "╰╴" in shown(pane)
