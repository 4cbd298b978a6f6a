"""Create throw-away hosts: network namespaces of one test, which leave nothing."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import settings

from core.netlink.netns import entered
from tests.support import workers
from tests.support.host import ThrowawayHost
from tests.support.waiting import SLOW, scaled

pytest_plugins = ["tests.support.skipping"]

# A busy machine is no reason to fail.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_LONG_NAME = 80


def pytest_configure(config: pytest.Config) -> None:
    """Put `tmp_path` into the worker's TMPDIR, and unset the terminal's size."""
    if hasattr(config, "workerinput"):
        config.option.basetemp = None
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Number long values: all workers must agree on readable ids."""
    return argname if isinstance(val, str | bytes) and len(val) > _LONG_NAME else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: Sequence[Any]) -> None:
    """Start each worker in a sandbox."""
    workers.give_sandboxes(specs)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> workers.ModuleScheduling:
    """Keep a module's tests on one worker."""
    return workers.ModuleScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start with the slow tests, and give each more time on a slow machine."""
    workers.longest_first(items)
    if SLOW != 1:
        usual = float(config.getini("timeout"))
        for item in items:
            mark = item.get_closest_marker("timeout")
            item.add_marker(pytest.mark.timeout(scaled(mark.args[0] if mark else usual)), append=False)


def pytest_collection_finish() -> None:
    """Exempt imported objects from garbage collection.

    That saves a fifth of the UI tests' time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture
def host() -> Iterator[ThrowawayHost]:
    """Yield a throw-away host namespace; the test process stays outside."""
    made = ThrowawayHost()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def inside_host(host: ThrowawayHost) -> Iterator[ThrowawayHost]:
    """Yield a host with the test's main thread inside.

    Collectors then take it for the host.
    """
    with entered(f"/run/netns/{host.name}"):
        yield host
