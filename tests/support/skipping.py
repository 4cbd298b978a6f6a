"""Skip tests that need what this machine lacks, and report them at the end.

The report says how many were skipped and what they need. With VNET_REQUIRE_ROOT=1 such a test fails instead,
because nothing may be left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.needs import docker_from, first_lacking, needs_of

_TESTS = Path(__file__).parents[1]
_PREFIX = "needs "


def leave_out(need: str) -> NoReturn:
    """Skip the test or fixture that needs this, or fail it if nothing may be skipped."""
    if _nothing_may_be_skipped():
        pytest.fail(f"VNET_REQUIRE_ROOT=1, but this {_PREFIX}{need}", pytrace=False)
    pytest.skip(f"{_PREFIX}{need}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark every test with its needs, before `-m` selects by marks."""
    for item in items:
        if names := _needs(item):
            item.add_marker(pytest.mark.needs(*names))
    if _nothing_may_be_skipped():
        _deselect_what_may_lack(config, items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the test if something that it needs is missing."""
    needs = dict.fromkeys(name for mark in item.iter_markers("needs") for name in mark.args)
    if why := first_lacking(sorted(needs, key=lambda name: name != "root")):
        leave_out(why)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Print at the end what skipped tests need, from reports that xdist sends too."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    if line := skipped_line(_reason(report) for report in skipped):
        terminalreporter.write_line(line, yellow=True)


def skipped_line(reasons: Iterable[str]) -> str:
    """The one line about all skipped tests, the most frequent reason first."""
    counts = Counter(reasons)
    parts = [
        f"{number} need{'s' * (number == 1)} {why.removeprefix(_PREFIX)}" if why.startswith(_PREFIX)
        else f"{number}: {why}"
        for why, number in counts.most_common()
    ]  # fmt: skip
    total = counts.total()
    return f"Skipped {total} test{'s' * (total != 1)}: {', '.join(parts)}." if parts else ""


def _needs(item: pytest.Item) -> list[str]:
    path = item.path.relative_to(_TESTS).as_posix() if item.path.is_relative_to(_TESTS) else ""
    named = ["root"] if item.get_closest_marker("root") else []
    return named + _may_lack(item) + needs_of(path, getattr(item, "fixturenames", ()))


def _may_lack(item: pytest.Item) -> list[str]:
    """Return needs that a complete machine may not meet: kernel parts, newer engines."""
    parts = [name for mark in item.iter_markers("kernel_has") for name in mark.args]
    return parts + [docker_from(*mark.args) for mark in item.iter_markers("docker_from")]


def _deselect_what_may_lack(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests of missing kernel features and of other engine versions.

    They are no failure of the run; pytest counts them as "deselected".
    """
    wanting = [item for item in items if first_lacking(_may_lack(item))]
    if wanting:
        config.hook.pytest_deselected(items=wanting)
        items[:] = [item for item in items if item not in wanting]


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why a test was skipped: pytest keeps (path, line, "Skipped: reason")."""
    reason = report.longrepr
    return str(reason[2] if isinstance(reason, tuple | list) else reason).removeprefix("Skipped: ")


def _nothing_may_be_skipped() -> bool:
    return os.environ.get("VNET_REQUIRE_ROOT") == "1"
