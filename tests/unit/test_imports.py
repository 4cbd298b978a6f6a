"""Modules that must start fast import no large library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def loaded_by(module: str) -> set[str]:
    return loaded_after(f"import sys, {module}; print(*sys.modules)")


def loaded_after(code: str) -> set[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-P", "-c", code]
    return set(
        subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout.split()
    )


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("core.plan", {"asyncio", "docker", "pyroute2", "requests"}),
        ("core.apply.run", {"asyncio", "docker", "pyroute2", "requests"}),
        ("core.apply.guard_process", {"core.apply.run", "core.operations", "numpy"}),
    ],
)
def test_modules_that_start_fast(module: str, unwanted: set[str]) -> None:
    assert not loaded_by(module) & unwanted


# The dashboard up to the start of its event loop; the first paint follows.
START = """
import sys
import tui.app, tui.command
tui.app.run = lambda *arguments: print(*sys.modules) or 0
tui.command.require_terminal = lambda: None
from tui.cli import main
main([])
"""


def test_what_is_imported_before_the_first_paint() -> None:
    loaded = loaded_after(START)
    assert "tui.screens.dashboard" in loaded
    unwanted = (
        "bpf",
        "core.lab",
        "core.metrics",
        "core.operations",
        "core.plan",
        "core.probe",
        "core.reach",
        "docker",
        "prometheus_client",
    )
    assert sorted(name for name in loaded if name.startswith(unwanted)) == []
