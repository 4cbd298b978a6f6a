"""The fast path as it stands: what it accelerates, what it counted, and what it needs of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

# "off": nobody accelerates here; "changing": the rules have just changed, it is on again in a moment;
# "silent": its process does not answer, so its lease ends and the kernel forwards; "hidden": only root may
# ask whether there is one; "unknown": a file does not hold it.
FastState = Literal["off", "on", "paused", "changing", "silent", "hidden", "unknown"]
ALL = "all"
FAST = "FAST"


@dataclass(frozen=True, slots=True)
class Requirement:
    """Something that the fast path needs: what was found, what follows where it is missing, what to try.
    `needed` is False for what only makes it better."""

    name: str
    met: bool
    found: str
    follows: str = ""
    try_: str = ""
    needed: bool = True


@dataclass(frozen=True, slots=True)
class FastPort:
    """One link that the program sits on, its role ("container" or "uplink"), and its packets by verdict."""

    name: str
    ifindex: int
    role: str
    verdicts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FastPath:
    """The state in this network namespace; `targets` are names as given, `unknown` those that mean no bridge
    now, `bridges` those that are accelerated, `refused` links that ought to be and are not, with the reason.

    `verdicts` are packets by verdict over all `ports`, `words` what each verdict means. `ns_per_packet` is
    None until it was measured, `flows` until they were counted. `strict` has it stay off for rules about
    invalid packets, `tied` has it end with the dashboard or agent that started it. `pid` is the holder's.
    `left` says that a fast path that was killed has left something to be put right."""

    state: FastState = "off"
    targets: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    captured: tuple[str, ...] = ()
    ports: tuple[FastPort, ...] = ()
    verdicts: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    ns_per_packet: float | None = None
    flows: int | None = None
    flows_limit: int | None = None
    generation: int = 0
    mark_mask: int = 0
    strict: bool = False
    tied: bool = False
    pid: int = 0
    left: bool = False
    requirements: tuple[Requirement, ...] = ()

    @property
    def is_running(self) -> bool:
        """Whether it is known that somebody accelerates here, be it paused."""
        return self.state not in ("off", "hidden", "unknown")

    @property
    def packets(self) -> int:
        """Packets that the program saw."""
        return sum(self.verdicts.values())

    @property
    def share(self) -> float | None:
        """The part of these that it forwarded, 0 to 1; None before the first."""
        seen = self.packets
        return self.verdicts.get(FAST, 0) / seen if seen else None


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
