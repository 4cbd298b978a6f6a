"""What the fast path counted, flow by flow, as columns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# One row a direction of a connection, as its packets arrive: `src`, `dst` and the ports before translation,
# the `new_*` ones as they leave. Addresses are 16 bytes in network order, IPv4 mapped (as in
# CONNTRACK_DTYPE), ports in host order. `packets` and `bytes` (from the IP header on) are only those that the
# fast path forwarded: the kernel's conntrack counts the others. `first_seen` and `last_seen` are Unix time in
# nanoseconds. `live` is False once a FIN, a RST or a changed rule has handed the flow back to the kernel for
# good.
FASTFLOW_DTYPE = np.dtype(
    [
        ("family", "u1"),  # 4 or 6
        ("l4_proto", "u1"),
        ("path", "u1"),  # an index into FAST_PATHS
        ("live", "?"),
        ("src", "u1", (16,)),
        ("dst", "u1", (16,)),
        ("sport", "u2"),
        ("dport", "u2"),
        ("new_src", "u1", (16,)),
        ("new_dst", "u1", (16,)),
        ("new_sport", "u2"),
        ("new_dport", "u2"),
        ("in_ifindex", "u4"),
        ("out_ifindex", "u4"),
        ("packets", "u8"),
        ("bytes", "u8"),
        ("first_seen", "u8"),
        ("last_seen", "u8"),
    ]
)

FAST_PATHS = ("", "same bridge", "routed", "translated")


def no_fast_flows() -> np.ndarray:
    """No flows, in the shape that flows have."""
    return np.zeros(0, FASTFLOW_DTYPE)


@dataclass(frozen=True, slots=True, eq=False)
class FastFlows:
    """The fast path's flows in the host's namespace `ns`; `entries` has dtype FASTFLOW_DTYPE and is
    read-only; `taken_at` is Unix time in seconds. No entries where the fast path is off."""

    ns: int
    entries: np.ndarray = field(default_factory=no_fast_flows)
    taken_at: float = 0.0
