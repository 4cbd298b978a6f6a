"""The overlay view: each VXLAN overlay with its hosts, and the MACs behind them."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import Demand, LinkKey, Part, Ref, container_ref, link_ref, network_ref
from core.model.overlay import ESTABLISHED, BgpPeer
from core.overlay import Overlay, OverlayHost, OverlayMac, find_host, host_ref, overlays
from core.rates import Rates
from core.text import safe
from core.topology import Topology
from tui.views import cells, formatting
from tui.views.cells import Line, link_lines
from tui.views.links import missing_detail
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Detail, ListView, Row, Tone, ViewContext

COLUMNS = (
    Column("name", "network", 12, grow=1),
    Column("vni", "VNI", 8, align="right"),
    Column("owner", "made by", 12, priority=3),
    Column("host", "host", 15, grow=1),
    Column("session", "session", 11),
    Column("macs", "MACs", 6, align="right"),
    Column("addr", "addresses", 15, grow=3, priority=2),
    Column("flood", "flood", 5, priority=4),
    Column("in", "in", 11, align="right", priority=1),
    Column("out", "out", 11, align="right", priority=1),
    Column("mtu", "MTU", 5, align="right", priority=5),
)
MACS_SHOWN = 200
_LISTED = 20  # addresses in a row
_SOURCES = {
    "learned": "learned from packets",
    "static": "static",
    "extern_learn": "from a routing daemon (extern_learn)",
    "local": "on this host",
}


def rows(context: ViewContext) -> ListRows:
    """Return each overlay on this host, followed by its other hosts."""
    found = (_row(context, overlay, host) for overlay in overlays(context.topology) for host in overlay.hosts)
    return ListRows(list(found), COLUMNS)


def _row(context: ViewContext, overlay: Overlay, host: OverlayHost) -> Row:
    topology = context.topology
    rate = context.rate(overlay.link.key) if host.is_local else None
    addresses = [address for mac in host.macs for address in mac.addresses] or [*host.prefixes]
    listed = " ".join(addresses[:_LISTED])
    name = overlay.name if overlay.network else cells.name_and_namespace(topology, overlay.link)
    return Row(
        host_ref(overlay, host),
        (
            cells.text(name), Cell(vni_text(overlay), sort=overlay.vni), cells.text(overlay.owner),
            cells.text(host_text(host)), _session_cell(context, overlay, host),
            cells.number(len(host.macs)),
            Cell(safe(listed), "", len(addresses)) if listed else cells.NONE, _flood_cell(overlay, host),
            cells.bits(rate.rx_bps if rate else None), cells.bits(rate.tx_bps if rate else None),
            cells.number(overlay.link.mtu) if host.is_local else Cell(""),
        ),
        _terms(topology, overlay, host, addresses),
        depth=0 if host.is_local else 1,
    )  # fmt: skip


def _terms(topology: Topology, overlay: Overlay, host: OverlayHost, addresses: list[str]) -> dict[str, str]:
    names = (topology.containers[mac.container].name for mac in host.macs if mac.container)
    return {
        "net": safe(overlay.name),
        "ns": safe(topology.label(overlay.link.ns)),
        "link": safe(overlay.link.name),
        "bridge": safe(overlay.bridge.name) if overlay.bridge else "",
        "host": f"{host.address} {'local' if host.is_local else 'remote'}",
        "mac": " ".join(mac.mac for mac in host.macs),
        "addr": safe(" ".join((host.address, *addresses, *host.prefixes))),
        "ct": safe(" ".join(names)),
    }


def vni_text(overlay: Overlay) -> str:
    """Return the VNI; "any" if a program chooses it for each packet."""
    return "any" if overlay.link.details.get("external") else str(overlay.vni)


def host_text(host: OverlayHost) -> str:
    """Return a host's address, and whether that is a multicast group."""
    return f"{host.address} (group)" if host.is_group else host.address


