"""Run tests in parallel: a sandbox for each worker, one worker per module."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support import sandbox

# The engines start once per run, so all their tests go to one worker: first, because it takes longest.
_FOLDERS = ("docker", "kernel", "kernels", "datapath", "ui", "unit")
# A kernel without nfnetlink_hook can't say in which namespace a BPF program is at netfilter's hooks, so every
# fast path of the machine pauses. The test that attaches one must not run beside those that forbid pauses.
_ONE_BY_ONE = {"test_accelerate.py", *(f"test_fastpath_{name}.py" for name in ("hooks", "churn", "rules"))}


def give_sandboxes(specs: Sequence[Any]) -> None:
    """Start each worker's interpreter in its own sandbox, if this user may."""
    if sandbox.works():
        scratch = tempfile.mkdtemp(prefix="vnet-tests-")
        atexit.register(os.rmdir, scratch)
        for spec in specs:
            spec.python = shlex.join(sandbox.sandboxed(scratch, sys.executable))


def longest_first(items: list[pytest.Item]) -> None:
    """Sort tests by folder, slow ones first: no worker runs alone at the end."""
    items.sort(key=lambda item: _rank(item.nodeid))


def _rank(nodeid: str) -> int:
    folder = nodeid.split("/")[1] if nodeid.startswith("tests/") else ""
    return _FOLDERS.index(folder) if folder in _FOLDERS else len(_FOLDERS)


class ModuleScheduling(LoadScopeScheduling):
    """Send each module to one worker, in the order of collection.

    All tests of the engines go to one worker; so do modules that disturb each other.
    """

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        if path.startswith("tests/docker/"):
            return "engines"
        return "one by one" if path.rsplit("/", 1)[-1] in _ONE_BY_ONE else path
