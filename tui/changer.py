"""What the dashboard asks of whoever changes networks for it; says nothing about how that is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from core.model import FastPath, Requirement
from core.operations import Operation, is_final
from core.plan import Plan, Refused
from core.plan.requests import Request
from core.topology import Topology
from tui.present.fast_targets import Choice

# What a plan is made from: "publishing" also who listens on the host, "tuning" also offloads and steering of
# links, "whole" also the rules of other namespaces, which matter to those alone who delete these.
Parts = Literal["light", "publishing", "tuning", "whole"]
# Hears of each operation before it is done.
type Progress = Callable[[Operation], None]


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended. `plan` is what the fresh look led to; `end` is "done", "undone" (it failed and
    was taken back whole), "failed" (and could not be), or "" where nothing was begun: that plan is not the
    one that was agreed to. An undo ends "undone", "failed", or "kept": it failed, and all is as before it.
    Guarded ones are taken back after `seconds` unless kept, others have 0. `made` is the name of the network
    or container that it made."""

    plan: Plan | Refused
    end: str = ""
    errors: tuple[str, ...] = ()
    entry_id: str = ""
    seconds: float = 0.0
    made: str = ""


@dataclass(frozen=True, slots=True)
class Earlier:
    """A change in the journal: `end` as `Ended.end`, "undone" for one taken back, "" for one that was cut
    off, "under way" for one that another process makes at this moment; `begun` are its steps that were begun,
    `under` the ids of later changes that stand on it."""

    entry_id: str
    title: str
    at: float
    end: str
    begun: tuple[Operation, ...] = ()
    under: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether it was cut off, or taken back in part only."""
        return self.end in ("", "failed") and not self.is_final

    @property
    def is_final(self) -> bool:
        """Whether nothing can take it back."""
        return is_final(self.begun)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A guarded change that is taken back in `seconds_left` unless it is kept."""

    entry_id: str
    title: str
    seconds_left: float


@dataclass(slots=True)
class Logged:
    """A change that was made, or tried, in this session: its commands in the order in which they were run
    (`at` in seconds since 1970), and how it ended (as `Ended`; "…" while it is under way); `undone` are those
    by which what failed was taken back."""

    title: str
    at: float
    commands: list[str] = field(default_factory=list)
    end: str = "…"
    errors: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()


class Changer(Protocol):
    """Plans changes and makes them. Every method may block, and raise CommandError, in words."""

    log: list[Logged]

    def lacking(self) -> str:
        """Why this process may change nothing, "" where it may."""
        ...

    def look(self, parts: Parts) -> Topology:
        """The host as it is now."""
        ...

    def plan(self, requests: Sequence[Request], topology: Topology) -> Plan | Refused:
        """What would be done."""
        ...

    def change(self, requests: Sequence[Request], parts: Parts, agreed: Plan, progress: Progress) -> Ended:
        """Plan on a fresh look, and do it if that is what was agreed to."""
        ...

    def earlier(self) -> tuple[Earlier, ...]:
        """The changes in the journal, newest first."""
        ...

    def take_back(self, earlier: Earlier, progress: Progress) -> Ended:
        """Undo a change."""
        ...

    def forget(self, earlier: Earlier) -> None:
        """Leave what a change that was cut off has made, and offer it no more."""
        ...

    def waiting(self) -> tuple[Waiting, ...]:
        """The guarded changes that wait to be kept."""
        ...

    def keep(self, entry_id: str) -> bool:
        """Keep a guarded change; False where it is too late."""
        ...


# What the dashboard and the command line ask of whoever runs the fast path; says nothing about how that is
# done.


@dataclass(frozen=True, slots=True)
class Preview:
    """What would change, in words. `targets` is all that is accelerated afterwards, none: it is off;
    `changes` are sentences, `links` those that the program is put on or taken off, `notes` what to know
    before. `refused` says why it cannot be done, `nothing` that nothing is to be done and why. `strict` is
    how it is afterwards."""

    title: str
    targets: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    nothing: tuple[str, ...] = ()
    strict: bool = False

    @property
    def can_be_done(self) -> bool:
        """Whether there is something to do, and nothing in the way."""
        return not self.refused and bool(self.changes)


class Accelerator(Protocol):
    """Turns the fast path on and off. Every method may block, and raise CommandError, in words."""

    def status(self, closely: bool = False) -> FastPath:
        """How it stands; `closely` also counts its flows and what a packet costs, which costs a little
        itself."""
        ...

    def requirements(self) -> tuple[Requirement, ...]:
        """What it needs of this machine."""
        ...

    def look(self) -> Topology:
        """The host as it is now."""
        ...

    def preview(
        self, choices: tuple[Choice, ...], on: bool, topology: Topology, strict: bool | None = None
    ) -> Preview:
        """What would change if these were turned on, or off; `strict` where rules about invalid packets shall
        pause it, or no longer (None: as it is)."""
        ...

    def perform(self, preview: Preview, progress: Callable[[str], None]) -> str:
        """Do it, and say in a sentence how it ended; `progress` hears what is going on."""
        ...

    def close(self) -> None:
        """Let go: what was turned on by this one ends."""
        ...
