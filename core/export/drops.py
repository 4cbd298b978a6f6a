"""Export dropped packets as JSON objects: `vnet-tui drops --json`."""

from __future__ import annotations

from typing import Any

from core.drop_reasons import explain
from core.model import Drop, DroppedPacket
from core.topology import Topology
from core.topology.drops import advice_for, container_of_drop, place_of_drop


def drop_object(topology: Topology, drop: Drop) -> dict[str, Any]:
    """Return the counters of one line; docs/json.md has the schema."""
    reason = explain(drop.reason, drop.function)
    return {
        **_where(topology, drop),
        "packets": drop.packets,
        "packets_per_second": round(drop.rate, 2),
        "meaning": reason.meaning,
        "try": advice_for(topology, drop),
    }


def _where(topology: Topology, drop: Drop) -> dict[str, Any]:
    container = container_of_drop(topology, drop)
    namespace, link = place_of_drop(topology, drop)
    return {
        "reason": drop.reason,
        "kind": explain(drop.reason, drop.function).kind,
        "ns": drop.ns or None,
        "namespace": namespace,
        "ifindex": drop.ifindex or None,
        "link": link,
        "container": container.name if container else "",
        "direction": drop.direction,
        "address": drop.address,
        "function": drop.function,
    }


def packet_object(topology: Topology, packet: DroppedPacket) -> dict[str, Any]:
    """Return one dropped packet; docs/json.md has the schema."""
    owners = {
        end: topology.container_at(packet.where.ns, address) if address else None
        for end, address in (("src", packet.src), ("dst", packet.dst))
    }
    return {
        "at": packet.at,
        **_where(topology, packet.where),
        "l4_proto": packet.l4_proto,
        "src": packet.src,
        "sport": packet.sport or None,
        "dst": packet.dst,
        "dport": packet.dport or None,
        "length": packet.length,
        "containers": [owner.name if owner else "" for owner in owners.values()],
    }
