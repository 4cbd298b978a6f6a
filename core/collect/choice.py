"""Which container engines and switches are looked at: all, or those that VNET_ENGINES names."""

from __future__ import annotations

import os

# A list such as "docker,podman"; "none" for none of them. Engines: "docker", "podman", "ovs".
ENGINES = "VNET_ENGINES"


def is_wanted(engine: str) -> bool:
    """Whether that engine is to be looked at; without the variable, each is."""
    told = os.environ.get(ENGINES, "").strip()
    return not told or engine in (word.strip().lower() for word in told.split(","))
