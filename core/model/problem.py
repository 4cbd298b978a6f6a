"""Problems (what couldn't be read) and findings (what is wrong with the networks)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.model.refs import Ref


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that could not be read.

    `part` names the part of the snapshot ("namespaces", "links", "nat", "conntrack", "docker", "podman",
    "ovs", "routes"); `what` failed, `why`, and what to `try_`. `ns` is the namespace concerned, if any.
    """

    part: str
    what: str
    why: str = ""
    try_: str = ""
    ns: int | None = None


Severity = Literal["bad", "warn"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with the host's networks.

    `kind` is "mtu", "overlap", "dead join", "link", "port", "bridge", "dropped", "forward", "bypass",
    "engine rules", "way out", "conntrack" or "storm"; `ref` is the object that has it; `short` and
    `sentence` describe it; `related` are the other objects concerned, for an overlap the other side first;
    `advice` is a remedy, "" if none is known. Names are untrusted text, verbatim."""

    kind: str
    ref: Ref
    short: str
    sentence: str
    severity: Severity
    related: tuple[Ref, ...] = ()
    advice: str = ""
