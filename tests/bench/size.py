"""Set how much a benchmark does: all, or little (`make bench SIZE=tiny`).

The tiny size shows that each still works.
"""

from __future__ import annotations

import os

IS_TINY = os.environ.get("VNET_BENCH_SIZE") == "tiny"


def sized[T](whole: T, tiny: T) -> T:
    """Return the value for the requested size."""
    return tiny if IS_TINY else whole
