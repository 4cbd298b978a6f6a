"""`tune --no-track-dns` on containers of a real engine: names are resolved, nothing else is tracked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.docker.engine import DockerHost
from tests.support.waiting import eventually

pytestmark = pytest.mark.root


def inside(engine: DockerHost, name: str, *words: str) -> str:
    """What a command of the machine prints in a container's network namespace."""
    done = subprocess.run(
        ["nsenter", "-t", str(engine.pid(name)), "-n", *words], capture_output=True, text=True, check=True
    )
    return done.stdout


def ordinary(engine: DockerHost, name: str) -> list[str]:
    """Its connections but for those with Docker's DNS."""
    lines = inside(engine, name, "conntrack", "-L").splitlines()
    return [line for line in lines if "dst=127.0.0.11" not in line.split()]


def resolves_and_reaches(engine: DockerHost) -> bool:
    """Whether web finds log by its name, and fetches a page from it."""
    return "fetched" in engine.run("exec", "web", "wget", "-qO-", "http://log:8000/page", check=False)


def test_names_are_resolved_and_nothing_else_is_tracked(docker_host: DockerHost, tmp_path: Path) -> None:
    docker_host.run("network", "create", "shop")
    docker_host.container("web", "--network", "shop")
    serve = "mkdir /w; echo fetched > /w/page; exec httpd -f -p 8000 -h /w"
    docker_host.run(
        "run", "-d", "--stop-signal", "KILL", "--name", "log", "--network", "shop", "busybox:local",
        "sh", "-c", serve,
    )  # fmt: skip
    assert eventually(lambda: resolves_and_reaches(docker_host))
    assert ordinary(docker_host, "web") and ordinary(docker_host, "log")

    def vnet(*words: str) -> None:
        environment = {"VNET_STATE": str(tmp_path), "DOCKER_HOST": docker_host.url}
        done = docker_host.host.vnet(*words, **environment)
        assert done.returncode == 0, done.stderr + done.stdout

    before = [inside(docker_host, name, "nft", "-s", "list", "ruleset") for name in ("web", "log")]
    vnet("tune", "shop", "--no-track-dns")
    for name in ("web", "log"):
        inside(docker_host, name, "conntrack", "-F")
    for _ in range(3):
        assert resolves_and_reaches(docker_host)
    assert ordinary(docker_host, "web") == ordinary(docker_host, "log") == []
    assert "127.0.0.11" in inside(docker_host, "web", "conntrack", "-L")
    docker_host.run("restart", "log")
    assert "vnet_untracked" not in inside(docker_host, "log", "nft", "list", "ruleset")
    assert "vnet_untracked" in inside(docker_host, "web", "nft", "list", "ruleset")
    vnet("undo")
    assert inside(docker_host, "web", "nft", "-s", "list", "ruleset") == before[0]
    assert eventually(lambda: resolves_and_reaches(docker_host))
    assert ordinary(docker_host, "web")
