"""Format the figures of benchmarks: target and result on one line."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured figure: name, target, result, and method."""

    name: str
    target: str
    result: str
    method: str = ""


@dataclass(frozen=True)
class PairedRatio:
    """Ratios of two alternating measurements: a program under test, and a reference.

    Median, minimum and maximum ratio, the median times (s), and the minimum times, which other load on the
    machine affects least.
    """

    median: float
    minimum: float
    maximum: float
    seconds: float
    reference: float
    minima: tuple[float, float]

    def with_minima(self) -> str:
        """Format the same with the minimum times."""
        seconds, reference = self.minima
        ratio = f"{seconds / reference:.2f} x; {seconds * 1000:.0f} ms against {reference * 1000:.0f} ms"
        return f"{self}; minimum of each {ratio}"

    def __str__(self) -> str:
        return (
            f"{self.median:.2f} x ({self.minimum:.2f} to {self.maximum:.2f}); "
            f"{self.seconds * 1000:.0f} ms against {self.reference * 1000:.0f} ms"
        )


def paired(measure: Callable[[], float], reference: Callable[[], float], repetitions: int = 7) -> PairedRatio:
    """Measure both alternately; each callable returns its seconds."""
    pairs = []
    for repetition in range(repetitions):
        if repetition % 2:
            pairs.append((measure(), reference()))
        else:
            other = reference()
            pairs.append((measure(), other))
    ratios = [seconds / other for seconds, other in pairs]
    return PairedRatio(
        statistics.median(ratios), min(ratios), max(ratios),
        statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs),
        (min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)),
    )  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def table(figures: Sequence[Figure]) -> str:
    """Format the figures as a Markdown table."""
    lines = ["| measurement | target | result | method |", "| --- | --- | --- | --- |"]
    lines += [f"| {f.name} | {f.target} | {f.result} | {f.method} |" for f in figures]
    return "\n".join(lines)
