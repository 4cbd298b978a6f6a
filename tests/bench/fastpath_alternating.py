"""Measure Docker's default, the fast path and the limit alternately."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.bench.fastpath_lab import FastPath
from tests.bench.size import sized

SECONDS = int(os.environ.get("VNET_BENCH_SECONDS", sized("2", "1")))  # netperf takes whole seconds
REPETITIONS = int(os.environ.get("VNET_BENCH_REPETITIONS", sized("5", "1")))

Measure = Callable[[], float]


@dataclass
class Results:
    """Results of all repetitions: Docker, fast path, limit, and the fast share."""

    kernel: list[float] = field(default_factory=list)
    fast: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def as_text(self, is_time: bool = False) -> str:
        """Format gain, share of the limit, and medians; `is_time`: less is better."""
        words = gain(self.kernel, self.fast) if is_time else gain(self.fast, self.kernel)
        if self.limit:
            pairs = zip(self.fast, self.limit, strict=True)
            words += f", {statistics.median(one / other for one, other in pairs):.2f} of the limit"
        measured = [each for each in (self.kernel, self.fast, self.limit) if each]
        return f"{words}; " + " / ".join(f"{statistics.median(each):,.0f}" for each in measured)


def gain(results: Sequence[float], reference: Sequence[float]) -> str:
    """Return the median, minimum and maximum of the repetitions' ratios."""
    ratios = sorted(one / other for one, other in zip(results, reference, strict=True))
    return f"{statistics.median(ratios):.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def alternate(
    before: Callable[[], None], after: Callable[[], None], measure: Measure
) -> tuple[list[float], ...]:
    """Measure after each of the two repeatedly, in alternating order."""
    found: tuple[list[float], ...] = [], []
    for repetition in range(REPETITIONS):
        for which in (1, 0) if repetition % 2 else (0, 1):
            (before, after)[which]()
            found[which].append(measure())
    return found


def measure_paths(
    fast: FastPath, kernel: Measure, accelerated: Measure, limit: Measure | None = None
) -> Results:
    """Measure each repeatedly, in alternating order, the limit between the others."""
    found = Results()

    def once_accelerated() -> None:
        fast.on()
        try:
            found.fast.append(accelerated())
            found.shares.append(fast.share())
        finally:
            fast.off()

    def once_at_the_limit() -> None:
        if limit is not None:
            found.limit.append(limit())

    measurements = [lambda: found.kernel.append(kernel()), once_at_the_limit, once_accelerated]
    for repetition in range(REPETITIONS):
        for once in reversed(measurements) if repetition % 2 else measurements:
            fast.lab.forget()
            once()
    return found
