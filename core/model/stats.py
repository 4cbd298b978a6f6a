"""Link counters: a stream of their own, so that counting never makes a link "changed"."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# One row a link; counters as struct rtnl_link_stats64 (linux/if_link.h) has them, since the link was made.
STATS_DTYPE = np.dtype(
    [
        ("ns", "u8"),
        ("ifindex", "u4"),
        ("rx_packets", "u8"),
        ("tx_packets", "u8"),
        ("rx_bytes", "u8"),
        ("tx_bytes", "u8"),
        ("rx_errors", "u8"),
        ("tx_errors", "u8"),
        ("rx_dropped", "u8"),
        ("tx_dropped", "u8"),
        ("multicast", "u8"),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class LinkStats:
    """Counters of many links, read at `taken_at` (monotonic seconds); `rows` has dtype STATS_DTYPE."""

    taken_at: float
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, STATS_DTYPE))
