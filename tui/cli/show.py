"""Run `vnet-tui show` and `dump`: print lists as text or JSON."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from rich.cells import cell_len, set_cell_size

from core.codec import plain
from core.model import OvsFlow, Part, Problem, Ref, Snapshot, ovs_ref
from core.serialize import pack
from core.text import quoted, safe
from core.tools import ToolFailed
from core.topology import Topology
from core.topology.related import is_in_scope
from tui.cli.parser import TOPICS
from tui.command import CHECK_FIRST, CommandError, load, save
from tui.views import ovs_flows
from tui.views.conntrack import ConntrackRows
from tui.views.findings import empty_text
from tui.views.formatting import wrapped
from tui.views.rows import Cell, Column, ListView, Row, Rows, ViewContext, head_of

# Widths are measured on that many rows; later rows may be wider.
_MEASURED = 1000
_NARROWEST = 8  # to which columns are cut if needed
_GAP = "  "
_WIDEST = 300  # cells of a column: no long name makes all lines longer; JSON has it whole
CODES = {"ok": "32", "warn": "33", "bad": "31", "dim": "2", "accent": "36", "heading": "1"}
_NOTHING = ("", "–")
# A missing engine is reported only for lists of what it makes.
_CONCERNS = {
    "docker": ("containers", "networks"),
    "podman": ("containers", "networks"),
    "ovs": ("bridges", "ovs"),
    "frr": ("overlay",),
}
# Speeds need two readings of the counters; there was one.
_SPEEDS = ("rate", "rx", "tx", "in", "out", "trend")


# Parts to read for each topic.
PARTS = {
    "namespaces": (Part.LINKS, Part.CONTAINERS),
    "links": (Part.LINKS, Part.CONTAINERS, Part.OVS),
    "bridges": (Part.LINKS, Part.CONTAINERS, Part.OVS, Part.FIREWALL),
    "veths": (Part.LINKS, Part.CONTAINERS, Part.OVS),
    "containers": (Part.LINKS, Part.CONTAINERS, Part.OVS, Part.FIREWALL),
    "networks": (Part.LINKS, Part.CONTAINERS, Part.OVS, Part.FIREWALL),
    "nat": (Part.LINKS, Part.CONTAINERS, Part.OVS, Part.FIREWALL),
    "conntrack": (Part.LINKS, Part.CONTAINERS, Part.CONNTRACK),
    "routes": (Part.LINKS, Part.CONTAINERS),
    "ovs": (Part.LINKS, Part.CONTAINERS, Part.OVS, Part.OVS_FLOWS),
    "overlay": (Part.LINKS, Part.CONTAINERS, Part.FIREWALL, Part.FRR),
}


@dataclass(frozen=True, slots=True)
class Output:
    """Describe where and how to print: `width` in cells, None without a limit."""

    stream: TextIO
    json: bool = False
    colour: bool = False
    width: int | None = None

    @classmethod
    def of(cls, stream: TextIO, json: bool) -> Output:
        """Return the output with colour and width only if it is a terminal.

        NO_COLOR (no-color.org) is respected.
        """
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
    """Write topics as text, each with its first `most` rows.

    The number of further rows follows them.
    """
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
        view: ListView = import_module(f"tui.views.{topic}").VIEW
        rows = view.rows(ViewContext(topology))
        empty = empty_text(view, topology.snapshot)
        if scope is not None and len(rows):
            empty = f"None in {safe(ns)}; {len(rows)} elsewhere."
        if len(topics) > 1:
            output.stream.write("\n" * bool(place) + painted(view.title, "1", output) + "\n")
        output.stream.writelines(_head(rows if scope is None else _narrowed(rows, scope), output))
        shown = islice(_within(topology, rows, scope), most)
        output.stream.writelines(_table(view.columns, shown, empty, output))
        if most is not None and len(rows) > most:
            output.stream.write(f"... and {len(rows) - most} more\n")


def print_problems(topology: Topology, topics: Collection[str], scope: Collection[int] | None = None) -> None:
    """Print problems to standard error, those of one kind on one line."""
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in topology.snapshot.problems:
        matters = any(topic in _CONCERNS.get(problem.part, topics) for topic in topics)
        if matters and (scope is None or problem.ns is None or problem.ns in scope):
            kinds.setdefault((problem.part, problem.try_), []).append(problem)
    for alike in kinds.values():
        print(f"vnet-tui: {safe(_problem_words(topology, alike))}", file=sys.stderr)


def _problem_words(topology: Topology, alike: Sequence[Problem]) -> str:
    first = alike[0]
    words = f"{topology.label(first.ns)}: {first.sentence}" if first.ns is not None else first.sentence
    return f"{words} (and {len(alike) - 1} more like this)" if len(alike) > 1 else words


def _scope(topology: Topology, name: str) -> frozenset[int]:
    """Return the inodes of the namespaces that match the name."""
    found = frozenset(
        inode
        for inode, space in topology.snapshot.namespaces.items()
        if name in (topology.label(inode), str(inode), space.unit, *space.names)
        or any(name == container.name for container in topology.containers_in(inode))
    )
    if not found:
        labels = sorted({safe(topology.label(inode)) for inode in topology.snapshot.namespaces})
        known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
        raise UnknownNamespace(
            f'can\'t find the namespace "{safe(name)}": there is none of that name. Try: {known}'
        )
    return found


def _head(rows: Rows, output: Output) -> Iterator[str]:
    """Yield the summary lines above a list."""
    for cell in head_of(rows):
        text = safe(cell.text)
        for line in wrapped(text, output.width) if output.width else (text,):
            yield painted(line, CODES.get(cell.tone, ""), output) + "\n"


def _narrowed(rows: Rows, scope: Collection[int]) -> Rows:
    return rows.within(scope) if isinstance(rows, ConntrackRows) else rows


def _within(topology: Topology, rows: Rows, scope: Collection[int] | None) -> Iterator[Row]:
    """Yield the rows in the scope, or related to it."""
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
    if ref.kind == "ovs":
        return topology.host in scope
    if ref.kind == "nat":
        entry = topology.nat_entry(ref)
        return entry is not None and is_in_scope(topology, entry, scope)
    return ref.key[0] in scope


def _table(titled: Sequence[Column], rows: Iterator[Row], empty: str, output: Output) -> Iterator[str]:
    """Yield the lines of one list, heading first; `empty` if it has no rows."""
    first = list(islice(rows, _MEASURED))
    if not first:
        yield painted(empty, CODES["dim"], output) + "\n"
        return
    columns = _columns(titled, first, output.width)
    titles = tuple(Cell(column.title.upper()) for column in titled)
    yield painted(_line(columns, titles, 0, replace(output, colour=False)), "1", output) + "\n"
    for row in chain(first, rows):
        yield _line(columns, row.cells, row.depth, output) + "\n"


@dataclass(frozen=True, slots=True)
class _PrintedColumn:
    """A printed column: its index among the cells, its width, whether it cuts text."""

    place: int
    width: int
    right: bool
    cut: bool


def _columns(columns: Sequence[Column], rows: Sequence[Row], width: int | None) -> list[_PrintedColumn]:
    """Return the columns that aren't empty, as wide as needed.

    On a narrow terminal the widest are cut, then the least important are left out.
    """
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
        _PrintedColumn(place, cells, columns[place].align == "right", cells < natural[place])
        for place, cells in widths.items()
    ]


def _width(row: Row, place: int) -> int:
    return min(_WIDEST, cell_len(row.cells[place].text) + (2 * row.depth if place == 0 else 0))


def _line(columns: Sequence[_PrintedColumn], cells: Sequence[Cell], depth: int, output: Output) -> str:
    parts = []
    for number, column in enumerate(columns):
        cell = cells[column.place]
        text = "  " * depth + cell.text if number == 0 else cell.text
        length = len(text) if text.isascii() else cell_len(text)
        most = column.width if column.cut else max(column.width, _WIDEST)
        if length > most:
            text, length = set_cell_size(text, most - 1) + "…", most
        padding = " " * (column.width - length)
        shown = painted(text, CODES.get(cell.tone, ""), output)
        parts.append(padding + shown if column.right else shown + padding)
    return _GAP.join(parts).rstrip()


def shortened(text: str) -> str:
    """Return the text of a cell, cut if it is much longer than a usual name."""
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def painted(text: str, code: str, output: Output) -> str:
    """Return the text in a colour, if the output has colours."""
    return f"\x1b[{code}m{text}\x1b[0m" if output.colour and code and text else text


def run(options: argparse.Namespace) -> int:
    """Run `show` or `dump`; returns the exit code. Raises CommandError."""
    return _dump(options) if options.command == "dump" else _show(options)


def _show(options: argparse.Namespace) -> int:
    if options.flows:
        return _show_flows(options)
    topics = TOPICS if options.topic == "all" else (options.topic,)
    parts = {part for topic in topics for part in PARTS[topic]}
    try:
        show(_snapshot(options, parts), topics, Output.of(sys.stdout, options.json), options.ns)
    except UnknownNamespace as error:
        raise CommandError(str(error)) from None
    return 0


def _show_flows(options: argparse.Namespace) -> int:
    """Print the OpenFlow flows of one bridge of Open vSwitch. Raises CommandError."""
    name, flows = _flows_of(options)
    output = Output.of(sys.stdout, options.json)
    if output.json:
        from core.export.objects import SCHEMA

        document = {"schema": SCHEMA, "bridge": name, "flows": [plain(flow) for flow in flows]}
        output.stream.write(json.dumps(document, indent=1) + "\n")
        return 0
    rows = (Row(ovs_ref(name), ovs_flows.flow_cells(flow)) for flow in flows)
    empty = f"{safe(name)} has no flow: it drops all packets."
    output.stream.writelines(_table(ovs_flows.COLUMNS, rows, empty, output))
    return 0


def _flows_of(options: argparse.Namespace) -> tuple[str, tuple[OvsFlow, ...]]:
    from core.collect.ovs import read_flows, read_ovs

    name = safe(options.flows)
    if options.topic not in ("ovs", "all") or options.source:
        raise CommandError(
            f"can't read the flows of {name}: they are read from this host, and only with the topic ovs. "
            f"Try: vnet-tui show ovs --flows {quoted(options.flows)}"
        )
    bridges, problems = read_ovs()
    if problems:
        raise CommandError(safe(problems[0].sentence))
    found = next((one for one in bridges if one.name == options.flows), None)
    if found is None:
        known = ", ".join(safe(one.name) for one in bridges) or "none"
        raise CommandError(
            f"can't read the flows of {name}: there is no such bridge of Open vSwitch (bridges: {known})"
        )
    try:
        return found.name, read_flows(found)
    except ToolFailed as failure:
        raise CommandError(
            f"can't read the flows of {name}: {safe(failure.why)}. Try: {safe(failure.try_)}"
        ) from None


def _snapshot(options: argparse.Namespace, parts: set[Part] | None = None) -> Snapshot:
    """Read from the given file, else from this host."""
    if options.source:
        return load(Path(options.source))
    from core.collect.snapshot import read_snapshot

    return read_snapshot(parts)


def _dump(options: argparse.Namespace) -> int:
    snapshot = _snapshot(options)
    if not options.source:
        from tui.cli.diagnosis import with_health

        snapshot = with_health(snapshot)
    content = pack(snapshot)
    if options.file == "-":
        sys.stdout.buffer.write(content)
    else:
        print(f"{save(Path(options.file), content)}; {CHECK_FIRST}", file=sys.stderr)
    print_problems(Topology(snapshot), TOPICS)
    return 0
