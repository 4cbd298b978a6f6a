"""The drops view: dropped packets by reason, container or link, and what to try."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from core.drop_reasons import DropReason, explain
from core.model import (
    Demand,
    Drop,
    DroppedPacket,
    Drops,
    Part,
    Ref,
    container_ref,
    link_ref,
    namespace_ref,
)
from core.text import end_text, safe
from core.topology import Topology
from core.topology.drops import advice_for, container_of_drop, link_of_drop, place_of_drop
from tui.views import cells, formatting, query
from tui.views.cells import Line
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Detail, ListView, Row, Tone, ViewContext

COLUMNS = (
    Column("name", "reason / packets of", 24, full=26),
    Column("place", "namespace, link", 18, grow=1, priority=1),
    Column("packets", "packets", 8, align="right"),
    Column("rate", "rate", 8, align="right"),
    Column("words", "meaning / try", 20, grow=3),
    Column("function", "function", 16, priority=2),
)
_TITLES = {"": COLUMNS[0].title, "container": "container / reason", "link": "link / reason"}
GROUPINGS = ("", "container", "link")
_TONES: dict[str, Tone] = {"fault": "warn", "rule": "", "normal": "dim", "unclear": "dim"}
_ORDER = {"fault": 0, "rule": 0, "unclear": 1, "normal": 2}
NO_CONTAINER, NO_LINK = "no container", "no link"
_MAX_PACKETS = 50


class DropRows(ListRows):
    """The dropped packets in groups, and above their columns what is being counted."""

    __slots__ = ("_by", "_context", "_drops", "head")

    def __init__(self, context: ViewContext, drops: Sequence[Drop], by: str = "") -> None:
        columns = (replace(COLUMNS[0], title=_TITLES[by]), *COLUMNS[1:])
        super().__init__(list(_grouped(context.topology, drops, by)), columns)
        self._context, self._drops, self._by = context, drops, by
        self.head = tuple(_head(context.drops)) if self.rows else ()

    def grouped_by(self, by: str) -> DropRows:
        """Return the same packets in other groups: "" by reason, "container" or "link"."""
        return self if by == self._by or by not in GROUPINGS else DropRows(self._context, self._drops, by)

    def matching(self, text: str) -> DropRows:
        """Return the packets that match a filter, in groups of their own."""
        terms = query.parse(text)
        if not terms:
            return self
        terms = query.by_name(terms, self.columns, self._term_keys())
        topology = self._context.topology
        kept = [one for one in self._drops if query.matches(terms, row_of(topology, one, self._by), COLUMNS)]
        return DropRows(self._context, kept, self._by)


def rows(context: ViewContext) -> DropRows:
    """Return all dropped packets, grouped by reason; what is normal comes last."""
    found = context.drops.drops if context.drops else ()
    return DropRows(context, found)


def _grouped(topology: Topology, drops: Iterable[Drop], by: str) -> Iterator[Row]:
    groups: dict[str, list[Drop]] = {}
    for drop in drops:
        groups.setdefault(_group_of(topology, drop, by), []).append(drop)
    for name in sorted(groups, key=lambda name: _rank(groups[name])):
        yield _group_row(name, groups[name], by)
        yield from (row_of(topology, one, by) for one in sorted(groups[name], key=lambda one: _rank([one])))


def _rank(drops: Sequence[Drop]) -> tuple[int, float, int]:
    kinds = (_ORDER[explain(one.reason, one.function).kind] for one in drops)
    return min(kinds), -sum(one.rate for one in drops), -sum(one.packets for one in drops)


def _group_of(topology: Topology, drop: Drop, by: str) -> str:
    if by == "container":
        container = container_of_drop(topology, drop)
        return topology.title(container) if container else NO_CONTAINER
    if by == "link":
        return place_text(topology, drop) if drop.ifindex else NO_LINK
    return drop.reason


def _group_row(name: str, drops: Sequence[Drop], by: str) -> Row:
    packets, rate = sum(one.packets for one in drops), sum(one.rate for one in drops)
    kinds = {explain(one.reason, one.function).kind for one in drops}
    kind = next((kind for kind in _TONES if kind in kinds), "normal")
    reasons = dict.fromkeys(one.reason for one in drops)
    words = ", ".join(reasons) if by else _sentence(_common(drops))
    tone = _TONES[kind]
    return Row(
        Ref("drop", (by, name)),
        (
            cells.text(name, tone), Cell(""), cells.count(packets), _rate(rate), cells.text(words, tone),
            Cell(""),
        ),
        {"kind": " ".join(kinds)},
    )  # fmt: skip


def _common(drops: Sequence[Drop]) -> DropReason:
    """Return the explanation of a reason; of the function if there is only one."""
    functions = {one.function for one in drops}
    return explain(drops[0].reason, functions.pop() if len(functions) == 1 else "")


def _sentence(reason: DropReason) -> str:
    return reason.meaning[:1].upper() + reason.meaning[1:]


def row_of(topology: Topology, drop: Drop, by: str = "") -> Row:
    """Return the line of one counter within groups."""
    reason = explain(drop.reason, drop.function)
    whose = _whose(topology, drop)
    name = drop.reason if by else whose
    words = advice_for(topology, drop) if not by and reason.kind in ("fault", "rule") else ""
    words = words or _sentence(reason)
    tone = "" if reason.kind in ("fault", "rule") else _TONES[reason.kind]
    container = container_of_drop(topology, drop)
    namespace, link = place_of_drop(topology, drop)
    return Row(
        _ref(drop),
        (
            cells.text(name, tone), cells.text(place_text(topology, drop)), cells.count(drop.packets),
            _rate(drop.rate), cells.text(words, "dim" if not by else tone), cells.text(drop.function, "dim"),
        ),
        {
            "reason": safe(drop.reason), "kind": reason.kind, "ns": safe(namespace),
            "ct": safe(container.name) if container else "", "link": safe(link),
            "addr": drop.address, "name": safe(f"{drop.reason} {whose}"),
        },
        depth=1,
    )  # fmt: skip


def _ref(drop: Drop) -> Ref:
    key = (drop.reason, drop.ns, drop.ifindex, drop.function, drop.address, drop.direction)
    return Ref("drop", key)


def _whose(topology: Topology, drop: Drop) -> str:
    """Return whose packets were dropped: "to web1", "from web1", "web1", a namespace."""
    container = container_of_drop(topology, drop)
    name = topology.title(container) if container else topology.label(drop.ns) if drop.ns else "unknown"
    return f"{drop.direction} {name}" if drop.direction and container else name


def place_text(topology: Topology, drop: Drop) -> str:
    """Return the names of namespace and link, verbatim."""
    return " ".join(filter(None, place_of_drop(topology, drop))) or "unknown"


def _rate(per_second: float) -> Cell:
    text = formatting.frequency(per_second) if per_second else "0/s"
    return Cell(text, "" if per_second else "dim", per_second)


def _head(drops: Drops | None) -> Iterator[Cell]:
    if drops is None:
        return
    packets, rate = sum(one.packets for one in drops.drops), sum(one.rate for one in drops.drops)
    since = time.strftime("%H:%M:%S", time.localtime(drops.since))
    text = f"dropped since {since}: {packets:,} packets, {formatting.frequency(rate) if rate else '0/s'}"
    yield Cell(f"{text} · listing each packet" if drops.reporting else text, "dim")
    if drops.uncounted:
        yield Cell(f"{drops.uncounted:,} more packets aren't listed: the kernel's map is full", "warn")


def detail(context: ViewContext, ref: Ref) -> Detail:
    """Return the details of a group or of one line: explanation, places, packets."""
    drops, topology = context.drops, context.topology
    chosen = [one for one in drops.drops if is_part(topology, one, ref)] if drops else []
    if not chosen or drops is None:
        return Detail("these packets")
    packets = [one for one in reversed(drops.packets) if is_part(topology, one.where, ref)][:_MAX_PACKETS]
    title = f"dropped: {safe(str(ref.key[1]))}" if len(ref.key) == 2 else safe(chosen[0].reason)
    return Detail(
        title,
        (
            *(section for name in dict.fromkeys(one.reason for one in chosen)
              for section in cells.section(name, _reason_lines(topology, chosen, name))),
            *cells.section("Where", _places(topology, chosen)),
            *cells.section("Packets", _packet_lines(topology, drops, packets)),
        ),
        tuple(dict.fromkeys(
            (safe(label), target) for one in chosen for label, target in _related(topology, one)
        )),
    )  # fmt: skip


def is_part(topology: Topology, drop: Drop, ref: Ref) -> bool:
    """Return whether packets belong to a line: a group (by, name), or one line's key."""
    if len(ref.key) == 2:
        return _group_of(topology, drop, str(ref.key[0])) == ref.key[1]
    return _ref(drop) == ref


