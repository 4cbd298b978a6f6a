"""Measure the fast path against Docker: traffic, NIC frames, start, cost, churn."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

from tests.bench import (
    fastpath_churn,
    fastpath_cost,
    fastpath_frames,
    fastpath_ipv6,
    fastpath_start,
    fastpath_traffic,
    fastpath_untracked,
)
from tests.bench.fastpath_lab import lab_and_fast_path
from tests.bench.report import Figure


def run() -> list[Figure]:
    """Measure all figures, and print each on standard error, because it takes long.

    VNET_BENCH_SECONDS and VNET_BENCH_REPETITIONS set how long each measurement takes and how often it is
    repeated.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the lab is removed
    found = []
    for figure in _figures():
        print(f"{figure.name}: {figure.result}", file=sys.stderr, flush=True)
        found.append(figure)
    return found


def _figures() -> Iterator[Figure]:
    yield from fastpath_cost.figures()
    with lab_and_fast_path() as (lab, fast):
        floods = fastpath_traffic.Floods(lab)
        yield from fastpath_traffic.figures(lab, fast, floods)
        yield from fastpath_frames.figures(lab, fast, floods)
        yield from fastpath_untracked.figures(lab, fast)
        yield from fastpath_start.figures(lab, fast)
    yield from fastpath_churn.figures()
    yield from fastpath_ipv6.figures()
