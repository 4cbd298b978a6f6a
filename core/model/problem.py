"""What could not be read, in words."""

from __future__ import annotations

from dataclasses import dataclass


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
