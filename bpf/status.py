"""The status answer: what is accelerated, and what the program counted."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from bpf import layout, syscall
from bpf.tables import Tables, possible_cpus
from bpf.verdicts import VERDICTS

if TYPE_CHECKING:
    from bpf.holder import Holder


def status(holder: Holder) -> dict[str, Any]:
    """See docs/fast-path.md for each field."""
    maps = holder.loaded.maps
    tables = holder.tables
    return {
        "ok": True,
        "pid": os.getpid(),
        "targets": holder.targets,
        "generation": int(tables.config["generation"]),
        "epoch": int(tables.config["epoch"]),
        "paused": holder.reasons,
        "refused": holder.refused,
        "program": syscall.id_of(holder.attachments.program),
        "maps": {name: syscall.id_of(descriptor) for name, descriptor in maps.items()},
        "ports": [
            {
                "ifindex": port.ifindex,
                "name": port.name,
                "flags": port.flags,
                "verdicts": verdicts(maps["counters"], tables.slots.get(port.ifindex, 0)),
            }
            for port in tables.ports.values()
        ],
    }


def verdicts(counters: int, slot: int) -> dict[str, int]:
    """The packets of one row by verdict, without the zeros."""
    size = layout.SLOT_COUNTERS.itemsize * possible_cpus()
    found = syscall.lookup(counters, struct.pack("=I", slot), size) or bytes(size)
    sums = np.frombuffer(found, np.uint64).reshape(-1, layout.COUNTERS).sum(axis=0)
    return {verdict.name: int(sums[verdict.number]) for verdict in VERDICTS if sums[verdict.number]}


__all__ = ["Tables", "status", "verdicts"]
