"""The veth pairs view: one virtual cable a row, with both its ends."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import Demand, Link, LinkKey, Ref, link_ref
from core.peers import PAIR_KINDS
from core.rates import LinkRate, Rates
from core.text import safe
from core.topology import Topology
from tui.views import cells, links, ovs_ports
from tui.views.cells import Line
from tui.views.formatting import NOT_EQUAL
from tui.views.links import common_sections, link_of, missing_detail, speed_lines
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Detail, ListView, Row, Section, ViewContext

COLUMNS = (
    Column("name", "end A", 15, grow=1),
    Column("state", "state", 10),
    Column("master", "bridge", 12, grow=1, priority=1),
    Column("peer", "end B", 8, grow=1),
    Column("ct", "owner", 14, grow=1),
    Column("addr", "addresses", 18, grow=1, priority=2),
    Column("mtu", "mtu A/B", 9, align="right", priority=1),
    Column("in", "A to B", 11, align="right", priority=2),
    Column("out", "B to A", 11, align="right", priority=2),
    Column("trend", "trend", 8, priority=5),
)


def rows(context: ViewContext) -> ListRows:
    """Return each veth pair by the name of its outer end, pairs of the host first."""
    topology = context.topology
    found = sorted(pairs(topology), key=lambda pair: (pair[0].ns != topology.host, pair[0].name))
    return ListRows([_row(context, a, b) for a, b in found], COLUMNS)


def pairs(topology: Topology) -> Iterator[tuple[Link, Link | None]]:
    """Yield each veth pair once, its outer end first.

    The peer is None if out of sight.

    The outer end is the host's, or else the one on a bridge, or else the lower key.
    """
    for link in topology.snapshot.links():
        if link.kind in PAIR_KINDS:
            peer = topology.peer(link)
            if peer is None or _rank(topology, link) < _rank(topology, peer):
                yield link, peer


def _rank(topology: Topology, link: Link) -> tuple[bool, bool, LinkKey]:
    return link.ns != topology.host, topology.master_of(link) is None, link.key


def _row(context: ViewContext, a: Link, b: Link | None) -> Row:
    topology, rate = context.topology, context.rate(a.key)
    back = _reverse(context.rate(b.key)) if b and rate is None else None
    rate = rate or back
    return Row(
        link_ref(a.key),
        (
            cells.text(cells.name_and_namespace(topology, a)), _state(a, b),
            cells.text(ovs_ports.master_text(topology, a)),
            *(_peer_cell(topology, b) if b else (Cell("unknown", "dim"), cells.NONE, cells.NONE)),
            mtu(a, b), cells.bits(rate.tx_bps if rate else None), cells.bits(rate.rx_bps if rate else None),
            cells.trend(rate.history, rate.rx_bps + rate.tx_bps) if rate else cells.NONE,
        ),
        _terms(topology, a, b),
        aliases=(link_ref(b.key),) if b else (),
    )  # fmt: skip


def _peer_cell(topology: Topology, b: Link) -> tuple[Cell, Cell, Cell]:
    return cells.text(b.name), cells.text(topology.label(b.ns)), cells.text(cells.addresses(b))


def _reverse(rate: LinkRate | None) -> LinkRate | None:
    return LinkRate(rate.tx_bps, rate.rx_bps, rate.tx_pps, rate.rx_pps, rate.history) if rate else None


def _state(a: Link, b: Link | None) -> Cell:
    """Return the cell of the pair's state; if one end is down, it is named."""
    if b is not None and a.admin_up and not b.admin_up:
        return Cell("B is down", "bad")
    if b is not None and b.admin_up and not a.admin_up:
        return Cell("A is down", "bad")
    return cells.state(a)


def mtu(a: Link, b: Link | None) -> Cell:
    """Return the MTU of both ends.

    If they differ, large packets are dropped without an error.
    """
    if b is None or a.mtu == b.mtu:
        return cells.number(a.mtu)
    return Cell(f"{a.mtu}/{b.mtu}", "warn", min(a.mtu, b.mtu))


def _terms(topology: Topology, a: Link, b: Link | None) -> dict[str, str]:
    found = links.terms(topology, a)
    if b is not None:
        other = links.terms(topology, b)
        found = {key: " ".join(filter(None, (value, other[key]))) for key, value in found.items()}
    network = topology.network_of(a)
    return {
        **found,
        "net": safe(network.name) if network else "",
        "mtu": mtu(a, b).text if b is None or a.mtu == b.mtu else f"{a.mtu} {b.mtu} differs {NOT_EQUAL}",
        "state": f"{_state(a, b).text} {found['state']}",
    }


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Return the details of a veth end, of its pair, and of its peer."""
    link = link_of(topology, ref)
    if link is None:
        return missing_detail("this veth")
    peer = topology.peer(link)
    return Detail(
        f"veth {safe(link.name)} in {safe(topology.label(link.ns))}",
        (
            *cells.section("Pair", _pair(topology, link, peer)),
            *common_sections(topology, link, rates),
            *_peer_sections(topology, peer, rates),
        ),
        cells.related(topology, ref),
        " ↔ ".join(safe(f"{end.name} in {topology.label(end.ns)}") for end in (link, peer) if end),
    )


def _pair(topology: Topology, link: Link, peer: Link | None) -> Iterator[Line]:
    for title, end in (("this end", link), ("other end", peer)):
        if end is None:
            yield title, Cell("unknown: its namespace can't be entered", "warn"), None
            continue
        yield title, cells.text(f"{end.name} in {topology.label(end.ns)}"), link_ref(end.key)
    bridge = topology.bridge_of(link)
    if bridge is not None:
        yield "bridge", cells.text(bridge.name), link_ref(bridge.key)
    if peer is not None and peer.mtu != link.mtu:
        yield (
            "MTU",
            Cell(f"{link.mtu} here, {peer.mtu} at the other end: large packets are lost", "warn"),
            None,
        )


def _peer_sections(topology: Topology, peer: Link | None, rates: Rates | None) -> tuple[Section, ...]:
    if peer is None:
        return ()
    lines: list[Line] = [
        ("state", cells.state(peer), None),
        ("MAC", cells.text(peer.mac), None),
        ("addresses", cells.text(cells.addresses(peer)), None),
        *speed_lines(peer.key, rates),
    ]
    return cells.section(f"Other end: {safe(peer.name)} in {safe(topology.label(peer.ns))}", lines)


VIEW = ListView(
    "veths", "Veth pairs", ("veth", "pairs"), COLUMNS, rows,
    empty="No veth pair yet. A veth pair is a virtual cable, usually between a container and a bridge. It "
    "appears when a container starts on a bridge network; `ip link add a type veth peer name b` creates one.",
    help=(
        ("ct:NAME", "the pairs of one container"),
        ("master:NAME", "the pairs with an end on one bridge"),
        ("addr:172.18", "by the address of either end"),
        ("mtu:differs", "pairs whose ends differ in MTU"),
    ),
    demand=frozenset({Demand.RATES}),
)  # fmt: skip
