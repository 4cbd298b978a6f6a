"""Format the figures of benchmarks: goal and measurement on one line."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured figure: name, goal, measurement, and method."""

    what: str
    to_reach: str
    measured: str
    how: str = ""


@dataclass(frozen=True)
class PairedRatio:
    """Ratios of two measurements in turns.

    Their median, least and greatest, the median times (s), and the least times, which other work on the
    machine disturbs least.
    """

    median: float
    least: float
    greatest: float
    ours: float
    theirs: float
    fastest: tuple[float, float]

    def with_fastest(self) -> str:
        """Format the same with the least times."""
        ours, theirs = self.fastest
        least = f"{ours / theirs:.2f} x; {ours * 1000:.0f} ms against {theirs * 1000:.0f} ms"
        return f"{self}; the fastest of each {least}"

    def __str__(self) -> str:
        return (
            f"{self.median:.2f} x ({self.least:.2f} to {self.greatest:.2f}); "
            f"{self.ours * 1000:.0f} ms against {self.theirs * 1000:.0f} ms"
        )


def paired(ours: Callable[[], float], theirs: Callable[[], float], repetitions: int = 7) -> PairedRatio:
    """Time both in turns, in alternating order; each callable returns its seconds."""
    pairs = []
    for repetition in range(repetitions):
        if repetition % 2:
            pairs.append((ours(), theirs()))
        else:
            other = theirs()
            pairs.append((ours(), other))
    ratios = [ours_s / theirs_s for ours_s, theirs_s in pairs]
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
    lines = ["| what | to reach | measured | how |", "| --- | --- | --- | --- |"]
    lines += [f"| {f.what} | {f.to_reach} | {f.measured} | {f.how} |" for f in figures]
    return "\n".join(lines)
