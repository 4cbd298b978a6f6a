"""Parallel runs: a sandbox for each pytest-xdist worker, one worker for tests that share fixtures."""

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

# The engines start once a run: all of their tests go to one worker. First, for it is the longest of all.
_FOLDERS = ("docker", "kernel", "kernels", "datapath", "ui", "unit")
# A kernel without nfnetlink_hook can't say in which namespace a BPF program sits at netfilter's hooks: every
# fast path of the machine pauses. The test that attaches one must not run beside those that forbid pauses.
_ONE_BY_ONE = {"test_accelerate.py", *(f"test_fastpath_{name}.py" for name in ("hooks", "churn", "rules"))}


def give_sandboxes(specs: Sequence[Any]) -> None:
    """Have each worker's interpreter start in a sandbox of its own, where this user may make one."""
    if sandbox.works():
        scratch = tempfile.mkdtemp(prefix="vnet-tests-")
        atexit.register(os.rmdir, scratch)
        for spec in specs:
            spec.python = shlex.join(sandbox.sandboxed(scratch, sys.executable))


def longest_first(items: list[pytest.Item]) -> None:
    """Sort tests by folder, the slow ones first: what is left at the end, for one worker alone, is short."""
    items.sort(key=lambda item: _rank(item.nodeid))


def _rank(nodeid: str) -> int:
    folder = nodeid.split("/")[1] if nodeid.startswith("tests/") else ""
    return _FOLDERS.index(folder) if folder in _FOLDERS else len(_FOLDERS)


class ModuleScheduling(LoadScopeScheduling):
    """Send a module to one worker, and all tests of the engines to one, in the order of collection; so are
    the modules that disturb each other."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        if path.startswith("tests/docker/"):
            return "engines"
        return "one by one" if path.rsplit("/", 1)[-1] in _ONE_BY_ONE else path
