"""Which conntrack entries are whose: from containers to the flows that begin or end at them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from core.flows import Entry, Flow, address_bytes, entry_of, flow_of, protocol_name
from core.flows.columns import among
from core.model import Conntrack, Container, Ref, flow_ref

if TYPE_CHECKING:
    from core.topology import Topology

FLOWS_SHOWN = 20


def flows_of(
    topology: Topology, containers: Iterable[Container], limit: int = FLOWS_SHOWN
) -> tuple[Ref, ...]:
    """The conntrack entries that begin or end at these containers, the busiest first, at most `limit`."""
    members = tuple(containers)
    found: list[tuple[int, Ref]] = []
    for ns, table in topology.snapshot.conntracks.items():
        hits = _touching(table, _addresses_seen(topology, ns, members))
        totals = table.entries["bytes"][hits].sum(axis=1)
        for place in np.argsort(totals, kind="stable")[::-1][:limit].tolist():
            found.append((int(totals[place]), flow_ref(ns, int(table.entries["id"][hits[place]]))))
    found.sort(key=lambda pair: pair[0], reverse=True)
    return tuple(ref for _, ref in found[:limit])


def _addresses_seen(topology: Topology, ns: int, containers: Iterable[Container]) -> frozenset[bytes]:
    """The addresses by which a namespace knows these containers, or those they share a namespace with."""
    spaces = {container.netns or container.uid for container in containers}
    told = (address for container in containers for address in topology.addresses_of(container))
    owners = {address: topology.container_at(ns, address) for address in told}
    return frozenset(
        address_bytes(address)
        for address, owner in owners.items()
        if owner is not None and (owner.netns or owner.uid) in spaces
    )


def _touching(table: Conntrack, addresses: Collection[bytes]) -> np.ndarray:
    """The places of the entries whose real ends are among those addresses."""
    hits = np.zeros(len(table.entries), bool)
    for side in ("orig_src", "reply_src") if addresses and len(hits) else ():
        ends = np.ascontiguousarray(table.entries[side]).view(">u8").astype(np.uint64)
        hits |= among(ends, addresses)
    return np.flatnonzero(hits)


def found_entry(topology: Topology, ref: Ref) -> Entry | None:
    """The conntrack entry of a reference, None where it is gone."""
    table = topology.snapshot.conntracks.get(int(ref.key[0]))
    if table is None:
        return None
    found = table.entries[table.entries["id"] == ref.key[1]]
    return entry_of(found[0]) if len(found) else None


def described(topology: Topology, refs: Iterable[Ref]) -> Iterator[tuple[tuple[str, Ref], Flow]]:
    """Each entry that is still there as a relation, with its meaning."""
    for ref in refs:
        entry = found_entry(topology, ref)
        if entry is not None:
            flow = flow_of(entry)
            words = f"{protocol_name(entry.l4_proto)} {flow.inside} ↔ {flow.peer}"
            yield (f"flow {words}", ref), flow
