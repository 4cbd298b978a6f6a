"""Healthy hosts have no finding above "info": the lab, and what vnet makes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from core.lab import Lab, LabSettings
from tests.support.host import ThrowawayHost
from tests.support.machine import PROGRAM
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.root


def serious(output: str) -> list[str]:
    """Return the sentences of findings that are more than notes."""
    found: list[dict[str, Any]] = json.loads(output)["findings"]
    return [one["sentence"] for one in found if one["severity"] != "info"]


def test_the_healthy_lab() -> None:
    with Lab(LabSettings(traffic=False, healthy=True)) as lab:

        def findings() -> tuple[int, list[str]]:
            process = lab.popen_inside(
                [*PROGRAM, "doctor", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            output, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode in (0, 1), errors
            return process.returncode, serious(output)

        eventually(lambda: findings()[0] == 0, 20)
        assert findings() == (0, [])


@pytest.fixture
def vnet_host(host: ThrowawayHost, tmp_path: Path) -> ThrowawayHost:
    """Yield a host with an uplink, and networks of all kinds that vnet made."""
    state = str(tmp_path / "state")
    host.namespace("lan")
    host.run(f"ip link add up0 type veth peer name eth0 netns {host.full('lan')}")
    host.run("ip addr add 192.0.2.10/24 dev up0")
    host.run("ip link set up0 up")
    host.run("ip addr add 192.0.2.1/24 dev eth0", inside="lan")
    host.run("ip link set eth0 up", inside="lan")
    host.run("ip link set lo up", inside="lan")
    host.run("ip route add default via 192.0.2.1")
    for words in (
        ("network", "create", "app", "--subnet", "10.61.0.0/24"),
        ("network", "create", "site", "--subnet", "10.62.0.0/24", "--kind", "routed"),
        ("network", "create", "db", "--subnet", "10.63.0.0/24", "--kind", "internal"),
    ):
        run(host, state, *words)
    for name, network in (("web", "app"), ("near", "app"), ("far", "site"), ("store", "db")):
        run(host, state, "container", "create", host.full(name), "--network", network)
        host.names.append(host.full(name))
    run(host, state, "attach", host.full("near"), "db")
    run(host, state, "network", "join", "app", "site")
    return host


def run(host: ThrowawayHost, state: str, *words: str) -> str:
    done = host.vnet(*words, VNET_STATE=state)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def test_networks_that_vnet_made(vnet_host: ThrowawayHost) -> None:
    seen: list[str] = []

    def healthy() -> bool:
        done = vnet_host.vnet("doctor", "--json")
        assert done.returncode in (0, 1), done.stderr
        own = [one for one in serious(done.stdout) if vnet_host.prefix in one or "host" in one]
        seen[:] = own
        return not own

    assert eventually(healthy, 20), seen


def test_packets_of_a_routed_network_leave_with_their_own_source(vnet_host: ThrowawayHost) -> None:
    """The router outside knows no way back at first; that isn't a fault of the network."""
    far, words = vnet_host.full("far"), "hosts outside need a route to 10.62.0.0/24 by this host"

    def why() -> tuple[int, str]:
        done = vnet_host.vnet("why", far, "outside", "--port", "443")
        return done.returncode, " ".join(done.stdout.split())

    def answers() -> bool:
        return "1 received" in vnet_host.run("ping -c1 -W1 192.0.2.1", inside="far", check=False)

    assert not answers()
    code, text = why()
    assert code == 1 and f"because {vnet_host.full('lan')} has no route back to 10.62.0." in text
    assert "no rule masquerades" not in text
    vnet_host.run("ip route add 10.62.0.0/24 via 192.0.2.10", inside="lan")
    assert answers()
    code, text = why()
    assert (code, "leave this host with their own source: " + words in text) == (0, True), text
