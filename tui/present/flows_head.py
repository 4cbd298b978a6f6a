"""What the flows view says about the whole: how it counts, how much there is, who calls, what is not
counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.text import safe
from core.topology import Topology
from core.topology.flow_index import CLIENTS, FlowPicture
from tui.present import units
from tui.present.lens import Lens
from tui.present.rows import Cell

_PINNED = ", pinned first"
_WORDS = {"beside": "same network"}
_ORDER = ("outside", "host", "beside", "other network", "itself")


def head_of(topology: Topology, picture: FlowPicture, lens: Lens, order: np.ndarray) -> Sequence[Cell]:
    """Lines that stand above the columns."""
    if not len(picture):
        return ()
    lines = [Cell(_summary(picture, lens, order), "dim")]
    uncounted = picture.table.uncounted
    if uncounted:
        names = ", ".join(safe(topology.label(ns)) for ns in uncounted[:3])
        more = f" and {len(uncounted) - 3} more" if len(uncounted) > 3 else ""
        lines.append(Cell(f"traffic not counted (W, then A, turns it on): {names}{more}", "warn"))
    return lines


def _summary(picture: FlowPicture, lens: Lens, order: np.ndarray) -> str:
    count = f"{len(order):,} flow{'s' * (len(order) != 1)}"
    how = " per hop" if lens.per_hop else ", each once"
    words = [f"{count}{how}{_PINNED if lens.pins else ''}"]
    if picture.table.measured:
        words.append(units.bits(float(np.nansum(picture.table.bits[order]))))
    kinds = np.bincount(picture.index.client[order], minlength=len(CLIENTS)).tolist()
    counts = {name: kinds[CLIENTS.index(name)] for name in _ORDER}
    called = [f"{_WORDS.get(name, name)} {count:,}" for name, count in counts.items() if count]
    words += [f"into containers: {', '.join(called)}"] if called else []
    return " · ".join(words)
