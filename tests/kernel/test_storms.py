"""Check that broadcasts on bridges are counted, and storms reported with the port."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from core import storms
from core.collect.broadcasts import Broadcasts
from core.diagnose import findings
from core.topology import Topology
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until
from tests.support.watching import Watched
from tui.views.registry import view_named

pytestmark = pytest.mark.root

BROADCAST, GROUP, OTHER = "ff" * 6, "01005e0a0b0c", "02aabbccdd01"
# frames per second (0: unlimited), their number, destination
_SENDER = """
import socket, sys, time
rate, count, destination = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("eth0", 0))
frame = destination + bytes.fromhex("02aabbccdd02") + b"\\x88\\xb5" + bytes(50)
began, sent = time.monotonic(), 0
while sent < count:
    while sent < count and (not rate or sent <= (time.monotonic() - began) * rate):
        sock.send(frame)
        sent += 1
    time.sleep(0.002)
"""


def sender(host: ThrowawayHost, inside: str, rate: int, count: int, destination: str) -> list[str]:
    namespace = f"--net=/run/netns/{host.full(inside)}"
    return ["nsenter", namespace, sys.executable, "-c", _SENDER, str(rate), str(count), destination]


def send(host: ThrowawayHost, inside: str, count: int, destination: str) -> None:
    subprocess.run(sender(host, inside, 0, count, destination), check=True)


@pytest.fixture
def bridged(inside_host: ThrowawayHost) -> ThrowawayHost:
    """Create a host with br0 and the containers web and db.

    They are without IPv6, which multicasts by itself.
    """
    inside_host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
    inside_host.run("ip link add br0 type bridge")
    inside_host.run("ip link set br0 up")
    for number, name in enumerate(("web", "db")):
        inside_host.container(name, "br0", f"10.9.0.{number + 2}/24")
        inside_host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1", inside=name)
    return inside_host


@pytest.fixture
def taps() -> Iterator[Broadcasts]:
    made = Broadcasts()
    yield made
    made.close()


def ifindex(host: ThrowawayHost, name: str) -> int:
    return int(host.json(f"ip -j link show {name}")[0]["ifindex"])


def test_each_broadcast_is_counted_and_nothing_else(bridged: ThrowawayHost, taps: Broadcasts) -> None:
    br0 = ifindex(bridged, "br0")
    taps.follow({br0: "br0"})
    before = taps.read()[br0]
    for destination in (GROUP, OTHER, BROADCAST):
        send(bridged, "web", 3000, destination)
    wait_until(lambda: taps.read()[br0] >= before + 3000)
    assert taps.read()[br0] < before + 3100  # ARP requests may count
    assert taps.problems == ()


def test_a_storm_needs_no_memory(bridged: ThrowawayHost, taps: Broadcasts) -> None:
    taps.follow({ifindex(bridged, "br0"): "br0"})
    send(bridged, "web", 50_000, BROADCAST)
    (sock,) = taps._sockets.values()
    queued = 0
    with pytest.raises(BlockingIOError):
        while True:
            sock.recv(64)
            queued += 1
    assert queued < 20


def test_bridges_are_created_deleted_and_recreated(bridged: ThrowawayHost, taps: Broadcasts) -> None:
    old = ifindex(bridged, "br0")
    taps.follow({old: "br0"})
    bridged.run("ip link del br0")
    bridged.run("ip link add br1 type bridge")
    bridged.run(f"ip link add br0 index {old} type bridge")
    bridged.run("ip link set br0 up")
    new = ifindex(bridged, "br1")
    taps.follow({new: "br1", old: "br0", 9999: "gone"})
    assert taps.read().keys() == {new, old}
    bridged.run("ip link set v-web master br0 up")
    send(bridged, "web", 500, BROADCAST)
    wait_until(lambda: taps.read()[old] >= 500)
    taps.follow({})
    assert taps.read() == {} and taps.problems == ()


def test_without_the_capability_there_is_a_problem(bridged: ThrowawayHost, taps: Broadcasts) -> None:
    br0 = ifindex(bridged, "br0")
    os.seteuid(65534)
    try:
        taps.follow({br0: "br0"})
    finally:
        os.seteuid(0)
    (problem,) = taps.problems
    assert "CAP_NET_RAW" in problem.why and taps.read() == {}


def test_once_closed_no_socket_is_opened(bridged: ThrowawayHost) -> None:
    taps = Broadcasts()
    taps.close()
    taps.follow({ifindex(bridged, "br0"): "br0"})
    assert taps.read() == {}


@pytest.fixture
def watched(bridged: ThrowawayHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(storms, "CALM", 2.0)
    made = Watched()
    made.watcher.start()
    try:
        made.until(lambda s: not s.pending & {"links", "containers"} and len(s.nets) >= 3)
        yield made
    finally:
        made.watcher.stop()


@pytest.mark.parametrize(
    ("view", "destination", "rate", "kind"),
    [("bridges", BROADCAST, 3000, "broadcast"), ("routes", BROADCAST, 3000, "broadcast"),
     ("bridges", GROUP, 15_000, "multicast")],
)  # fmt: skip
def test_a_storm_is_reported_with_its_port_in_any_view(
    watched: Watched, bridged: ThrowawayHost, view: str, destination: str, rate: int, kind: str
) -> None:
    shown = view_named(view)
    assert shown is not None
    watched.watcher.set_demand(shown.list.demand)
    sending = subprocess.Popen(sender(bridged, "web", rate, rate * 40, destination))
    try:
        # The first share may include other packets of the same second.
        snapshot = watched.until(lambda s: any(storm.ports and storm.share > 0.3 for storm in s.storms))
    finally:
        sending.kill()
        sending.wait()
    (storm,) = snapshot.storms
    assert storm.kind == kind
    assert storm.rate >= storms.LIMITS[kind].if_mostly
    assert (storm.ns, storm.ifindex) == (bridged.inode, ifindex(bridged, "br0"))
    assert storm.ports == (ifindex(bridged, "v-web"),)
    (finding,) = [one for one in findings(Topology(snapshot)) if one.kind == "storm"]
    assert (
        f"{kind.capitalize()} storm on br0" in finding.sentence
        and "they enter through v-web (from" in finding.sentence
    )
    watched.until(lambda s: not s.storms)
    sentences = [change.sentence for change in watched.changes if "storm" in change.sentence]
    assert (
        sentences[0].startswith(f"{kind.capitalize()} storm on br0")
        and sentences[-1] == f"the {kind} storm on br0 has ended"
    )
