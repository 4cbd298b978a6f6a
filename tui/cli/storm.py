"""Run `vnet-tui storm`: guard networks against storms, and find loops."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bpf.build import CACHE, CompileError, compiled_program
from bpf.storm_guard import read_counters
from core.model import GUARDED, GuardCounters, Link, StormLimits
from core.plan.requests import GuardStorms
from core.storms import is_dropping
from core.text import failure_sentence, quoted, safe
from core.topology import Topology
from tui.cli.change_parser import MULTICAST_TIMES
from tui.cli.console import print_table, require_rights
from tui.cli.perform import BRIDGED, LIGHT, bridge_named, change, read_topology
from tui.command import CommandError

SCHEMA = 1


def run(options: argparse.Namespace) -> int:
    """Run an action of `vnet-tui storm`; returns the exit code. Raises CommandError."""
    if options.action == "loop":
        from tui.cli.loop import run as find_loops

        return find_loops(options)
    if options.state == "status":
        return _status(options)
    limits = _limits(options) if options.state == "on" else ""
    if limits and not options.dry_run:
        _compile(options)
    request = GuardStorms(options.network, limits, options.all_ports)
    return change(options, lambda _: request, BRIDGED)


def _limits(options: argparse.Namespace) -> str:
    multicast = options.rate * MULTICAST_TIMES if options.multicast is None else options.multicast
    burst = options.rate if options.burst is None else options.burst
    return str(StormLimits(options.rate, multicast, burst, options.xdp))


def _compile(options: argparse.Namespace) -> None:
    """Compile the program before a change, which can't wait that long.

    Raises CommandError.
    """
    require_rights()
    try:
        for name in ("storm_guard", "storm_guard_egress", *(["storm_guard_xdp"] if options.xdp else [])):
            compiled_program(CACHE, name)
    except CompileError as error:
        raise CommandError(safe(f"can't guard {options.network}: {error}")) from error


def _status(options: argparse.Namespace) -> int:
    topology = read_topology(LIGHT)
    ports = _ports(options.network, topology)
    try:
        counters = {one.ifindex: one for one in read_counters()}
    except OSError as error:
        why = error.strerror or str(error)
        remedy = f"sudo vnet-tui storm guard {quoted(options.network)} status"
        raise CommandError(failure_sentence("can't read the storm guard", why, remedy)) from error
    if options.json:
        found = [_object(port, counters.get(port.ifindex)) for port in ports]
        print(json.dumps({"schema": SCHEMA, "network": options.network, "ports": found}, indent=2))
        return 0
    rows = [row for port in ports for row in _rows(port, counters.get(port.ifindex))]
    print_table((("PORT", "CLASS", "LIMIT", "PASSED", "DROPPED", "NOW"), *rows))
    return 0


def _ports(text: str, topology: Topology) -> list[Link]:
    """Return the ports of a network or bridge, or the link of that name.

    Raises CommandError.
    """
    net = topology.snapshot.nets.get(topology.host)
    links = net.links.values() if net else ()
    link = next((one for one in links if one.name == text), None)
    link = link or bridge_named(text, topology, "find", "network, bridge or port")
    ports = topology.ports_of(link.key) if link.kind == "bridge" else [link]
    return sorted(ports, key=lambda one: one.name)


def _rows(port: Link, found: GuardCounters | None) -> list[tuple[str, ...]]:
    if found is None:
        return [(safe(port.name), "-", "off", "", "", "")]
    return [
        (
            safe(port.name), kind, f"{rate:,}/s{_place(found, kind)}",
            f"{found.passed[place]:,}", f"{found.dropped[place]:,}",
            "dropping" if is_dropping(found, place) else "",
        )
        for place, (kind, rate) in enumerate(zip(GUARDED, found.limits.rates, strict=True))
    ]  # fmt: skip


def _place(found: GuardCounters, kind: str) -> str:
    return " in the driver" if found.limits.xdp and kind != GUARDED[-1] else ""


def _object(port: Link, found: GuardCounters | None) -> dict[str, Any]:
    if found is None:
        return {"port": port.name, "guarded": False}
    classes = {
        kind.replace(" ", "_"): {
            "rate": rate, "passed": found.passed[place], "dropped": found.dropped[place],
            "last_drop_seconds": found.last_drop[place], "dropping": is_dropping(found, place),
        }
        for place, (kind, rate) in enumerate(zip(GUARDED, found.limits.rates, strict=True))
    }  # fmt: skip
    limits = found.limits
    return {
        "port": port.name, "guarded": True, "burst": limits.burst, "xdp": limits.xdp, "classes": classes,
    }  # fmt: skip
