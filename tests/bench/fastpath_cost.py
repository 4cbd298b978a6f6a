"""Measure the program's own cost of a packet: by test run, and with many flows."""

from __future__ import annotations

import os
import socket
import statistics
import struct
import time
from collections.abc import Iterator

import numpy as np
from scapy.packet import Packet

from bpf import layout, syscall
from bpf.client import fast_flows
from bpf.layout import FAST
from core.netlink.netns import entered
from tests.bench.fastpath_flood import Batch
from tests.bench.fastpath_lab import CPU, named, one_cpu
from tests.bench.report import Figure
from tests.bench.size import sized
from tests.datapath.rig import Rig, flow_key, plain, tag_of, write_all
from tests.support.host import ThrowawayHost

_MOVE, _EXIT = 0xB7, 0x95
_FRAMES = sized(200_000, 5_000)
_CURVE = sized((1, 1000, 100_000, 1_000_000), (1, 1000))
_TEST_RUNS = sized(300, 3)
_READINGS = sized(9, 1)
_RUN_TIME, _RUN_COUNT = 192, 200  # struct bpf_prog_info


def returning(value: int) -> int:
    """Load a program that only returns a value; return its descriptor."""
    code = struct.pack("<BBhi", _MOVE, 0, 0, value) + struct.pack("<BBhi", _EXIT, 0, 0, 0)
    return syscall.load_program(syscall.PROG_SCHED_CLS, code, "empty")


def figures() -> Iterator[Figure]:
    """Measure all figures."""
    yield from by_test_run()
    yield from curve()
    yield from _reading()


def by_test_run() -> Iterator[Figure]:
    """Measure nanoseconds per packet of known flows, and of an empty program."""
    host = ThrowawayHost()
    try:
        host.run("ip link add up0 type veth peer name far")
        host.run("ip link set up0 up")
        host.run("ip link set far up")
        with entered(named(host.name)), one_cpu(CPU):
            rig = Rig(host)
            yield from _costs(rig)
            rig.close()
    finally:
        host.close()


def _costs(rig: Rig) -> Iterator[Figure]:
    """Measure the costs of each kind of flow.

    Rewriting leaves the packet's tuple as it is, because a test run gives the program its own output again.
    """
    rewrites = {
        "same bridge": (0, "<= 65 ns"),
        "routed": (layout.REWRITE_L3, "(report)"),
        "SNAT": (layout.REWRITE_L3 | layout.REWRITE_ADDRESS, "<= 110 ns"),
        "SNAT with another port": (
            layout.REWRITE_L3 | layout.REWRITE_ADDRESS | layout.REWRITE_PORT, "(report)",
        ),
    }  # fmt: skip
    empty = returning(0)
    yield Figure(
        "program, empty",
        "about 28 ns",
        _cost(empty, plain("udp", 4), rig),
        f"median of {_TEST_RUNS} test runs",
    )
    for family in (4, 6):
        for l4 in ("udp", "tcp"):
            for name, (rewrite, target) in rewrites.items():
                packet = plain(l4, family, hops=255)
                rig.flow(packet, "up0", rewrite=rewrite)
                what = f"program, {name}, {l4.upper()} over IPv{family}"
                cost = _cost(rig.loaded.program, packet, rig)
                yield Figure(what, target if family == 4 else "(report)", cost, "the same")
    os.close(empty)


def _cost(program: int, packet: Packet, rig: Rig) -> str:
    context = bytearray(192)
    struct.pack_into("=I", context, 40, rig.links["up0"])
    took = [syscall.test_run(program, bytes(packet), 200, bytes(context)).duration for _ in range(_TEST_RUNS)]
    return f"{statistics.median(took):.0f} ns (minimum {min(took)})"


def curve() -> Iterator[Figure]:
    """Measure the cost of packets of very many flows on a real link.

    The kernel counts it.
    """
    host = ThrowawayHost()
    try:
        far = host.namespace("far")
        host.run(f"ip link add up0 type veth peer name far netns {far}")
        host.run("ip link add out0 type veth peer name sink")  # down: frames sent there are dropped
        host.run("ip link set up0 up")
        host.run("ip link set far up", inside="far")
        with entered(named(host.name)):
            costs = {flows: _cost_with(host, flows) for flows in _CURVE}
    finally:
        host.close()
    for flows, (program, empty) in costs.items():
        target = "<= 2 x of 1,000" if flows == 100_000 else "(report)"
        ratio = (program - empty) / max(costs[1000][0] - costs[1000][1], 1)
        measured = f"{program - empty:.0f} ns, {ratio:.2f} x of 1,000"
        how = f"random flows, {_FRAMES} UDP packets; bpf_stats, less an empty program's {empty:.0f} ns"
        yield Figure(f"program, {flows:,} flows in the cache", target, measured, how)


