"""Commands wait for a slow daemon; the dashboard, which asks again, does not."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from bpf import client, rpc
from tui.cli import fastpath, fastpath_agent
from tui.cli.fastpath_session import FastPathSession


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the timeout of each request; no daemon answers."""
    found: list[float] = []

    def ask(request: dict[str, Any], inode: int | None = None, timeout: float = 0) -> NoReturn:
        found.append(timeout)
        raise TimeoutError

    for module in (rpc, client, fastpath_agent):
        monkeypatch.setattr(module, "ask", ask)
    return found


def test_commands_wait_longer_than_the_dashboard(waited: list[float]) -> None:
    assert FastPathSession(tied=False).status().state == "silent"
    fastpath.status(as_json=True)
    assert FastPathSession(tied=True).status().state == "silent"
    *commands, dashboard = waited
    assert dashboard < 5 and len(commands) >= 2 and set(commands) == {rpc.TIMEOUT}
    assert rpc.TIMEOUT >= 15
