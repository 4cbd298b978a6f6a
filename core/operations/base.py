"""The base class of operations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from core.operations.executor import Executor
from core.operations.values import NetnsTarget


class Operation(ABC):
    """Represent one change of one object as a value.

    Preview, execution, journal and undo use the same object. It contains the state before the change, so that
    its undo is complete.
    """

    __slots__ = ()

    # Whether what it makes is still there after a restart of the machine.
    survives_reboot: ClassVar[bool] = False
    # Whether nothing can undo it.
    is_final: ClassVar[bool] = False
    # Whether the Docker Engine executes it: this needs no rights but access to Docker's socket.
    by_docker: ClassVar[bool] = False

    @abstractmethod
    def command(self) -> str:
        """Return the command that a person would type for it, ready for a shell."""

    @abstractmethod
    def inverse(self) -> tuple[Operation, ...]:
        """Return the operations that undo it, in their order; none if it needs no undo."""

    @abstractmethod
    def describe(self) -> str:
        """Return a description of what it does, as one imperative phrase."""

    @abstractmethod
    def affects(self) -> tuple[str, ...]:
        """Return the names of all that it changes.

        They name links, namespaces, rules, settings and Docker's networks.
        """

    @abstractmethod
    def execute(self, executor: Executor) -> None:
        """Execute it. Raises OSError, LookupError, NamespaceGone, EngineError, StateError."""

    def changed_link(self) -> tuple[str, NetnsTarget | None]:
        """Return the one link whose own state it changes, and where that link is.

        ("", None) if there is no such link.
        """
        return "", None

    def comparable(self) -> Operation | None:
        """Return the operation without what changes by itself, such as lifetimes.

        None for an operation on neighbours, which come and go by the second.
        """
        return self

    # How a kill or an interrupt may leave it.

    def target_exists(self, executor: Executor) -> bool:
        """Return whether what it would create exists already.

        Asked before it is begun: afterwards the owner of a link is not always known, because a link gets its
        tag a moment after it is created.
        """
        return False

    def may_be_done(self, executor: Executor) -> bool:
        """Return whether it may have created what exists.

        It was begun before, and perhaps interrupted.
        """
        return True

    def obstacle(self) -> str:
        """Return why an undo that contains it can't begin, "" if nothing prevents it.

        Raises OSError.
        """
        return ""

    def remaining(self, executor: Executor, was_interrupted: bool) -> Operation:
        """Return what remains to be done of it, as a step of an interrupted undo.

        `was_interrupted` is True if this very step was being executed when the undo was killed.
        """
        return self


class LinkOperation(Operation):
    """An operation that changes only the link `name` in `place`."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def name(self) -> str: ...
        @property
        def place(self) -> NetnsTarget: ...

    def affects(self) -> tuple[str, ...]:
        return (self.place.link(self.name),)

    def changed_link(self) -> tuple[str, NetnsTarget]:
        return self.name, self.place


def undo_of(steps: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """Return the operations that undo all the steps, last one first."""
    return tuple(undo for step in reversed(steps) for undo in step.inverse())


def undo_title(title: str) -> str:
    """Return the title of a change's undo.

    A setting's title names the value that the undo replaces: quoted, it isn't read as the new one.
    """
    return f'undo: "{title}"' if title.startswith("set ") else f"undo: {title}"


def affected(steps: Iterable[Operation]) -> frozenset[str]:
    """Return the names of all that these steps change.

    They show which changes build on others.
    """
    return frozenset(name for step in steps for name in step.affects())


def is_final(steps: Iterable[Operation]) -> bool:
    """Return whether none of these steps can be undone."""
    found = [step.is_final for step in steps]
    return bool(found) and all(found)
