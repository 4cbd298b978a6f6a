"""A user with access to Docker, but not root, can change only Docker networks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import DockerHost

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
GROUP = 65534


class Member:
    """A member of the group of Docker's socket, with a home directory."""

    def __init__(self, engine: DockerHost, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.environment = os.environ | {"HOME": str(folder), "DOCKER_HOST": f"unix://{folder}/docker.sock"}
        for name in ("VNET_STATE", "XDG_STATE_HOME"):
            self.environment.pop(name, None)

    def vnet(self, *words: str) -> subprocess.CompletedProcess[str]:
        who = ["setpriv", f"--reuid={GROUP}", f"--regid={GROUP}", "--clear-groups"]
        return subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.engine.namespace}", *who, sys.executable, "-m", "tui.cli",
             *words],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def does(self, *words: str) -> str:
        done = self.vnet(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def may_not(self, *words: str) -> None:
        done = self.vnet(*words)
        assert done.returncode == 1 and "CAP_NET_ADMIN" in done.stderr, f"{words}: {done.stderr}"


@pytest.fixture
def member(docker_host: DockerHost) -> Iterator[Member]:
    socket = Path(docker_host.socket)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chown(folder, GROUP, GROUP)
        (folder / "docker.sock").hardlink_to(socket)
        os.chown(socket, 0, GROUP)
        socket.chmod(0o660)
        yield Member(docker_host, folder)


def test_docker_networks_can_be_changed(member: Member) -> None:
    engine = member.engine
    engine.container("app")
    member.does("network", "create", "shop", "--engine", "docker", "--subnet", "10.201.0.0/24")
    member.does("attach", "app", "shop", "--address", "10.201.0.9")
    assert "10.201.0.9" in engine.run("network", "inspect", "shop")
    assert "attach app to shop" in member.does("history")
    member.does("undo")
    member.does("attach", "app", "shop")
    member.does("detach", "app", "shop")
    again = member.vnet("network", "create", "shop", "--engine", "docker")
    assert again.returncode == 1 and "already has a network shop" in again.stderr
    member.does("network", "rm", "shop")
    assert "shop" not in engine.run("network", "ls")
    assert (member.folder / ".local/state/vnet-tui/journal").is_dir()


def test_other_objects_cannot_be_changed(member: Member) -> None:
    engine = member.engine
    engine.container("app")
    before = engine.host.run("ip link")
    member.may_not("network", "create", "shop")
    member.may_not("container", "create", f"plain{os.getpid()}")
    member.may_not("publish", "app", "8080:80")
    member.may_not("link", "set", "lo", "--mtu", "1400")
    assert engine.host.run("ip link") == before
