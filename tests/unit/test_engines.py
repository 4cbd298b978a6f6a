"""Engines of other versions: a series is found in any suite, or the error says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.engines import packages
from tests.engines.__main__ import Result, table
from tests.engines.packages import CannotFetch, Engine
from tests.support.debian import Apt

MADISON = """\
 docker.io | 29.0.1-1 | http://mirror/debian sid/main amd64 Packages
 docker.io | 28.5.2+dfsg4-5 | http://mirror/debian testing/main amd64 Packages
containerd | 2.3.0-1 | http://mirror/debian sid/main amd64 Packages
containerd | 2.1.9-5 | http://mirror/debian testing/main amd64 Packages
      runc | 1.4.0-1 | http://mirror/debian sid/main amd64 Packages
docker-cli | 28.5.2+dfsg4-5 | http://mirror/debian testing/main amd64 Packages
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    """Return an apt with the packages in MADISON."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "known").write_text(MADISON)
    (tools / "apt-get").write_text("#!/bin/sh\n")
    (tools / "apt-cache").write_text(f'#!/bin/sh\ngrep -E "^ *$2 " {tools}/known || true\n')
    for name in ("apt-get", "apt-cache"):
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return Apt(tmp_path / "apt", "sid", "testing")


def test_a_series_is_found_in_any_suite(apt: Apt) -> None:
    found = packages._packages("docker-28.5", apt)
    assert found == [
        "docker.io=28.5.2+dfsg4-5", "containerd=2.1.9-5", "runc=1.4.0-1", "docker-cli=28.5.2+dfsg4-5",
    ]  # fmt: skip


def test_a_missing_series_is_named_with_the_available_ones(apt: Apt) -> None:
    with pytest.raises(CannotFetch, match=r"no docker\.io 26\.1 .*sid has 29\.0\.1-1, testing has 28\.5\.2"):
        packages._packages("docker-26.1", apt)
    with pytest.raises(CannotFetch, match=r"no netavark 2\.0 .*none of them has it"):
        packages._packages("netavark-2.0", apt)


def test_the_unpacked_programs_come_first(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    (tmp_path / "usr/lib/podman").mkdir()
    found = Engine("podman-5.8", "5.8.6", tmp_path).environment()
    assert found["PATH"].startswith(f"{tmp_path}/usr/sbin:{tmp_path}/usr/bin:")
    assert found["LD_LIBRARY_PATH"] == f"{tmp_path}/usr/lib/x86_64-linux-gnu"
    assert found["CONTAINERS_CONF_OVERRIDE"] == f"{tmp_path}/containers.conf"


def test_the_table_has_a_line_for_each_engine() -> None:
    results = [
        Result("docker-28.5", "28.5.2", 90, 0, 0, 120.4),
        Result("docker-26.1", "26.1.5", 89, 1, 0, 99),
    ]
    _, first, second = table(results).splitlines()
    assert first.split() == ["docker-28.5", "28.5.2", "90", "0", "0", "120", "s"] and results[0].is_good
    assert second.split() == ["docker-26.1", "26.1.5", "89", "1", "0", "99", "s"] and not results[1].is_good


def test_podman_takes_its_helpers_from_the_cache(tmp_path: Path) -> None:
    root = tmp_path / "new"
    for folder in ("usr/lib/podman", "usr/bin/podman"):
        (root / folder).mkdir(parents=True)
    packages._finish(root)
    assert (
        f'helper_binaries_dir = ["{tmp_path}/root/usr/lib/podman",' in (root / "containers.conf").read_text()
    )
