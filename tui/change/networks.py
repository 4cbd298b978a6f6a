"""`vnet-tui network ls`: the networks that vnet made and those of the engines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from core.model import Container, Network
from core.plan import OurNetwork, Ours, ours
from core.text import safe
from core.topology import Topology
from tui.change import report

_COLUMNS = ("name", "engine", "kind", "subnets", "bridge", "containers")


def list_networks(topology: Topology, as_json: bool) -> int:
    """Print them, by name; those of vnet first."""
    found = [*_ours(topology), *_engines(topology)]
    if as_json:
        report.print_json({"networks": found})
        return 0
    rows = [
        [column.upper() for column in _COLUMNS],
        *([_cell(one[key]) for key in _COLUMNS] for one in found),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
    return 0


def _cell(value: Any) -> str:
    if isinstance(value, list):
        names = [one["name"] if isinstance(one, dict) else one for one in value]
        return safe(",".join(names)) or "-"
    return safe(str(value)) or "-"


def _ours(topology: Topology) -> Iterator[dict[str, Any]]:
    mine = ours(topology.snapshot, topology.host)
    for network in sorted(mine.networks.values(), key=lambda one: one.name):
        yield {
            "name": network.name, "engine": "vnet", "kind": network.kind, "bridge": network.bridge,
            "subnets": list(network.subnets), "gateways": list(network.gateways), "mtu": network.mtu,
            "nat66": network.nat66, "uplink": network.uplink,
            "containers": list(_members(network, mine, topology)),
            "joined": _joined(network, mine),
        }  # fmt: skip


def _joined(network: OurNetwork, mine: Ours) -> list[str]:
    names = {name for pair in mine.joined if network.name in pair for name in pair}
    return sorted(names - {network.name})


def _members(network: OurNetwork, mine: Ours, topology: Topology) -> Iterator[dict[str, Any]]:
    for member in mine.members:
        if member.network == network.name:
            found = topology.containers.get(member.container)
            addresses = {one.partition("/")[0] for one in member.addresses}
            yield {
                "name": found.name if found else member.container.partition(":")[2],
                "uid": member.container, "link": member.link, "port": member.port,
                "addresses": list(member.addresses),
                "published": [one.port_id for one in mine.ports if one.address in addresses],
            }  # fmt: skip


def _engines(topology: Topology) -> Iterator[dict[str, Any]]:
    for engine in topology.snapshot.engines.values():
        for network in sorted(engine.networks, key=lambda one: one.name):
            kind = topology.network(network.id)
            yield {
                "name": network.name, "engine": engine.name, "kind": kind.kind if kind else network.kind,
                "bridge": network.bridge, "subnets": list(network.subnets),
                "gateways": list(network.gateways), "mtu": network.mtu, "nat66": False, "uplink": "",
                "containers": [_end(one, network) for one in engine.containers if _is_on(one, network)],
                "joined": [],
            }  # fmt: skip


def _is_on(container: Container, network: Network) -> bool:
    return any(end.network in (network.name, network.id) for end in container.endpoints)


def _end(container: Container, network: Network) -> dict[str, Any]:
    end = next(end for end in container.endpoints if end.network in (network.name, network.id))
    return {
        "name": container.name, "uid": container.uid, "link": "", "port": "",
        "addresses": [one for one in (end.ipv4, end.ipv6) if one],
        "published": [],
    }  # fmt: skip
