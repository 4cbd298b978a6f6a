"""Run `vnet-tui drops`: print dropped packets by reason, once or repeatedly."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from bpf.drops import DropCounter
from core.collect.snapshot import read_snapshot
from core.drops import DropMeter, DropsUnavailable, is_drop
from core.export.drops import drop_object, packet_object
from core.model import Drop, DroppedPacket, Drops, Part
from core.text import failure_sentence, safe
from core.topology import Topology
from core.topology.drops import KnownNamespaces
from tui.cli.show import shortened
from tui.command import CommandError
from tui.views import query
from tui.views.drops import COLUMNS, DropRows, packet_text, place_text, row_of
from tui.views.rows import Row, ViewContext

SCHEMA = 1
_SECONDS, _PACKET_SECONDS, _MOST_PACKET_SECONDS = 5.0, 10.0, 60.0
_TOPOLOGY_EVERY = 5.0  # seconds; names and addresses seldom change
_POLL = 0.2  # seconds between two looks at the buffer of single packets
_BY = {"reason": "", "container": "container", "link": "link"}


@dataclass
class _Readings:
    """The counter, and the topology that names what it counts."""

    counter: DropCounter
    options: argparse.Namespace
    began: float = field(default_factory=time.monotonic)
    meter: DropMeter = field(default_factory=DropMeter)
    known: KnownNamespaces = field(default_factory=KnownNamespaces)
    uncounted: int = 0
    left_out: int = 0
    _topology: Topology | None = None
    _read_at: float = 0.0

    def topology(self) -> Topology:
        """Return the topology, a new one every few seconds."""
        if self._topology is None or time.monotonic() - self._read_at > _TOPOLOGY_EVERY:
            self._topology = Topology(read_snapshot({Part.LINKS, Part.CONTAINERS, Part.OVS}))
            self._read_at = time.monotonic()
            self.known.add(self._topology)
            self.counter.set_owners(self._topology.reachable_addresses())
            self.counter.keep_namespaces(self._topology.snapshot.namespaces)
        return self._topology

    def measure(self) -> tuple[Drop, ...]:
        """Return drops that match the filter, with rates since the last call."""
        topology = self.topology()
        counters, self.uncounted = self.counter.read()
        found = self.meter.feed(self.known.of(counters), time.monotonic())
        kept = [one for one in found if self.options.all or is_drop(one)]
        self.left_out = sum(one.packets for one in found) - sum(one.packets for one in kept)
        terms = query.parse(" ".join(self.options.filter))
        terms = query.by_name(terms, COLUMNS, DropRows(ViewContext(topology), kept).keys())
        return tuple(one for one in kept if query.matches(terms, row_of(topology, one), COLUMNS))


def run(options: argparse.Namespace) -> int:
    """Print dropped packets; returns the exit code. Raises CommandError."""
    seconds = _seconds(options)
    try:
        counter = DropCounter()
    except DropsUnavailable as error:
        raise CommandError(
            safe(failure_sentence("can't count dropped packets", error.why, error.try_))
        ) from error
    readings = _Readings(counter, options)
    with suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        readings.topology()
        readings.meter.feed((), time.monotonic())
        _refuse_unknown(readings)
        if options.packets:
            _print_packets(readings, seconds)
        elif options.follow:
            _follow(readings, seconds)
        else:
            _print_after(readings, seconds)
    finally:
        counter.close()
    return 0


def _seconds(options: argparse.Namespace) -> float:
    """Return how long to count; raises CommandError."""
    if options.source:
        raise CommandError("can't count drops of a file: it has none. Try: the same without --from")
    usual = _PACKET_SECONDS if options.packets else 1.0 if options.follow else _SECONDS
    seconds = usual if options.over is None else float(options.over)
    most = _MOST_PACKET_SECONDS if options.packets else 3600.0
    if not 0 < seconds <= most:
        raise CommandError(f"can't count for {seconds:g} seconds: it takes more than 0, at most {most:g}")
    if options.packets and options.follow:
        raise CommandError("can't follow single packets: they are listed for a limited time. Try: --over 60")
    return seconds


def _refuse_unknown(readings: _Readings) -> None:
    """Raise CommandError for a filter with unknown keys."""
    topology, nothing = readings.topology(), Drop("", 0, 0)
    known = DropRows(ViewContext(topology), [nothing]).keys()
    if readings.options.packets:
        known |= _packet_terms(topology, DroppedPacket(0.0, nothing, 0), "").keys()
    remarks = list(query.remarks(" ".join(readings.options.filter), known))
    if remarks:
        raise CommandError(safe("; ".join(remarks)))


def _print_after(readings: _Readings, seconds: float) -> None:
    """Print what was dropped within `seconds`, or until Ctrl-C."""
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        _print(readings, readings.measure())
        sys.stdout.flush()
        raise
    _print(readings, readings.measure())


def _print(readings: _Readings, drops: tuple[Drop, ...]) -> None:
    topology = readings.topology()
    if readings.options.json:
        head = {
            "schema": SCHEMA, "taken_at": time.time(), "since": readings.counter.since,
            "seconds": round(time.monotonic() - readings.began, 3), "uncounted": readings.uncounted,
            "left_out": readings.left_out,
        }  # fmt: skip
        print(json.dumps({**head, "drops": [drop_object(topology, one) for one in drops]}, indent=1))
        return
    for line in _table(topology, drops, readings):
        print(line)
    _print_notes(readings, drops)


def _print_notes(readings: _Readings, drops: tuple[Drop, ...]) -> None:
    if not drops:
        print("no packet was dropped" + (" that matches the filter" if readings.options.filter else ""))
    if readings.left_out:
        count = f"{readings.left_out:,} packet{'s' * (readings.left_out != 1)}"
        print(f"vnet-tui: {count} dropped for normal reasons aren't listed. Try: --all", file=sys.stderr)
    if readings.uncounted:
        count = f"{readings.uncounted:,} packets"
        print(f"vnet-tui: can't list {count}: the kernel's map of drops is full", file=sys.stderr)


def _table(topology: Topology, drops: tuple[Drop, ...], readings: _Readings) -> Iterator[str]:
    """Yield the groups with their lines below, as in the dashboard."""
    context = ViewContext(topology, drops=Drops(readings.counter.since, time.time(), drops))
    rows = DropRows(context, drops).grouped_by(_BY[readings.options.by])
    lines = [
        ["  " * row.depth + shortened(row.cells[0].text), *(shortened(cell.text) for cell in row.cells[1:4])]
        for row in rows
    ]
    titles = [column.title.upper() for column in rows.columns]
    widths = [max(len(line[at]) for line in (titles[:4], *lines)) for at in range(4)]
    for (name, place, packets, rate), words in zip(
        (titles[:4], *lines), (titles[4], *map(_words, rows)), strict=True
    ):
        start = f"{name:{widths[0]}}  {place:{widths[1]}}  {packets:>{widths[2]}}  {rate:>{widths[3]}}"
        yield f"{start}  {words}".rstrip()


def _words(row: Row) -> str:
    """Return the text after a line's figures, with the kernel function of a counter."""
    function = row.cells[5].text if row.depth else ""
    return f"{row.cells[4].text}  [{function}]" if function else row.cells[4].text


