"""Run `vnet-tui storm loop`: find loops of a bridge, and block them."""

from __future__ import annotations

import argparse
import json
import sys

from core.model import Link, LinkKey
from core.plan import Plan, Refused
from core.plan.requests import BlockPorts
from core.probe.loop import Loop, find_loops
from core.text import safe
from core.topology import Topology
from tui.cli.console import approve, require_rights
from tui.cli.perform import LIGHT, bridge_named, perform, plan_requests, read_topology
from tui.command import CommandError

SCHEMA = 1


def run(options: argparse.Namespace) -> int:
    """Name the loops of a bridge, and block them if asked; 1 if there are any.

    Raises CommandError.
    """
    require_rights()
    topology = read_topology(LIGHT)
    bridge = bridge_named(options.network, topology, "look for loops of")
    ports = {one.ifindex: one for one in topology.ports_of(bridge.key) if one.port and _forwards(one)}
    try:
        loops = find_loops(bridge.ifindex, ports)
    except OSError as error:
        why = error.strerror or str(error)
        raise CommandError(f"can't look for loops of {safe(bridge.name)}: {why}") from error
    blocked = [ports[index] for loop in loops for index in _to_block(loop, ports)]
    if options.json and not options.block:
        _print_json(bridge, loops, ports)
    elif not options.json:
        _print(bridge, loops, ports)
    if not loops:
        return 0
    if options.block:
        return _block(options, [one.key for one in blocked])
    return 1


def _forwards(port: Link) -> bool:
    return bool(port.port and port.port.state == "forwarding" and port.carrier)


def _to_block(loop: Loop, ports: dict[int, Link]) -> tuple[int, ...]:
    """Return the ports to block so that one remains: a NIC, else the oldest."""
    first = sorted(loop.ports, key=lambda index: (ports[index].kind == "veth", index))
    return tuple(first[1:]) or tuple(first)


def _print(bridge: Link, loops: list[Loop], ports: dict[int, Link]) -> None:
    if not loops:
        print(f"no loop: no probe came back to {safe(bridge.name)} ({len(ports)} ports)")
    for loop in loops:
        names = " and ".join(safe(ports[index].name) for index in loop.ports)
        where = f"between {names}" if len(loop.ports) > 1 else f"behind {names}"
        print(f"loop of {safe(bridge.name)} {where}: what leaves there comes back")
    sys.stdout.flush()


def _print_json(bridge: Link, loops: list[Loop], ports: dict[int, Link]) -> None:
    found = [[ports[index].name for index in loop.ports] for loop in loops]
    print(json.dumps({"schema": SCHEMA, "bridge": bridge.name, "loops": found}, indent=2))


def _block(options: argparse.Namespace, keys: list[LinkKey]) -> int:
    request = BlockPorts(tuple(keys))

    def planner(topology: Topology) -> Plan | Refused:
        return plan_requests((request,), topology)

    return perform(options, planner, LIGHT, None if options.yes or options.json else _approve)


def _approve(plan: Plan) -> bool:
    return approve(plan, "Block?")
