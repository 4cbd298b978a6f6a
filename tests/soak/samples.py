"""What processes take over time, and whether that grows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median

import psutil

_MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one process at a moment: memory in MB, threads, descriptors, and which of these are BPF's."""

    memory: float
    threads: int
    descriptors: int
    maps: int
    programs: int


# What each may grow by from the first third to the last: of memory a share, and MB; else so many.
_SHARE, _ROOM = 0.10, 8.0
_SLACK = {"threads": 1, "descriptors": 4, "maps": 0, "programs": 0}


def sample(process: psutil.Process) -> Sample:
    """Measure a process. Raises psutil.NoSuchProcess."""
    kinds = Counter(_descriptors(process.pid))
    maps, programs = kinds["anon_inode:bpf-map"], kinds["anon_inode:bpf-prog"]
    memory = process.memory_info().rss / _MEGABYTE
    return Sample(memory, process.num_threads(), kinds.total(), maps, programs)


def _descriptors(pid: int) -> Iterator[str]:
    folder = Path(f"/proc/{pid}/fd")
    for name in os.listdir(folder):
        try:
            yield os.readlink(folder / name)
        except FileNotFoundError:
            continue  # it was closed meanwhile


def thirds(samples: Sequence[Sample]) -> tuple[Sample, Sample]:
    """The first and the last third in one sample each: the memory's median; the least threads and
    descriptors, for a tool that runs at the moment takes more; the most maps and programs, for some are there
    only while a view is in sight."""
    size = max(1, len(samples) // 3)
    return _of(samples[:size]), _of(samples[-size:])


def _of(samples: Sequence[Sample]) -> Sample:
    memory, threads, descriptors, maps, programs = zip(*map(astuple, samples), strict=True)
    return Sample(median(memory), min(threads), min(descriptors), max(maps), max(programs))


def growth(samples: Sequence[Sample], with_memory: bool = True) -> list[str]:
    """What has grown by more than it may, in words."""
    first, last = thirds(samples)
    grown = [
        f"{field.name} {getattr(first, field.name)} -> {getattr(last, field.name)}"
        for field in fields(Sample)
        if field.name in _SLACK
        and getattr(last, field.name) > getattr(first, field.name) + _SLACK[field.name]
    ]
    if with_memory and last.memory > first.memory * (1 + _SHARE) + _ROOM:
        grown.append(f"memory {first.memory:.1f} MB -> {last.memory:.1f} MB")
    return grown
