"""All faults that can be injected into the demo lab, as data."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from core.lab.faults.fault import HOST, Culprit, Fault, Probe
from core.lab.faults.firewall import FIREWALL
from core.lab.faults.links import LINKS
from core.lab.faults.routing import ROUTING
from core.lab.faults.services import SERVICES

__all__ = [
    "DEMO",
    "FAULTS",
    "HOST",
    "NONE",
    "Culprit",
    "Fault",
    "Probe",
    "UnknownFault",
    "find_fault",
    "split_names",
]

FAULTS: dict[str, Fault] = {fault.name: fault for fault in (*LINKS, *ROUTING, *FIREWALL, *SERVICES)}

# Names of sets: no fault at all, and the four with which the plain demo starts.
NONE, DEMO = "none", "demo"


class UnknownFault(Exception):
    """No fault has that name; `try_` says what to try."""

    def __init__(self, name: str) -> None:
        close = get_close_matches(name, [*FAULTS, NONE, DEMO], n=3, cutoff=0.5)
        close += [one for one in FAULTS if name and name in one and one not in close][: 3 - len(close)]
        options = " or ".join(f"--fault {one}" for one in close)
        self.name, self.reason = name, "there is no fault with that name"
        self.try_ = options or "vnet-tui demo --list-faults"
        super().__init__(self.reason)


def find_fault(name: str) -> Fault:
    """Return the fault with that name; raises UnknownFault."""
    if name not in FAULTS:
        raise UnknownFault(name)
    return FAULTS[name]


def split_names(words: Iterable[str]) -> tuple[str, ...]:
    """Split the values of --fault at commas, each name once; raises UnknownFault."""
    names = dict.fromkeys(name.strip() for word in words for name in word.split(",") if name.strip())
    for name in names:
        if name not in (NONE, DEMO):
            find_fault(name)
    return tuple(names)
