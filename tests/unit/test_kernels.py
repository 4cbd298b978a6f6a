"""Kernels for virtual machines: fetched once, proved once per source state.

Slow machines wait longer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kernels import packages, proved, vm
from tests.kernels.__main__ import STAGES, script
from tests.kernels.packages import CannotFetch, Kernel

# Each reports that it was called. A package is an empty file, which "unpacks" to a kernel with its modules.
STAND_INS = {
    "apt-get": 'echo "apt-get $*" >>"$CALLS"\n'
    '[[ $* != *"$FAILS"* ]] || { echo "E: no route" >&2; exit 100; }\n'
    "case $* in indextargets*)\n"
    'echo "other|main|./|file:/usr/share/other/|"; echo "Debian|main|trixie-security|http://security/|"\n'
    'echo "Debian|main|trixie|http://mirror/debian/|/keys/debian.pgp";;\n'
    '*download*) shift 2; for name; do touch "$name.deb"; done;; esac',
    "apt-cache": 'case $2 in linux-image-amd64) echo "  Depends: linux-image-$VERSION";;\n'
    'linux-image-*) printf "  Depends: %s\\n" kmod "linux-modules-$VERSION" linux-base;; esac',
    "dpkg": 'mkdir -p "$3/usr/lib/modules/$VERSION"; touch "$3/usr/lib/modules/$VERSION/vmlinuz"',
    "depmod": 'echo "depmod $3" >>"$CALLS"',
}


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the calls of the stand-ins; the cache is empty."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in STAND_INS.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    for name, value in {
        "PATH": f"{tools}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls"), "VERSION": "6.12.9-amd64",
        "FAILS": "nothing", "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return tmp_path / "calls"


def test_a_kernel_is_fetched_from_the_machines_own_mirror_and_kept(calls: Path) -> None:
    found = packages.kernel("trixie")
    assert found.release == "6.12.9-amd64" and found.image.name == "vmlinuz"
    assert found.folder == packages.cache() / "trixie"
    said = calls.read_text()
    assert "download linux-image-6.12.9-amd64 linux-modules-6.12.9-amd64\n" in said
    assert "depmod 6.12.9-amd64" in said
    (source,) = (found.folder / "apt/sources.list").read_text().splitlines()
    assert source == "deb [signed-by=/keys/debian.pgp] http://mirror/debian/ trixie main"
    calls.write_text("")
    assert packages.kernel("trixie") == found
    assert calls.read_text() == ""


def _make_old(kernel: Kernel) -> None:
    before = time.time() - 30 * 86400
    os.utime(kernel.folder / "asked", (before, before))


def test_a_newer_kernel_replaces_an_older_one(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make_old(packages.kernel("backports"))
    calls.write_text("")
    packages.kernel("backports")
    assert "update" in calls.read_text() and "download" not in calls.read_text(), "it is the newest"
    _make_old(packages.kernel("backports"))
    monkeypatch.setenv("VERSION", "6.12.10-amd64")
    assert packages.kernel("backports").release == "6.12.10-amd64"


def test_without_a_network_the_cached_kernel_is_used_with_a_message(
    calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILS", "update")
    with pytest.raises(CannotFetch, match="E: no route"):
        packages.kernel("bookworm")
    monkeypatch.setenv("FAILS", "nothing")
    found = packages.kernel("bookworm")
    _make_old(found)
    monkeypatch.setenv("FAILS", "update")
    assert packages.kernel("bookworm") == found
    assert "no route; going on with what is in" in capsys.readouterr().out


def test_the_proof_holds_for_the_sources_that_were_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proved, "ROOT", tmp_path / "checkout")
    source = tmp_path / "checkout/bpf/program.c"
    for each in ("bpf", "tests/datapath", "tests/kernel", "tests/kernels", "tests/support"):
        (tmp_path / "checkout" / each).mkdir(parents=True)
        (tmp_path / "checkout" / each / "program.c").touch()

    def git(*words: str) -> None:
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        subprocess.run(
            ["git", "-C", str(tmp_path / "checkout"), *who, *words], check=True, capture_output=True
        )

    kernel = Kernel("trixie", "6.12.9", tmp_path / "vmlinuz", tmp_path)
    proved.remember(kernel, ["proof"])
    assert not proved.is_proved(kernel, ["proof"]), "not under Git"
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    assert not proved.is_proved(kernel, ["proof"])
    proved.remember(kernel, ["proof"])
    assert proved.is_proved(kernel, ["proof"])
    assert not proved.is_proved(kernel, ["proof", "datapath"])
    assert not proved.is_proved(Kernel("trixie", "6.12.10", kernel.image, tmp_path), ["proof"])
    source.write_text("changed")
    assert not proved.is_proved(kernel, ["proof"])
    git("commit", "-am", "two")
    assert not proved.is_proved(kernel, ["proof"])


def test_the_proof_runs_first_and_without_br_netfilter() -> None:
    lines = script(list(STAGES)).splitlines()
    assert STAGES["proof"][0] in lines[1]
    assert lines[2] == "modprobe br_netfilter"


def test_missing_tools_for_virtual_machines_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "_path", lambda: "/nonexistent")
    assert vm.lacking().startswith("apt install virtme-ng qemu-system-x86")


def test_time_outs_grow_with_the_factor_of_a_slow_machine(tmp_path: Path) -> None:
    """Here they shrink, so that the test of a time-out is short."""
    test = tmp_path / "test_small.py"
    test.write_text("import time\ndef test_it(): time.sleep(60)\n")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", "pyproject.toml", str(test)]
    environment = os.environ | {"VNET_SLOW": "0.001"}
    done = subprocess.run(words, cwd=vm.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Timeout (>0.3s)" in done.stdout, done.stdout + done.stderr
    code = "from tests.support.waiting import PATIENCE, scaled; print(PATIENCE, scaled(5))"
    environment["VNET_SLOW"] = "3"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=vm.ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "180.0 15.0\n"