def _follow(readings: _Readings, seconds: float) -> None:
    """Print what is being dropped again and again, until Ctrl-C."""
    while True:
        time.sleep(seconds)
        drops = tuple(one for one in readings.measure() if one.rate)
        if readings.options.json:
            for one in drops:
                found = {"at": time.time(), **drop_object(readings.topology(), one)}
                print(json.dumps(found, separators=(",", ":")))
        else:
            clock, rate = time.strftime("%H:%M:%S"), sum(one.rate for one in drops)
            print(f"-- {clock}  {rate:,.1f} packets/s dropped")
            for line in _table(readings.topology(), drops, readings) if drops else ():
                print(line)
        sys.stdout.flush()


def _print_packets(readings: _Readings, seconds: float) -> None:
    """Print each dropped packet for a limited time."""
    try:
        readings.counter.report(True)
    except DropsUnavailable as error:
        raise CommandError(safe(failure_sentence("can't list packets", error.why, error.try_))) from error
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(_POLL, left))
        for packet in readings.counter.packets():
            if _is_wanted(readings, packet):
                print(_packet_line(readings, packet))
        sys.stdout.flush()


def _is_wanted(readings: _Readings, packet: DroppedPacket) -> bool:
    """Return whether a packet is of a known namespace, and matches the filter."""
    topology, options = readings.topology(), readings.options
    if not list(readings.known.of([packet.where])) or not (options.all or is_drop(packet.where)):
        return False
    row = row_of(topology, packet.where)
    whole = replace(row, terms={**row.terms, **_packet_terms(topology, packet, row.terms["ct"])})
    return query.matches(query.parse(" ".join(options.filter)), whole, COLUMNS)


def _packet_terms(topology: Topology, packet: DroppedPacket, container: str) -> dict[str, str]:
    """Return the filter terms that only single packets have."""
    owners = [topology.container_at(packet.where.ns, one) for one in (packet.src, packet.dst) if one]
    return {
        "ct": " ".join([container, *(safe(one.name) for one in owners if one)]),
        "proto": packet.l4_proto,
        "addr": f"{packet.src} {packet.dst}",
        "src": packet.src,
        "dst": packet.dst,
        "port": f"{packet.sport} {packet.dport}",
        "sport": str(packet.sport),
        "dport": str(packet.dport),
    }


def _packet_line(readings: _Readings, packet: DroppedPacket) -> str:
    topology = readings.topology()
    if readings.options.json:
        found: dict[str, Any] = packet_object(topology, packet)
        return json.dumps(found, separators=(",", ":"))
    clock = f"{time.strftime('%H:%M:%S', time.localtime(packet.at))}.{int(packet.at % 1 * 1000):03}"
    place = place_text(topology, packet.where)
    function = f" [{packet.where.function}]" if packet.where.function else ""
    return safe(f"{clock}  {packet.where.reason}  {place}: {packet_text(topology, packet)}{function}")
