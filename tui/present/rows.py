"""Rows and columns: what every list view hands to the table widget and to `vnet-tui show`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from core.model import Ref

# What a cell's colour may say: state only, never decoration.
Tone = Literal["", "ok", "warn", "bad", "dim", "accent"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `name` is its key in filters and sorting; `width` the cells it needs, `full` those that it
    has before any column of a priority gets room; `grow` its share of what is left over; the higher
    `priority`, the earlier a narrow terminal drops it (0: never); `counted` where the list says that it was
    dropped; `ends` where its texts are ends of connections, whose port stays when they are cut."""

    name: str
    title: str
    width: int
    grow: int = 0
    align: Literal["left", "right"] = "left"
    priority: int = 0
    counted: bool = False
    full: int = 0
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell's plain text (no markup), its tone, and the value to sort it by (None: the text)."""

    text: str
    tone: Tone = ""
    sort: float | int | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """The past of a figure: `values` slot by slot, oldest first, NaN where it is not known; `newest` the
    number of the newest slot; `title` how long a time they span."""

    title: str
    newest: int
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Trend(Cell):
    """A figure now, and its past in each of core.history.WINDOWS (none where nothing is known); `unit` words
    it."""

    curves: tuple[Curve, ...] = ()
    unit: Callable[[float], str] = str


@dataclass(frozen=True, slots=True)
class Row:
    """One thing in a list: which, its cells in the columns' order, further terms that filters may ask for
    (`ns`, `ct`, `port`, `proto`, `state`, ...), how deep it is folded under another (`depth`), and further
    things that the row stands for (`aliases`: the other end of a veth)."""

    ref: Ref
    cells: tuple[Cell, ...]
    terms: Mapping[str, str] = field(default_factory=dict)
    depth: int = 0
    aliases: tuple[Ref, ...] = ()


class Rows(Protocol):
    """A list of rows in their present order, however it is stored; only rows in sight are asked for."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """The row at that place."""
        ...

    def keys(self) -> Collection[str]:
        """What a filter may ask for by `key:value`."""
        ...

    def index(self, ref: Ref) -> int | None:
        """Where that thing stands, None where it does not."""
        ...

    def sorted_by(self, column: str, reverse: bool) -> Rows:
        """The same rows in another order."""
        ...

    def matching(self, query: str) -> Rows:
        """Those that a filter (`tui.present.query`) lets through."""
        ...


def head_of(rows: Rows) -> Sequence[Cell]:
    """Lines that stand above a list's columns and tell about the whole: what rows have as their `head`."""
    head: Sequence[Cell] = getattr(rows, "head", ())
    return head


@dataclass(frozen=True, slots=True)
class Section:
    """One titled part of a detail pane: (label, cell, where Enter leads to) lines."""

    title: str
    lines: Sequence[tuple[str, Cell, Ref | None]] = ()


@dataclass(frozen=True, slots=True)
class Detail:
    """Everything about one thing; `related` are the things that Enter leads to, the first one foremost;
    `copy` is what stands for the thing where it is copied, "" for its name in the list."""

    title: str
    sections: Sequence[Section] = ()
    related: Sequence[tuple[str, Ref]] = ()
    copy: str = ""


@dataclass(frozen=True, slots=True)
class ListView:
    """One list view: its name, columns, how its rows come from the topology, and what it says when empty.

    `name` is what `:name` jumps to, `aliases` its short forms; `empty` explains an empty list to a newcomer;
    `help` are (key or term, meaning) lines that belong to this view only; `empty_file` takes the place of
    `empty` where a file is looked at.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: Callable[..., Rows]
    empty: str
    sort: str = ""
    reverse: bool = False
    help: tuple[tuple[str, str], ...] = ()
    empty_file: str = ""
