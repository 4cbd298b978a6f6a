"""Rows are shown before what is wrong is known, which takes longer."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from core.diagnose import checks
from tests.support.snapshots import rates_of, small_host
from tests.support.waiting import PATIENCE
from tests.ui.driver import FedSource
from tests.ui.test_overview_pane import settled, shown
from tui.app import VnetApp
from tui.screens.dashboard import Dashboard


async def test_rows_dont_wait_for_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, threads, diagnose = threading.Event(), set(), checks.diagnose

    def slow(topology: Any) -> Any:
        threads.add(threading.current_thread().name)
        assert may_go_on.wait(PATIENCE)
        return diagnose(topology)

    monkeypatch.setattr(checks, "diagnose", slow)
    host = small_host()
    source = FedSource(host)
    async with VnetApp(source).run_test(size=(160, 60)) as pilot:
        pane = await settled(pilot)
        source.feed(host, rates_of(host))
        await settled(pilot, lambda pane: "Mbit/s" in shown(pane))
        screen = pilot.app.screen
        assert isinstance(screen, Dashboard) and not screen.up_to_date
        assert "dead join" not in shown(pane) and "joined namespace" not in shown(pane)
        may_go_on.set()
        await settled(pilot, lambda pane: screen.up_to_date)
        assert "findings" in "\n".join(line.text for line in pilot.app.screen._compositor.render_strips())
    assert threads == {"diagnosis"}
