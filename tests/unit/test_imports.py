"""Modules that must start fast import no large library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sys.modules)"
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
