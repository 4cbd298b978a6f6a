"""A healthy host with Docker and ten containers has no finding above "info"."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.diagnose import Finding, findings
from core.model import Snapshot
from core.topology import Topology
from tests.docker.engine import DockerHost
from tests.docker.uplink import udp_service, uplink
from tests.support.waiting import eventually
from tests.support.watching import Watched

pytestmark = pytest.mark.root

_WEB = "busybox httpd -f -p 80"


def serious(watched: Watched) -> list[Finding]:
    """Return the findings that are more than a note."""
    found = findings(Topology(watched.snapshot))
    return [one for one in found if one.severity != "info"]


@pytest.fixture
def ten_containers(watched: Watched, docker_host: DockerHost) -> Iterator[DockerHost]:
    """Start ten containers on networks of all kinds."""
    engine = docker_host
    engine.run("network", "create", "--subnet", "10.201.0.0/24", "app")
    engine.run("network", "create", "--subnet", "10.202.0.0/24", "back")
    engine.run("network", "create", "--subnet", "10.203.0.0/24", "--internal", "db")
    engine.run("network", "create", "--ipv6", "--subnet", "10.204.0.0/24", "--subnet", "fd00:204::/64", "six")
    engine.container("web1", "--network", "app", "-p", "8080:80", command=_WEB)
    engine.container("web2", "--network", "app", "-p", "127.0.0.1:8081:80", command=_WEB)
    engine.container("dns", "--network", "app", "-p", "5353:5353/udp")
    engine.container("api", "--network", "app", "-p", "8090:90", command="busybox httpd -f -p 90")
    engine.run("network", "connect", "back", "api")
    engine.container("queue", "--network", "back")
    engine.container("store", "--network", "db")
    engine.container("six1", "--network", "six", "-p", "8082:80", command="busybox httpd -f -p [::]:80")
    engine.container("plain")
    engine.container("sidecar", "--network", "container:web1")
    engine.container("agent", "--network", "host")
    engine.container("vault", "--network", "none")
    with uplink(engine), udp_service(engine, "dns", 5353):
        yield engine


def states(snapshot: Snapshot) -> list[str]:
    return [one.state for one in snapshot.engines["docker"].containers]


def test_ten_containers_on_healthy_networks(watched: Watched, ten_containers: DockerHost) -> None:
    watched.until(lambda s: states(s) == ["running"] * 11)
    eventually(lambda: not serious(watched))
    assert [one.sentence for one in serious(watched)] == []
