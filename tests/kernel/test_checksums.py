"""Wrong checksums: a program that copies frames loses what checksum offload left to a link."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from core.collect.checksums import read_checksum_errors
from core.model import Namespace
from tests.support.host import ThrowawayHost
from tests.support.ready import running
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("ethtool")]

# Copy all frames between two links, as a switch in user space does.
_RELAY = """
import select, socket
ends = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) for _ in "ab"]
for end, name in zip(ends, ("va", "vb")):
    end.bind((name, 3))
print("ready", flush=True)
while True:
    for end in select.select(ends, [], [])[0]:
        frame, (_, _, kind, *_) = end.recvfrom(65536)
        if kind != socket.PACKET_OUTGOING:
            ends[end is ends[0]].send(frame)
"""
_SEND = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("ready", flush=True)
while True:
    s.sendto(b"hello", ("10.7.0.2", 5353)); time.sleep(0.02)
"""


@pytest.fixture
def copied(host: ThrowawayHost) -> Iterator[ThrowawayHost]:
    """Yield a host that copies frames between a and b, while a sends UDP packets to b."""
    for short, address in (("a", "10.7.0.1"), ("b", "10.7.0.2")):
        name = host.namespace(short)
        host.run(f"ip link add v{short} up type veth peer name eth0 netns {name}")
        host.run(f"ip addr add {address}/24 dev eth0", inside=short)
        host.run("ip link set eth0 up", inside=short)
    with ExitStack() as stack:
        for code, inside in ((_RELAY, "host"), (_SEND, "a")):
            words = ["nsenter", f"--net=/run/netns/{host.full(inside)}", sys.executable, "-c", code]
            stack.enter_context(running(words))
        yield host


def counter(host: ThrowawayHost, name: str) -> int:
    """Return a counter of b, as nstat(8) reads it."""
    return int(json.loads(host.run("nstat -jasz", inside="b"))["kernel"][name])


def found(host: ThrowawayHost) -> list[dict[str, Any]]:
    done = host.vnet("doctor", "--json")
    assert "Traceback" not in done.stderr
    return [one for one in json.loads(done.stdout)["findings"] if one["kind"] == "checksum"]


def test_lost_checksums_are_found_until_the_sender_computes_them(copied: ThrowawayHost) -> None:
    wait_until(lambda: counter(copied, "UdpInCsumErrors") >= 20, "wrong checksums")
    (one,) = found(copied)
    assert one["severity"] == "warn" and "UDP packets that arrive by eth0" in one["sentence"]
    assert copied.full("b") in one["sentence"] and "ethtool -K LINK tx off" in one["advice"]
    assert one["ref"] == {"kind": "link", "key": [copied.inode_of("b"), 2]}
    copied.run("ethtool -K eth0 tx off", inside="a")
    before = counter(copied, "UdpNoPorts")
    wait_until(lambda: counter(copied, "UdpNoPorts") > before + 5, "packets with a checksum")
    (one,) = found(copied)
    assert one["severity"] == "info" and "at the moment none" in one["sentence"]


def test_counters_are_those_of_nstat(copied: ThrowawayHost) -> None:
    wait_until(lambda: counter(copied, "UdpInCsumErrors"), "wrong checksums")
    spaces = {
        copied.inode_of(one): Namespace(copied.inode_of(one), entry=f"/run/netns/{copied.full(one)}")
        for one in ("a", "b", "host")
    }
    low = counter(copied, "UdpInCsumErrors")
    read = read_checksum_errors(spaces, seconds=0.2)
    high = counter(copied, "UdpInCsumErrors")
    assert set(read) == {copied.inode_of("b")}
    (udp,) = read[copied.inode_of("b")]
    assert (udp.l4_proto, udp.seconds) == ("udp", 0.2)
    assert low <= udp.wrong <= high and 0 < udp.recent <= high - low + 1 and udp.received >= udp.wrong


def test_namespaces_without_wrong_checksums_cost_no_second_reading(host: ThrowawayHost) -> None:
    gone = Namespace(1, entry="/run/netns/no-such-namespace")
    own = Namespace(host.inode, entry=f"/run/netns/{host.name}")
    assert read_checksum_errors({host.inode: own, 1: gone}, seconds=3600) == {}
