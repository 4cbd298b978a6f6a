"""How much a benchmark does: all, or as little as shows that it still works (`make bench SIZE=tiny`)."""

from __future__ import annotations

import os

IS_TINY = os.environ.get("VNET_BENCH_SIZE") == "tiny"


def sized[T](whole: T, tiny: T) -> T:
    """What applies to the size that was asked for."""
    return tiny if IS_TINY else whole
