"""What the program itself costs: by test run, over many flows in the cache, for frames as a card delivers them; how long
it takes to be there; and the memory of its processes."""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpf import layout, loader, syscall
from core.collect.netns import entered
from tests.bench.fastpath_flood import Batch, warm_up
from tests.bench.fastpath_lab import CPU, FLOOD, HOST, Case, FastPath, Lab, named, read_udp_arrivals
from tests.bench.fastpath_traffic import REPETITIONS, Floods
from tests.bench.report import Figure
from tests.conftest import ThrowawayHost
from tests.datapath.rig import CLIENT, Rig, flow_key, plain

_MOVE, _EXIT = 0xB7, 0x95
_PROG_XDP, _XDP_PASS, _LIVE_FRAMES = 6, 2, 1 << 1
_TEST_RUN = 10
_FRAMES = 200_000
_CURVE = (1, 1000, 100_000, 1_000_000)
_SOURCE_PORT = 40000
_RUN_TIME, _RUN_COUNT = 192, 200  # struct bpf_prog_info


def returning(value: int, kind: int = syscall.PROG_SCHED_CLS) -> int:
    """A program that does nothing but return a value: its descriptor."""
    code = struct.pack("<BBhi", _MOVE, 0, 0, value) + struct.pack("<BBhi", _EXIT, 0, 0, 0)
    return syscall.load_program(kind, code, "empty")


@contextmanager
def one_cpu() -> Iterator[None]:
    """The body runs on the CPU that is measured."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CPU})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def by_test_run() -> Iterator[Figure]:
    """Nanoseconds a packet of flows that are known, an empty program beside it."""
    host = ThrowawayHost()
    try:
        host.run("ip link add up0 type veth peer name far")
        host.run("ip link set up0 up")
        host.run("ip link set far up")
        with entered(named(host.name)), one_cpu():
            rig = Rig(host)
            yield from _costs(rig)
            rig.close()
    finally:
        host.close()


def _costs(rig: Rig) -> Iterator[Figure]:
    """Rewriting leaves the packet's tuple as it is, for a test run gives the program its own output again."""
    rewrites = {
        "same bridge": (0, "<= 65 ns"),
        "routed": (layout.REWRITE_L3, "(report)"),
        "SNAT": (layout.REWRITE_L3 | layout.REWRITE_ADDRESS, "<= 110 ns"),
        "SNAT with another port": (
            layout.REWRITE_L3 | layout.REWRITE_ADDRESS | layout.REWRITE_PORT, "(report)",
        ),
    }  # fmt: skip
    empty = returning(0)
    yield Figure("program, empty", "about 28 ns", _cost(empty, plain("udp", 4), rig), "median of 300 test runs")
    for family in (4, 6):
        for l4 in ("udp", "tcp"):
            for name, (rewrite, to_reach) in rewrites.items():
                packet = plain(l4, family, hops=255)
                rig.flow(packet, "up0", rewrite=rewrite)
                what = f"program, {name}, {l4.upper()} over IPv{family}"
                cost = _cost(rig.loaded.program, packet, rig)
                yield Figure(what, to_reach if family == 4 else "(report)", cost, "the same")
    os.close(empty)


def _cost(program: int, packet: Packet, rig: Rig) -> str:
    context = bytearray(192)
    struct.pack_into("=I", context, 40, rig.links["up0"])
    took = [syscall.test_run(program, bytes(packet), 200, bytes(context)).duration for _ in range(300)]
    return f"{statistics.median(took):.0f} ns ({min(took)} at least)"


def curve() -> Iterator[Figure]:
    """The cost of a packet of any of very many flows: random ones, on a real link, as the kernel counts it."""
    host = ThrowawayHost()
    try:
        far = host.namespace("far")
        host.run(f"ip link add up0 type veth peer name far netns {far}")
        host.run("ip link add out0 type veth peer name sink")  # down: what is sent there is gone
        host.run("ip link set up0 up")
        host.run("ip link set far up", inside="far")
        with entered(named(host.name)):
            costs = {flows: _cost_with(host, flows) for flows in _CURVE}
    finally:
        host.close()
    for flows, (ours, clock) in costs.items():
        to_reach = "<= 2 x of 1,000" if flows == 100_000 else "(report)"
        ratio = (ours - clock) / max(costs[1000][0] - costs[1000][1], 1)
        measured = f"{ours - clock:.0f} ns, {ratio:.2f} x of 1,000"
        how = f"random flows, {_FRAMES} UDP packets; bpf_stats, less an empty program's {clock:.0f} ns"
        yield Figure(f"program, {flows:,} flows in the cache", to_reach, measured, how)


