"""How long an event loop stood still through its own program's fault, not the machine's."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

_BEAT = 0.01  # seconds


class Heartbeat:
    """Beats in the running event loop. A gap between two beats counts without the time in which threads of
    this process waited for a core (/proc/PID/task/TID/schedstat), for then others had it."""

    def __init__(self) -> None:
        self.beats = 0
        self.worst = 0.0  # seconds, of the loop standing still
        self.longest = 0.0  # seconds, whoever's fault
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to beat, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._beat())

    def stop(self) -> None:
        """Beat no more."""
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
    """Seconds in which this process's threads were ready and had no core, since they began, all together."""
    nanoseconds = 0
    for task in os.listdir("/proc/self/task"):
        try:
            nanoseconds += int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[1])
        except (OSError, IndexError):  # the thread ended, or the kernel keeps no such times
            continue
    return nanoseconds / 1e9
