"""Fixtures for tests that need a real container engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.collect.netns import entered
from tests.docker.engine import DockerHost
from tests.docker.place import remove_stale
from tests.docker.podman_engine import PodmanHost


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerHost]:
    """One Docker Engine for the whole run: see `docker_host` for one that each test finds empty."""
    remove_stale()
    engine = DockerHost()
    try:
        engine.start()
        engine.import_image()
        yield engine
    finally:
        engine.close()


@pytest.fixture
def docker_host(docker_engine: DockerHost) -> Iterator[DockerHost]:
    """The engine without containers and without networks but its own; the test process stays outside."""
    yield docker_engine
    docker_engine.remove_containers()


@pytest.fixture
def inside_docker_host(docker_host: DockerHost) -> Iterator[DockerHost]:
    """The same, with the test's main thread inside its namespace: collectors then take it for the host."""
    with entered(f"/run/netns/{docker_host.namespace}"):
        yield docker_host


@pytest.fixture(scope="session")
def podman_engine() -> Iterator[PodmanHost]:
    """podman and its API service for the whole run: see `podman_host`."""
    remove_stale()
    engine = PodmanHost()
    try:
        engine.start()
        engine.import_image()
        yield engine
    finally:
        engine.close()


@pytest.fixture
def podman_host(podman_engine: PodmanHost) -> Iterator[PodmanHost]:
    """podman without containers and without networks but its own; the test process stays outside."""
    yield podman_engine
    podman_engine.remove_containers()
