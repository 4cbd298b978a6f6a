"""What could not be read, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.model.refs import Ref


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that keeps the picture from being whole.

    `part` names the part of the snapshot ("namespaces", "links", "nat", "conntrack", "docker", "podman",
    "ovs", "routes"); `what` happened, `why`, and what to `try_`. `ns` is the namespace concerned, if one is.
    """

    part: str
    what: str
    why: str = ""
    try_: str = ""
    ns: int | None = None


Severity = Literal["bad", "warn"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `kind` is "mtu", "overlap", "dead join", "link", "port", "bridge", "dropped",
    "forward", "bypass", "engine rules", "way out", "conntrack" or "storm"; `ref` where it shows; `short` what
    it is in a few words, `sentence` in full; `related` the other things that it concerns, of an overlap the
    other side first; `advice` what to try, "" where nothing is known. Names are text from outside,
    verbatim."""

    kind: str
    ref: Ref
    short: str
    sentence: str
    severity: Severity
    related: tuple[Ref, ...] = ()
    advice: str = ""