def _cost_with(host: ThrowawayHost, flows: int) -> tuple[float, float]:
    """Nanoseconds a packet, and those of an empty program in front of it."""
    rig = Rig(host, flows=max(2 * flows, 1024))
    keys = _fill(rig, flows)
    empty = returning(-1)
    links = [syscall.attach_tcx(each, rig.links["up0"]) for each in (empty, rig.loaded.program)]
    switch = syscall.enable_run_stats()
    try:
        with entered(named(host.full("far"))), one_cpu():
            _send_any(keys, _FRAMES)
        return _average(rig.loaded.program), _average(empty)
    finally:
        for descriptor in (*links, switch, empty):
            os.close(descriptor)
        rig.close()


def _average(program: int) -> float:
    took, count = struct.unpack_from("=QQ", syscall.info(program, _RUN_COUNT + 8), _RUN_TIME)
    assert count >= _FRAMES, count
    return float(took / count)


def _fill(rig: Rig, flows: int) -> np.ndarray:
    """That many flows in the cache; their keys."""
    packet = plain("udp", 4)
    rig.flow(packet, "up0", rewrite=layout.REWRITE_L3, out_ifindex=rig.links["out0"])
    raw = syscall.lookup(rig.loaded.maps["flows4"], flow_key(packet).tobytes(), layout.FLOW.itemsize)
    assert raw is not None
    keys = np.repeat(flow_key(packet), flows)
    numbers = np.arange(flows, dtype=np.uint32)
    keys["sport"], keys["dport"] = 1024 + numbers % 50_000, 1024 + numbers // 50_000
    values = np.repeat(np.frombuffer(raw, layout.FLOW), flows)
    syscall.write_all(rig.loaded.maps["flows4"], keys, values)
    return keys


def _send_any(keys: np.ndarray, count: int) -> None:
    """Frames of random flows into the far end of the link, built in the buffer that is sent."""
    frame = np.frombuffer(bytes(plain("udp", 4, b"x" * 22)), np.uint8)
    batch = Batch(len(frame))
    frames = np.frombuffer(batch.buffer, np.uint8).reshape(-1, len(frame))
    frames[:] = frame
    ports = np.stack([keys["sport"], keys["dport"]], axis=1).view(np.uint8)
    chosen = np.random.default_rng(1)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as here:
        here.bind(("far", 0))
        while count > 0:
            frames[:, 34:38] = ports[chosen.integers(0, len(keys), len(frames))]
            count -= batch.send(here.fileno())


def live_frames(lab: Lab, fast: FastPath, floods: Floods) -> Iterator[Figure]:
    """Frames that come in at the uplink as from a card, to a published port; the limit is a link that ends in the
    namespace of the receiver."""
    published = lab.cases[-1]
    found: dict[str, list[float]] = {"kernel": [], "fast": [], "limit": []}
    with _speaker(published) as talk, _speaker(lab.limit) as limit_talk:
        for repetition in range(REPETITIONS):
            turns = ["kernel", "fast"]
            for way in [*(reversed(turns) if repetition % 2 else turns), "limit"]:
                if way == "limit":
                    warm_up(limit_talk)
                    found[way].append(_inject(limit_talk, lab.limit.server, "eth0", floods, lab.limit))
                    continue
                if way == "fast":
                    fast.on()
                warm_up(talk)
                found[way].append(_inject(talk, named(lab.host.name), "up0", floods, published))
                fast.off()
    gains = sorted(kernel / ours for kernel, ours in zip(found["kernel"], found["fast"], strict=True))
    of_limit = statistics.median(ours / limit for ours, limit in zip(found["fast"], found["limit"], strict=True))
    values = " / ".join(f"{statistics.median(each):.0f}" for each in found.values())
    yield Figure(
        "frames as from a card, published port", ">= 2.8 x, <= 1.10 of the limit's time",
        f"{statistics.median(gains):.2f} x ({gains[0]:.2f} to {gains[-1]:.2f}), {of_limit:.2f} of the limit's; {values}",
        "ns a frame; XDP live frames, 64 B of UDP",
    )  # fmt: skip


