"""What a form is: its fields, what it proposes for them, and the requests that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from core.model import Ref
from core.plan.requests import Request
from core.text import safe
from core.topology import Topology
from tui.changer import Parts
from tui.errors import CommandError
from tui.widgets.form import Field

type Values = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Filled:
    """What follows from what is: a proposal for each field, the options of those that have some of what is
    there, and the fields that mean nothing now."""

    proposals: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Form:
    """`fill` is given what the person has typed, `requests` the values of all fields in sight; it may raise
    CommandError. A form that `asks` has no fields: it wants a yes."""

    title: str
    parts: Parts
    requests: Callable[[Values, Topology], Sequence[Request]]
    fields: tuple[Field, ...] = ()
    fill: Callable[[Topology, Values], Filled] = lambda topology, values: Filled()
    asks: bool = False


def form_about(
    ref: Ref | None,
    title: str,
    fields: tuple[Field, ...],
    fill: Callable[[Topology, Values, Ref | None], Filled],
    request: Callable[[Values, Topology], Request],
    parts: Parts = "light",
) -> Form:
    """A form that makes one request and begins with the selected thing, which `fill` hears of."""
    return Form(
        title,
        parts,
        lambda values, topology: (request(values, topology),),
        fields,
        lambda topology, values: fill(topology, values, ref),
    )


def words(text: str) -> tuple[str, ...]:
    """The words of a field that takes several."""
    return tuple(text.replace(",", " ").split())


def number(text: str, what: str, example: int) -> int:
    """The number that a field holds, 0 for an empty one. Raises CommandError."""
    if text and not (text.isascii() and text.isdecimal()):
        raise CommandError(f'"{safe(text)}" is no {what}: write a number, such as {example}')
    return int(text or 0)