def _reason_lines(topology: Topology, drops: Sequence[Drop], name: str) -> Iterator[Line]:
    own = [one for one in drops if one.reason == name]
    reason = _common(own)
    yield "meaning", cells.text(_sentence(reason), _TONES[reason.kind]), None
    advice = reason.advice if len({one.ifindex for one in own}) > 1 else advice_for(topology, own[0])
    if advice:
        yield "try", cells.text(advice), None
    yield "packets", cells.number(sum(one.packets for one in own)), None
    yield "rate", _rate(sum(one.rate for one in own)), None
    functions = ", ".join(dict.fromkeys(one.function or "hidden" for one in own))
    yield "function", cells.text(functions), None


def _places(topology: Topology, drops: Sequence[Drop]) -> Iterator[Line]:
    for drop in drops:
        target = subject_of(topology, drop)
        text = f"{place_text(topology, drop)}: {formatting.several(drop.packets, 'packet')}"
        yield safe(_whose(topology, drop)), cells.text(text), target


def _packet_lines(topology: Topology, drops: Drops, packets: Sequence[DroppedPacket]) -> Iterator[Line]:
    if not packets and not drops.reporting:
        yield "", Cell("press i to list each packet for 10 seconds", "dim"), None
    elif not packets:
        yield "", Cell("none yet", "dim"), None
    for one in packets:
        clock = time.strftime("%H:%M:%S", time.localtime(one.at))
        yield clock, cells.text(packet_text(topology, one)), subject_of(topology, one.where)


