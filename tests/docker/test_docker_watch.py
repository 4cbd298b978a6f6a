"""Snapshots follow a real Docker Engine, also through its stop and restart."""

from __future__ import annotations

import pytest

from core.model import Container, Snapshot
from core.topology import Topology
from tests.docker.engine import DockerHost
from tests.support.watching import Watched

pytestmark = pytest.mark.root


def named(snapshot: Snapshot, name: str) -> Container | None:
    return next((c for c in snapshot.engines["docker"].containers if c.name == name), None)


def test_a_container_appears_completely_and_disappears(watched: Watched, docker_host: DockerHost) -> None:
    docker_host.container("shop", "-p", "8080:80")
    pid = docker_host.pid("shop")

    def complete(snapshot: Snapshot) -> bool:
        found = named(snapshot, "shop")
        topology = Topology(snapshot)
        return bool(
            found
            and found.pid == pid
            and found.netns in snapshot.nets
            and any(
                entry.kind == "published port" and found.uid in entry.containers for entry in topology.nat
            )
            and any(topology.container_of(peer.ns) == found for peer in topology.peers.values())
        )

    watched.until(complete)
    docker_host.run("rm", "-f", "shop")
    watched.until(lambda s: not named(s, "shop"))
    sentences = [change.sentence for change in watched.changes]
    assert any("shop" in sentence for sentence in sentences)


def test_docker_stops_and_starts_again(watched: Watched, docker_host: DockerHost) -> None:
    docker_host.container("kept", "--restart", "always")
    watched.until(lambda s: named(s, "kept"))
    docker_host.stop()
    stopped = watched.until(lambda s: s.engines["docker"].state == "stopped")
    assert any("Docker isn't running" in problem.why for problem in stopped.problems)
    docker_host.start()
    watched.until(lambda s: s.engines["docker"].state == "ok" and named(s, "kept"))
    assert not [p for p in watched.snapshot.problems if p.part == "docker"]
