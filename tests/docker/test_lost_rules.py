"""Wiped Docker rules are found, whatever wiped them, until they are back."""

from __future__ import annotations

import pytest

from core.diagnose import Finding, findings
from core.topology import Topology
from tests.docker.engine import DockerHost
from tests.support.watching import Watched

pytestmark = pytest.mark.root


def lost(watched: Watched) -> list[Finding]:
    return [one for one in findings(Topology(watched.snapshot)) if one.kind == "engine rules"]


@pytest.mark.parametrize(
    ("wipe", "gone"),
    [
        ("iptables -F", "table filter: "),
        ("iptables -t nat -F", "table nat: published ports and masquerading don't work."),
        ("nft flush ruleset", "tables nat and filter: "),
    ],
)
def test_wiped_rules_are_a_finding(watched: Watched, docker_host: DockerHost, wipe: str, gone: str) -> None:
    docker_host.container("web", "-p", "8080:80")
    watched.until(lambda s: s.firewalls and not lost(watched))
    docker_host.host.run(wipe)
    watched.until(lambda _: lost(watched))
    (one,) = lost(watched)
    assert gone in one.sentence and one.advice.endswith("; run: systemctl restart docker")
    docker_host.stop()  # as the advice says
    docker_host.start()
    watched.until(lambda s: s.engines["docker"].state == "ok" and not lost(watched))
