"""`vnet-tui trace FLOW`: packets of a flow at each link; nothing is sent."""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from bpf import syscall
from bpf.build import compiled_program
from core.netlink.netns import entered
from tests.kernel.fastlab import HOST4, V4, FastLab
from tests.kernel.streams import Stream, is_fast
from tests.support.fastpath import Talk
from tests.support.host import ThrowawayHost
from tests.support.needs import AS_NOBODY
from tests.support.router import router
from tests.support.waiting import PATIENCE, eventually, repeating, wait_until

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
A, B, GATEWAY = "10.44.1.2", "10.44.2.2", "10.44.1.1"
A6, B6, GATEWAY6 = "fd44:1::2", "fd44:2::2", "fd44:1::1"
_RULES = f"""
table ip nat {{
  chain pre {{ type nat hook prerouting priority -100; tcp dport 8080 dnat to {B}:80; }}
  chain post {{ type nat hook postrouting priority 100; oifname br2 masquerade; }}
}}
table ip6 nat {{
  chain pre {{ type nat hook prerouting priority -100; tcp dport 8080 dnat to [{B6}]:80; }}
}}
"""
# The links in the order of the packets of the original direction.
PATH = [
    ("a", "eth0", "out"), ("host", "v-a", "in"), ("host", "br1", "in"), ("host", "br2", "out"),
    ("host", "v-b", "out"), ("b", "eth0", "in"),
]  # fmt: skip


@pytest.fixture(scope="module")
def routed() -> Iterator[ThrowawayHost]:
    """Yield a router between containers a and b; port 8080 is forwarded to b."""
    with router(44) as host:
        host.run(["nft", _RULES])
        yield host


def flow_of(talk: Talk, asked: str, port: int) -> str:
    """Return the flow of a connection as users write it."""
    src, sport = talk.client.getsockname()[:2]
    ends = (f"[{src}]:{sport}", f"[{asked}]:{port}") if ":" in src else (f"{src}:{sport}", f"{asked}:{port}")
    return "-".join(ends)


