"""Problems (what couldn't be read) and findings (what is wrong with the networks)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.model.refs import Ref


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that could not be read.

    `part` names the part of the snapshot ("namespaces", "links", "nat", "conntrack", "docker", "podman",
    "ovs", "routes"); `what` begins with "can't", `why` is the reason, and `try_` a remedy ("" for none). `ns`
    is the namespace concerned, if any. Problems with the same part, `what` and `ns` count as the same one.
    """

    part: str
    what: str
    why: str = ""
    try_: str = ""
    ns: int | None = None

    @property
    def sentence(self) -> str:
        """Return "WHAT: WHY. Try: TRY_" without the empty parts."""
        reason = f"{self.what}: {self.why}" if self.why else self.what
        return f"{reason}. Try: {self.try_}" if self.try_ else reason


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