def _reading() -> Iterator[Figure]:
    """Measure reading all counters into the columns of the flow view."""
    for flows, target in sized(((65_536, "<= 30 ms"), (1_000_000, "<= 0.5 s")), ((65_536, "<= 30 ms"),)):
        host = ThrowawayHost()
        try:
            with entered(named(host.name)):
                rig = Rig(host, flows=flows * 5 // 4)
                rig.links |= {"up0": 1, "out0": 1}
                _fill(rig, flows)
                times = sorted(_read_once(rig) for _ in range(_READINGS))
                rig.close()
        finally:
            host.close()
        yield Figure(
            f"read {flows:,} flow counters into columns",
            target,
            f"{times[0] * 1e3:.0f} ms",
            f"minimum of {len(times)}; median {times[len(times) // 2] * 1e3:.0f} ms",
        )


def _read_once(rig: Rig) -> float:
    there = rig.loaded.maps["flows4"]
    began = time.perf_counter()
    keys, flows = syscall.read_all(there, layout.KEY4, layout.FLOW, syscall.max_entries(there))
    columns = fast_flows(keys, flows, 4, rig.clock.now(), rig.clock.hz)
    took = time.perf_counter() - began
    assert len(columns) > 60_000
    return took


def _cost_with(host: ThrowawayHost, flows: int) -> tuple[float, float]:
    """Measure nanoseconds a packet, also with an empty program in front."""
    rig = Rig(host, flows=max(flows * 5 // 4, 1024))
    keys = _fill(rig, flows)
    empty = returning(-1)
    links = [syscall.attach_tcx(each, rig.links["up0"]) for each in (empty, rig.loaded.program)]
    switch = syscall.enable_run_stats()
    try:
        with entered(named(host.full("far"))), one_cpu(CPU):
            _send_any(keys, _FRAMES)
        assert rig.counted()[FAST.number] >= _FRAMES
        return _average(rig.loaded.program), _average(empty)
    finally:
        for descriptor in (*links, switch, empty):
            os.close(descriptor)
        rig.close()


def _average(program: int) -> float:
    took, count = struct.unpack_from("=QQ", syscall.object_info(program, _RUN_COUNT + 8), _RUN_TIME)
    assert count >= _FRAMES, count
    return float(took / count)


def _fill(rig: Rig, flows: int) -> np.ndarray:
    """Add that many flows to the cache; return their keys."""
    packet = plain("udp", 4)
    rig.flow(packet, "up0", rewrite=layout.REWRITE_L3, out_ifindex=rig.links["out0"])
    raw = syscall.lookup(rig.loaded.maps["flows4"], flow_key(packet).tobytes(), layout.FLOW.itemsize)
    assert raw is not None
    keys = np.repeat(flow_key(packet), flows)
    numbers = np.arange(flows, dtype=np.uint32)
    keys["sport"], keys["dport"] = 1024 + numbers % 50_000, 1024 + numbers // 50_000
    values = np.repeat(np.frombuffer(raw, layout.FLOW), flows)
    values["tag"] = tag_of(keys)
    write_all(rig.loaded.maps["flows4"], keys, values)
    return keys


def _send_any(keys: np.ndarray, count: int) -> None:
    """Send frames of random flows into the far end of the link.

    They are built in the send buffer.
    """
    frame = np.frombuffer(bytes(plain("udp", 4, b"x" * 22)), np.uint8)
    batch = Batch(len(frame))
    frames = np.frombuffer(batch.buffer, np.uint8).reshape(-1, len(frame))
    frames[:] = frame
    ports = np.stack([keys["sport"], keys["dport"]], axis=1).astype(">u2").view(np.uint8)
    chosen = np.random.default_rng(1)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as here:
        here.bind(("far", 0))
        while count > 0:
            frames[:, 34:38] = ports[chosen.integers(0, len(keys), len(frames))]
            count -= batch.send(here.fileno())