def as_json(host: ThrowawayHost, *arguments: str) -> tuple[int, Any]:
    done = host.vnet("trace", *arguments, "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def places(host: ThrowawayHost, packet: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (namespace, link, direction) of each sighting, by short names."""
    return [
        (one["namespace"].removeprefix(f"{host.prefix}-"), one["link"]["name"], one["direction"])
        for one in packet["sightings"]
    ]


def back(path: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Return a path of the other direction."""
    return [(ns, link, "in" if way == "out" else "out") for ns, link, way in reversed(path)]


class Tap:
    """Record the TCP packets of a namespace as a packet socket of the test sees them."""

    def __init__(self, host: ThrowawayHost, inside: str) -> None:
        with entered(f"/run/netns/{host.full(inside)}"):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.setblocking(False)
        self.inside = inside

    def read(self) -> set[tuple[Any, ...]]:
        """Return (namespace, link, direction, addresses, ports, ttl) of all packets."""
        found = set()
        while select.select([self._socket], [], [], 0)[0]:
            data, (link, _, kind, _, _) = self._socket.recvfrom(2048)
            frame = Ether(data)
            if TCP not in frame:
                continue
            ip = frame[IP] if IP in frame else frame[IPv6]
            way = "out" if kind == socket.PACKET_OUTGOING else "in"
            ttl = ip.ttl if IP in frame else ip.hlim
            found.add(
                (self.inside, link, way, ip.src, frame[TCP].sport, ip.dst, frame[TCP].dport, ttl)
            )  # fmt: skip
        self._socket.close()
        return found


def unacknowledged(sock: socket.socket) -> int:
    """Return the bytes that the peer has not acknowledged yet (SIOCOUTQ of tcp(7))."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@pytest.mark.parametrize(
    ("asked", "server", "family"), [(GATEWAY, B, socket.AF_INET), (GATEWAY6, B6, socket.AF_INET6)]
)
def test_each_link_of_a_translated_connection(
    routed: ThrowawayHost, asked: str, server: str, family: socket.AddressFamily
) -> None:
    talk = Talk(routed, "a", "b", asked, 80, to=8080, family=family)
    taps = [Tap(routed, inside) for inside in ("a", "host", "b")]
    with repeating(talk.say, 0.02):
        code, found = as_json(routed, flow_of(talk, asked, 8080))
    seen = set().union(*(tap.read() for tap in taps))
    assert code == 0 and [one["direction"] for one in found["packets"]] == ["original", "reply"]
    sent, reply = found["packets"]
    assert places(routed, sent) == PATH and places(routed, reply) == back(PATH)
    for packet in found["packets"]:
        for place, one in zip(places(routed, packet), packet["sightings"], strict=True):
            ends = (one["addresses"][name] for name in ("src", "sport", "dst", "dport"))
            assert (*place, *ends, one["ttl"]) in seen, "as the test's own packet sockets saw it"
    first, last = sent["sightings"][0], sent["sightings"][-1]
    assert (first["addresses"]["dst"], last["addresses"]["dst"]) == (asked, server)
    assert (last["addresses"]["src"], last["addresses"]["sport"]) == talk.seen_from[:2]
    assert first["ttl"] - last["ttl"] == 1
    changes = {name for one in sent["sightings"] for name in one["changes"]}
    assert {"dst", "dport", "ttl", "src_mac", "dst_mac"} <= changes
    times = [one["at"] for one in sent["sightings"]]
    assert times == sorted(times) and times[-1] > times[0]
    entry = routed.run(["conntrack", "-L", "-f", "ipv4" if family == socket.AF_INET else "ipv6"])
    assert f"src={server}" in entry and found["flow"]["reply"]["src"] == server


def test_lines_of_a_connection(routed: ThrowawayHost) -> None:
    talk = Talk(routed, "a", "b", GATEWAY, 80, to=8080)
    with repeating(talk.say, 0.02):
        done = routed.vnet("trace", f"tcp:{flow_of(talk, GATEWAY, 8080)}")
    assert done.returncode == 0 and done.stderr == ""
    assert f"NAT: destination {GATEWAY}:8080 → {B}:80" in done.stdout
    assert "forward: ttl 64 → 63" in done.stdout and f"{routed.full('a')} {A}" in done.stdout


def test_an_idle_flow_is_left_alone(routed: ThrowawayHost) -> None:
    """No packet is sent, no rule added; the exit status says that none was seen."""
    talk = Talk(routed, "a", "b", GATEWAY, 80, to=8080)
    talk.say()
    rules = routed.run("nft list ruleset")
    wait_until(lambda: not unacknowledged(talk.client) and not unacknowledged(talk.server), "quiet")
    taps = [Tap(routed, inside) for inside in ("a", "host", "b")]
    code, found = as_json(routed, flow_of(talk, GATEWAY, 8080), "--for", "1")
    assert [tap.read() for tap in taps] == [set(), set(), set()]
    assert routed.run("nft list ruleset") == rules
    assert (code, found["packets"], found["counts"]) == (1, [], {"original": 0, "reply": 0})
    assert found["sentence"].startswith("No packet of this flow") and not found["gone"]


def test_a_connection_that_is_closed_meanwhile(routed: ThrowawayHost) -> None:
    talk = Talk(routed, "a", "b", GATEWAY, 80, to=8080)
    talk.say()

    def close() -> None:
        wait_until(lambda: len(routed.run("cat /proc/net/packet").splitlines()) > 1, "the trace")
        talk.client.close()
        talk.server.close()

    thread = threading.Thread(target=close)
    thread.start()
    code, found = as_json(routed, flow_of(talk, GATEWAY, 8080), "--for", "60")
    thread.join()
    assert code == 0 and found["closed"] and found["seconds"] < 60
    assert "closing" in found["sentence"] or "ended" in found["sentence"]
    assert any("FIN" in one["flags"] for packet in found["packets"] for one in packet["sightings"])


def test_an_entry_that_disappears_meanwhile(routed: ThrowawayHost) -> None:
    talk = Talk(routed, "a", "b", GATEWAY, 80, to=8080)
    port = talk.client.getsockname()[1]

    def delete() -> None:
        wait_until(lambda: len(routed.run("cat /proc/net/packet").splitlines()) > 1, "the trace")
        routed.run(f"conntrack -D -p tcp --sport {port}", check=False)

    thread = threading.Thread(target=delete)
    thread.start()
    code, found = as_json(routed, flow_of(talk, GATEWAY, 8080), "--for", "3")
    thread.join()
    assert code == 1 and found["gone"] and "has ended" in found["sentence"]


def test_echo_requests(routed: ThrowawayHost) -> None:
    words = ["nsenter", f"--net=/run/netns/{routed.full('a')}", "ping", "-i", "0.1", B]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as ping:
        wait_until(lambda: f"dst={B}" in routed.run("conntrack -L -p icmp", check=False), "the entry")
        code, found = as_json(routed, f"icmp:{A}-{B}")
        ping.kill()
    assert code == 0
    assert [one["sightings"][0]["info"] for one in found["packets"]] == ["echo request", "echo reply"]
    assert places(routed, found["packets"][0]) == PATH


def test_packets_inside_vxlan() -> None:
    """The inner packet is seen at the uplink, with VXLAN's network."""
    host = ThrowawayHost()
    try:
        host.namespace("far")
        host.run("ip link add br1 type bridge")
        host.run("ip link set br1 up")
        host.container("a", "br1", "10.45.1.2/24")
        host.run(f"ip link add up0 type veth peer name up0 netns {host.full('far')}")
        for inside, own, other in (("host", 1, 2), ("far", 2, 1)):
            host.run(f"ip addr add 192.0.2.{own}/24 dev up0", inside)
            host.run("ip link set up0 up", inside)
            host.run(
                f"ip link add vx type vxlan id 42 dstport 4789 local 192.0.2.{own} remote 192.0.2.{other}",
                inside,
            )
        host.run("ip link set vx master br1 up")
        host.run("ip addr add 10.45.1.9/24 dev vx", "far")
        host.run("ip link set vx up", "far")
        host.run(["nft", "table ip t { chain c { type filter hook input priority 0; ct state new; }; }"], "a")
        talk = Talk(host, "a", "far", "10.45.1.9", 80, udp=True)
        with repeating(talk.say, 0.02):
            wait_until(lambda: "10.45.1.9" in host.run("conntrack -L", "a", check=False), "the entry")
            code, found = as_json(host, f"udp:{flow_of(talk, '10.45.1.9', 80)}")
    finally:
        host.close()
    assert code == 0
    seen = {(one["link"]["name"], one["namespace"]): one for one in found["packets"][0]["sightings"]}
    at_uplink = seen["up0", "host"]
    assert at_uplink["vni"] == 42 and at_uplink["addresses"]["dst"] == "10.45.1.9"
    assert seen["eth0", host.full("a")]["vni"] == -1 and ("vx", host.full("far")) in seen


# ---- what can't be traced


def test_an_unknown_flow_names_near_ones(routed: ThrowawayHost) -> None:
    talk = Talk(routed, "a", "b", GATEWAY, 80, to=8080)
    known = flow_of(talk, GATEWAY, 8080)
    done = routed.vnet("trace", f"{A}:1-{GATEWAY}:8080")
    assert done.returncode == 1 and "conntrack has no such entry" in done.stderr
    hints = done.stderr.partition("Try: ")[2].strip().split(" or ")
    assert hints and all(routed.vnet("trace", hint, "--for", "0.1").stderr == "" for hint in hints), known


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("web1",), 2, "there is no receiver, and it isn't a flow"),
        (("10.44.1.2:1-10.44.1.1:8080", "b"), 1, "a flow has no receiver"),
        (("10.44.1.2:1-10.44.1.1:8080", "--mtu"), 1, "only --for, --functions, --json"),
        (("1.2.3.400:1-10.44.1.1:8080",), 1, "it isn't a flow"),
        (("a", "b", "--for", "3"), 1, "--for is for flows"),
    ],
)
def test_requests_that_make_no_sense(
    routed: ThrowawayHost, arguments: tuple[str, ...], code: int, reason: str
) -> None:
    done = routed.vnet("trace", *arguments)
    assert done.returncode == code and reason in done.stderr and "Try: " in done.stderr
    assert "Traceback" not in done.stderr


