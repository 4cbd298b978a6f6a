"""The answer to "can A reach B?": the hops of a packet, and what stops it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.model import Ref
from core.model.fix import Fix

# "warn": the packet passes, but something is wrong, such as an MTU that larger packets don't fit.
Verdict = Literal["pass", "warn", "stop", "unknown"]


@dataclass(frozen=True, slots=True)
class Hop:
    """One decision about a packet.

    `kind` is "route", "forwarding", "rp_filter", "firewall", "nat", "neighbour", "link", "bridge", "mtu",
    "conntrack", "listener" or "uplink"; `place` is the namespace's label; `evidence` are the rule, route or
    setting that decides, as their tools print them. `ref` is the object that decides, `subject` says shortly
    what is wrong, or what the outside must know ("" for other hops that pass). Names are untrusted text.
    """

    kind: str
    place: str
    text: str
    verdict: Verdict = "pass"
    evidence: tuple[str, ...] = ()
    ref: Ref | None = None
    fix: Fix | None = None
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a question.

    `ns` is the inode of its namespace, None for an address outside this host; `address` is the address to
    use, "" to choose one.
    """

    name: str
    ns: int | None = None
    address: str = ""

    @property
    def is_outside(self) -> bool:
        """Return whether it isn't on this host."""
        return self.ns is None


@dataclass(frozen=True, slots=True)
class Question:
    """Whether `source` can reach `target`; without `port`, with ICMP."""

    source: Endpoint
    target: Endpoint
    l4_proto: str = "icmp"
    port: int = 0

    @property
    def service(self) -> str:
        """Return " on tcp 443", or "" for ICMP."""
        return f" on {self.l4_proto} {self.port}" if self.port else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """The hops there and back, and the conclusion.

    `verdict` is "pass", "warn", "stop" or "unknown"; `cause` is the hop that stops the packet, or may do so.
    `sentence` is the conclusion with a full stop. `mtu` is the size in bytes of the largest packet that fits
    all links, 0 if unknown. `example` is the address that stands for "outside", "" if none does.
    """

    question: Question
    verdict: Verdict
    sentence: str
    there: tuple[Hop, ...] = ()
    back: tuple[Hop, ...] = ()
    cause: Hop | None = None
    mtu: int = 0
    example: str = ""
