"""Build a network with two containers, for tests of the storm guard, and send frames."""

from __future__ import annotations

import socket
import sys
from functools import partial

from bpf.storm_guard import read_counters
from core.model import GuardCounters
from core.netlink.netns import entered
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until

NET = "shop"
BROADCAST, GROUP, STP = "ff" * 6, "01005e0a0b0c", "0180c2000000"
RATE, BURST = 100, 50
GUARD = ("--rate", str(RATE), "--burst", str(BURST), "--multicast", str(RATE))
ARP, LOCAL = "0806", "88b6"  # EtherTypes
# destination, number of frames, source, EtherType
_SENDER = """
import socket, sys
destination, count, source, ethertype = sys.argv[1:]
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("eth0", 0))
frame = bytes.fromhex(destination + source + ethertype) + bytes(50)
for _ in range(int(count)):
    sock.send(frame)
"""
ANY = "02aabbccdd02"


class Network:
    """A guarded or unguarded network `shop` with two containers, and more of the host."""

    def __init__(self, host: ThrowawayHost) -> None:
        self.host = host
        host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
        self.vnet("network", "create", NET, "--subnet", "10.77.0.0/24")
        for name in ("web", "db"):
            self.container(name)

    def container(self, name: str) -> None:
        self.vnet("container", "create", self.host.full(name), "--network", NET)
        self.host.names.append(self.host.full(name))
        self.host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1", inside=name)

    def vnet(self, *words: str) -> str:
        done = self.host.vnet(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def guard(self, *words: str) -> str:
        return self.vnet("storm", "guard", NET, *(words or ("on", *GUARD)))

    def port(self, name: str) -> str:
        return f"v-{self.host.full(name)}"[:15]

    def address(self, name: str) -> str:
        (found,) = self.host.json("ip -j -4 addr show eth0", inside=name)
        return str(found["addr_info"][0]["local"])

    def mac(self, name: str) -> str:
        return str(self.host.json("ip -j link show eth0", inside=name)[0]["address"])

    def counters(self, port: str) -> GuardCounters:
        ifindex = self.host.json(f"ip -j link show {port}")[0]["ifindex"]
        with entered(f"/run/netns/{self.host.name}"):
            return next(one for one in read_counters() if one.ifindex == ifindex)

    def loop(self) -> None:
        """Join the network's bridge to another one by the ports p1 and p2."""
        self.host.loop(f"br-{NET}")
        for number in (1, 2):
            wait_until(partial(self.forwards, f"p{number}"))

    def forwards(self, port: str) -> bool:
        return bool(self.host.json(f"bridge -j link show dev {port}")[0]["state"] == "forwarding")

    def received(self, port: str) -> int:
        (found,) = self.host.json(f"ip -j -s link show {port}")
        return int(found["stats64"]["rx"]["packets"])


def send(
    net: Network, inside: str, destination: str, count: int, source: str = ANY, ethertype: str = LOCAL
) -> None:
    words = [sys.executable, "-c", _SENDER, destination, str(count), source, ethertype]
    net.host.run(words, inside=inside)


def send_from_many(net: Network, inside: str, count: int) -> None:
    """Send a unicast frame from each of as many MAC addresses."""
    with entered(f"/run/netns/{net.host.full(inside)}"):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sock.bind(("eth0", 0))
    with sock:
        for number in range(count):
            sock.send(bytes.fromhex(f"{ANY}02ee0000{number:04x}{LOCAL}") + bytes(50))
