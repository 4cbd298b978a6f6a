"""Tests that this machine can't run are skipped and counted, or fail if required."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support import needs
from tests.support.needs import AS_NOBODY
from tests.support.skipping import skipped_line

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

@pytest.mark.root
def test_a(): raise RuntimeError
@pytest.mark.needs("fastpath", "root")
def test_b(): raise RuntimeError
@pytest.fixture(scope="module")
def loaded_rig(): raise RuntimeError
@pytest.mark.root
def test_c(loaded_rig): pass
@pytest.mark.needs("no-such-program")
def test_d(): raise RuntimeError
def test_e(): pass
"""
_LESS = "-sys_admin,-net_admin,-bpf,-sys_ptrace"
IN_A_CONTAINER = ("setpriv", f"--inh-caps={_LESS}", f"--bounding-set={_LESS}")
NO_ROOT = "need root (sudo make test)"
NO_CAPABILITIES = "need CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_SYS_PTRACE (run as root on a host or in a VM)"
NO_PROGRAM = "1 needs no-such-program (apt install no-such-program)"
PARALLEL = ("-n", "2")
PLACES = [pytest.param((), NO_ROOT, PARALLEL, id="user")]
if os.geteuid() == 0:
    PLACES = [
        pytest.param(AS_NOBODY, NO_ROOT, (), marks=pytest.mark.needs("nobody"), id="nobody"),
        pytest.param(IN_A_CONTAINER, NO_CAPABILITIES, PARALLEL, id="container"),
    ]


@pytest.fixture
def checkout() -> Iterator[Path]:
    """Copy what a small test file needs to a place that every user may read."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("core", "bpf", "tests/support"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for path in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py"):
            shutil.copy(ROOT / path, folder / path)
        (folder / "tests/test_small.py").write_text(TESTS)
        yield folder


def run(checkout: Path, before: tuple[str, ...], *options: str, require: str = "") -> tuple[int, list[str]]:
    """Return pytest's exit code and its output lines."""
    words = [*before, sys.executable, "-m", "pytest", "-q", *options, "tests/test_small.py"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        words, cwd=checkout, env=environment | {"VNET_REQUIRE_ROOT": require},
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize(("before", "what", "workers"), PLACES)
def test_the_last_line_says_what_is_needed(
    checkout: Path, before: tuple[str, ...], what: str, workers: tuple[str, ...]
) -> None:
    code, lines = run(checkout, before, *workers)
    assert code == 0, lines
    assert lines[-2] == f"Skipped 4 tests: 3 {what}, {NO_PROGRAM}."
    assert lines[-1].startswith("1 passed, 4 skipped")


@pytest.mark.parametrize(("before", "what", "workers"), PLACES)
def test_if_root_is_required_a_test_fails_with_the_reason(
    checkout: Path, before: tuple[str, ...], what: str, workers: tuple[str, ...]
) -> None:
    code, lines = run(checkout, before, *workers, require="1")
    assert code == 1
    assert lines[-1].startswith("1 passed, 4 errors")
    failures = [line for line in lines if line.startswith("VNET_REQUIRE_ROOT=1, but this needs ")]
    assert sum(what.removeprefix("need ") in line for line in failures) == 3 and len(failures) == 4


def test_tests_that_need_no_kernel_can_be_selected(checkout: Path) -> None:
    code, lines = run(checkout, (), "-m", "not root and not needs")
    assert code == 0 and lines[-1].startswith("1 passed, 4 deselected")


def test_the_line_puts_the_most_frequent_first() -> None:
    assert skipped_line([]) == ""
    assert skipped_line(["needs a"]) == "Skipped 1 test: 1 needs a."
    assert skipped_line(["on Mondays", "needs b", "needs b"]) == "Skipped 3 tests: 2 need b, 1: on Mondays."


def test_needs_come_from_the_path_and_the_fixtures() -> None:
    assert needs.needs_of("unit/test_x.py", ["tmp_path"]) == []
    assert needs.needs_of("datapath/test_fuzz.py", ["rig", "loaded_rig"]) == ["fastpath"]
    assert "podman" in needs.needs_of("docker/test_podman.py", ["podman_host", "podman_engine"])
    assert "fastpath" in needs.needs_of("kernel/test_fastpath_nat.py", [])
    assert "fastpath" not in needs.needs_of("kernel/test_nic.py", ["host"])


def test_every_path_of_the_table_is_there() -> None:
    paths = [path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    assert all(any(path.startswith(start) for path in paths) for start in needs.BY_PATH)


def test_programs_that_are_missing_come_with_their_package() -> None:
    assert needs.lacking("sh") == ""
    assert needs.lacking("no-such-program") == "no-such-program (apt install no-such-program)"
