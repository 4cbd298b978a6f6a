"""Findings: what is wrong with a host's networks, with evidence and a repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.model.fix import Fix
from core.model.refs import Ref

Severity = Literal["bad", "warn", "info"]
SEVERITIES: tuple[Severity, ...] = ("bad", "warn", "info")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with the host's networks.

    `kind` is "mtu", "overlap", "dead join", "link", "port", "bridge", "dropped", "forward", "bypass",
    "engine rules", "way out", "conntrack", "storm", "route", "forwarding", "rp_filter", "neighbour",
    "address", "nat", "listener", "orphan", "drops", "checksum", "overlay" or "fast path"; `ref` is the object
    that has it; `short` and `sentence` describe it; `related` are the other objects concerned, for an overlap
    the other side first; `advice` is a remedy, "" if none is known; `evidence` are the rules, routes and
    settings that show it; `fix` is the remedy as a change that can be applied, None if there is none. Names
    are untrusted text, verbatim."""

    kind: str
    ref: Ref
    short: str
    sentence: str
    severity: Severity
    related: tuple[Ref, ...] = ()
    advice: str = ""
    evidence: tuple[str, ...] = ()
    fix: Fix | None = None
