"""Measure the resources of processes over time, and whether they grow."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

import psutil

_MEGABYTE = 1 << 20
_LINK = "anon_inode:bpf_link"


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment: memory (MB), threads, descriptors, BPF objects.

    BPF links are left out: between two checks by the daemon they include those of removed containers.
    """

    memory: float
    threads: int
    descriptors: int
    maps: int
    programs: int


# Permitted growth from the second third to the last: a share of memory and MB; a number of the others.
_SHARE, _ROOM = 0.10, 8.0
_UNSETTLED = 4  # a factor
_SLACK = {"threads": 1, "descriptors": 4, "maps": 0, "programs": 0}


def sample(process: psutil.Process) -> Sample:
    """Measure a process. Raises psutil.NoSuchProcess."""
    kinds = _kinds(process)
    maps, programs = kinds["anon_inode:bpf-map"], kinds["anon_inode:bpf-prog"]
    memory = process.memory_info().rss / _MEGABYTE
    return Sample(memory, process.num_threads(), kinds.total() - kinds[_LINK], maps, programs)


def links_of_gone(process: psutil.Process) -> int:
    """Return how many BPF links of the process have an interface that is gone."""
    folder, found = Path(f"/proc/{process.pid}"), 0
    for descriptor in os.listdir(folder / "fd"):
        try:
            if os.readlink(folder / "fd" / descriptor) == _LINK:
                found += "ifindex:\t0\n" in (folder / "fdinfo" / descriptor).read_text()
        except FileNotFoundError:
            continue  # it was closed meanwhile
    return found


def _kinds(process: psutil.Process) -> Counter[str]:
    return Counter(_descriptors(process.pid))


def _descriptors(pid: int) -> Iterator[str]:
    folder = Path(f"/proc/{pid}/fd")
    for name in os.listdir(folder):
        try:
            yield os.readlink(folder / name)
        except FileNotFoundError:
            continue  # it was closed meanwhile


def course(samples: Sequence[Sample], points: int = 20) -> list[float]:
    """Return the median memory of each of so many equal periods."""
    size = max(1, -(-len(samples) // points))
    return [median(one.memory for one in samples[at : at + size]) for at in range(0, len(samples), size)]


def thirds(samples: Sequence[Sample]) -> tuple[Sample, Sample]:
    """Return the second and the last third of samples as one sample each.

    Memory is the median. Threads and descriptors are the minimum, because a tool may be running. Maps and
    programs are the maximum, because some exist only while a view is shown. Bounded buffers fill during the
    first third: the rings of the curves, 300 slots of a second each, have written to every page after about
    200 s.
    """
    size = max(1, len(samples) // 3)
    return _of(samples[-2 * size : -size]), _of(samples[-size:])


def _of(samples: Sequence[Sample]) -> Sample:
    memory, threads, descriptors, maps, programs = zip(*map(astuple, samples), strict=True)
    return Sample(median(memory), min(threads), min(descriptors), max(maps), max(programs))


def growth(samples: Sequence[Sample], settled: bool = True) -> list[str]:
    """Return as text which values have grown by more than they may.

    In processes that have run for seconds only, memory still grows, and threads and descriptors may a little.
    """
    first, last = thirds(samples)
    times = 1 if settled else _UNSETTLED
    grown = [
        f"{name} {getattr(first, name)} -> {getattr(last, name)}"
        for name, slack in _SLACK.items()
        if getattr(last, name) > getattr(first, name) + slack * times
    ]
    if settled and last.memory > first.memory * (1 + _SHARE) + _ROOM:
        grown.append(f"memory {first.memory:.1f} MB -> {last.memory:.1f} MB")
    return grown
