"""Run one case on both hosts, and compare what arrives."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace

from tests.kernel.rule_fuzz.cases import FAILED, Case, Step
from tests.kernel.rule_fuzz.hosts import HostPair
from tests.kernel.rule_fuzz.traffic import Facts

# Seconds after a change within which the fast path has to be like the kernel: most changes are noticed within
# milliseconds, some are polled every one to three seconds. The rest is for a busy machine.
GRACE = 10.0
_EVENT_DELAY = 0.05
_SETTLES = 0.25  # no comparison before that
_IN_A_ROW = 6  # rounds that have to be equal
_LOOSE_ROUNDS = 20
_WARMS = 1.5  # seconds to wait for connections to become fast
_PAUSE = 0.005
# Errors of a kernel or a tool that lacks such a feature.
LACKS = re.compile(
    r"Could not process rule: (No such file|Operation not supported|Not supported|Protocol|Address family)"
    r"|missing kernel module|RULE_\w+ failed \((No such file|Operation not supported|Invalid argument)"
    r"|No chain/target/match by that name|Couldn't load (match|target)|Can't find library|not found"
    r"|did you mean (table|chain)|Protocol wrong type|ipset|Warning: Extension|Function not implemented",
)


@dataclass(slots=True)
class Outcome:
    """Hold the result of a case, and how fast it was.

    The kind is "same", "different", "lacking" (this kernel has no such rule), "unsteady" (different, but so
    are two hosts without the fast path) or "once" (not on new hosts). `refused` is what the kernel did not
    accept, `share` the share of packets that were fast before the first change, `took` the most seconds until
    all was the same after one.
    """

    case: Case
    kind: str
    details: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    phase: str = ""
    share: float = 0.0
    took: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind} {self.phase}\n{self.case}\n--- found\n" + "\n".join(self.details[:20])


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")


class Broken(AssertionError):
    """Say that the generator wrote something that no tool accepts."""


def run(pair: HostPair, case: Case) -> Outcome:
    """Apply rules, open connections, make the changes, and undo everything."""
    outcome = Outcome(case, "same")
    undo: list[str] = []
    try:
        if _apply_setup(pair, case, outcome):
            time.sleep(case.takes)
            pair.begin(list(case.flows))
            outcome.share = _phase(pair, case, outcome, "before").share
            # If rules pause the fast path from the start, one change shows as much as several. Hosts without
            # it do them all: they show whether the kernel is steady where a difference was found.
            for step in case.steps if pair.status()["state"] in ("on", "off") else case.steps[:1]:
                undo = [step.back]
                if not _step(pair, case, step, outcome):
                    break
                undo = []
    finally:
        pair.run("\n".join((*undo, case.clean)))
    return outcome


def _step(pair: HostPair, case: Case, step: Step, outcome: Outcome) -> bool:
    """Do a change and undo it; return whether the fast path matched the kernel."""
    if step.before:
        pair.run(step.before)
        _phase(pair, case, outcome, f"before: {step.name}")
    if outcome.kind == "same" and _run_change(pair, step, outcome):
        _phase(pair, case, outcome, f"after: {step.name}", step)
    if outcome.kind == "same" and step.back:
        pair.run(step.back)
        _phase(pair, case, outcome, f"back from: {step.name}", replace(step, facts=Facts(), takes=0.0))
    return outcome.kind == "same"


def _phase(pair: HostPair, case: Case, outcome: Outcome, name: str, step: Step | None = None) -> _Phase:
    """Compare packets for a while; differences go to `outcome`."""
    # The kernel's decision on the first packets after a change may be permanent: send none until the fast
    # path knows of it.
    time.sleep(max(step.takes if step else 0, _EVENT_DELAY))
    phase = _Phase(pair, case, step.facts if step else Facts(), warms=step is None)
    is_loose = case.is_loose or (step is not None and step.loose)
    outcome.phase, outcome.details = name, phase.loose() if is_loose else phase.exact()
    outcome.took = max(outcome.took, phase.took)
    if outcome.details:
        outcome.kind = "different"
    return phase


def _apply_setup(pair: HostPair, case: Case, outcome: Outcome) -> bool:
    for code, output in pair.run(case.setup):
        if code and not LACKS.search(output):
            raise Broken(f"{output}\n{case}")
        if code:
            outcome.kind = "lacking"
            outcome.refused.append(f"{case.name}: {_first_line(output)}")
            return False
    return True


def _run_change(pair: HostPair, step: Step, outcome: Outcome) -> bool:
    """Run a change; a command that only one host refuses is a difference."""
    output = [text for _, text in pair.run(step.change)]
    failed = [FAILED in text for text in output]
    if failed[0] != failed[1]:
        outcome.kind, outcome.details = "different", output
    elif failed[0]:
        outcome.refused.append(f"{step.name}: {_first_line(output[0])}")
    return not failed[0] and not failed[1]


class _Phase:
    """Send rounds of packets between two changes."""

    def __init__(self, pair: HostPair, case: Case, facts: Facts, warms: bool) -> None:
        self._pair, self._case, self._facts = pair, case, facts
        self._warms = warms
        self._started = time.monotonic()
        self.share, self.took = 0.0, 0.0

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def exact(self) -> list[str]:
        """Send rounds until enough in a row were equal; return the final differences."""
        streak = 0
        while True:
            before = self._fast_packets()
            number = self._pair.round(self._facts, _PAUSE)
            numbers = range(number, number + 1)
            found = self._pair.differences(numbers, list(self._case.flows))
            self._note_share(before, self._pair.arrived(numbers))
            if found:
                self.took = self._elapsed
            streak = streak + 1 if self._may_judge() and not found else 0
            if streak >= _IN_A_ROW:
                return []
            if found and self._elapsed > GRACE:
                return [*found, f"{self._elapsed:.1f} s after the change", str(self._pair.status())]

    def loose(self) -> list[str]:
        """Compare all, some or none of many packets, where the kernel itself varies."""
        while True:
            before = self._fast_packets()
            numbers = [self._pair.round(self._facts, _PAUSE) for _ in range(_LOOSE_ROUNDS)]
            window = range(numbers[0], numbers[-1] + 1)
            self._pair.run("true")
            self._note_share(before, self._pair.arrived(window))
            found = self._classes_differ(window)
            if self._may_judge():
                if not found:
                    return []
                if self._elapsed > GRACE:
                    return [*found, f"{self._elapsed:.1f} s after the change", str(self._pair.status())]

    def _classes_differ(self, window: range) -> list[str]:
        kernel, fast = (place.traffic.arrivals for place in self._pair.places)
        found, totals = [], [0, 0]
        for flow in self._case.flows:
            for side in (0, 1):
                keys = [(flow.index, side, number) for number in window]
                counts = [sum(bool(arrivals.get(key)) for key in keys) for arrivals in (kernel, fast)]
                totals = [total + more for total, more in zip(totals, counts, strict=True)]
                if (counts[0] == len(keys)) != (counts[1] == len(keys)):
                    found.append(f"{flow}, side {side}: {counts[0]} of {len(keys)}; fast path: {counts[1]}")
        if bool(totals[0]) != bool(totals[1]):
            found.append(f"{totals[0]} packets in all; fast path: {totals[1]}")
        return found

    def _may_judge(self) -> bool:
        """Return whether the fast path had time to notice the change, and isn't changing."""
        if self._elapsed < _SETTLES:
            return False
        state = self._pair.status()["state"]
        if state == "changing":
            return self._elapsed > GRACE
        return not self._warms or state in ("paused", "off") or self.share > 0.95 or self._elapsed > _WARMS

    def _fast_packets(self) -> int:
        if not self._warms:
            return 0
        verdicts = self._pair.status()["verdicts"]
        assert isinstance(verdicts, dict)
        return int(verdicts.get("FAST", 0))

    def _note_share(self, before: int, arrived: int) -> None:
        if self._warms:
            self.share = (self._fast_packets() - before) / arrived if arrived else 0.0
