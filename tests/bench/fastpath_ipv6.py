"""Measure bulk TCP over IPv6 with BIG TCP, with and without the fast path."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from tests.bench.cpu_time import bits
from tests.bench.fastpath_alternating import SECONDS, alternate, gain
from tests.bench.fastpath_lab import Case, named
from tests.bench.report import Figure
from tests.bench.size import sized
from tests.kernel.fastlab import BRIDGES, V6, FastLab

_BIG, _USUAL = 150_000, 65536  # bytes of a frame
_BYTES = SECONDS << sized(31, 27)


def figures() -> Iterator[Figure]:
    """Measure with and without BIG TCP, and with and without the fast path."""
    with FastLab() as lab:
        case = Case("IPv6", *(named(lab.host.full(name)) for name in ("a", "b")), V6["b"])

        def measure() -> float:
            return bits(case, _BYTES) / 1e6

        _accelerate(lab)
        usual, big = alternate(
            lambda: _allow_frames_of(lab, _USUAL), lambda: _allow_frames_of(lab, _BIG), measure
        )
        yield _figure("with / without BIG TCP, fast path", ">= 1.5 x", usual, big)
        kernel, fast = alternate(lab.end_fast, lambda: _accelerate(lab), measure)
        yield _figure("fast path / kernel's path, BIG TCP", ">= 1.0 x", kernel, fast)


def _figure(what: str, target: str, before: list[float], after: list[float]) -> Figure:
    measured = f"{gain(after, before)}; {median(before):,.0f} / {median(after):,.0f}"
    return Figure(
        f"bulk TCP over IPv6, same bridge: {what}", target, measured, "Mbit a CPU second of both ends"
    )


def _accelerate(lab: FastLab) -> None:
    if lab.fast is None:
        lab.accelerate()


def _allow_frames_of(lab: FastLab, size: int) -> None:
    """Set how large frames may be on the links of the two containers."""
    links = [("host", name) for name in (BRIDGES["a"], "v-a", "v-b")] + [("a", "eth0"), ("b", "eth0")]
    for place, link in links:
        lab.run(f"ip link set {link} gso_max_size {size} gro_max_size {size}", place)
