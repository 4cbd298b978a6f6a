"""What a form is: its fields, what it proposes for them, and the requests that they make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from core.model import Container
from core.plan.requests import Request
from core.text import safe
from core.topology import Topology
from tui.changer import Parts
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
    """`fill` is given what the person has typed, `requests` the values of all fields in sight. A form that
    `asks` has no fields: it wants a yes."""

    title: str
    parts: Parts
    requests: Callable[[Values, Topology], Sequence[Request]]
    fields: tuple[Field, ...] = ()
    fill: Callable[[Topology, Values], Filled] = lambda topology, values: Filled()
    asks: bool = False


def by_label(containers: Iterable[Container]) -> dict[str, Container]:
    """Containers by what a person calls them; those that share a name by their uid."""
    every = list(containers)
    names = [safe(one.name) for one in every]
    return {
        name if names.count(name) == 1 else safe(one.uid): one
        for name, one in sorted(zip(names, every, strict=True), key=lambda pair: pair[0])
    }


def uid_of(text: str, containers: Iterable[Container]) -> str:
    """The uid of the container of that label; the text itself, where it is none."""
    found = by_label(containers).get(text)
    return found.uid if found else text


def words(text: str) -> tuple[str, ...]:
    """The words of a field that takes several."""
    return tuple(text.replace(",", " ").split())
