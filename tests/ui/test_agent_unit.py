"""The systemd unit of `vnet-tui agent --unit`: its settings, and that it works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.operations import PersistAttachment, SetStormGuard, attachments
from tests.support.machine import Machine, ok
from tests.support.service import SERVICE
from tests.support.service import service_settings as settings
from tests.support.waiting import PATIENCE, wait_until
from tui.cli import agent


def test_the_unit_starts_this_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("VNET_STATE", "DOCKER_HOST", "CONTAINER_HOST", "VNET_ENGINES"):
        monkeypatch.delenv(name, raising=False)
    program = tmp_path / "my tools" / "vnet-tui"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(agent.sys, "executable", str(program.with_name("python")))
    found = settings(agent.render())
    assert found["ExecStart"] == [f'"{program}" agent']
    assert found["StateDirectory"] == ["vnet-tui"] and "Environment" not in found
    assert found["PrivateTmp"] == ["no"], "the unit must see a program in /tmp"
    program.unlink()
    found = settings(agent.render())
    assert found["ExecStart"] == [f'"{program.with_name("python")}" -P -m tui.cli agent']
    assert found["Environment"] == [f"PYTHONPATH={Path(agent.__file__).parents[2]}"]


def test_the_unit_passes_on_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", "/srv/100%/$state dir")
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/other.sock")
    monkeypatch.setattr(agent.sys, "executable", "/home/$HOME/bin/python")
    found = settings(agent.render())
    assert '"VNET_STATE=/srv/100%%/$state dir"' in found["Environment"]
    assert "DOCKER_HOST=unix:///run/other.sock" in found["Environment"]
    assert found["ReadWritePaths"] == ['"/srv/100%%/$state dir"'] and "StateDirectory" not in found
    assert found["ProtectHome"] == ["read-only"]
    assert found["ExecStart"] == ["/home/$$HOME/bin/python -P -m tui.cli agent"]


def test_units_that_count_drops_may_load_programs() -> None:
    found = settings(agent.render("127.0.0.1:9742", drops=True))
    assert found["ExecStart"][0].endswith("agent --metrics 127.0.0.1:9742 --drops")
    assert found["CacheDirectory"] == ["vnet-tui"] and "bpf" in found["SystemCallFilter"]
    assert "CAP_NET_RAW" not in found["CapabilityBoundingSet"][0]


def test_units_for_guarded_attachments_may_load_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))
    assert "bpf" not in settings(agent.render())["SystemCallFilter"]
    attachments.save_attachment(
        PersistAttachment("docker:1", "shop", (SetStormGuard("v-web", "500/5000/500", ""),))
    )
    found = settings(agent.render())
    assert "bpf" in found["SystemCallFilter"] and found["CacheDirectory"] == ["vnet-tui"]


def test_only_units_that_accelerate_get_rights_for_the_fast_path() -> None:
    plain, fast = settings(agent.render()), settings(agent.render(accelerate=["shop", "my net"]))
    assert fast["ExecStart"][0].endswith('agent --accelerate shop "my net"')
    assert fast["RuntimeDirectory"] == fast["CacheDirectory"] == ["vnet-tui"]
    assert fast["RuntimeDirectoryPreserve"] == ["yes"] and fast["LimitMEMLOCK"] == ["infinity"]
    assert "CAP_NET_RAW" in fast["CapabilityBoundingSet"][0]
    assert "bpf" in fast["SystemCallFilter"] and "bpf" not in plain["SystemCallFilter"]
    assert (plain["ProtectKernelTunables"], fast["ProtectKernelTunables"]) == (["yes"], ["yes"])
    assert "CAP_NET_RAW" not in plain["CapabilityBoundingSet"][0] and "RuntimeDirectory" not in plain


def test_the_unit_can_reach_the_sockets_of_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.sys, "executable", "/usr/bin/python")
    monkeypatch.setattr(agent.sys, "prefix", "/usr")
    monkeypatch.setattr(agent, "_PACKAGES", Path("/usr/lib"))
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/docker.sock")
    found = settings(agent.render())
    assert (found["ProtectHome"], found["PrivateTmp"]) == (["yes"], ["yes"])
    monkeypatch.setenv("CONTAINER_HOST", "unix:///run/user/1000/podman/podman.sock")
    assert settings(agent.render())["ProtectHome"] == ["read-only"]
    monkeypatch.setenv("DOCKER_HOST", "unix:///tmp/docker.sock")
    assert settings(agent.render())["PrivateTmp"] == ["no"]


def test_the_unit_allows_only_the_addresses_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert settings(agent.render())["IPAddressDeny"] == ["any"]
    for address in ("127.0.0.1:9742", "[::1]:9742", "localhost:9742"):
        assert settings(agent.render(address))["IPAddressAllow"] == ["localhost"]
    assert "IPAddressDeny" not in settings(agent.render("0.0.0.0:9742"))
    etcd = settings(agent.render(etcd=True))
    assert "IPAddressDeny" not in etcd and "AF_INET6" in etcd["RestrictAddressFamilies"][0].split()
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2376")
    assert "IPAddressDeny" not in settings(agent.render())


@pytest.mark.root
@pytest.mark.needs("systemd-analyze")
def test_the_agent_works_under_the_units_restrictions(machine: Machine) -> None:
    path = machine.folder / "agent.service"
    path.write_text(ok(machine, "agent --unit --metrics 127.0.0.1:9742"))
    ok(machine, "network create shop")
    with subprocess.Popen(machine.words(*SERVICE, str(path)), stdout=subprocess.PIPE, text=True) as agent:
        try:
            machine.run("nft flush ruleset")
            wait_until(lambda: "vnet nat shop" in machine.run("nft list ruleset"), "the rules")
            get = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9742/metrics').read())"
            assert "br-shop" in machine.run([sys.executable, "-c", get])
            # nsenter waits for its child, the program inside the machine.
            children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text()
            os.kill(int(children), signal.SIGTERM)
            assert agent.wait(PATIENCE) == 0
        finally:
            agent.kill()


@pytest.mark.root
@pytest.mark.needs("systemd-analyze")
def test_the_units_restrictions_are_in_force(machine: Machine) -> None:
    path = machine.folder / "agent.service"
    path.write_text(ok(machine, "agent --unit --accelerate shop"))
    for command in (
        "touch /etc/x", "touch /run/x", "echo 0 > /proc/sys/net/ipv4/ip_forward", "mount -t tmpfs x /mnt",
        "unshare --mount true", "unshare --user true", "chown 1 /dev/null", "ls /home/*", "hostname x",
    ):  # fmt: skip
        words = machine.words(*SERVICE, str(path), "sh", "-c", command)
        assert subprocess.run(words, capture_output=True, check=False).returncode, command
    machine.run(
        [*SERVICE, str(path), "sh", "-c", "touch /run/vnet-tui/x && unshare --net true && kill -0 $$"]
    )


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("metrics", ["", "0.0.0.0:9742"])
@pytest.mark.parametrize("accelerate", [[], ["shop"]])
def test_systemd_accepts_the_unit_and_rates_it_safe(
    tmp_path: Path, accelerate: list[str], metrics: str
) -> None:
    path = tmp_path / "vnet-tui-agent.service"
    path.write_text(agent.render(metrics, accelerate))
    assert not [
        line
        for line in systemd_analyze("verify", "--man=no", str(path)).stderr.splitlines()
        if path.name in line
    ]
    done = systemd_analyze("security", "--offline=true", "--no-pager", "--threshold=30", str(path))
    assert done.returncode == 0, done.stdout  # an exposure of 3.0 at most


def systemd_analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)
