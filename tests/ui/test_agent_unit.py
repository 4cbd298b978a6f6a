"""The systemd unit that `vnet-tui agent --unit` prints: well-formed, of this installation, and it runs."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.machine import Machine, ok
from tests.support.waiting import PATIENCE, wait_until
from tui.change import unit


def settings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_it_names_this_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("VNET_STATE", "DOCKER_HOST", "CONTAINER_HOST", "VNET_ENGINES"):
        monkeypatch.delenv(name, raising=False)
    program = tmp_path / "my tools" / "vnet-tui"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(unit.sys, "executable", str(program.with_name("python")))
    found = settings(unit.render())
    assert found["ExecStart"] == [f'"{program}" agent']
    assert found["StateDirectory"] == ["vnet-tui"] and "Environment" not in found
    assert found["PrivateTmp"] == ["no"], "a program in /tmp must stay in sight"
    program.unlink()
    found = settings(unit.render())
    assert found["ExecStart"] == [f'"{program.with_name("python")}" -P -m tui.cli agent']
    assert found["Environment"] == [f"PYTHONPATH={Path(unit.__file__).parents[2]}"]


def test_what_the_environment_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", "/srv/100%/$state dir")
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/other.sock")
    monkeypatch.setattr(unit.sys, "executable", "/home/$HOME/bin/python")
    found = settings(unit.render())
    assert '"VNET_STATE=/srv/100%%/$state dir"' in found["Environment"]
    assert "DOCKER_HOST=unix:///run/other.sock" in found["Environment"]
    assert found["ReadWritePaths"] == ['"/srv/100%%/$state dir"'] and "StateDirectory" not in found
    assert found["ProtectHome"] == ["read-only"]
    assert found["ExecStart"] == ["/home/$$HOME/bin/python -P -m tui.cli agent"]


def test_the_fast_path_gets_what_it_needs_and_only_where_it_is_kept() -> None:
    plain, fast = settings(unit.render()), settings(unit.render(accelerate=["shop", "my net"]))
    assert fast["ExecStart"][0].endswith('agent --accelerate shop "my net"')
    assert fast["RuntimeDirectory"] == fast["CacheDirectory"] == ["vnet-tui"]
    assert fast["RuntimeDirectoryPreserve"] == ["yes"] and fast["LimitMEMLOCK"] == ["infinity"]
    assert "CAP_NET_RAW" in fast["CapabilityBoundingSet"][0]
    assert (plain["ProtectKernelTunables"], fast["ProtectKernelTunables"]) == (["yes"], ["no"])
    assert "CAP_NET_RAW" not in plain["CapabilityBoundingSet"][0] and "RuntimeDirectory" not in plain


@pytest.mark.root
def test_what_it_starts_runs_until_it_is_told_to_stop(machine: Machine) -> None:
    text = ok(machine, "agent --unit")
    (start,) = settings(text)["ExecStart"]
    ok(machine, "network create shop")
    words = machine.words(*shlex.split(start))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=machine.environment) as agent:
        try:
            machine.run("nft flush ruleset")
            wait_until(lambda: "vnet nat shop" in machine.run("nft list ruleset"), "the rules")
            # nsenter waits for the program, its child in the machine.
            children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text()
            os.kill(int(children), signal.SIGTERM)
            assert agent.wait(PATIENCE) == 0
        finally:
            agent.kill()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("accelerate", [[], ["shop"]])
def test_systemd_understands_it(tmp_path: Path, accelerate: list[str]) -> None:
    path = tmp_path / "vnet-tui-agent.service"
    path.write_text(unit.render(accelerate=accelerate))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )
    told = [line for line in done.stderr.splitlines() if path.name in line]
    assert not told, told
