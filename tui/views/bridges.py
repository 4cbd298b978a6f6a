"""The bridges view: each bridge with its ports folded below it."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import (
    GUARDED,
    Demand,
    FdbEntry,
    Link,
    LinkKey,
    Part,
    Ref,
    StormGuard,
    link_ref,
    network_ref,
)
from core.rates import Rates
from core.text import safe
from core.topology import Topology
from tui.views import cells, links, networks, ovs_ports
from tui.views.cells import Line, bridge_lines
from tui.views.fastpath import marked
from tui.views.links import (
    common_sections,
    link_of,
    missing_detail,
    port_flags,
    port_state,
    vlan_flags,
    vlan_range,
)
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Detail, ListView, Row, Section, ViewContext

COLUMNS = (
    Column("name", "bridge / port", 18, grow=1),
    Column("state", "state", 11),
    Column("net", "network / other end", 19, grow=2),
    Column("addr", "subnet / flags", 18, grow=1, priority=1),
    Column("ports", "ports", 5, align="right", priority=3),
    Column("stp", "stp", 4, priority=4),
    Column("vlan", "vlans", 6, priority=5),
    Column("mtu", "mtu", 5, align="right", priority=3),
    Column("rate", "rate", 11, align="right", priority=1),
    Column("trend", "trend", 8, priority=6),
)
FDB_SHOWN = 200


def rows(context: ViewContext) -> ListRows:
    """Return every bridge, the host's first, each followed by its ports."""
    topology = context.topology
    found = [link for link in context.snapshot.links() if topology.is_bridge(link)]
    found.sort(key=lambda link: (link.ns != topology.host, topology.label(link.ns), link.name))
    made = []
    for bridge in found:
        ports = sorted(topology.ports_of(bridge.key), key=lambda port: port.name)
        made.append(_bridge_row(context, bridge, len(ports)))
        made += [_port_row(context, bridge, port) for port in ports]
    return marked(context, ListRows(made, COLUMNS), 2, lambda ref: link_of(topology, ref))


def _bridge_row(context: ViewContext, bridge: Link, ports: int) -> Row:
    topology = context.topology
    network = topology.network_of(bridge)
    subnets = " ".join(network.subnets) if network and network.subnets else cells.addresses(bridge)
    return Row(
        link_ref(bridge.key),
        (
            cells.text(cells.name_and_namespace(topology, bridge)), cells.state(bridge),
            cells.text(f"{network.name} ({networks.kind_words(network)})" if network else ""),
            cells.text(subnets), cells.number(ports),
            *_stp_and_vlans(topology, bridge),
            cells.number(bridge.mtu), *cells.traffic_cells(context.traffic_of(bridge.key)),
        ),
        {**links.terms(topology, bridge), "bridge": safe(bridge.name)},
    )  # fmt: skip


def _stp_and_vlans(topology: Topology, bridge: Link) -> tuple[Cell, Cell]:
    """Return the cells for spanning tree and VLAN filtering.

    Open vSwitch always filters VLANs.
    """
    settings, switch = bridge.bridge, topology.ovs_bridge(bridge)
    if switch is not None:
        return cells.on_off(switch.stp or switch.rstp), Cell("ovs")
    if settings is None:
        return cells.NONE, cells.NONE
    return cells.on_off(settings.stp), cells.on_off(settings.vlan_filtering)


