"""Start host and processes of the long run, take samples, compare and report."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.soak.comparison import differences
from tests.soak.host import SMALL, Sizes, activity, build
from tests.soak.samples import Sample, course, growth, links_of_gone, sample, thirds
from tests.support.bulk_conntrack import room_for_entries
from tests.support.machine import PROGRAM, ROOT, Machine, ok
from tests.support.terminal import Terminal
from tests.support.waiting import PATIENCE, eventually, repeating, wait_until

_SECONDS = 600.0
_SAMPLES = 90
_LEAST_WARM, _WARM = 10.0, 0.1  # seconds before the first sample, and as a share of the time
_PROCESSES: dict[str, Callable[[list[str]], bool]] = {
    "dashboard": lambda words: words[-1:] == ["tui.cli"],
    "agent": lambda words: words[-2:] == ["tui.cli", "agent"],
    "daemon": lambda words: "bpf.daemon" in words,
    "supervisor": lambda words: "bpf.supervisor" in words,
}
_KEPT = 1 << 16  # bytes of the terminal's output
_VIEWS = (
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "9",
    ":namespaces\r",
    ":routes\r",
    ":links\r",
    ":fastpath\r",
)


@dataclass
class Result:
    """Hold what was seen: samples by process, counts by kind, and what is wrong."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def report(self) -> str:
        """Return the table that is printed."""
        lines = [f"{'':12}{'memory MB':>16}{'threads':>10}{'descriptors':>13}{'maps':>9}{'programs':>10}"]
        for name, samples in self.samples.items():
            first, last = thirds(samples)
            lines.append(
                f"{name:12}{first.memory:8.1f} {last.memory:7.1f}{first.threads:5} {last.threads:4}"
                f"{first.descriptors:8} {last.descriptors:4}{first.maps:5} {last.maps:3}"
                f"{first.programs:6} {last.programs:3}"
            )
        lines += [
            f"memory of the {name}, in turn: {' '.join(f'{one:.0f}' for one in course(samples))}"
            for name, samples in self.samples.items()
        ]
        lines += [
            f"{what}: {done} ({done / self.seconds:.1f} a second)" for what, done in self.counts.items()
        ]
        return "\n".join([*lines, *(f"WRONG: {one}" for one in self.wrong)])


def run(seconds: float, sizes: Sizes, settled: bool = True) -> Result:
    """Run for that many seconds, and leave nothing behind."""
    machine = Machine(VNET_ENGINES="none")
    try:
        build(machine, sizes)
        ok(machine, "accelerate soak --yes")
        subprocess.Popen(machine.words(*PROGRAM, "agent"), stdout=subprocess.DEVNULL, env=machine.environment)
        words = machine.words("env", "-C", str(machine.folder), f"PYTHONPATH={ROOT}", *PROGRAM)
        with Terminal(words, **machine.environment) as terminal:
            terminal.wait_for("br-soak")
            processes = wait_until(lambda: _processes(machine), "the programs")
            with _drained(terminal):
                result = _run(machine, terminal, processes, seconds, sizes)
        for name, samples in result.samples.items():
            result.wrong += [f"{name}: {one}" for one in growth(samples, settled)]
        return result
    finally:
        machine.vnet("accelerate", "--off", "--yes")
        machine.close()


def _run(
    machine: Machine, terminal: Terminal, processes: dict[str, psutil.Process], seconds: float, sizes: Sizes
) -> Result:
    """Take samples for `seconds`, once every view was shown."""
    first = round(_SAMPLES * max(_WARM, _LEAST_WARM / seconds))
    result = Result(samples={name: [] for name in processes}, seconds=seconds * (1 + first / _SAMPLES))
    with activity(machine, sizes) as counts:
        began = time.monotonic()
        for number in range(-first, _SAMPLES):
            time.sleep(max(0.0, began + seconds * (first + number) / _SAMPLES - time.monotonic()))
            terminal.press(_VIEWS[number % len(_VIEWS)])
            for name, process in processes.items() if number >= 0 else ():
                try:
                    result.samples[name].append(sample(process))
                except (psutil.NoSuchProcess, FileNotFoundError):
                    result.wrong.append(f"{name} ended after {time.monotonic() - began:.0f} s")
                    return result
        result.counts = {name: count.done for name, count in counts.items()}
        result.wrong += [f"{name}: {count.error}" for name, count in counts.items() if count.error]
    daemon = processes["daemon"]
    if not eventually(lambda: not links_of_gone(daemon), seconds=PATIENCE):
        result.wrong.append(f"daemon: {links_of_gone(daemon)} links of BPF to interfaces that are gone")
    differing: list[str] = []

    def agrees() -> bool:
        differing[:] = differences(machine, terminal, machine.folder)
        return not differing

    try:
        if not eventually(agrees, seconds=10 * PATIENCE, pause=2.0):
            result.wrong += [f"the dashboard differs: {one}" for one in differing[:10]]
    except AssertionError as error:
        result.wrong.append(f"the dashboard: {error}")
    return result


def _processes(machine: Machine) -> dict[str, psutil.Process]:
    """Return our processes on the machine; {} until all have started."""
    found = {}
    space = Path(machine.namespaces[1]).stat().st_ino
    for process in psutil.process_iter():
        try:
            words, there = process.cmdline(), Path(f"/proc/{process.pid}/ns/pid").stat().st_ino
        except (OSError, psutil.NoSuchProcess):
            continue
        for name, is_it in _PROCESSES.items() if there == space else ():
            if is_it(words):
                found[name] = process
    return found if len(found) == len(_PROCESSES) else {}


@contextmanager
def _drained(terminal: Terminal) -> Iterator[None]:
    """Read the dashboard's output so that it never blocks; keep the end."""

    def drain() -> None:
        terminal.read(0.2)
        terminal.output = terminal.output[-_KEPT:]

    with repeating(drain):
        yield


def main() -> int:
    """Run as the command line says, and print the report."""
    given = [float(word) for word in sys.argv[1:] if not word.startswith("-")]
    sizes = SMALL if "--small" in sys.argv else Sizes()
    with room_for_entries(2 * sizes.connections):
        result = run(given[0] if given else _SECONDS, sizes)
    print(result.report())
    return bool(result.wrong)


if __name__ == "__main__":
    sys.exit(main())
