"""The links view: every link of every namespace."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import Demand, Link, LinkKey, Ref, link_ref, namespace_ref
from core.rates import Rates
from core.text import safe
from core.topology import Topology
from tui.views import cells, formatting, ovs_ports
from tui.views.cells import Line, link_lines
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Detail, ListView, Row, Section, Tone, ViewContext

COLUMNS = (
    Column("name", "name", 16, grow=1),
    Column("ns", "namespace", 14, grow=1),
    Column("kind", "kind", 9),
    Column("state", "state", 10),
    Column("master", "master", 12, priority=3),
    Column("addr", "addresses", 18, grow=1, priority=1),
    Column("mtu", "mtu", 5, align="right", priority=4),
    Column("mac", "mac", 17, priority=6),
    Column("rx", "receives", 11, align="right", priority=2),
    Column("tx", "sends", 11, align="right", priority=2),
    Column("trend", "trend", 8, priority=5),
)


def rows(context: ViewContext) -> ListRows:
    """Return every link, the host's first."""
    topology = context.topology
    spaces = sorted(context.snapshot.nets, key=lambda ns: (ns != topology.host, topology.label(ns)))
    return ListRows([_row(context, link) for ns in spaces for link in _ordered(context, ns)], COLUMNS)


def _ordered(context: ViewContext, ns: int) -> list[Link]:
    return sorted(context.snapshot.nets[ns].links.values(), key=lambda link: link.ifindex)


def _row(context: ViewContext, link: Link) -> Row:
    master = ovs_ports.master_text(context.topology, link)
    rate = context.rate(link.key)
    return Row(
        link_ref(link.key),
        (
            cells.text(link.name), cells.text(context.topology.label(link.ns)), cells.text(link.kind),
            cells.state(link), cells.text(master), cells.text(cells.addresses(link)),
            cells.number(link.mtu), cells.text(link.mac), cells.bits(rate.rx_bps if rate else None),
            cells.bits(rate.tx_bps if rate else None), cells.traffic_cells(context.traffic_of(link.key))[1],
        ),
        terms(context.topology, link),
    )  # fmt: skip


def terms(topology: Topology, link: Link) -> dict[str, str]:
    """Filter terms of a link in addition to its cells."""
    container = topology.container_of(link.ns)
    network = topology.network_of(link)
    return {
        "name": safe(" ".join((link.name, *link.altnames))),
        "ns": safe(topology.label(link.ns)),
        "ct": safe(container.name) if container else "",
        "net": safe(network.name) if network else "",
        "kind": safe(link.kind),
        "state": safe(link.state) if link.admin_up else f"{safe(link.state)} off",
        "addr": safe(cells.addresses(link)),
        "mac": link.mac,
        "mtu": str(link.mtu),
        "alias": safe(link.alias),
        "vlan": ovs_ports.vlans_of(topology, link),
        "tunnel": safe(ovs_ports.tunnels_of(topology, link)),
    }


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Return the details of a link."""
    link = link_of(topology, ref)
    if link is None:
        return missing_detail("this link")
    return Detail(
        f"{safe(link.name)} in {safe(topology.label(link.ns))}",
        common_sections(topology, link, rates),
        cells.related(topology, ref),
    )


VIEW = ListView(
    "links", "Links", ("link", "if"), COLUMNS, rows,
    empty="No link could be read. Every namespace has at least a loopback link: either reading isn't "
    "complete, or rights are missing.",
    help=(
        ("kind:veth", "links of one kind"),
        ("state:down", "links that are down"),
        ("mac:02:42", "by hardware address"),
    ),
    demand=frozenset({Demand.RATES}),
)  # fmt: skip


_PORT_TONES: dict[str, Tone] = {"forwarding": "ok", "disabled": "bad"}


def link_of(topology: Topology, ref: Ref) -> Link | None:
    """Return the link of a ref."""
    return topology.snapshot.link((int(ref.key[0]), int(ref.key[1])))


def missing_detail(what: str) -> Detail:
    """Return the details of an object that doesn't exist any more."""
    return Detail(f"{what} is gone", (Section("", (("", Cell("it was removed", "dim"), None),)),))


def common_sections(
    topology: Topology, link: Link, rates: Rates | None, traffic: str = "Traffic"
) -> tuple[Section, ...]:
    """Return the sections of every link: identity, port, speed."""
    return (
        *cells.section("Link", _identity(topology, link)),
        *cells.section(
            "Addresses", ((f"IPv{one.family}", cells.text(str(one)), None) for one in link.addresses)
        ),
        *cells.section("Bridge port", port_lines(link)),
        *cells.section("Open vSwitch port", ovs_ports.link_lines(topology, link)),
        *cells.section(traffic, rate_lines(link.key, rates)),
        *cells.section("Hardware", _hardware(link)),
    )


