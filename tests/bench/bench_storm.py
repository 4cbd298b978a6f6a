"""Measure what the storm guard costs, and what a loop of two bridges does with and without it."""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from bpf import syscall
from bpf.storm_guard import attach, read_counters
from core.model import StormLimits
from core.netlink.clsact import STORM_GUARD
from core.netlink.netns import entered
from tests.bench.fastpath_flood import Batch
from tests.bench.report import Figure, paired
from tests.bench.size import sized
from tests.support.host import ThrowawayHost

PACKETS = sized(1_000_000, 20_000)
REPETITIONS = sized(9, 1)
SECONDS = sized(5.0, 0.5)
RUNS = 1_000_000
LIMITS = StormLimits(500, 5000, 500)
_PORTS = ("v-web", "v-db")
_UNICAST, _MULTICAST = (
    bytes.fromhex(f"{mac}02aabbccdd0288b6") + bytes(50) for mac in ("02aabbccdd01", "01005e000001")
)
_FRAME = bytes.fromhex("ffffffffffff02aabbccdd0288b6") + bytes(50)


def run() -> list[Figure]:
    """Measure the cost of a packet that passes, and a storm."""
    with _bridge() as host:
        unicast = paired(lambda: _guarded(host, lambda: _send(host)), lambda: _send(host), REPETITIONS)
        floods = paired(lambda: _guarded(host, lambda: _flood(host)), lambda: _flood(host), REPETITIONS)
    without, _ = _storm(guarded=False)
    limited, loss = _storm(guarded=True)
    cost = (unicast.seconds - unicast.reference) / PACKETS * 1e9
    return [
        Figure("packets between containers, both ports guarded", "(report)", str(unicast),
               f"CPU time of {PACKETS:,} UDP packets of 64 B; about {cost:.0f} ns each"),
        Figure("the program at ingress, a unicast and a dropped multicast frame", "(report)", _program(),
               "BPF_PROG_TEST_RUN, median of 9 runs of 1,000,000"),
        Figure("the program in the driver (XDP), the same frames", "(report)", _program_in_driver(),
               "the same"),
        Figure("a flood of broadcasts from one container", "(report)", str(floods),
               f"CPU time of {PACKETS // 10:,} frames; with the guard nearly all are dropped at the port"),
        Figure("loop of two bridges, one broadcast, no guard", "(report)", f"{without:,.0f} frames/s",
               "entering by the two ports of the loop"),
        Figure("the same with the guard", f"<= {LIMITS.broadcast}/s and port", f"{limited:,.0f} frames/s",
               f"both ports together, {SECONDS:g} s, {LIMITS.burst} at once allowed"),
        Figure("loss of UDP between containers meanwhile", "0 %", f"{loss:.2%}",
               "1,000 packets a second, to the container that sent the broadcast"),
    ]  # fmt: skip


def _program() -> str:
    """Return the run time of the program for two frames."""
    with _bridge() as host, _guard(host, _PORTS), entered(f"/run/netns/{host.name}"):
        return _run_time(STORM_GUARD.attached()[0].program)


def _program_in_driver() -> str:
    with _bridge() as host, entered(f"/run/netns/{host.name}"):
        attach(socket.if_nametoindex(_PORTS[0]), replace(LIMITS, xdp=True))
        (link,) = host.json(f"ip -j link show {_PORTS[0]}")
        return _run_time(link["xdp"]["prog"]["id"])


def _run_time(program: int) -> str:
    descriptor = syscall.program_by_id(program)
    try:
        found = [
            statistics.median(syscall.test_run(descriptor, frame, RUNS).duration for _ in range(9))
            for frame in (_UNICAST, _MULTICAST)
        ]
    finally:
        os.close(descriptor)
    return " and ".join(f"{each:.0f} ns" for each in found)


@contextmanager
def _bridge() -> Iterator[ThrowawayHost]:
    """Yield a host with two containers on a bridge, without IPv6, which multicasts by itself."""
    host = ThrowawayHost()
    try:
        host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
        host.run("ip link add br0 type bridge")
        host.run("ip link set br0 up")
        for number, name in enumerate(("web", "db"), 2):
            host.container(name, "br0", f"10.7.0.{number}/24")
            host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1", inside=name)
        host.run("ping -c1 -W5 10.7.0.3", inside="web")
        yield host
    finally:
        host.close()


