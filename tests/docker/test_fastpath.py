"""The fast path with the real rules of real engines."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from bpf import preconditions
from core.netlink.netns import entered
from tests.docker.engine import SUBNET_GATEWAY, DockerHost
from tests.docker.podman_engine import PodmanHost
from tests.support.fastpath import FastPath, leftovers
from tests.support.host import ThrowawayHost
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.root


def test_dockers_rules_do_not_pause_it(inside_docker_host: DockerHost) -> None:
    inside_docker_host.container("web", "-p", "8080:80")
    inside_docker_host.run("network", "create", "shop")
    inside_docker_host.run("network", "create", "--internal", "shut")
    assert preconditions.read_preconditions() == preconditions.Preconditions()
    inside_docker_host.run("network", "rm", "shop", "shut")


def test_podmans_rules_do_not_pause_it(podman_host: PodmanHost) -> None:
    podman_host.container("web", "-p", "8080:80")
    with entered(f"/run/netns/{podman_host.host.name}"):
        found = preconditions.read_preconditions()
    assert (found.reasons, found.marks_in_use, found.bridge_rules) == ((), False, False)
    assert all("netavark" in rule for rule in found.invalid), "it drops invalid packets itself"


def test_a_podman_network_is_accelerated_by_its_name(
    podman_host: PodmanHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{podman_host.socket}")
    podman_host.run("network", "create", "--disable-dns", "pods")
    for name in ("here", "there"):
        podman_host.container(name, "--network", "pods")
    inside = {name: podman_host.run("inspect", "-f", "{{.State.Pid}}", name) for name in ("here", "there")}
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    address = podman_host.run("inspect", "-f", template, "there")
    with ExitStack() as stack:
        with entered(f"/proc/{inside['there']}/ns/net"):
            server = stack.enter_context(socket.create_server(("0.0.0.0", 7000)))
        with entered(f"/proc/{inside['here']}/ns/net"):
            client = stack.enter_context(socket.create_connection((address, 7000), PATIENCE))
        there = stack.enter_context(server.accept()[0])
        there.settimeout(PATIENCE)

        def is_fast() -> bool:
            before = fast.count("FAST")
            for _ in range(20):
                client.sendall(b"x" * 100)
                assert there.recv(100, socket.MSG_WAITALL) == b"x" * 100
                there.sendall(b"y")
                assert client.recv(1) == b"y"
            return fast.count("FAST") >= before + 40

        with FastPath(podman_host.host, "pods") as fast:
            assert eventually(is_fast), fast.status()
            assert fast.status()["unknown"] == []
    assert eventually(lambda: not leftovers(podman_host.host)), leftovers(podman_host.host)


def test_a_container_is_fast_from_its_first_flow_and_docker_still_works(docker_host: DockerHost) -> None:
    host: ThrowawayHost = docker_host.host
    with FastPath(host, "docker0") as fast:
        docker_host.container("server", command="nc -ll -p 7000 -e cat")
        docker_host.container("client")
        address = docker_host.run("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "server")
        talk = f"(for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.05; done) | nc {address} 7000"

        def is_fast() -> bool:
            assert docker_host.run("exec", "client", "sh", "-c", talk).split() == list("123456789")
            return fast.count("FAST") >= 9

        assert eventually(is_fast)
        docker_host.run("rm", "-f", "client", "server")
        assert eventually(fast.is_on)
    assert eventually(lambda: not leftovers(host)), leftovers(host)


def test_packets_to_the_userland_proxy_are_local(docker_host: DockerHost) -> None:
    gateway = SUBNET_GATEWAY.partition("/")[0]
    with FastPath(docker_host.host, "docker0") as fast:
        docker_host.container("server", "-p", "8080:7000", command="nc -ll -p 7000 -e cat")
        docker_host.container("client")
        talk = f"(for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.05; done) | nc {gateway} 8080"

        def is_local() -> bool:
            before = fast.count("LOCAL")
            assert docker_host.run("exec", "client", "sh", "-c", talk).split() == list("123456789")
            return fast.count("LOCAL") >= before + 7

        assert eventually(is_local), fast.status()["verdicts"]
