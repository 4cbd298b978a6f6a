"""State, counters, flows and requirements of the fast path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

# "changing": the rules have just changed, it is on again in a moment; "silent": the daemon doesn't answer,
# so its lease expires and the kernel forwards; "hidden": only root may ask for the state; "unknown": the file
# doesn't contain it.
FastState = Literal["off", "on", "paused", "changing", "silent", "hidden", "unknown"]
ALL = "all"
FAST = "FAST"


@dataclass(frozen=True, slots=True)
class Requirement:
    """A feature of the kernel that the fast path needs.

    `found` is the check's result, `follows` the consequence if it isn't `met`, `try_` a remedy. `needed` is
    False for an optional one."""

    name: str
    met: bool
    found: str
    follows: str = ""
    try_: str = ""
    needed: bool = True


@dataclass(frozen=True, slots=True)
class FastPort:
    """A link with the program attached, and its packets by verdict.

    `role` is "container", "tunnel" or "uplink"."""

    name: str
    ifindex: int
    role: str
    verdicts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FastPathHealth:
    """Whether the fast path forwards, and why not: what findings need of FastPath.

    The fields are those of FastPath. If it is off and has `targets`, an agent tries to start it; `reasons`
    say why that fails."""

    state: str = "unknown"
    targets: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    left: bool = False


@dataclass(frozen=True, slots=True)
class FastPath:
    """State of the fast path in this network namespace.

    `targets` are names as given, `unknown` those without a bridge now, `bridges` the accelerated ones,
    `refused` the links that can't be accelerated, with the reason, `tunnels` those to other hosts, with the
    reason why each packet passes the kernel there, or "". `verdicts` are packets by verdict over all
    `ports`, `words` the meaning of each verdict. `ns_per_packet` is None until measured, `flows` until
    counted. `strict`: stay off if rules match invalid packets; `tied`: end with the dashboard or agent that
    started it. `pid` is the daemon's. `agent_targets` are those for which an agent tries to turn
    it on, without success; `reasons` say why. `left` is True if a killed one left something to clean up."""

    state: FastState = "off"
    targets: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    tunnels: Mapping[str, str] = field(default_factory=dict)
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
    agent_targets: tuple[str, ...] = ()
    left: bool = False
    requirements: tuple[Requirement, ...] = ()

    @property
    def is_running(self) -> bool:
        """Whether the fast path is known to run, possibly paused."""
        return self.state not in ("off", "hidden", "unknown")

    @property
    def health(self) -> FastPathHealth:
        """What findings need of it; a change that takes a moment is no fault."""
        state = "on" if self.state == "changing" else self.state
        targets = self.targets or self.agent_targets
        return FastPathHealth(state, targets, self.unknown, self.reasons, dict(self.refused), self.left)

    @property
    def packets(self) -> int:
        """Number of packets that the program saw."""
        return sum(self.verdicts.values())

    @property
    def share(self) -> float | None:
        """The fraction of packets that it forwarded, 0 to 1; None before the first packet."""
        seen = self.packets
        return self.verdicts.get(FAST, 0) / seen if seen else None


# One row per direction of a connection: `src`, `dst` and the ports before translation, `new_*` after it.
# Addresses are 16 bytes in network order, IPv4 mapped (as in CONNTRACK_DTYPE), ports in host order.
# `packets` and `bytes` (from the IP header on) count only what the fast path forwarded: conntrack counts the
# rest. `first_seen` and `last_seen` are Unix time in nanoseconds. `live` is False once a FIN, a RST or a
# changed rule has handed the flow back to the kernel for good.
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
    """Return an empty array of dtype FASTFLOW_DTYPE."""
    return np.zeros(0, FASTFLOW_DTYPE)


@dataclass(frozen=True, slots=True, eq=False)
class FastFlows:
    """The fast path's flows in the host namespace `ns`, none if it is off.

    `entries` has dtype FASTFLOW_DTYPE and is read-only; `taken_at` is Unix time in seconds."""

    ns: int
    entries: np.ndarray = field(default_factory=no_fast_flows)
    taken_at: float = 0.0