def _guarded(host: ThrowawayHost, measure: Callable[[], float]) -> float:
    with _guard(host, _PORTS):
        return measure()


@contextmanager
def _guard(host: ThrowawayHost, ports: tuple[str, ...]) -> Iterator[None]:
    with entered(f"/run/netns/{host.name}"):
        indexes = [socket.if_nametoindex(port) for port in ports]
        for index in indexes:
            attach(index, LIMITS)
    yield
    with entered(f"/run/netns/{host.name}"):
        for index in indexes:
            STORM_GUARD.detach(index)


@contextmanager
def _sockets(host: ThrowawayHost) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield a socket in db that sends to one in web."""
    with entered(f"/run/netns/{host.full('web')}"):
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sink.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        sink.bind(("10.7.0.2", 9))
    with entered(f"/run/netns/{host.full('db')}"):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.connect(("10.7.0.2", 9))
    with sink, sender:
        yield sender, sink


def _send(host: ThrowawayHost) -> float:
    """Return the CPU time of sending and receiving all packets."""
    with _sockets(host) as (sender, sink):
        batch, received, sent = Batch(), Batch(), 0
        began = time.process_time()
        while sent < PACKETS:
            sent += batch.send(sender.fileno())
            received.receive(sink.fileno())
        return time.process_time() - began


def _flood(host: ThrowawayHost) -> float:
    """Return the CPU time of sending broadcasts."""
    with entered(f"/run/netns/{host.full('web')}"):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sock.bind(("eth0", 0))
    with sock:
        began = time.process_time()
        for _ in range(PACKETS // 10):
            sock.send(_FRAME)
        return time.process_time() - began


def _storm(guarded: bool) -> tuple[float, float]:
    """Send one broadcast into a loop; return frames a second in the loop, and the loss of a stream."""
    with _bridge() as host:
        host.loop("br0")
        mac = host.json("ip -j link show eth0", inside="web")[0]["address"].replace(":", "")
        if guarded:  # as `storm guard on` does
            host.run(f"bridge fdb replace {_mac(mac)} dev v-web master static sticky")
        frame = bytes.fromhex(f"ffffffffffff{mac}88b6") + bytes(50)
        with entered(f"/run/netns/{host.full('web')}"):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            sock.bind(("eth0", 0))
        if not guarded:
            with sock:
                return _rate(host, lambda: _one_storm(sock, frame)), 0.0
        with sock, _guard(host, (*_PORTS, "p1", "p2")):
            began, before = time.monotonic(), _passed(host)
            sock.send(frame)
            loss = _loss(host)
            return (_passed(host) - before) / (time.monotonic() - began), loss


def _mac(text: str) -> str:
    return ":".join(text[at : at + 2] for at in range(0, 12, 2))


def _passed(host: ThrowawayHost) -> int:
    with entered(f"/run/netns/{host.name}"):
        ports = {socket.if_nametoindex(port) for port in ("p1", "p2")}
        return sum(one.passed[0] for one in read_counters() if one.ifindex in ports)


def _one_storm(sock: socket.socket, frame: bytes) -> None:
    sock.send(frame)
    time.sleep(SECONDS)


def _rate(host: ThrowawayHost, action: Callable[[], None]) -> float:
    began, before = time.monotonic(), _received(host)
    action()
    frames, seconds = _received(host) - before, time.monotonic() - began
    host.run("ip link del p2")
    return frames / seconds


def _received(host: ThrowawayHost) -> int:
    links = {one["ifname"]: one for one in host.json("ip -j -s link show")}
    return sum(int(links[port]["stats64"]["rx"]["packets"]) for port in ("p1", "p2"))


def _loss(host: ThrowawayHost) -> float:
    """Return the share of packets of a stream that don't arrive."""
    sent = received = 0
    with _sockets(host) as (sender, sink):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            sender.send(b"x")
            sent += 1
            time.sleep(0.001)
        sink.settimeout(0.5)
        try:
            while received < sent:
                sink.recv(16)
                received += 1
        except TimeoutError:
            pass
    return 1 - received / sent
