"""Read the kernel's jiffies, the clock of the fast path.

For the program reading them costs nothing. Here a program of two instructions returns them. Their number
per second (CONFIG_HZ) is measured once.
"""

from __future__ import annotations

import os
import struct
import time
from typing import Any

import numpy as np

from bpf import syscall

_HZ = (100, 250, 300, 1000)
_MEASURED_FOR = 0.12  # seconds: enough to distinguish 250 from 300
_READINGS = 5
_FRAME = bytes(64)
_FUTURE = 0xFFF00000


class Clock:
    """Read jiffies; `hz` is their number per second.

    Raises OSError if no program can be loaded.
    """

    def __init__(self) -> None:
        self._low = _load(0)
        self._high = _load(32)
        self.hz = self._measured_hz()

    def now(self) -> int:
        """Return the jiffies, as a 64-bit number."""
        while True:
            high = self._run(self._high)
            low = self._run(self._low)
            if high == self._run(self._high):
                return high << 32 | low

    def close(self) -> None:
        """Close the programs."""
        os.close(self._low)
        os.close(self._high)

    def _run(self, program: int) -> int:
        return syscall.test_run(program, _FRAME).result

    def _measured_hz(self) -> int:
        began, first = self._moment()
        time.sleep(_MEASURED_FOR)
        ended, last = self._moment()
        rate = (last - first) / (ended - began)
        return min(_HZ, key=lambda hz: abs(hz - rate))

    def _moment(self) -> tuple[float, int]:
        """Return the same moment in seconds and in jiffies.

        Of several readings the fastest counts: on a busy machine another process may run in the middle of
        one.
        """
        readings = []
        for _ in range(_READINGS):
            began = time.monotonic()
            jiffies = self.now()
            readings.append((time.monotonic() - began, began, jiffies))
        _, began, jiffies = min(readings)
        return began, jiffies


def jiffies_ago(then: Any, now: int) -> Any:
    """Return the age in jiffies of moments stored as their low 32 bits.

    One uint32 or a column; ages up to 49 days at 1000 Hz. What was written after `now` was read has age 0.
    """
    ago = np.uint32(now & 0xFFFFFFFF) - then
    return np.where(ago > _FUTURE, np.uint32(0), ago)


def _load(shift: int) -> int:
    """Load a program that returns jiffies64() >> shift."""
    code = struct.pack("<BBhi", 0x85, 0, 0, 118)
    if shift:
        code += struct.pack("<BBhi", 0x77, 0, 0, shift)
    return syscall.load_program(
        syscall.PROG_SCHED_CLS, code + struct.pack("<BBhi", 0x95, 0, 0, 0), "vnet_clock"
    )