def place_of(topology: Topology, overlay: Overlay) -> str:
    """Return where an overlay's tunnel ends: this host, or a container that plays one."""
    ns = overlay.underlay_ns
    return "this host" if ns is None or ns == topology.host else topology.label(ns)


def _session_cell(context: ViewContext, overlay: Overlay, host: OverlayHost) -> Cell:
    """Return the cell of a host's BGP session, or that says by what it is known."""
    if host.is_local:
        return cells.text(place_of(context.topology, overlay), "accent")
    if host.session is not None:
        if host.session.state != ESTABLISHED:
            return cells.text(host.session.state.lower(), "bad")
        age = max(0.0, context.snapshot.taken_at - host.session.up_since)
        return Cell(f"up {formatting.duration(age)}", "ok", age)
    how = "announced" if host.source == "extern_learn" else host.source
    return Cell(how, "warn" if overlay.has_flood_list and not host.flooded else "")


def _flood_cell(overlay: Overlay, host: OverlayHost) -> Cell:
    if host.is_local or not overlay.has_flood_list:
        return cells.NONE
    # A host without MACs may only reflect what others announce.
    return Cell("yes") if host.flooded else Cell("no", "warn" if host.macs else "")


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Return the details of a host of an overlay."""
    found = find_host(topology, ref)
    if found is None:
        return missing_detail("this host of the overlay")
    overlay, host = found
    place = place_of(topology, overlay) if host.is_local else host.address
    title = f"MACs {'on' if host.is_local else 'behind'} {safe(place)}"
    if len(host.macs) > MACS_SHOWN:
        title += f" (the first {MACS_SHOWN} of {len(host.macs)})"
    macs = (_mac_line(topology, mac) for mac in host.macs[:MACS_SHOWN])
    own = host.is_local
    return Detail(
        f"{safe(overlay.name)} on {safe(place)}",
        (
            *cells.section("Host", _host_lines(topology, overlay, host)),
            *cells.section("Overlay", _overlay_lines(topology, overlay)),
            *cells.section("Flood list", _flood_lines(overlay) if own else ()),
            *cells.section("Join from another host", _join_lines(topology, overlay) if own else ()),
            *cells.section("Traffic of the tunnel", link_lines([overlay.link.key], rates) if own else ()),
            *cells.section(title, macs),
        ),
        cells.related(topology, ref),
    )


def _host_lines(topology: Topology, overlay: Overlay, host: OverlayHost) -> Iterator[Line]:
    yield "address", cells.text(host_text(host)), None
    if host.is_local:
        yield "other hosts", cells.number(len(overlay.remotes)), None
    else:
        yield "known", Cell(_SOURCES[host.source]), None
        yield from _session_lines(host.session)
        if overlay.has_flood_list:
            words = "yes" if host.flooded else "no: ARP requests and other broadcasts don't reach it"
            yield "flood list", Cell(words, "" if host.flooded or not host.macs else "warn"), None
    for prefix in host.prefixes:
        yield "routed to it", cells.text(prefix), None
    for text in _ranges(topology, overlay, host):
        yield "assigns", cells.text(text), None


def _session_lines(session: BgpPeer | None) -> Iterator[Line]:
    """Yield the lines about the BGP session with a host."""
    if session is None:
        return
    yield "BGP session", cells.text(session.state, "ok" if session.state == ESTABLISHED else "bad"), None
    if session.hostname:
        yield "hostname", cells.text(session.hostname), None
    yield "AS number", cells.number(session.asn), None
    yield "EVPN routes", cells.number(session.prefixes), None
    if session.error and session.state != ESTABLISHED:
        yield "last error", cells.text(session.error), None


def _ranges(topology: Topology, overlay: Overlay, host: OverlayHost) -> Iterator[str]:
    """Yield the ranges from which a host assigns addresses in an overlay of vnet-tui."""
    if overlay.owner != "vnet-tui" or not host.address or host.is_group:
        return
    # Imported when first needed: no other view needs plans.
    from core.plan.tags import vnet_state
    from core.plan.vxlan import range_of

    network = vnet_state(topology.snapshot, overlay.link.ns).networks.get(overlay.name)
    if network is None or network.etcd:
        return
    if host.is_local:
        yield from network.ranges
    else:
        yield from (
            f"{range_of(one, host.address)}, unless it has another --range" for one in network.subnets
        )


def _overlay_lines(topology: Topology, overlay: Overlay) -> Iterator[Line]:
    from core.reach.underlay import underlay_of
    from core.reach.why import index_of

    if overlay.network is not None:
        yield "network", cells.text(overlay.network.name), network_ref(overlay.network.id)
    yield "made by", cells.text(overlay.owner or "another program"), None
    yield "VNI", Cell(vni_text(overlay)), None
    yield "UDP port", cells.number(overlay.port), None
    yield "tunnel", cells.text(cells.name_and_namespace(topology, overlay.link)), link_ref(overlay.link.key)
    if overlay.bridge is not None:
        yield "bridge", cells.text(overlay.bridge.name), link_ref(overlay.bridge.key)
    underlay = underlay_of(index_of(topology), overlay)
    most = underlay.mtu - overlay.overhead() if underlay.link else 0
    tone: Tone = "bad" if 0 < most < overlay.link.mtu else ""
    fits = f", at most {most}" if most else ""
    yield "MTU", Cell(f"{overlay.link.mtu}{fits}", tone), None
    if underlay.link is not None:
        words = f"{cells.name_and_namespace(topology, underlay.link)}, MTU {underlay.mtu}"
        yield "underlay", cells.text(words), link_ref(underlay.link.key)
    for address in underlay.unreachable:
        yield "no route to", cells.text(address, "bad"), None


def _flood_lines(overlay: Overlay) -> Iterator[Line]:
    for host in overlay.remotes:
        if host.flooded:
            yield host.address, Cell(_SOURCES[host.source]), host_ref(overlay, host)


def _join_lines(topology: Topology, overlay: Overlay) -> Iterator[Line]:
    """Yield the command that joins an overlay of vnet-tui on another host."""
    if overlay.owner != "vnet-tui":
        return
    from core.plan.overlay import join_command
    from core.plan.tags import vnet_state

    network = vnet_state(topology.snapshot, overlay.link.ns).networks.get(overlay.name)
    if network is not None:
        hosts = [one.address for one in overlay.hosts if one.is_local or one.flooded or one.session]
        yield "run there", cells.text(join_command(network, hosts), "accent"), None


def _mac_line(topology: Topology, mac: OverlayMac) -> Line:
    container = topology.containers.get(mac.container)
    words = [" ".join(mac.addresses)] if mac.addresses else []
    words += [container.name] if container else []
    words += ["the gateway, which each host has"] if mac.is_gateway else []
    words += [_SOURCES[mac.source]] if mac.source != "local" else _port_words(topology, mac.link)
    target = container_ref(container.runtime, container.id) if container else None
    if target is None and mac.link is not None:
        target = link_ref(mac.link)
    return mac.mac, cells.text(", ".join(words), "" if mac.addresses else "dim"), target


def _port_words(topology: Topology, key: LinkKey | None) -> list[str]:
    link = topology.snapshot.link(key) if key else None
    return [link.name] if link else []


VIEW = ListView(
    "overlay", "Overlays", ("overlays", "vxlan"), COLUMNS, rows,
    empty="No overlay yet. An overlay joins networks of several hosts by VXLAN tunnels: `vnet-tui network "
    "create NAME --kind overlay --remote ADDRESS` creates one. Those of Docker Swarm, flannel, Calico and "
    "Cilium are listed too.",
    help=(
        ("h l", "fold and unfold an overlay's other hosts"),
        ("net:NAME vni:42", "one overlay with its hosts"),
        ("mac:02:42 addr:10.0.0.7", "the host that has a MAC address, an address"),
        ("host:remote session:up", "other hosts, by their BGP session, or how they are known"),
    ),
    demand=frozenset({Demand.RATES}),
    maker_parts=(Part.FRR,),
)  # fmt: skip
