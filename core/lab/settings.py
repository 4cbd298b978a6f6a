"""What a lab may be asked for, and how its supervisor tells its launcher that it is there."""

from __future__ import annotations

from dataclasses import dataclass

READY = "ready"  # the supervisor's last line; each line before it names a step


@dataclass(frozen=True, slots=True)
class LabSettings:
    """`traffic`: whether clients talk (servers always listen); `namespaces`: how many further, plain named
    namespaces to add, each with `lo` and an `eth0` whose other end lies on the lab's host; `changes`: after
    how many seconds, again and again, something harmless changes (0: never)."""

    traffic: bool = True
    namespaces: int = 0
    changes: float = 0.0
