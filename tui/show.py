"""`vnet-tui show`: the dashboard's lists as plain columns for people, or the model as JSON."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain, islice
from typing import TextIO

from rich.cells import cell_len, set_cell_size

from core.model import Problem, Ref, Snapshot
from core.text import safe
from core.topology import Topology
from core.topology.related import concerns
from tui.present.conntrack import ConntrackRows
from tui.present.findings import empty_text
from tui.present.fit_text import wrapped
from tui.present.rows import Cell, Column, ListView, Row, Rows, head_of
from tui.present.scene import Scene

# Widths are measured on that many rows; what comes later and is wider stands out.
_MEASURED = 1000
_NARROWEST = 8  # to which columns are cut where nothing else helps
_GAP = "  "
_WIDEST = 300  # cells of a column: nobody's name makes all lines longer; JSON has it whole
_CODES = {"ok": "32", "warn": "33", "bad": "31", "dim": "2", "accent": "36"}
_NOTHING = ("", "–")
# An engine that is not there matters only to who asks for what it makes.
_CONCERNS = {
    "docker": ("containers", "networks"),
    "podman": ("containers", "networks"),
    "ovs": ("bridges",),
}
# Speeds need two looks at the counters; there was one.
_SPEEDS = ("rate", "rx", "tx", "in", "out", "trend")


@dataclass(frozen=True, slots=True)
class Output:
    """Where and how to print: `width` in cells, None without a limit."""

    stream: TextIO
    json: bool = False
    colour: bool = False
    width: int | None = None

    @classmethod
    def of(cls, stream: TextIO, json: bool) -> Output:
        """Colour and a width only on a terminal; NO_COLOR (no-color.org) is respected."""
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
        if not stream.isatty():
            return cls(stream, json)
        dumb = os.environ.get("TERM") == "dumb" or os.environ.get("NO_COLOR")
        return cls(stream, json, not dumb, shutil.get_terminal_size().columns)


class UnknownNamespace(Exception):
    """No namespace has the name that was asked for."""


def show(snapshot: Snapshot, topics: Sequence[str], output: Output, ns: str | None = None) -> None:
    """Print the topics; `ns` names the only namespace whose things are wanted.

    Problems go to standard error. Raises UnknownNamespace.
    """
    topology = Topology(snapshot)
    scope = None if ns is None else _scope(topology, ns)
    if output.json:
        from core.export import document_lines

        output.stream.writelines(document_lines(topology, topics, scope))
        return
    _write(topology, topics, output, ns or "", scope)
    print_problems(topology, topics, scope)


def write_lists(topology: Topology, topics: Sequence[str], stream: TextIO, most: int) -> None:
    """Write the topics as plain text: of each the first `most` rows, and how many more there are."""
    _write(topology, topics, Output(stream), most=most)


def _write(
    topology: Topology,
    topics: Sequence[str],
    output: Output,
    ns: str = "",
    scope: Collection[int] | None = None,
    most: int | None = None,
) -> None:
    for place, topic in enumerate(topics):
        view: ListView = import_module(f"tui.present.{topic}").VIEW
        rows = view.rows(Scene(topology))
        empty = empty_text(view, topology.snapshot)
        if scope is not None and len(rows):
            empty = f"None that concerns {safe(ns)}; {len(rows)} that do not."
        if len(topics) > 1:
            output.stream.write("\n" * bool(place) + _painted(view.title, "1", output) + "\n")
        output.stream.writelines(_head(rows if scope is None else _narrowed(rows, scope), output))
        shown = islice(_within(topology, rows, scope), most)
        output.stream.writelines(_table(view, shown, empty, output))
        if most is not None and len(rows) > most:
            output.stream.write(f"... and {len(rows) - most} more\n")


def print_problems(topology: Topology, topics: Collection[str], scope: Collection[int] | None = None) -> None:
    """Say on standard error what could not be read, why, and what to try; those of one kind in one line."""
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in topology.snapshot.problems:
        matters = any(topic in _CONCERNS.get(problem.part, topics) for topic in topics)
        if matters and (scope is None or problem.ns is None or problem.ns in scope):
            kinds.setdefault((problem.part, problem.try_), []).append(problem)
    for alike in kinds.values():
        print(f"vnet-tui: {safe(_problem_words(topology, alike))}", file=sys.stderr)


def _problem_words(topology: Topology, alike: Sequence[Problem]) -> str:
    first = alike[0]
    words = f"{topology.label(first.ns)}: {first.what}" if first.ns is not None else first.what
    words += f" ({first.why})" if first.why else ""
    words += f" - {first.try_}" if first.try_ else ""
    return f"{words} (and {len(alike) - 1} more like this)" if len(alike) > 1 else words


def _scope(topology: Topology, name: str) -> frozenset[int]:
    """The inodes of the namespaces that a person may mean by that name."""
    found = frozenset(
        inode
        for inode, space in topology.snapshot.namespaces.items()
        if name in (topology.label(inode), str(inode), space.unit, *space.names)
        or any(name == container.name for container in topology.containers_in(inode))
    )
    if not found:
        labels = sorted({safe(topology.label(inode)) for inode in topology.snapshot.namespaces})
        known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
        raise UnknownNamespace(f"no namespace is called {safe(name)}; there are: {known}")
    return found


def _head(rows: Rows, output: Output) -> Iterator[str]:
    """What a list says about the whole."""
    for cell in head_of(rows):
        text = safe(cell.text)
        for line in wrapped(text, output.width) if output.width else (text,):
            yield _painted(line, _CODES.get(cell.tone, ""), output) + "\n"


def _narrowed(rows: Rows, scope: Collection[int]) -> Rows:
    return rows.within(scope) if isinstance(rows, ConntrackRows) else rows


def _within(topology: Topology, rows: Rows, scope: Collection[int] | None) -> Iterator[Row]:
    """The rows of things that lie in the scope, or concern what does."""
    if scope is not None and isinstance(rows, ConntrackRows):
        rows, scope = rows.within(scope), None
    for place in range(len(rows)):
        row = rows.row(place)
        if scope is None or any(_lies_in(topology, ref, scope) for ref in (row.ref, *row.aliases)):
            yield row


def _lies_in(topology: Topology, ref: Ref, scope: Collection[int]) -> bool:
    if ref.kind == "container":
        container = topology.containers.get(":".join(map(str, ref.key)))
        return container is not None and container.netns in scope
    if ref.kind == "network":
        network = topology.network(str(ref.key[0]))
        return network is not None and network.ns in scope
    if ref.kind == "nat":
        entry = topology.nat_entry(ref)
        return entry is not None and concerns(topology, entry, scope)
    return ref.key[0] in scope


def _table(view: ListView, rows: Iterator[Row], empty: str, output: Output) -> Iterator[str]:
    """The lines of one list, heading first; the sentence `empty` where there is none."""
    first = list(islice(rows, _MEASURED))
    if not first:
        yield _painted(empty, _CODES["dim"], output) + "\n"
        return
    columns = _columns(view.columns, first, output.width)
    titles = tuple(Cell(column.title.upper()) for column in view.columns)
    yield _painted(_line(columns, titles, 0, replace(output, colour=False)), "1", output) + "\n"
    for row in chain(first, rows):
        yield _line(columns, row.cells, row.depth, output) + "\n"


@dataclass(frozen=True, slots=True)
class _Placed:
    """A column as it is printed: its place among the cells, its width, and whether it cuts what is wider."""

    place: int
    width: int
    right: bool
    cut: bool


def _columns(columns: Sequence[Column], rows: Sequence[Row], width: int | None) -> list[_Placed]:
    """The columns that hold anything, as wide as they need; on a narrow terminal the widest are cut, then
    the least important go."""
    widths = {
        place: max([cell_len(column.title), *(_width(row, place) for row in rows)])
        for place, column in enumerate(columns)
        if column.name not in _SPEEDS and any(row.cells[place].text not in _NOTHING for row in rows)
    }
    natural = dict(widths)
    while width is not None and sum(widths.values()) + len(_GAP) * (len(widths) - 1) > width:
        shrinkable = {place: cells for place, cells in widths.items() if cells > columns[place].width}
        least = max(widths, key=lambda place: columns[place].priority)
        if shrinkable:
            widths[max(shrinkable, key=lambda place: shrinkable[place])] -= 1
        elif columns[least].priority:
            del widths[least]
        elif max(widths.values()) > _NARROWEST:
            widths[max(widths, key=lambda place: widths[place])] -= 1
        else:
            break
    return [
        _Placed(place, cells, columns[place].align == "right", cells < natural[place])
        for place, cells in widths.items()
    ]


def _width(row: Row, place: int) -> int:
    return min(_WIDEST, cell_len(row.cells[place].text) + (2 * row.depth if place == 0 else 0))


def _line(columns: Sequence[_Placed], cells: Sequence[Cell], depth: int, output: Output) -> str:
    parts = []
    for number, column in enumerate(columns):
        cell = cells[column.place]
        text = "  " * depth + cell.text if number == 0 else cell.text
        length = len(text) if text.isascii() else cell_len(text)
        most = column.width if column.cut else max(column.width, _WIDEST)
        if length > most:
            text, length = set_cell_size(text, most - 1) + "…", most
        padding = " " * (column.width - length)
        shown = _painted(text, _CODES.get(cell.tone, ""), output)
        parts.append(padding + shown if column.right else shown + padding)
    return _GAP.join(parts).rstrip()


def shortened(text: str) -> str:
    """The text of a cell, cut where it is much longer than any name ought to be."""
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _painted(text: str, code: str, output: Output) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if output.colour and code and text else text
