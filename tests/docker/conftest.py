"""Start a real container engine for tests that need one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from core.netlink.netns import entered
from tests.docker.engine import IMAGE, DockerHost
from tests.docker.engine_folder import remove_stale
from tests.docker.podman_engine import PodmanHost
from tests.support.skipping import leave_out
from tests.support.watching import Watched


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerHost]:
    """Start one Docker Engine for the whole run; tests use `docker_host`."""
    remove_stale()
    engine = DockerHost()
    try:
        with _wanted("Docker Engine"):
            engine.start()
            engine.import_image()
            engine.run("run", "--rm", IMAGE, "true")
        yield engine
    finally:
        engine.close()


@pytest.fixture
def docker_host(docker_engine: DockerHost) -> Iterator[DockerHost]:
    """Yield the engine, which has only its own networks and no containers."""
    yield docker_engine
    docker_engine.remove_containers()


@pytest.fixture
def inside_docker_host(docker_host: DockerHost) -> Iterator[DockerHost]:
    """Yield the same with the test's main thread inside its namespace.

    Collectors then take it for the host.
    """
    with entered(f"/run/netns/{docker_host.namespace}"):
        yield docker_host


@pytest.fixture
def watched(inside_docker_host: DockerHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Yield a watcher of the engine's host that has read everything once."""
    monkeypatch.setenv("DOCKER_HOST", inside_docker_host.url)
    made = Watched()
    made.watcher.start()
    try:
        made.until(lambda s: not s.pending and s.engines["docker"].state == "ok")
        yield made
    finally:
        made.watcher.stop()


@pytest.fixture(scope="session")
def podman_engine() -> Iterator[PodmanHost]:
    """Start podman and its API service for the whole run; tests use `podman_host`."""
    remove_stale()
    engine = PodmanHost()
    try:
        with _wanted("podman"):
            engine.start()
            engine.import_image()
            engine.run("run", "--rm", f"--cgroup-parent=/{engine.folder.name}", IMAGE, "true")
        yield engine
    finally:
        engine.close()


@pytest.fixture
def podman_host(podman_engine: PodmanHost) -> Iterator[PodmanHost]:
    """Yield podman, which has only its own network and no containers."""
    yield podman_engine
    podman_engine.remove_containers()


@contextmanager
def _wanted(engine: str) -> Iterator[None]:
    """Skip the tests if an engine has all that it needs but can't run a container."""
    try:
        yield
    except (AssertionError, subprocess.SubprocessError) as error:
        leave_out(f"a {engine} that runs containers: {str(error).strip().splitlines()[-1]}")
