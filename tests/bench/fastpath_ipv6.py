"""Bulk TCP over IPv6 between two containers of a bridge, with BIG TCP: with the fast path and without."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from statistics import median

from tests.bench.fastpath_lab import CONTROL, Case, has_netperf, inside, named
from tests.bench.fastpath_traffic import netperf
from tests.bench.fastpath_turns import alternate, gain
from tests.bench.report import Figure
from tests.kernel.fastlab import BRIDGES, V6, FastLab

_BIG, _USUAL = 150_000, 65536  # bytes of a frame


def figures() -> Iterator[Figure]:
    """The fast path against the kernel, both with BIG TCP; BIG TCP against none, both with the fast path."""
    if not has_netperf():
        return
    with FastLab() as lab:
        case = Case("IPv6", *(named(lab.host.full(name)) for name in ("a", "b")), V6["b"])
        server = subprocess.Popen(
            inside(case.server, "netserver", "-6", "-D", "-p", str(CONTROL)), stdout=subprocess.DEVNULL
        )
        try:
            time.sleep(0.5)
            yield from _figures(lab, case)
        finally:
            server.kill()
            server.wait()


def _figures(lab: FastLab, case: Case) -> Iterator[Figure]:
    def measure() -> float:
        return netperf("TCP_STREAM", case)

    allow_frames_of(lab, _BIG)
    kernel, fast = alternate(lab.end_fast, lambda: _accelerate(lab), measure)
    yield _figure("", ">= 1.0 x", kernel, fast, "the kernel's path / the fast path, both with BIG TCP")
    _accelerate(lab)
    usual, big = alternate(
        lambda: allow_frames_of(lab, _USUAL), lambda: allow_frames_of(lab, _BIG), measure
    )  # fmt: skip
    yield _figure(", against none", ">= 1.5 x", usual, big, "the fast path without BIG TCP / with it")
    lab.end_fast()


def _figure(what: str, to_reach: str, before: list[float], after: list[float], how: str) -> Figure:
    measured = f"{gain(after, before)}; {median(before):,.0f} / {median(after):,.0f}"
    return Figure(
        f"TCP_STREAM over IPv6 with BIG TCP, same bridge{what}", to_reach, measured, f"Mbit/s; {how}"
    )


def _accelerate(lab: FastLab) -> None:
    if lab.fast is None:
        lab.accelerate()


def allow_frames_of(lab: FastLab, size: int) -> None:
    """How large frames may be on the links of the two containers."""
    links = [("host", name) for name in (BRIDGES["a"], "v-a", "v-b")] + [("a", "eth0"), ("b", "eth0")]
    for place, link in links:
        lab.run(f"ip link set {link} gso_max_size {size} gro_max_size {size}", place)