def test_without_rights(routed: ThrowawayHost) -> None:
    words = [*AS_NOBODY, sys.executable, "-m", "tui.cli", "trace", f"{A}:1-{GATEWAY}:8080"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1 and "can't trace a flow: this process lacks" in done.stderr


# ---- the fast path


def test_a_flow_of_the_fast_path_is_seen_and_accelerated_again() -> None:
    with FastLab() as lab, Stream(lab, "a", "far", V4["far"], port=6300) as stream:
        fast = lab.accelerate()
        assert is_fast(lab, "v-a") and stream.flows()
        (port,) = {stream.client.getsockname()[1]}
        code, found = as_json(lab.host, f"udp:{V4['a']}:{port}-{V4['far']}:6300")
        assert code == 0 and found["notes"] == [f"The fast path left {V4['a']} to the kernel meanwhile."]
        sent, reply = (places(lab.host, one) for one in found["packets"])
        assert {("host", "docker0", "in"), ("host", "up0", "out")} <= set(sent)
        assert {("host", "up0", "in"), ("host", "docker0", "out"), ("host", "v-a", "out")} <= set(reply)
        at_uplink = next(one for one in found["packets"][0]["sightings"] if one["link"]["name"] == "up0")
        assert at_uplink["addresses"]["src"] == HOST4 and "src" in at_uplink["changes"]
        assert fast.status()["captured"] == []
        before = lab.counted("v-a")
        assert eventually(lambda: stream.flows(30) and lab.counted("v-a") >= before + 30)
        stream.stop()
        assert stream.lost() == []


def test_the_fast_path_takes_a_flow_again_if_the_trace_was_killed() -> None:
    with FastLab() as lab:
        fast = lab.accelerate()
        both = [V4["a"], V4["b"]]
        assert fast.ask("trace", holder="one", addresses=both, seconds=0.5)["captured"] == both
        assert eventually(lambda: fast.status()["captured"] == [])
        # A capture and another trace of the same address are independent of the first.
        fast.ask("trace", holder="one", addresses=both, seconds=60)
        fast.ask("trace", holder="two", addresses=[V4["a"]], seconds=60)
        fast.ask("capture", address=V4["b"])
        assert fast.status()["traced"] == [V4["a"]]
        assert sorted(fast.ask("untrace", holder="one")["captured"]) == both
        assert fast.ask("untrace", holder="two")["captured"] == [V4["b"]]
        assert fast.ask("release", address=V4["b"])["captured"] == []
        for wrong in ({}, {"holder": "x", "seconds": 5, "addresses": ["y"]}, {"holder": "x", "seconds": "z"}):
            assert not fast.ask("trace", **wrong)["ok"]
        assert fast.status()["captured"] == [], "it still answers"


# ---- kernel functions (tests/kernels/test_functions.py has the rest)


@pytest.mark.needs("bcc")
def test_the_verifier_accepts_the_program() -> None:
    program = compiled_program(name="functions")
    maps = {
        "wanted": syscall.create_map(syscall.MAP_HASH, 40, 4, 1, "wanted"),
        "probe": syscall.create_map(syscall.MAP_ARRAY, 4, 16, 1, "probe"),
        "calls": syscall.create_map(syscall.MAP_RINGBUF, 0, 0, 4096, "calls"),
    }
    code = program.with_maps(maps)
    for descriptor in (syscall.load_program(syscall.PROG_KPROBE, code, "functions"), *maps.values()):
        os.close(descriptor)
