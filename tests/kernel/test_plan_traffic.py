"""Traffic over planned networks: NAT, internal, isolated, joined, published ports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.apply import run
from core.collect.snapshot import read_snapshot
from core.model import Part
from core.plan import Plan, plan_all
from core.plan.requests import CreateContainer, CreateNetwork, Join, Publish, Request, Separate, Unpublish
from core.topology import Topology
from tests.support.echo import ASK, SERVE
from tests.support.host import ThrowawayHost
from tests.support.waiting import eventually

pytestmark = pytest.mark.root

WEB, LOG, TILL = f"w{os.getpid()}", f"l{os.getpid()}", f"t{os.getpid()}"
# Subnets of this run only: an address in any namespace of the machine is in use.
N = os.getpid() % 256
NETWORKS = (
    CreateNetwork("shop", subnets=(f"10.91.{N}.0/24", f"fd91:{N}::/64")),
    CreateNetwork("vault", "internal", (f"10.92.{N}.0/24",)),
    CreateContainer(WEB, "bridged", "shop", (f"10.91.{N}.2", f"fd91:{N}::2")),
    CreateContainer(TILL, "bridged", "shop", (f"10.91.{N}.3", f"fd91:{N}::3")),
    CreateContainer(LOG, "bridged", "vault", (f"10.92.{N}.2",)),
)


class Site:
    """A host with the world behind its uplink; container WEB serves port 80."""

    def __init__(self, host: ThrowawayHost) -> None:
        self.host = host

    def do(self, *requests: Request) -> None:
        made = plan_all(
            requests, Topology(read_snapshot((Part.NAMESPACES, Part.LINKS, Part.FIREWALL, Part.CONTAINERS)))
        )
        assert isinstance(made, Plan), made
        outcome = run.apply(made.title, made.steps)
        assert outcome.done, outcome

    def ask(self, name: str, address: str, port: int = 80) -> str:
        """Return the client's address that the server saw, "" without an answer."""
        words = ["ip", "netns", "exec", name, sys.executable, "-c", ASK, address, str(port)]
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()

    def answer(self, name: str, address: str, port: int = 80) -> str:
        """Repeat until there is an answer."""
        return str(eventually(lambda: self.ask(name, address, port)))

    def pings(self, name: str, address: str) -> bool:
        words = ["ip", "netns", "exec", name, "ping", "-c1", "-W1", address]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def reaches(self, name: str, address: str) -> bool:
        """Whether a ping is answered before the time-out."""
        return bool(eventually(lambda: self.pings(name, address)))


@pytest.fixture
def site(inside_host: ThrowawayHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))
    made, host = Site(inside_host), inside_host
    host.namespace("world")
    host.run(f"ip link add up0 type veth peer name far netns {host.full('world')}")
    for inside, link, number in (("host", "up0", 2), ("world", "far", 1)):
        host.run(f"ip addr add 192.0.2.{number}/24 dev {link}", inside=inside)
        host.run(f"ip addr add 2001:db8:2::{number}/64 dev {link} nodad", inside=inside)
        host.run(f"ip link set {link} up", inside=inside)
    host.run("ip route add default via 192.0.2.1")
    server = None
    try:
        made.do(*NETWORKS)
        words = ["ip", "netns", "exec", WEB, sys.executable, "-c", SERVE]
        server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert server.stdout and server.stdout.readline() == "ready\n"
        _settle(host.name, host.full("world"), WEB, TILL)
        yield made
    finally:
        if server:
            server.kill()
            server.communicate()
        for name in (WEB, LOG, TILL):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _settle(*names: str) -> None:
    """Wait for the end of duplicate address detection: links only answer after it."""
    words = [["ip", "-n", name, "-6", "addr", "show", "tentative"] for name in names]
    assert eventually(
        lambda: not any(subprocess.run(one, capture_output=True, check=True).stdout for one in words)
    )


def test_nat_internal_isolated_and_joined_networks(site: Site) -> None:
    world, host = site.host.full("world"), site.host.name
    assert (
        site.reaches(WEB, "192.0.2.1")
        and site.reaches(WEB, f"10.91.{N}.3")
        and site.reaches(host, f"10.92.{N}.2")
    )
    assert not site.pings(LOG, "192.0.2.1")
    site.host.run(f"ip route add 10.91.{N}.0/24 via 192.0.2.2", inside="world")
    assert site.ask(world, f"10.91.{N}.2") == ""
    assert not site.pings(LOG, f"10.91.{N}.2") and site.ask(LOG, f"10.91.{N}.2") == ""
    site.do(Join("shop", "vault"))
    assert site.answer(LOG, f"10.91.{N}.2") == f"10.92.{N}.2"
    assert site.reaches(WEB, f"10.92.{N}.2")
    site.do(Separate("shop", "vault"))
    assert site.ask(LOG, f"10.91.{N}.2") == ""


def test_a_published_port_is_reached_from_everywhere(site: Site) -> None:
    world, host = site.host.full("world"), site.host.name
    assert site.ask(world, "192.0.2.2", 8080) == ""
    site.do(Publish(WEB, "8080-8081", "80-81"))
    assert site.answer(world, "192.0.2.2", 8080) == "192.0.2.1"
    assert site.answer(world, "2001:db8:2::2", 8080) == "2001:db8:2::1"
    assert site.answer(host, "192.0.2.2", 8080) != ""
    assert site.answer(host, "127.0.0.1", 8080) != ""
    assert site.answer(host, "2001:db8:2::2", 8080) != ""
    assert site.answer(TILL, "192.0.2.2", 8080) != "" and site.answer(TILL, f"10.91.{N}.1", 8080) != ""
    assert site.answer(TILL, f"fd91:{N}::1", 8080) != ""
    assert site.answer(WEB, "192.0.2.2", 8080) != ""
    site.do(Unpublish("8080-8081"))
    for asker, address in ((world, "192.0.2.2"), (host, "127.0.0.1"), (TILL, f"10.91.{N}.1")):
        assert site.ask(asker, address, 8080) == ""


def test_containers_do_not_reach_the_hosts_loopback(site: Site) -> None:
    site.do(Publish(WEB, "8080", "80"))
    elsewhere = SERVE.replace("'::', 80", "'::', 99")
    words = ["ip", "netns", "exec", site.host.name, sys.executable, "-c", elsewhere]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout and server.stdout.readline() == "ready\n"
            assert site.answer(TILL, f"10.91.{N}.1", 99) == f"10.91.{N}.3"
            _send_loopback_out(TILL, f"10.91.{N}.1")
            assert site.ask(TILL, "127.0.0.1", 99) == ""
            site.host.run("nft flush chain inet vnet guard")
            assert site.answer(TILL, "127.0.0.1", 99) == f"10.91.{N}.3"
        finally:
            server.kill()


def _send_loopback_out(container: str, gateway: str) -> None:
    """Have a container send packets for 127.0.0.1 to its gateway."""
    for command in (
        "sysctl -qw net.ipv4.conf.eth0.route_localnet=1",
        "ip addr flush dev lo",
        f"ip route add 127.0.0.1/32 via {gateway}",
    ):
        subprocess.run(["ip", "netns", "exec", container, *command.split()], check=True)