def _port_row(context: ViewContext, bridge: Link, port: Link) -> Row:
    topology = context.topology
    peer = topology.peer(port)
    end = f"{peer.name} in {topology.label(peer.ns)}" if peer else ovs_ports.tunnels_of(topology, port)
    vlans = " ".join(vlan_range(vlan.vid, vlan.vid_end) for vlan in port.port.vlans) if port.port else ""
    vlans = vlans or ovs_ports.vlans_of(topology, port)
    inside = topology.container_of(peer.ns) if peer else None
    return Row(
        link_ref(port.key),
        (
            cells.text(port.name),
            port_state(port) if port.port and port.admin_up else cells.state(port),
            cells.text(end or port.kind), cells.text(port_flags(port)), Cell(""), Cell(""), cells.text(vlans),
            cells.number(port.mtu, "" if port.mtu == bridge.mtu else "warn"),
            *cells.traffic_cells(context.traffic_of(port.key)),
        ),
        {
            **links.terms(topology, port),
            "bridge": safe(bridge.name),
            "ns": safe(" ".join(topology.label(end.ns) for end in (port, peer) if end)),
            "ct": safe(inside.name) if inside else "",
        },
        depth=1,
    )  # fmt: skip


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Return the details of a bridge."""
    bridge = link_of(topology, ref)
    if bridge is None:
        return missing_detail("this bridge")
    return Detail(
        f"bridge {safe(bridge.name)} in {safe(topology.label(bridge.ns))}",
        (
            *cells.section("Traffic", bridge_lines(topology, bridge, rates)),
            *cells.section("Bridge", _settings(topology, bridge)),
            *cells.section("Ports", (_port_line(topology, port) for port in topology.ports_of(bridge.key))),
            *cells.section("Storm guard", _guard_lines(topology, bridge)),
            *_ovs_sections(topology, bridge),
            *common_sections(topology, bridge, rates, "Traffic of the bridge link"),
            *cells.section("VLANs of the bridge link", _own_vlans(bridge)),
            *_fdb_section(topology, bridge),
        ),
        cells.related(topology, ref),
    )


def _settings(topology: Topology, bridge: Link) -> Iterator[Line]:
    network, settings = topology.network_of(bridge), bridge.bridge
    if network is not None:
        yield (
            "network",
            cells.text(f"{network.name} ({networks.kind_words(network)})"),
            network_ref(network.id),
        )
    if settings is None:
        return
    yield "spanning tree", cells.on_off(settings.stp), None
    yield "VLAN filtering", cells.on_off(settings.vlan_filtering), None
    if settings.vlan_filtering:
        yield "default PVID", cells.number(settings.vlan_default_pvid), None
    yield "bridge id", cells.text(settings.bridge_id), None
    if settings.stp and settings.root_id:
        root = "this bridge" if settings.root_id == settings.bridge_id else safe(settings.root_id)
        yield "root bridge", Cell(root), None
    yield "priority", cells.number(settings.priority), None
    yield "ageing", Cell(f"{settings.ageing_time:g} s"), None
    yield "forward delay", Cell(f"{settings.forward_delay:g} s"), None
    yield "multicast snooping", cells.on_off(settings.mcast_snooping), None
    yield "multicast querier", cells.on_off(settings.mcast_querier), None
    yield "group forward mask", Cell(f"{settings.group_fwd_mask:#x}"), None
    yield "nf_call_iptables", cells.on_off(settings.nf_call_iptables), None
    yield "nf_call_ip6tables", cells.on_off(settings.nf_call_ip6tables), None


def _port_line(topology: Topology, port: Link) -> Line:
    peer = topology.peer(port)
    end = f" to {peer.name} in {topology.label(peer.ns)}" if peer else f" ({port.kind})"
    state = port_state(port) if port.port else cells.state(port)
    return safe(port.name), Cell(f"{state.text}{safe(end)}", state.tone), link_ref(port.key)


def _guard_lines(topology: Topology, bridge: Link) -> Iterator[Line]:
    """Yield a line for each guarded port: its limits, and what it drops."""
    guards = {LinkKey(one.ns, one.ifindex): one for one in topology.snapshot.storm_guards}
    for port in topology.ports_of(bridge.key):
        guard = guards.get(port.key)
        if guard is not None:
            yield safe(port.name), _guard_cell(guard), link_ref(port.key)


def _guard_cell(guard: StormGuard) -> Cell:
    limits = guard.limits
    words = [f"broadcast {limits.broadcast:,}/s, multicast {limits.multicast:,}/s"]
    words[0] += " in the driver" if limits.xdp else ""
    words += [f"dropping {one.kind}, {one.rate:,.0f}/s" for one in guard.drops]
    dropped = [f"{count:,} {kind}" for kind, count in zip(GUARDED, guard.dropped, strict=False) if count]
    words += [f"dropped so far: {', '.join(dropped)}"] if dropped else []
    return Cell("; ".join(words), "bad" if guard.drops else "")


def _ovs_sections(topology: Topology, bridge: Link) -> tuple[Section, ...]:
    """Return the sections with the bridge's entry in Open vSwitch's database."""
    switch = topology.ovs_bridge(bridge)
    if switch is None:
        return ()
    ports = (ovs_ports.port_line(topology, port) for port in switch.ports if port.name != switch.name)
    return (
        *cells.section("Open vSwitch", ovs_ports.bridge_lines(switch)),
        *cells.section("OpenFlow controllers", ovs_ports.controller_lines(switch)),
        *cells.section("Open vSwitch ports", ports),
    )


def _own_vlans(bridge: Link) -> Iterator[Line]:
    for vlan in bridge.bridge.vlans if bridge.bridge else ():
        yield f"VLAN {vlan_range(vlan.vid, vlan.vid_end)}", Cell(vlan_flags(vlan.pvid, vlan.untagged)), None


def _fdb_section(topology: Topology, bridge: Link) -> tuple[Section, ...]:
    net = topology.snapshot.nets[bridge.ns]
    found = [entry for entry in net.fdb if entry.bridge == bridge.ifindex]
    title = "Forwarding table"
    if len(found) > FDB_SHOWN:
        title += f" (the first {FDB_SHOWN} of {len(found)})"
    return cells.section(title, (_fdb_line(topology, bridge, entry) for entry in found[:FDB_SHOWN]))


def _fdb_line(topology: Topology, bridge: Link, entry: FdbEntry) -> Line:
    port = topology.snapshot.link((bridge.ns, entry.port))
    words = [port.name if port else f"port {entry.port}"]
    words += [f"VLAN {entry.vlan}"] if entry.vlan else []
    words += [f"to {entry.dst}"] if entry.dst else []
    words += [entry.state, *entry.flags]
    return entry.mac, cells.text(", ".join(words)), link_ref(port.key) if port else None


VIEW = ListView(
    "bridges", "Bridges", ("br", "bridge"), COLUMNS, rows,
    empty="No bridge yet. A bridge is a switch inside the kernel. Container engines create one for each "
    "network; `ip link add name br0 type bridge` creates one.",
    help=(
        ("h l", "fold and unfold a bridge's ports"),
        ("bridge:NAME", "one bridge with its ports"),
        ("ct:NAME", "the ports of one container"),
        ("state:blocking", "ports that spanning tree blocks"),
    ),
    demand=frozenset({Demand.RATES}),
    maker_parts=(Part.OVS,),
)  # fmt: skip
