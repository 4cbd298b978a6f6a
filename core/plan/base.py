"""A plan, and why there may be none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from core.ops import Operation


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done: `steps` in their order; `warnings` what a person should know before; `hits` what
    goes as well, in words; `guarded` where it can cut off the person who asks for it."""

    title: str
    steps: tuple[Operation, ...]
    warnings: tuple[str, ...] = ()
    hits: tuple[str, ...] = ()
    guarded: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no plan, a sentence each."""

    reasons: tuple[str, ...]


class Refusal(Exception):
    """Raised inside planning; becomes Refused."""

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("; ".join(self.reasons))


def require(*reasons: str) -> None:
    """Raise Refusal with those of the reasons that are not empty."""
    if given := tuple(reason for reason in reasons if reason):
        raise Refusal(given)


def when(so: object, reason: str) -> str:
    """The reason where it is so, else ""."""
    return reason if so else ""
