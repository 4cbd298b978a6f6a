"""What the dashboard and the command line ask of whoever runs the fast path; says nothing about how that is
done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from core.model import FastPath, Requirement
from core.topology import Topology
from tui.present.fast_targets import Choice


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
