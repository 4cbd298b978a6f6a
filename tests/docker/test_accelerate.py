"""Accelerate a network of a real Docker Engine by name, with Docker's own rules."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from core.netlink.netns import entered
from tests.docker.engine import DockerHost
from tests.support.fastpath import Guard, leftovers
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.root


class Vnet:
    """Run vnet-tui on the engine's host."""

    def __init__(self, docker: DockerHost) -> None:
        self.docker = docker

    def __call__(self, command: str) -> str:
        done = self.docker.host.vnet(*shlex.split(command), DOCKER_HOST=self.docker.url)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self("fastpath status --json")))


@pytest.fixture
def vnet(docker_host: DockerHost) -> Iterator[Vnet]:
    """Yield the network shop with web and db, with a published port of web."""
    docker_host.run("network", "create", "shop")
    docker_host.container("web", "--network", "shop", "-p", "8080:7000")
    docker_host.container("db", "--network", "shop")
    made = Vnet(docker_host)
    try:
        yield made
    finally:
        with suppress(AssertionError):
            made("accelerate --off --yes")


def ends(
    docker: DockerHost, address: str, port: int, caller: str, server_in: str = ""
) -> tuple[socket.socket, ...]:
    """Connect another namespace to port 7000 of web (or of another namespace).

    Yields both ends of the connection.
    """
    with entered(server_in or f"/proc/{docker.pid('web')}/ns/net"):
        server = socket.create_server(("0.0.0.0", 7000))
    with entered(caller):
        client = socket.socket()
    client.settimeout(PATIENCE)
    server.settimeout(PATIENCE)
    client.connect((address, port))
    there, _ = server.accept()
    there.settimeout(PATIENCE)
    server.close()
    return client, there


@pytest.fixture
def world(docker_host: DockerHost) -> Iterator[str]:
    """Return the path of a namespace that reaches the engine's host by a link up0."""
    host = docker_host.host
    host.run(f"ip link add up0 type veth peer name eth0 netns {host.namespace('world')}")
    host.run("ip addr add 192.0.2.1/24 dev up0")
    host.run("ip link set up0 up")
    host.run("ip addr add 192.0.2.2/24 dev eth0", inside="world")
    host.run("ip link set eth0 up", inside="world")
    yield f"/run/netns/{host.full('world')}"
    host.run("ip link del up0")
    subprocess.run(["ip", "netns", "del", host.full("world")], check=True)
    host.names.remove(host.full("world"))


def say(client: socket.socket, there: socket.socket) -> None:
    """Send a hundred questions, each with its answer."""
    for _ in range(100):
        client.sendall(b"x" * 100)
        assert there.recv(100, socket.MSG_WAITALL) == b"x" * 100
        there.sendall(b"y" * 50)
        assert client.recv(50, socket.MSG_WAITALL) == b"y" * 50


def forwarded(vnet: Vnet, link: str = "") -> int:
    """Return the packets that the fast path forwarded, of all links or of one."""
    found = vnet.status()
    rows = [one["verdicts"] for one in found["links"] if link in ("", one["name"])]
    return sum(row.get("FAST", 0) for row in rows)


def test_a_docker_network_is_accelerated_by_its_name(vnet: Vnet, docker_host: DockerHost, world: str) -> None:
    docker, host = docker_host, docker_host.host
    address = docker.run("inspect", "-f", "{{.NetworkSettings.Networks.shop.IPAddress}}", "web")
    assert "Accelerated: shop." in vnet("accelerate shop --yes")
    wait_until(lambda: vnet.status()["state"] == "on", "the fast path")
    with ExitStack() as stack:
        inside = ends(docker, address, 7000, f"/proc/{docker.pid('db')}/ns/net")
        outside = ends(docker, "192.0.2.1", 8080, world)
        for each in (*inside, *outside):
            stack.enter_context(each)
        wait_until(lambda: say(*inside) or forwarded(vnet) > 100, "the fast path between containers")
        wait_until(lambda: say(*outside) or forwarded(vnet, "up0") > 50, "the fast path from outside")
        docker.container("later", "--network", "shop")
        wait_until(lambda: len(vnet.status()["links"]) == 4, "the container that came later")
        vnet("accelerate shop --off --yes")
        wait_until(lambda: not leftovers(host), "the state before")
        say(*inside)
        say(*outside)


class Connections:
    """Exchange messages on connections continuously, on a thread."""

    def __init__(self, *talks: tuple[socket.socket, ...]) -> None:
        self._talks = talks
        self.rounds = 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for client, there in self._talks:
                    say(client, there)
                self.rounds += 1
        except BaseException as error:
            self.error = error

    def wait_for_rounds(self) -> None:
        """Wait for more rounds of every connection."""
        before = self.rounds
        wait_until(lambda: self.error or self.rounds > before + 3, "more rounds")
        assert self.error is None, repr(self.error)

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()


def test_docker_is_restarted_under_load(vnet: Vnet, docker_host: DockerHost, world: str) -> None:
    """Containers stay; Docker rewrites all its rules, and no connection notices."""
    docker, host = docker_host, docker_host.host
    address = docker.run("inspect", "-f", "{{.NetworkSettings.Networks.shop.IPAddress}}", "web")
    vnet("accelerate shop --yes")
    docker.keep_containers(True)
    with ExitStack() as stack:
        stack.callback(docker.keep_containers, False)
        stack.enter_context(Guard(host, "world", "eth0"))
        db = f"/proc/{docker.pid('db')}/ns/net"
        talks = (
            ends(docker, address, 7000, db),
            ends(docker, "192.0.2.1", 8080, world),
            ends(docker, "192.0.2.2", 7000, db, world),
        )
        for each in (end for pair in talks for end in pair):
            stack.enter_context(each)
        traffic = Connections(*talks)
        stack.callback(traffic.close)
        traffic.wait_for_rounds()
        docker.stop()
        traffic.wait_for_rounds()
        docker.start()
        traffic.wait_for_rounds()
        before = forwarded(vnet, "up0")
        wait_until(lambda: forwarded(vnet, "up0") > before + 50, "the fast path again")
        wait_until(lambda: vnet.status()["state"] == "on", "the rules to stand still")
        traffic.wait_for_rounds()
        assert docker.run("inspect", "-f", "{{.State.Running}}", "web") == "true"
    vnet("accelerate --off --yes")
    wait_until(lambda: not leftovers(host), "the state before")


def test_a_recreated_network_is_accelerated_again(docker_host: DockerHost, vnet: Vnet) -> None:
    """`docker compose down` and `up` create another bridge under the same name."""
    docker = docker_host
    vnet("accelerate shop --yes")
    for _ in range(2):
        docker.run("rm", "-f", "web", "db")
        docker.run("network", "rm", "shop")
        docker.run("network", "create", "shop")
        docker.container("web", "--network", "shop")
        docker.container("db", "--network", "shop")
        wait_until(lambda: len(vnet.status()["links"]) == 2, "both containers' links")
    assert vnet.status()["targets"] == ["shop"] and not vnet.status()["unknown"]


def test_networks_without_a_bridge_are_refused(vnet: Vnet, docker_host: DockerHost) -> None:
    assert "nothing is forwarded, so nothing to accelerate" in vnet("accelerate host --yes")
    assert vnet.status()["state"] == "off"