def _identity(topology: Topology, link: Link) -> Iterator[Line]:
    yield "kind", cells.text(link.kind), None
    yield "state", cells.state(link), None
    yield "namespace", cells.text(topology.label(link.ns)), namespace_ref(link.ns)
    master = topology.master_of(link)
    if master is not None:
        yield "master", cells.text(master.name), link_ref(master.key)
    yield "MTU", cells.number(link.mtu), None
    if link.alias:
        yield "alias", cells.text(link.alias), None
    if link.altnames:
        yield "altnames", cells.text(", ".join(link.altnames)), None
    if link.qdisc:
        yield "qdisc", cells.text(link.qdisc), None
    if link.promiscuous:
        yield "promiscuous", cells.on_off(True), None
    for name, value in link.details.items():
        yield safe(name), cells.text(str(value)), None


def _hardware(link: Link) -> Iterator[Line]:
    yield "MAC", cells.text(link.mac), None
    yield "ifindex", cells.number(link.ifindex), None
    if link.sizes.gso:
        yield "GSO, GRO", Cell(f"{link.sizes.gso}, {link.sizes.gro} bytes"), None
    ipv4 = (link.sizes.gso_ipv4, link.sizes.gro_ipv4)
    if any(ipv4) and ipv4 != (link.sizes.gso, link.sizes.gro):
        yield "GSO, GRO IPv4", Cell(f"{ipv4[0]}, {ipv4[1]} bytes"), None
    if link.offloads:
        yield "offloads", Cell(f"{len(link.offloads)} on"), None


def port_lines(link: Link) -> Iterator[Line]:
    """Yield the lines about a bridge port."""
    port = link.port
    if port is None:
        return
    yield "STP state", port_state(link), None
    yield "flags", cells.text(port_flags(link)), None
    yield "cost, priority", Cell(f"{port.cost}, {port.priority}"), None
    for vlan in port.vlans:
        yield (
            f"VLAN {vlan_range(vlan.vid, vlan.vid_end)}",
            Cell(vlan_flags(vlan.pvid, vlan.untagged), "dim"),
            None,
        )


def port_state(link: Link) -> Cell:
    """Return the cell of a bridge port's STP state."""
    found = link.port.state if link.port else ""
    return cells.text(found, _PORT_TONES.get(found, "warn"))


def port_flags(link: Link) -> str:
    """Return the flags of a bridge port that differ from a new port's."""
    port = link.port
    if port is None:
        return ""
    usual_on = ("learning", "flood", "mcast_flood", "bcast_flood")
    usual_off = (
        "isolated",
        "hairpin",
        "neigh_suppress",
        "proxy_arp_wifi",
        "guard",
        "root_block",
        "fastleave",
    )
    raised = [name for name in usual_off if getattr(port, name)]
    lowered = [f"no {name}" for name in usual_on if not getattr(port, name)]
    return ", ".join((*raised, *lowered)).replace("_", " ")


def vlan_range(first: int, last: int) -> str:
    """Return a range of VLANs as "10" or "10-20"."""
    return str(first) if last in (0, first) else f"{first}-{last}"


def vlan_flags(pvid: bool, untagged: bool) -> str:
    """Return a VLAN's flags in the terms of bridge(8)."""
    return ", ".join((*(["PVID"] if pvid else []), "egress untagged" if untagged else "tagged"))


def speed_lines(key: LinkKey, rates: Rates | None) -> Iterator[Line]:
    """Yield the lines about a link's rates."""
    rate = rates.of(key) if rates else None
    if rate is not None:
        yield "receives", Cell(f"{formatting.bits(rate.rx_bps)}, {formatting.packets(rate.rx_pps)}"), None
        yield "sends", Cell(f"{formatting.bits(rate.tx_bps)}, {formatting.packets(rate.tx_pps)}"), None


def rate_lines(key: LinkKey, rates: Rates | None) -> Iterator[Line]:
    """Yield the lines about a link's rates and counters."""
    yield from link_lines([key], rates)
    counters = rates.counters_of(key) if rates else None
    if counters is None:
        return
    for title, direction in (("received", "rx"), ("sent", "tx")):
        octets, packets, errors, dropped = (
            int(counters[f"{direction}_{what}"]) for what in ("bytes", "packets", "errors", "dropped")
        )
        yield title, Cell(f"{formatting.size(octets)} in {formatting.several(packets, 'packet')}"), None
        if errors or dropped:
            yield (
                f"{title}: errors",
                Cell(f"{formatting.several(errors, 'error')}, {formatting.count(dropped)} dropped", "warn"),
                None,
            )
