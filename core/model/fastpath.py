"""The fast path as it stands: what it accelerates, what it counted, and what it needs of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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
