"""Format the packets of a probe at each link that they pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from core.model.probe import Hop, PathMtu, ProbeResult, Sighting
from core.text import end_text, safe
from core.topology import Topology
from tui.views.formatting import fit, width_of

# One line as (text, tone) pieces.
PathLine = Sequence[tuple[str, str]]
_TITLES = {"request": "the packet", "answer": "its answer", "error": "an ICMP error"}


def path_lines(topology: Topology, result: ProbeResult, width: int) -> Iterator[PathLine]:
    """Yield a line for each sighting; what changed since the one before stands out."""
    places = [safe(topology.label(one.link.ns)) for one in result.sightings]
    names = [_name(topology, one) for one in result.sightings]
    columns = max([4, *map(width_of, places)]), max([4, *map(width_of, names)])
    before: Sighting | None = None
    for one, place, name in zip(result.sightings, places, names, strict=True):
        if before is None or before.role != one.role:
            yield [] if before is not None else [("packet path", "heading")]
            yield [(_TITLES[one.role], "dim")]
            before = before if before is not None and before.role == one.role else None
        since = (one.at - result.sightings[0].at) * 1000
        start = f"{since:8.3f} ms  {fit(place, columns[0])}  {fit(name, columns[1])}  {one.direction:3}  "
        yield [(start, ""), *_packet(one, before)]
        before = one
    if not result.sightings:
        yield [("no packet was seen on any link", "dim")]


def _name(topology: Topology, one: Sighting) -> str:
    link = topology.snapshot.link(one.link)
    return safe(link.name) if link else f"#{one.link.ifindex}"


def _packet(one: Sighting, before: Sighting | None) -> list[tuple[str, str]]:
    """Return the pieces of a packet; what differs from the sighting before is marked."""
    old, new = before.addresses if before else None, one.addresses
    pieces = [
        (_end(new.src, new.sport), _tone(old, (new.src, new.sport), old and (old.src, old.sport))),
        (" → ", "dim"),
        (_end(new.dst, new.dport), _tone(old, (new.dst, new.dport), old and (old.dst, old.dport))),
        (f"  ttl {one.ttl}", "accent" if before and before.ttl != one.ttl else "dim"),
    ]
    if one.flags or one.info:
        pieces.append((f"  {one.flags or one.info}", "dim"))
    if before is not None and (one.src_mac, one.dst_mac) != (before.src_mac, before.dst_mac):
        pieces.append((f"  {one.src_mac} → {one.dst_mac}", "accent"))
    if one.vlan:
        pieces.append((f"  vlan {one.vlan}", "accent"))
    if one.vni >= 0:
        pieces.append((f"  vxlan {one.vni}", "accent"))
    if one.times > 1:
        pieces.append((f"  again ({one.times})", "warn"))
    return pieces


def _tone(old: object, new: object, before: object) -> str:
    return "accent" if old is not None and new != before else ""


def _end(address: str, port: int) -> str:
    return end_text(address, port or None)


def mtu_lines(topology: Topology, found: PathMtu) -> Iterator[PathLine]:
    """Yield what limits the size of packets on a path."""
    yield []
    if found.mtu is None:
        yield [("path MTU: unknown, no packet arrives", "warn")]
        return
    words = "" if found.complete else " at least (time ran out)"
    yield [(f"path MTU: {found.mtu} bytes{words}", "warn" if found.silent else "ok")]
    for step in found.steps:
        yield [(f"  {step.sender or 'this host'} reports {step.mtu} bytes for its next link", "")]
    if found.silent:
        seen = found.last_seen
        link = topology.snapshot.link(seen.link) if seen is not None else None
        where = f"{link.name} of {topology.label(link.ns)}" if link else found.last_hop or "the sender"
        yield [(f"  larger packets vanish without an ICMP message after {safe(where)}", "bad")]


def hop_lines(found: Sequence[Hop]) -> Iterator[PathLine]:
    """Yield the routers of a path by their distance."""
    yield []
    yield [("routers", "heading")]
    for hop in found:
        rtt = f"{hop.rtt * 1000:8.2f} ms" if hop.rtt is not None else "          –"
        error = f"  {hop.error.name}" if hop.error else ""
        yield [(f"{hop.ttl:3}  {rtt}  ", ""), (hop.address or "no answer", "" if hop.address else "dim"),
               ("  target" if hop.is_target else error, "accent")]  # fmt: skip