@contextmanager
def _speaker(case: Case) -> Iterator[socket.socket]:
    """A socket whose flow the frames belong to."""
    with entered(case.client):
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with here:
        here.bind(("0.0.0.0", _SOURCE_PORT))
        here.connect((case.address, FLOOD))
        yield here


def _inject(talk: socket.socket, namespace: str, link: str, floods: Floods, case: Case) -> float:
    """Nanoseconds a frame of the speaker's flow, given to that link of that namespace; they must arrive."""
    (source, sport), (destination, dport) = talk.getsockname(), talk.getpeername()
    receiver = floods.receiver(case)
    with entered(namespace), one_cpu():
        mac = _mac_of(link)
        packet = Ether(src=CLIENT, dst=mac) / IP(src=source, dst=destination)
        frame = bytes(packet / UDP(sport=sport, dport=dport) / Raw(b"x" * 64))
        program = returning(_XDP_PASS, _PROG_XDP)
        before = read_udp_arrivals(receiver)
        began = time.perf_counter()
        _live(program, frame, socket.if_nametoindex(link))
        took = time.perf_counter() - began
        os.close(program)
    arrived = read_udp_arrivals(receiver) - before
    assert arrived > 0.95 * _FRAMES, f"{arrived} of {_FRAMES} frames arrived by {case.name}"
    return took / _FRAMES * 1e9


def _live(program: int, frame: bytes, ifindex: int) -> None:
    """BPF_PROG_TEST_RUN of an XDP program with BPF_F_TEST_XDP_LIVE_FRAMES: its frames are really received."""
    data = np.frombuffer(bytearray(frame), np.uint8)
    context = np.frombuffer(bytearray(struct.pack("=IIIIII", 0, len(frame), 0, ifindex, 0, 0)), np.uint8)
    attributes = struct.pack(
        "<IIIIQQIIIIQQIII4x",
        program, 0, len(frame), 0, data.ctypes.data, 0, _FRAMES, 0,
        len(context), 0, context.ctypes.data, 0, _LIVE_FRAMES, 0, 64,
    )  # fmt: skip
    syscall.bpf(_TEST_RUN, attributes)


def _mac_of(link: str) -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as here:
        here.bind((link, 0))
        return str(here.getsockname()[4].hex(":"))


def starting(lab: Lab, fast: FastPath) -> Iterator[Figure]:
    """Compile, load and attach; and the whole command until it forwards."""
    cold, warm, whole = [], [], []
    with entered(named(lab.host.name)):
        ifindex = socket.if_nametoindex("up0")
        for _ in range(REPETITIONS):
            folder = Path(tempfile.mkdtemp())
            cold.append(_start(folder, ifindex))
            warm.append(_start(folder, ifindex))
            shutil.rmtree(folder)
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        fast.on()
        whole.append(time.perf_counter() - began)
        fast.off()
    how = f"median of {REPETITIONS}"
    yield Figure("compile + load + attach", "<= 1.5 s", f"{statistics.median(cold):.2f} s", how)
    yield Figure("the same, compiled before", "<= 0.3 s", f"{statistics.median(warm):.2f} s", how)
    yield Figure(
        "from the command to forwarding", "(report)", f"{statistics.median(whole):.2f} s",
        f"{how}; two processes of Python are started, rules and links read",
    )  # fmt: skip


def _start(folder: Path, ifindex: int) -> float:
    began = time.perf_counter()
    loaded = loader.load(cache=folder)
    link = syscall.attach_tcx(loaded.program, ifindex)
    took = time.perf_counter() - began
    os.close(link)
    loaded.close()
    return took
