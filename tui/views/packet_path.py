"""Format the packets of a probe or a flow at each link that they pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from core.model.probe import (
    FlowDirection,
    FlowTrace,
    FunctionCall,
    Hop,
    PacketTuple,
    PathMtu,
    ProbeResult,
    Sighting,
)
from core.text import end_text, safe
from core.topology import Topology
from tui.views.formatting import fit, width_of, wrapped

_WIDE, _LEAST = 100, 30
_INDENT = " " * 16  # of further lines
# One line as (text, tone) pieces.
PathLine = Sequence[tuple[str, str]]
_TITLES = {"request": "the packet", "answer": "its answer", "error": "an ICMP error"}
_DIRECTIONS: tuple[tuple[FlowDirection, str], ...] = (("original", "sent"), ("reply", "back"))


def path_lines(
    topology: Topology, result: ProbeResult, width: int, wraps: bool = False
) -> Iterator[PathLine]:
    """Yield a line for each sighting; what changed since the one before stands out.

    With `wraps`, a line that is longer than `width` is continued on further ones.
    """
    sightings = [(one.role, one) for one in result.sightings]
    lines = _parts(topology, sightings, _TITLES, width, restart=False)
    yield from (part for line in lines for part in (_fitted(line, width) if wraps else [line]))


def _fitted(line: PathLine, width: int) -> Iterator[PathLine]:
    """Yield the pieces of a line on as many lines as they need."""
    part: list[tuple[str, str]] = []
    for piece in line:
        if part and sum(width_of(text) for text, _ in (*part, piece)) > width:
            yield part
            part = [(_INDENT, "")]
        part.append(piece)
    yield part


def flow_lines(
    topology: Topology, found: FlowTrace, width: int, notes: Sequence[str] = ()
) -> Iterator[PathLine]:
    """Yield a line for each link that a packet of a flow passed, in both directions."""
    sightings = [(packet.direction, one) for packet in found.packets for one in packet.sightings]
    request, titles = found.request, dict[str, str]()
    owner = topology.container_at(request.ns, request.original.src)
    client = f"{owner.name} {request.original.src}" if owner else request.original.src
    for direction, count in found.counts.items():
        word = "from" if direction == "original" else "to"
        titles[direction] = f"{word} {safe(client)} (1 of {_packets(count)})"
    yield from _parts(topology, sightings, titles, width, restart=True)
    calls = [(titles[packet.direction], call) for packet in found.packets for call in packet.functions]
    yield from function_lines(topology, calls)
    yield []
    for line in wrapped(flow_sentence(found), width):
        yield [(line, "ok" if found.packets else "warn")]
    texts = [*((note, "dim") for note in notes), *((one.sentence, "warn") for one in found.problems)]
    yield from ([(line, tone)] for text, tone in texts for line in wrapped(safe(text), width))


def function_lines(topology: Topology, calls: Sequence[tuple[str, FunctionCall]]) -> Iterator[PathLine]:
    """Yield the functions that a packet passed, with the times between them."""
    former, before = "", 0.0
    for title, call in calls:
        if title != former:
            yield []
            yield [(f"kernel functions: {title}", "dim")]
        step = f"{(call.at - before) * 1e6:+11,.1f} µs" if title == former else f"{'':14}"
        link = topology.snapshot.link((call.ns, call.ifindex))
        place = f"{topology.label(call.ns)}  {link.name if link else ''}" if call.ns else ""
        yield [(step, "dim"), (f"  {call.function:24}", ""), (f"  {safe(place)}".rstrip(), "dim")]
        former, before = title, call.at


def probe_function_lines(topology: Topology, result: ProbeResult) -> Iterator[PathLine]:
    """Yield the kernel functions that a probe, its answer and ICMP errors passed."""
    order = sorted(result.functions, key=lambda one: list(_TITLES).index(one[0]))
    yield from function_lines(topology, [(_TITLES[role], call) for role, call in order])


def flow_sentence(found: FlowTrace) -> str:
    """Return how many packets of a flow were seen, and whether it ended."""
    ended = (
        "The connection has ended." if found.gone else "The connection is closing." if found.closed else ""
    )
    if not found.packets:
        text = f"No packet of this flow within {found.seconds:.1f} s."
        return f"{text} {ended or 'It may be idle. Try: vnet-tui trace FLOW --for 60'}"
    counts = [f"{_packets(found.counts.get(one, 0))} {text}" for one, text in _DIRECTIONS]
    return f"{', '.join(counts)} in {found.seconds:.1f} s. {ended}".rstrip()


def _packets(count: int) -> str:
    return f"{count:,} packet{'' if count == 1 else 's'}"


def _parts(
    topology: Topology,
    parts: Sequence[tuple[str, Sighting]],
    titles: Mapping[str, str],
    width: int,
    restart: bool,
) -> Iterator[PathLine]:
    """Yield the lines of sightings under the titles of their parts.

    Times begin at 0 with the first sighting; with `restart`, with that of each part. Without much room only
    the times between two links, and addresses that changed, are shown."""
    is_wide = width >= _WIDE
    places = [safe(topology.label(one.link.ns)) for _, one in parts]
    names = [_name(topology, one) for _, one in parts]
    columns = max([4, *map(width_of, places)]), max([4, *map(width_of, names)])
    before: Sighting | None = None
    former, begun = "", 0.0
    for (part, one), place, name in zip(parts, places, names, strict=True):
        if part != former:
            yield [] if former else [("packet path", "heading")]
            yield [(titles[part], "dim")]
            begun, before = one.at if restart or not former else begun, None
        former = part
        if before is not None and (words := _between(before, one)):
            indent = " " * (27 if is_wide else 14)
            for line in wrapped(words, max(_LEAST, width - len(indent))):
                yield [(indent + line, "accent")]
        since = (one.at - begun) * 1000
        step = f"{(one.at - before.at) * 1e6:+11,.1f} µs" if before else f"{'':14}"
        start = f"  {fit(place, columns[0])}  {fit(name, columns[1])}  {one.direction:3}  "
        clock = [(f"{since:8.3f} ms", "")] if is_wide else []
        has_ends = is_wide or before is None or before.addresses != one.addresses
        yield [*clock, (step, "dim"), (start, ""), *(_ends(one, before) if has_ends else ()),
               *_headers(one, before)]  # fmt: skip
        before = one
    if not parts:
        yield [("no packet was seen on any link", "dim")]


def _between(before: Sighting, one: Sighting) -> str:
    """Return what the kernel did between two links: forward, NAT, VXLAN."""
    old, new, words = before.addresses, one.addresses, list[str]()
    if before.ttl != one.ttl:
        words.append(f"forward: ttl {before.ttl} → {one.ttl}")
    for title, was, now in zip(("source", "destination"), _both_ends(old), _both_ends(new), strict=True):
        if was != now:
            words.append(f"NAT: {title} {_end(*was)} → {_end(*now)}")
    if new.protocol == old.protocol == "icmp" and old.sport != new.sport:
        words.append(f"NAT: id {old.sport} → {new.sport}")
    if (before.vni < 0) != (one.vni < 0):
        words.append(f"VXLAN {one.vni}: header added" if one.vni >= 0 else "VXLAN header removed")
    return "; ".join(words)


def _name(topology: Topology, one: Sighting) -> str:
    link = topology.snapshot.link(one.link)
    return safe(link.name) if link else f"#{one.link.ifindex}"


def _ends(one: Sighting, before: Sighting | None) -> list[tuple[str, str]]:
    """Return the pieces of a packet's addresses; what differs is marked."""
    old, new = before.addresses if before else None, one.addresses
    was = _both_ends(old or new)
    tones = [_tone(old, end, was[number]) for number, end in enumerate(_both_ends(new))]
    (src, dst), pieces = _both_ends(new), list[tuple[str, str]]()
    if new.protocol == "icmp" and new.sport:  # an echo request or its answer
        pieces = [(f"  id {new.sport}", _tone(old, new.sport, old and old.sport)), (f" seq {new.dport}", "")]
    return [(_end(*src), tones[0]), (" → ", "dim"), (_end(*dst), tones[1]), *pieces, ("  ", "")]


def _both_ends(addresses: PacketTuple) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return source and destination with their ports, 0 for ICMP."""
    if addresses.protocol == "icmp":
        return (addresses.src, 0), (addresses.dst, 0)
    return (addresses.src, addresses.sport), (addresses.dst, addresses.dport)


def _headers(one: Sighting, before: Sighting | None) -> list[tuple[str, str]]:
    """Return the pieces of a packet's other headers; what differs is marked."""
    pieces = [(f"ttl {one.ttl}", "accent" if before and before.ttl != one.ttl else "dim")]
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
