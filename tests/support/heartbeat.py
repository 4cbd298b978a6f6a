"""Measure how long an event loop stood still through its own program's fault."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

_BEAT = 0.01  # seconds


class Heartbeat:
    """Beat in the running event loop.

    A gap between two beats counts without the time in which threads of this process waited for a core
    (/proc/PID/task/TID/schedstat), because other processes had it then.
    """

    def __init__(self) -> None:
        self.beats = 0
        self.worst = 0.0  # seconds in which the loop stood still
        self.longest = 0.0  # seconds, including time without a core
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to beat on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._beat())

    def stop(self) -> None:
        """Stop beating."""
        if self._task:
            self._task.cancel()

    async def _beat(self) -> None:
        at, waited, worked = time.monotonic(), waiting(), time.thread_time()
        while True:
            await asyncio.sleep(_BEAT)
            before, waited_before, worked_before = at, waited, worked
            at, waited, worked = time.monotonic(), waiting(), time.thread_time()
            gap = at - before - _BEAT
            ours = max(worked - worked_before, gap - (waited - waited_before))
            self.beats += 1
            self.worst, self.longest = max(self.worst, min(gap, ours)), max(self.longest, gap)


def waiting() -> float:
    """Return the seconds in which this process's threads were ready but had no core."""
    nanoseconds = 0
    for task in os.listdir("/proc/self/task"):
        try:
            nanoseconds += int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[1])
        except (OSError, IndexError):  # the thread ended, or the kernel has no such file
            continue
    return nanoseconds / 1e9
