"""The fast path against Docker's default: traffic, the program's own cost, starting it, and the memory it takes."""

from __future__ import annotations

from tests.bench import fastpath_cost, fastpath_memory, fastpath_traffic
from tests.bench.fastpath_lab import lab_and_fast_path
from tests.bench.report import Figure


def run() -> list[Figure]:
    """All figures; VNET_BENCH_SECONDS and VNET_BENCH_REPETITIONS set how long each measurement takes and how
    often it is repeated."""
    with lab_and_fast_path() as (lab, fast):
        floods = fastpath_traffic.Floods(lab)
        figures = [
            *fastpath_traffic.figures(lab, fast, floods),
            *fastpath_cost.live_frames(lab, fast, floods),
            *fastpath_cost.starting(lab, fast),
            *fastpath_memory.figures(lab, fast),
        ]
    return [*figures, *fastpath_cost.by_test_run(), *fastpath_cost.curve()]
