"""The fast path forwards connections between containers of several hosts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import pytest

from core.plan.vxlan import vni_by_name
from tests.support.machine import Machine, ok
from tests.support.underlay import FrrDaemons, Underlay, container, joined, underlay, wait_for_ping
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("fastpath")]

TUNNEL = f"vx{vni_by_name('blue')}"
_SERVER = """
import socket, sys
kind, address = getattr(socket, sys.argv[1]), sys.argv[2]
server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
server.bind((address, 7000))
if kind == socket.SOCK_STREAM:
    server.listen()
print("ready", flush=True)
if kind == socket.SOCK_STREAM:
    client, _ = server.accept()
    while data := client.recv(65536):
        client.sendall(data)
while True:
    data, sender = server.recvfrom(65536)
    server.sendto(data, sender)
"""
# Each line is a number of messages to send; each must come back unchanged. Fifty at a time have the next
# type of service of those that are given.
_CLIENT = """
import os, socket, sys
kind, address = getattr(socket, sys.argv[1]), sys.argv[2]
client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
client.settimeout(float(sys.argv[3]))
largest, *services = [int(each) for each in sys.argv[4:]]
client.connect((address, 7000))
print("ready", flush=True)
for line in sys.stdin:
    try:
        for number in range(int(line)):
            if services and number % 50 == 0:
                client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, services[number // 50 % len(services)])
            sent = os.urandom(1 + number * 7919 % largest)
            client.sendall(sent)
            back = b""
            while len(back) < len(sent):
                back += client.recv(65536)
            assert back == sent
        print("equal", flush=True)
    except TimeoutError:
        print("silent", flush=True)
"""


class Talk:
    """Send messages from a container to one of another host, which echoes them."""

    def __init__(
        self, one: Machine, name: str, other: Machine, far: str, address: str, kind: str,
        services: Sequence[int] = (), largest: int = 1200,
    ) -> None:  # fmt: skip
        self._server = self._start(other, far, _SERVER, kind, address)
        options = map(str, (largest, *services))
        self._client = self._start(one, name, _CLIENT, kind, address, "2", *options)

    def _start(self, host: Machine, name: str, *script: str) -> subprocess.Popen[str]:
        words = host.words("setpriv", "--pdeathsig", "KILL", sys.executable, "-c", *script, inside=name)
        started = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        return started

    def say(self, count: int = 50) -> str:
        """Send messages; return "equal" if each came back unchanged.

        It is "silent" if one didn't in time.
        """
        assert self._client.stdin is not None and self._client.stdout is not None
        self._client.stdin.write(f"{count}\n")
        self._client.stdin.flush()
        return self._client.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._client, self._server):
            each.kill()
            each.communicate()


@contextmanager
def accelerated(under: Underlay) -> Iterator[None]:
    """Turn on the fast path for the overlay on each host."""
    for host in under.hosts:
        ok(host, "accelerate blue --yes")
    try:
        yield
    finally:
        for host in under.hosts:
            ok(host, "accelerate --off --yes")


def forwarded(host: Machine, link: str) -> int:
    """Return how many packets that entered by a link the fast path forwarded."""
    status = json.loads(ok(host, "fastpath status --json"))
    rows: list[dict[str, Any]] = status["links"]
    return sum(int(row["verdicts"].get("FAST", 0)) for row in rows if row["name"] == link)


def is_fast(talk: Talk, host: Machine, *links: str) -> bool:
    """Return whether packets that enter by each of these links are forwarded now."""
    before = [forwarded(host, link) for link in links]
    assert talk.say() == "equal"
    return all(forwarded(host, link) >= was + 50 for link, was in zip(links, before, strict=True))


@pytest.fixture
def pair() -> Iterator[Underlay]:
    """Start two hosts with the static overlay `blue`."""
    with joined(options="--ipv6") as under:
        yield under


def ends(under: Underlay) -> list[str]:
    """Create container a on the first host, b on the second; return b's addresses."""
    one, other = under.hosts[:2]
    container(one, "a", "blue")
    container(other, "b", "blue")
    (found,) = other.json("ip -j addr show eth0", "b")
    addresses = [each["local"] for each in found["addr_info"] if each["scope"] == "global"]
    for address in addresses:
        wait_for_ping(one, "a", address)
    return addresses


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_both_hosts_forward_both_directions(pair: Underlay, kind: str, family: int) -> None:
    one, other = pair.hosts
    address = next(each for each in ends(pair) if (":" in each) == (family == 6))
    with accelerated(pair), Talk(one, "a", other, "b", address, kind) as talk:
        wait_until(lambda: is_fast(talk, one, "v-a", TUNNEL), "the fast path of the first host")
        wait_until(lambda: is_fast(talk, other, "v-b", TUNNEL), "the fast path of the second host")
        assert talk.say(2000) == "equal"


def test_a_rule_stops_a_connection(pair: Underlay) -> None:
    one, other = pair.hosts
    address = ends(pair)[0]
    one.run("sysctl -qw net.bridge.bridge-nf-call-iptables=1")
    with accelerated(pair), Talk(one, "a", other, "b", address, "SOCK_DGRAM") as talk:
        wait_until(lambda: is_fast(talk, one, "v-a", TUNNEL), "the fast path")
        one.run("nft add table inet mine")
        one.run("nft add chain inet mine forward { type filter hook forward priority 0; }")
        one.run(f"nft add rule inet mine forward ip daddr {address} udp dport 7000 drop")
        assert talk.say() == "silent"
        one.run("nft delete table inet mine")
        wait_until(lambda: talk.say() == "equal", "the connection")
        wait_until(lambda: is_fast(talk, one, "v-a", TUNNEL), "the fast path")


def test_a_forgotten_mac_is_left_to_the_kernel(pair: Underlay) -> None:
    """Without an entry at the tunnel, the bridge floods: the program can't do that."""
    one, other = pair.hosts
    address = ends(pair)[0]
    (inner,) = other.json("ip -j link show eth0", "b")
    mac = inner["address"]
    with accelerated(pair), Talk(one, "a", other, "b", address, "SOCK_DGRAM") as talk:
        wait_until(lambda: is_fast(talk, one, "v-a", TUNNEL), "the fast path")
        one.run(f"bridge link set dev {TUNNEL} learning off")
        one.run(f"bridge fdb del {mac} dev {TUNNEL} master")
        wait_until(lambda: not is_fast(talk, one, "v-a"), "the kernel's path")
        one.run(f"bridge link set dev {TUNNEL} learning on")
        wait_until(lambda: is_fast(talk, one, "v-a", TUNNEL), "the fast path")


def test_a_container_that_moves_to_another_host_is_followed() -> None:
    with joined(3) as under:
        one, other, third = under.hosts
        address = ends(under)[0]
        (inner,) = other.json("ip -j link show eth0", "b")
        with accelerated(under):
            with Talk(one, "a", other, "b", address, "SOCK_DGRAM") as talk:
                wait_until(lambda: is_fast(talk, one, "v-a", TUNNEL), "the fast path")
            ok(other, "container rm b")
            ok(third, "container create b")
            ok(third, f"attach b blue --address {address}")
            third.run(f"ip link set eth0 address {inner['address']}", "b")
            third.run("ping -c 1 -W 1 10.239.224.1", "b", check=False)
            wait_for_ping(one, "a", address)
            with Talk(one, "a", third, "b", address, "SOCK_DGRAM") as talk:
                wait_until(lambda: is_fast(talk, one, "v-a", TUNNEL), "the fast path")
                wait_until(lambda: is_fast(talk, third, "v-b", TUNNEL), "the fast path of the third host")


@pytest.mark.needs("frr")
def test_hosts_that_find_each_other_by_evpn() -> None:
    with underlay(2) as under:
        for host in under.hosts:
            FrrDaemons(host)
        for host in under.hosts:
            ok(host, f"network join blue {under.peers()}")
        one, other = under.hosts
        address = ends(under)[0]
        with accelerated(under), Talk(one, "a", other, "b", address, "SOCK_STREAM") as talk:
            wait_until(lambda: is_fast(talk, one, "v-a", TUNNEL), "the fast path of the first host")
            wait_until(lambda: is_fast(talk, other, "v-b", TUNNEL), "the fast path of the second host")


def test_packets_larger_than_the_tunnel_are_left_to_the_kernel(pair: Underlay) -> None:
    one, other = pair.hosts
    address = ends(pair)[0]
    with accelerated(pair), Talk(one, "a", other, "b", address, "SOCK_DGRAM") as talk:
        wait_until(lambda: is_fast(talk, one, "v-a", TUNNEL), "the fast path")
        one.run("ip link set eth0 mtu 9000", "a")
        one.run("ip link set v-a mtu 9000")
        one.run(f"ip link set {TUNNEL} mtu 1300")
        wait_for_ping(one, "a", address, 1300 - 28)
        assert ", 1 received" not in one.run(f"ping -c 1 -W 1 -s 1400 {address}", "a", check=False)
