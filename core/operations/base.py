"""What every operation can do: print itself as a command, and name its undo."""

from __future__ import annotations

from typing import Protocol


class Operation(Protocol):
    """One change of one thing. A value: previewed, executed, journaled and undone from the same object.

    It carries what was there before, so that its undo is complete.
    """

    def command(self) -> str:
        """The command that a person would type for it, ready for a shell."""
        ...

    def inverse(self) -> tuple[Operation, ...]:
        """The operations that take it back, in their order; none for what needs no undo."""
        ...

    def describe(self) -> str:
        """What it does, in one line of words."""
        ...


def undo_of(steps: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """What takes back all the steps, last one first."""
    return tuple(undo for step in reversed(steps) for undo in step.inverse())
