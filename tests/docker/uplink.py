"""Connect the host of an engine to the outside, and serve UDP in containers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.docker.engine import DockerHost

OWN = "192.0.2.10"


@contextmanager
def uplink(docker_host: DockerHost) -> Iterator[None]:
    """Connect the engine's host to the namespace `lan`, its gateway 192.0.2.1, for a while.

    Other tests give the same host other neighbours on that subnet.
    """
    host = docker_host.host
    host.namespace("lan")
    host.run(f"ip link add uplink type veth peer name eth0 netns {host.full('lan')}")
    try:
        host.run(f"ip addr add {OWN}/24 dev uplink")
        host.run("ip link set uplink up")
        host.run("ip addr add 192.0.2.1/24 dev eth0", inside="lan")
        host.run("ip link set eth0 up", inside="lan")
        host.run("ip link set lo up", inside="lan")
        host.run("ip route add default via 192.0.2.1")
        yield
    finally:
        host.run("ip link del uplink")
        host.remove("lan")


_UDP = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("0.0.0.0", int(sys.argv[1])))
    print("ready", flush=True)
    while True:
        server.sendto(*server.recvfrom(2048))
"""


@contextmanager
def udp_service(engine: DockerHost, name: str, port: int) -> Iterator[None]:
    """Echo datagrams to a port of a container: busybox has no UDP server."""
    words = ["nsenter", "-t", str(engine.pid(name)), "-n", sys.executable, "-I", "-S", "-c", _UDP, str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            process.kill()
