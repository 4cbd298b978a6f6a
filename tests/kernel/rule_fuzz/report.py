"""Run many cases on a few hosts at the same time, and report the results."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from tests.kernel.rule_fuzz.cases import Case, cases
from tests.kernel.rule_fuzz.compare import Outcome, run
from tests.kernel.rule_fuzz.hosts import HostPair

_TOO_MANY = 5  # differences after which it ends
_CONTROLS = 3  # runs without the fast path, after a difference


_LEFT_OUT = ("lacking", "unsteady", "once")


@dataclass
class Report:
    """Hold the results of the cases of a seed."""

    seed: int
    outcomes: list[Outcome] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Outcome]:
        """Return the outcomes of these kinds."""
        return [each for each in self.outcomes if each.kind in kinds]

    @property
    def different(self) -> list[Outcome]:
        """Return the cases in which the fast path differed from the kernel."""
        return self.of("different")

    @property
    def compared(self) -> int:
        """Return how many cases were compared to their end, or to a difference."""
        return len(self.of("same", "different"))

    @property
    def fast_share(self) -> float:
        """Return the fast share of all packets that arrived before the change."""
        shares = [each.share for each in self.of("same", "different")]
        return sum(shares) / len(shares) if shares else 0.0

    def __str__(self) -> str:
        refused = Counter(each for outcome in self.outcomes for each in outcome.refused)
        slowest = sorted(self.of("same"), key=lambda each: -each.took)[:3]
        return "\n".join((
            f"seed {self.seed}: {self.compared} cases compared, {len(self.different)} different, "
            f"{self.fast_share:.0%} of their packets were fast before the first change",
            *(f"not in this kernel: {each}" for each in refused),
            *(f"left out, the kernel is not steady: {each.case.name}" for each in self.of("unsteady")),
            *(f"left out, different once and not on new hosts: {each.case.name}" for each in self.of("once")),
            *(f"equal only after {each.took:.1f} s: {each.case.number} {each.case.name}" for each in slowest),
        ))  # fmt: skip


def fuzz(
    seed: int,
    count: int,
    only: int = 0,
    places: int = 2,
    progress: Callable[[Outcome], None] = lambda _: None,
    repeat: bool = False,
) -> Report:
    """Compare that many cases (or the one with the number `only`), several at a time.

    With `repeat` a difference counts only if new hosts show one as well: on a loaded machine the kernel alone
    differs by chance, more often than the controls find. `make fuzz-rules` reports every difference.
    """
    report = Report(seed)
    queue = _Queue(report, count, only)
    with ThreadPoolExecutor(places) as pool:
        work = partial(_work, queue, progress, repeat)
        for done in [pool.submit(work) for _ in range(places if not only else 1)]:
            done.result()
    report.outcomes.sort(key=lambda each: each.case.number)
    return report


class _Queue:
    """Hand out cases until enough of them were compared."""

    def __init__(self, report: Report, count: int, only: int) -> None:
        self._report, self._count, self._only = report, count, only
        self._cases: Iterator[Case] = cases(report.seed)
        self._lock = threading.Lock()
        self._begun = 0

    def next(self) -> Case | None:
        with self._lock:
            left_out = len(self._report.of(*_LEFT_OUT))
            is_enough = self._begun - left_out >= self._count or len(self._report.different) >= _TOO_MANY
            if is_enough or (self._only and self._begun):
                return None
            case = next(each for each in self._cases if self._only in (0, each.number))
            self._begun += 1
            return case

    def note(self, outcome: Outcome) -> None:
        with self._lock:
            self._report.outcomes.append(outcome)


def _kind_of(case: Case, found: Outcome, repeat: bool) -> str:
    """Classify a difference: "once", "unsteady" or "different".

    It is "once" if it should show on new hosts and doesn't, "unsteady" if the kernel alone gives different
    results at that point of the case.
    """
    if repeat and _on_new_hosts(case).kind != "different":
        return "once"
    for _ in range(_CONTROLS):
        control = _on_new_hosts(case, is_control=True)
        if control.kind == "different" and control.phase == found.phase:
            return "unsteady"
    return "different"


def _on_new_hosts(case: Case, is_control: bool = False) -> Outcome:
    pair = HostPair(is_control)
    try:
        return run(pair, case)
    finally:
        pair.close()


def _work(queue: _Queue, progress: Callable[[Outcome], None], repeat: bool) -> None:
    pair: HostPair | None = None
    try:
        while case := queue.next():
            pair = pair or HostPair()
            outcome = run(pair, case)
            differs = outcome.kind == "different"
            if differs:
                outcome.kind = _kind_of(case, outcome, repeat)
            queue.note(outcome)
            progress(outcome)
            # After a difference, and if something was not restored, continue with new hosts.
            if differs or pair.left():
                pair.close()
                pair = None
    finally:
        if pair:
            pair.close()