def packet_text(topology: Topology, packet: DroppedPacket) -> str:
    """Format a packet: protocol, ends with their containers, length; untrusted text."""
    if not packet.src:
        return f"{packet.l4_proto}, {packet.length} bytes"
    src = _end(topology, packet, packet.src, packet.sport)
    dst = _end(topology, packet, packet.dst, packet.dport)
    return f"{packet.l4_proto} {src} > {dst}, {packet.length} bytes"


def _end(topology: Topology, packet: DroppedPacket, address: str, port: int) -> str:
    owner = topology.container_at(packet.where.ns, address)
    text = end_text(address, port or None)
    return f"{owner.name} ({text})" if owner is not None else text


def subject_of(topology: Topology, drop: Drop) -> Ref | None:
    """Return the object that Enter leads to: the container, the link or the namespace."""
    return next((target for _, target in _related(topology, drop)), None)


def target_of(context: ViewContext, ref: Ref) -> Ref | None:
    """Return the object that a line of the view leads to, None without one."""
    drops = context.drops.drops if context.drops else ()
    found = (subject_of(context.topology, one) for one in drops if is_part(context.topology, one, ref))
    return next((one for one in found if one is not None), None)


def _related(topology: Topology, drop: Drop) -> Iterator[tuple[str, Ref]]:
    container, link = container_of_drop(topology, drop), link_of_drop(topology, drop)
    if container is not None:
        yield f"container {container.name}", container_ref(container.runtime, container.id)
    if link is not None:
        yield f"link {link.name}", link_ref(link.key)
    if drop.ns in topology.snapshot.namespaces:
        yield f"namespace {topology.label(drop.ns)}", namespace_ref(drop.ns)


VIEW = ListView(
    "drops", "Drops", ("drop", "dropped"), COLUMNS, rows,
    empty="No packet was dropped yet. The kernel's drops are counted from the first time that this view is "
    "opened until the dashboard ends. The first time on a kernel, starting takes some seconds.",
    empty_file="Files and recordings contain no dropped packets.",
    help=(
        ("reason:NETFILTER", "by the kernel's reason, also kind:fault, rule, normal, unclear"),
        ("function:tcp", "by the kernel function that dropped them"),
        ("ct:web1 link:eth0 rate:>10", "by container, link, and packets a second; also ns: addr: packets:"),
    ),
    demand=frozenset({Demand.DROPS}),
    parts=frozenset(),
    problem_parts=(Part.DROPS,),
    stays_on_top=True,
    is_recorded=False,
    groupings=GROUPINGS,
)  # fmt: skip
