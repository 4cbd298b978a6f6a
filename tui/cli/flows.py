"""Run `vnet-tui flows`: print connections and speeds, once or repeatedly."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import batched
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from core.collect.host import PeerNames
from core.collect.snapshot import read_snapshot
from core.export.flows import client_counts, flow_lines
from core.flows.merge import FlowTable
from core.flows.meter import FlowMeter
from core.model import Part, Problem, Snapshot
from core.text import safe
from core.topology import Topology
from core.topology.flow_index import SEGMENTS, FlowView
from core.watch.rates import SocketReader, read_timed
from tui.cli.fastpath_agent import SharedFlows
from tui.cli.show import shortened
from tui.command import CommandError, load_with_fast_flows
from tui.views import formatting, query
from tui.views.filters import flows_mask_of
from tui.views.flows import FlowRows
from tui.views.flows_detail import flow_text
from tui.views.flows_groups import group_rows
from tui.views.rows import FlowViewOptions

SCHEMA = 1
_TOPOLOGY_EVERY = 5.0  # seconds; names and addresses seldom change
_AT_ONCE = 1000  # lines of JSON that are written together
_TOP = 20  # flows that are printed at a time by default


@dataclass
class _FlowReadings:
    """One look after another at the host, or the one that a file holds."""

    snapshot: Snapshot
    live: bool
    sockets: bool = False
    meter: FlowMeter = field(default_factory=FlowMeter)
    reader: SocketReader = field(default_factory=SocketReader)
    fast: SharedFlows = field(default_factory=SharedFlows)
    names: PeerNames = field(default_factory=PeerNames)
    problems: tuple[Problem, ...] = ()
    before: FlowView | None = None
    _topology: Topology | None = None
    _read_at: float = 0.0

    def measure(self) -> FlowTable:
        """Measure once more."""
        readings = read_timed(self.snapshot.namespaces)
        self.problems = tuple(problem for one in readings for problem in one.table.problems)
        return self.meter.feed(readings, self.fast(), time.monotonic(), time.time())

    def flow_view(self, table: FlowTable) -> FlowView:
        """Return the view of the newest table."""
        from dataclasses import replace

        if self._topology is None or (self.live and time.monotonic() - self._read_at > _TOPOLOGY_EVERY):
            if self._topology is not None:
                self.snapshot = read_snapshot({Part.LINKS, Part.CONTAINERS, Part.OVS})
            self._topology, self._read_at = Topology(self.snapshot), time.monotonic()
        if self.sockets:
            table = replace(table, sockets=self.reader.read(self.snapshot.namespaces))
        if self.live:
            table = replace(table, names=self.names.all_names())
        self.before = FlowView.of(self._topology, table, self.before)
        return self.before

    @property
    def topology(self) -> Topology:
        assert self._topology is not None
        return self._topology


def run(options: argparse.Namespace) -> int:
    """Print flows; returns the exit code. Raises CommandError."""
    file, fast = load_with_fast_flows(Path(options.source)) if options.source else (None, None)
    _check(options, file is not None)
    if file is not None:
        from core.flows.merge import table_of

        readings = _FlowReadings(file, live=False)
        flow_view = readings.flow_view(table_of(file.conntracks, fast, file.taken_at))
        _print(readings, flow_view, options, sys.stdout)
        return 0
    seconds = _seconds(options)
    readings = _FlowReadings(
        read_snapshot({Part.LINKS, Part.CONTAINERS, Part.OVS}), live=True, sockets=_needs_sockets(options)
    )
    table, began = readings.measure(), time.monotonic()
    if options.follow:
        _follow(readings, options, max(seconds, 0.2))
        return 0
    if seconds:
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        table = readings.measure()
    flow_view = readings.flow_view(table)
    _print(readings, flow_view, options, sys.stdout)
    _print_notes(readings)
    return 0


def _check(options: argparse.Namespace, is_file: bool) -> None:
    """Refuse combinations of options that make no sense; raises CommandError."""
    if options.over is not None and not 0 <= options.over <= 3600:
        raise CommandError(f"can't measure over {options.over:g} seconds: it takes 0 to 3600")
    if options.top is not None and options.top < 1:
        raise CommandError(f"can't print {options.top} flows: --top takes 1 or more")
    if options.follow and is_file:
        raise CommandError("can't follow the flows of a file: it holds one moment")
    if _filters_speed(options) and is_file:
        raise CommandError("can't filter by rate: a file holds one moment, in which no rate was measured")
    if _filters_speed(options) and options.over == 0 and not options.follow:
        raise CommandError("can't filter by rate: --over 0 measures none. Try: --over 1")
    if is_file and _needs_sockets(options):
        raise CommandError("can't show round-trip times and processes: a file holds no sockets")


def _needs_sockets(options: argparse.Namespace) -> bool:
    """Return whether the options ask for anything that only sockets have."""
    keys = {each.key for each in query.parse(" ".join(options.filter))}
    return bool(options.sockets or options.by == "process" or keys & {"rtt", "process", *SEGMENTS})


def _filters_speed(options: argparse.Namespace) -> bool:
    return any(each.key == "rate" for each in query.parse(" ".join(options.filter)))


def _seconds(options: argparse.Namespace) -> float:
    """Return the seconds to measure by default.

    JSON has no rates unless options need them.
    """
    if options.over is not None:
        return float(options.over)
    asked = options.follow or options.by or options.top or _filters_speed(options)
    return 1.0 if asked or not options.json else 0.0


def _print_notes(readings: _FlowReadings) -> None:
    """Report what wasn't read, and namespaces that don't count."""
    for sentence in dict.fromkeys(problem.sentence for problem in readings.problems):
        print(f"vnet-tui: {safe(sentence)}", file=sys.stderr)
    quiet = [safe(readings.topology.label(ns)) for ns in readings.meter.table.uncounted]
    if quiet:
        where = ", ".join(quiet[:3]) + (" and more" if len(quiet) > 3 else "")
        print(
            f"vnet-tui: can't measure traffic in {where}: it isn't counted there. "
            "Try: sysctl -w net.netfilter.nf_conntrack_acct=1 (it counts new connections)",
            file=sys.stderr,
        )


def _follow(readings: _FlowReadings, options: argparse.Namespace, seconds: float) -> None:
    """Print again and again, until somebody ends it."""
    while True:
        time.sleep(seconds)
        flow_view = readings.flow_view(readings.measure())
        if options.json:
            for line in _lines(readings, flow_view, options, moving=True):
                sys.stdout.write(f'{{"at":{flow_view.table.at},{line[1:]}\n')
        else:
            clock = time.strftime("%H:%M:%S", time.localtime(flow_view.table.at))
            order = _order(readings, flow_view, options)
            bits = float(np.nansum(flow_view.table.bits[order]))
            sys.stdout.write(f"-- {clock}  {_mode(options)}  {len(order)} flows  {formatting.bits(bits)}\n")
            shown = order if options.by else order[: options.top or _TOP]
            _print_text(readings, flow_view, options, shown, sys.stdout)
        sys.stdout.flush()


def _mode(options: argparse.Namespace) -> str:
    return "per hop" if options.per_hop else "at the edge"


def _order(readings: _FlowReadings, flow_view: FlowView, options: argparse.Namespace) -> np.ndarray[Any, Any]:
    """Return the requested rows, fastest first, or biggest first without rates."""
    rows = np.arange(len(flow_view)) if options.per_hop else np.flatnonzero(flow_view.index.edge)
    text = " ".join(options.filter)
    if text:
        _refuse_unknown(readings, flow_view, text)
        rows = rows[flows_mask_of(query.parse(text), readings.topology, flow_view)[rows]]
    amount = flow_view.table.bits if flow_view.table.measured else flow_view.table.octets.sum(axis=1)
    rows = rows[np.argsort(-np.nan_to_num(amount[rows].astype(float)), kind="stable")]
    return rows[: options.top] if options.top and not options.by else rows


def _refuse_unknown(readings: _FlowReadings, flow_view: FlowView, text: str) -> None:
    remarks = list(FlowRows(readings.topology, flow_view).remarks(text))
    if remarks:
        raise CommandError(safe("; ".join(remarks)))


def _print(readings: _FlowReadings, flow_view: FlowView, options: argparse.Namespace, stream: TextIO) -> None:
    if not options.json:
        _print_text(readings, flow_view, options, _order(readings, flow_view, options), stream)
        return
    order = _order(readings, flow_view, options)
    seconds = readings.meter.table.taken_at if flow_view.table.measured else None
    head = {
        "schema": SCHEMA,
        "taken_at": flow_view.table.at,
        "counted": "per hop" if options.per_hop else "edge",
        "measured": seconds is not None,
        "clients": client_counts(flow_view, order),
    }
    name = "groups" if options.by else "flows"
    stream.write(f'{json.dumps(head, separators=(",", ":"))[:-1]},\n"{name}":[')
    before = "\n"
    for lines in batched(_lines(readings, flow_view, options, order=order), _AT_ONCE):
        stream.write(before + ",\n".join(lines))
        before = ",\n"
    problems = [
        {"what": one.what, "why": one.why, "try": one.try_, "ns": one.ns} for one in readings.problems
    ]
    stream.write(f'\n],\n"problems":{json.dumps(problems)}}}\n')


def _lines(
    readings: _FlowReadings, flow_view: FlowView, options: argparse.Namespace, moving: bool = False,
    order: np.ndarray[Any, Any] | None = None,
) -> Iterator[str]:  # fmt: skip
    """Yield flows or groups as lines of JSON."""
    if order is None:
        order = _order(readings, flow_view, options)
    if moving:
        order = order[np.nan_to_num(flow_view.table.bits[order]) > 0]
    if options.by:
        yield from _group_lines(readings, flow_view, options, order)
        return
    labels = {table.ns: readings.topology.label(table.ns) for table in flow_view.table.tables}
    yield from flow_lines(flow_view, order, labels)


def _group_lines(
    readings: _FlowReadings, flow_view: FlowView, options: argparse.Namespace, order: np.ndarray[Any, Any]
) -> Iterator[str]:
    rows = group_rows(readings.topology, flow_view, order, FlowViewOptions(options.per_hop, options.by), ())
    names = [column.name for column in rows.columns]
    for row in rows.rows[: options.top]:
        cells = dict(zip(names, row.cells, strict=True))
        fields = {"by": options.by, "name": cells["name"].text, "filter": str(row.ref.key[1])}
        for key in ("flows", "rate", "bytes", "packets", "fast"):
            fields[{"rate": "bits_per_second", "fast": "fast_share"}.get(key, key)] = cells[key].sort
        kinds = ("outside", "host", "beside", "other-network")
        fields["clients"] = {kind.replace("-", " "): int(cells[kind].sort or 0) for kind in kinds}
        yield json.dumps(fields, separators=(",", ":"))


def _print_text(
    readings: _FlowReadings,
    flow_view: FlowView,
    options: argparse.Namespace,
    order: np.ndarray[Any, Any],
    stream: TextIO,
) -> None:
    with suppress(AttributeError):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    if options.by:
        rows = group_rows(
            readings.topology, flow_view, order, FlowViewOptions(options.per_hop, options.by), ()
        )
        lines = [[shortened(cell.text) for cell in row.cells] for row in rows.rows[: options.top]]
        titles = [column.title.upper() for column in rows.columns]
        kept = [place for place, column in enumerate(rows.columns) if column.name != "share"]
        widths = {place: max(len(line[place]) for line in (titles, *lines)) for place in kept}
        for line in (titles, *lines):
            right = [rows.columns[place].align == "right" for place in kept]
            parts = [
                line[at].rjust(widths[at]) if r else line[at].ljust(widths[at])
                for at, r in zip(kept, right, strict=True)
            ]
            stream.write("  ".join(parts).rstrip() + "\n")
        return
    for row in order.tolist():
        where = (
            f"  [{safe(readings.topology.label(flow_view.index.columns.place(row)[0].ns))}]"
            if options.per_hop
            else ""
        )
        stream.write(f"{safe(flow_text(flow_view, row))}{where}\n")
