"""`vnet-tui shell` in containers of Docker: by the engine, or in the network alone."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.docker.engine import DockerHost
from tests.support import forkserver
from tests.support.machine import PROGRAM
from tests.support.terminal import Terminal

pytestmark = pytest.mark.root


def run(engine: DockerHost, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DOCKER_HOST": engine.url, "VNET_ENGINES": "docker", "SHELL": "/bin/sh"}
    return forkserver.run(["shell", *words], environment, [f"/run/netns/{engine.namespace}"], text)


def test_command_in_a_container(docker_host: DockerHost) -> None:
    identity = docker_host.container("web", "--hostname", "inside", "--user", "1000")
    for name in ("web", f"docker:{identity}", identity[:12]):
        done = run(docker_host, name, "sh", "-c", "hostname; id -u; cat /proc/1/comm; exit 5")
        assert (done.returncode, done.stdout, done.stderr) == (5, "inside\n1000\nsleep\n", "")


def test_shell_on_a_terminal(docker_host: DockerHost) -> None:
    docker_host.container("web", "--hostname", "inside")
    words = ["nsenter", f"--net=/run/netns/{docker_host.namespace}", *PROGRAM, "shell", "web"]
    with Terminal(words, DOCKER_HOST=docker_host.url, VNET_ENGINES="docker") as terminal:
        terminal.wait_for("a shell in web; exit or Ctrl-d returns")
        terminal.press("echo it is $(hostname); exit 3\r")
        terminal.wait_for("it is inside")
        assert terminal.read_to_the_end() == 3


def test_container_keeps_its_rights(docker_host: DockerHost) -> None:
    docker_host.container("web")
    text = "grep -E '^(CapBnd|CapEff|Seccomp):' /proc/self/status"
    wanted = docker_host.run("exec", "web", "sh", "-c", text)
    assert run(docker_host, "web", "sh", "-c", text).stdout.strip() == wanted
    everything = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd")
    )
    assert everything.strip() not in wanted


def test_programs_of_the_host_in_its_network(docker_host: DockerHost) -> None:
    docker_host.container("web")
    address = docker_host.run(
        "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "web"
    )
    done = run(docker_host, "--net", "web", "sh", "-c", "ip -br -4 addr show eth0; cat /proc/1/comm")
    assert address in done.stdout and "sleep" not in done.stdout


def test_image_without_a_shell(docker_host: DockerHost) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add("/usr/bin/busybox", "busybox")
    command = ["docker", "-H", docker_host.url, "import", "-", "bare:local"]
    subprocess.run(command, input=archive.getvalue(), check=True, capture_output=True)
    docker_host.run("run", "-d", "--name", "bare", "bare:local", "/busybox", "sleep", "100000")
    done = run(docker_host, "bare", text="cat /proc/1/comm; ip -br link show eth0\n")
    assert done.returncode == 0 and "eth0" in done.stdout and "busybox" not in done.stdout
    assert done.stderr == "vnet-tui: can't run programs of bare: its image has no shell\n"
    docker_host.run("rm", "-f", "bare")
    docker_host.run("rmi", "bare:local")


def test_stopped_and_paused_containers(docker_host: DockerHost) -> None:
    docker_host.container("web")
    docker_host.run("pause", "web")
    done = run(docker_host, "web")
    docker_host.run("unpause", "web")
    assert done.stderr == "vnet-tui: can't open a shell in web: it is paused. Try: docker unpause web\n"
    docker_host.run("stop", "web")
    done = run(docker_host, "web")
    assert done.stderr == "vnet-tui: can't open a shell in web: it is exited. Try: docker start web\n"
    assert "it has no network namespace now" in run(docker_host, "--net", "web").stderr
