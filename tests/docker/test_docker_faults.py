"""Faults of a Docker host: `doctor` names them, and its repairs change the kernel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker.engine import DockerHost
from tests.docker.uplink import OWN, udp_service, uplink
from tests.support.waiting import eventually, wait_until

pytestmark = pytest.mark.root

_SERVE = "httpd -p 80; sleep 100000"
_PROXIES = ["ss", "-Hlntup", "sport = :8080 or sport = :5353"]


class Patient:
    """A Docker host with the container `web` (tcp 8080, udp 5353), and its doctor."""

    def __init__(self, engine: DockerHost, state: Path) -> None:
        self.engine, self.host = engine, engine.host
        self._environment = {"DOCKER_HOST": engine.url, "VNET_STATE": str(state)}

    def doctor(self) -> list[dict[str, Any]]:
        """Return the findings that are more than notes, and those of kind nat."""
        done = self.host.vnet("doctor", "--json", **self._environment)
        assert done.returncode in (0, 1), done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
        serious = [one for one in found if one["severity"] != "info"]
        assert done.returncode == bool(serious)
        return serious or [one for one in found if one["kind"] == "nat"]

    def first(self, words: str) -> dict[str, Any]:
        """Wait until the first finding has these words; return it."""
        seen: list[dict[str, Any]] = []

        def named() -> bool:
            seen[:] = self.doctor()
            return bool(seen) and words in seen[0]["sentence"]

        assert eventually(named, 20), [one["sentence"] for one in seen]
        assert len(seen) == 1, [one["sentence"] for one in seen]
        return seen[0]

    def repair(self, finding: dict[str, Any]) -> None:
        done = self.host.vnet("doctor", "--fix", finding["id"], "--yes", **self._environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert eventually(lambda: not self.doctor(), 20), self.doctor()

    def inside(self, command: str) -> str:
        return self.host.run(["nsenter", "-t", str(self.engine.pid("web")), "-n", *command.split()])

    def proxies(self) -> list[int]:
        """Return the processes of docker-proxy that listen on its ports."""
        return [int(pid) for pid in re.findall(r"pid=(\d+)", self.host.run(_PROXIES))]


@pytest.fixture
def patient(docker_host: DockerHost, tmp_path: Path) -> Iterator[Patient]:
    docker_host.run(
        "run", "-d", "--stop-signal", "KILL", "--name", "web", "-p", "8080:80", "-p", "5353:5353/udp",
        "busybox:local", "sh", "-c", _SERVE,
    )  # fmt: skip
    made = Patient(docker_host, tmp_path / "state")
    with uplink(docker_host), udp_service(docker_host, "web", 5353):
        assert eventually(lambda: not made.doctor(), 20), made.doctor()
        yield made
    docker_host.host.run("conntrack -F", check=False)


def test_a_dead_service(patient: Patient) -> None:
    patient.engine.run("exec", "web", "killall", "httpd")
    assert not patient.inside("ss -Hltn sport = :80")
    one = patient.first("Nothing listens on tcp 80 in web")
    assert one["severity"] == "bad" and "port 8080/tcp of web" in one["sentence"]


def test_a_port_whose_rule_and_proxy_are_gone(patient: Patient) -> None:
    patient.host.run("iptables -t nat -F DOCKER")
    assert "8080" not in patient.host.run("iptables-save -t nat")
    one = patient.first("gets connections to 5353/udp, 8080/tcp")
    assert one["severity"] == "info" and "and not by a rule" in one["sentence"]
    for pid in patient.proxies():
        patient.host.run(f"kill {pid}")
    wait_until(lambda: not patient.proxies(), "the proxies' end")
    lost = patient.first("no rule forwards them and no proxy listens")
    assert lost["severity"] == "bad" and lost["advice"].endswith("; run: docker restart web")
    patient.engine.run("restart", "web")
    assert "8080" in patient.host.run("iptables-save -t nat")
    assert eventually(lambda: not any("no rule forwards" in one["sentence"] for one in patient.doctor()), 20)


def test_a_container_without_a_default_route(patient: Patient) -> None:
    patient.inside("ip route del default")
    one = patient.first("web can't reach the outside")
    assert one["severity"] == "bad" and one["sentence"].startswith("web has no default route: ")
    patient.repair(one)
    assert json.loads(patient.inside("ip -j route show default"))[0]["gateway"] == "10.200.0.1"


def test_a_network_inside_the_subnet_of_another(patient: Patient) -> None:
    patient.host.run("ip link add br-guest type bridge")
    try:
        patient.host.run("ip addr add 10.200.0.120/25 dev br-guest")
        patient.host.run("ip link set br-guest up")
        one = patient.first("br-guest (10.200.0.0/25) and bridge (10.200.0.0/24) overlap")
        assert one["severity"] == "bad"
        patient.repair(one)
        assert "10.200.0.120" not in patient.host.run("ip -4 addr show dev br-guest")
    finally:
        patient.host.run("ip link del br-guest")


def test_a_connection_that_is_older_than_the_published_port(patient: Patient) -> None:
    ends = f"-p udp -s 203.0.113.9 -d {OWN} --sport 40000 --dport 5353"
    answer = "-r 10.200.0.99 -q 203.0.113.9 --reply-port-src 5353 --reply-port-dst 40000"
    patient.host.run(f"conntrack -I {ends} {answer} -t 3600 -u SEEN_REPLY")
    one = patient.first("Packets of 203.0.113.9:40000 to udp port 5353 still go to 10.200.0.99:5353")
    assert one["severity"] == "warn" and one["ref"]["kind"] == "conntrack"
    patient.repair(one)
    assert "203.0.113.9" not in patient.host.run("conntrack -L -p udp")


def test_a_masquerade_that_hides_clients(patient: Patient) -> None:
    patient.host.run("iptables -t nat -A POSTROUTING -j MASQUERADE")
    one = patient.first(
        "The masquerade rule in nat POSTROUTING also changes the source of what comes in: web"
    )
    patient.host.run("iptables -t nat -D POSTROUTING -j MASQUERADE")
    assert one["severity"] == "warn" and one["evidence"] == ["-A POSTROUTING -j MASQUERADE"]


def test_a_vpn_route_into_a_network(patient: Patient) -> None:
    patient.host.run("ip link add vpn0 type veth peer name vpn1")
    try:
        patient.host.run("ip link set vpn1 up")
        patient.host.run("ip link set vpn0 up")
        patient.host.run("ip route add 10.200.0.128/25 dev vpn0")
        one = patient.first("bridge (10.200.0.0/24) and the host's route to 10.200.0.128/25 by vpn0 overlap")
        assert one["severity"] == "warn" and one["evidence"] == ["10.200.0.128/25 dev vpn0"]
    finally:
        patient.host.run("ip link del vpn0")
