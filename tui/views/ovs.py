"""The Open vSwitch view: bridges with controllers, ports, tunnels and bonds below."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import (
    Link,
    LinkKey,
    OvsBridge,
    OvsInterface,
    OvsPort,
    Part,
    Ref,
    link_ref,
    network_ref,
    ovs_ref,
)
from core.rates import Rates
from core.text import safe
from core.topology import Topology
from tui.views import cells, ovs_ports
from tui.views.cells import Line
from tui.views.links import common_sections, missing_detail
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Detail, ListView, Row, ViewContext

COLUMNS = (
    Column("name", "bridge / port", 18, grow=1),
    Column("kind", "type", 9),
    Column("state", "state", 13),
    Column("vlan", "VLAN", 8, grow=1),
    Column("end", "other end", 16, grow=1),
    Column("key", "key", 6, priority=2),
    Column("ct", "container", 12, grow=1, priority=1),
    Column("more", "settings / error", 16, grow=3, priority=1),
)


def rows(context: ViewContext) -> ListRows:
    """Return every bridge, followed by its controllers and ports."""
    return ListRows([row for one in context.snapshot.ovs for row in _rows_of(context, one)], COLUMNS)


def _rows_of(context: ViewContext, bridge: OvsBridge) -> Iterator[Row]:
    yield _bridge_row(context, bridge)
    for number, controller in enumerate(bridge.controllers):
        state = Cell("connected", "ok") if controller.is_connected else Cell("not connected", "warn")
        key: tuple[str | int, ...] = (bridge.name, "controller", number)
        yield _row(bridge, key, 1, cells.text(controller.target), "controller", state, more=controller.role)
    for port in bridge.ports:
        if port.name != bridge.name:
            yield _port_row(context, bridge, port)
            for one in port.interfaces if port.is_bond else ():
                key = (bridge.name, port.name, one.name)
                text = ovs_ports.member(port, one)
                state = Cell(text, "" if text.startswith("up") else "warn")
                yield _row(bridge, key, 2, cells.text(one.name), one.kind, state, more=one.error)


def _row(
    bridge: OvsBridge, key: tuple[str | int, ...], depth: int, name: Cell, kind: str, state: Cell,
    vlan: str = "", end: str = "", tunnel_key: str = "", ct: str = "", more: str = "", error: bool = False,
    terms: dict[str, str] | None = None,
) -> Row:  # fmt: skip
    return Row(
        ovs_ref(*key),
        (
            name, cells.text(kind), state, cells.text(vlan), cells.text(end), cells.text(tunnel_key),
            cells.text(ct), cells.text(more, "bad" if error else ""),
        ),
        {"bridge": safe(bridge.name), **(terms or {})},
        depth=depth,
    )  # fmt: skip


def _bridge_row(context: ViewContext, bridge: OvsBridge) -> Row:
    own = context.topology.ovs_link(bridge.name)
    network = context.topology.network_of(own) if own else None
    settings = (
        bridge.fail_mode, "RSTP" if bridge.rstp else "STP" if bridge.stp else "", " ".join(bridge.protocols),
        f"network {network.name}" if network and network.name != bridge.name else "",
    )  # fmt: skip
    return _row(
        bridge, (bridge.name,), 0, cells.text(bridge.name), bridge.datapath,
        cells.state(own) if own else Cell("no link", "bad"), more=", ".join(filter(None, settings)),
    )  # fmt: skip


def _port_row(context: ViewContext, bridge: OvsBridge, port: OvsPort) -> Row:
    first = port.interfaces[0] if port.interfaces else OvsInterface(port.name)
    link = _link(context.topology, first)
    peer = context.topology.peer(link) if link else None
    inside = context.topology.container_of(peer.ns) if peer else None
    options = {name: value for name, value in first.options.items() if name not in _SHOWN}
    settings = (port.vlan_mode, ovs_ports.bond(port) if port.is_bond else "",
                " ".join(f"{name}={value}" for name, value in options.items()), port.error)  # fmt: skip
    end = f"{peer.name} in {context.topology.label(peer.ns)}" if peer else ""
    return _row(
        bridge, (bridge.name, port.name), 1, cells.text(port.name), "bond" if port.is_bond else first.kind,
        _state(port), ovs_ports.vlans(port), first.remote or first.options.get("peer", "") or end,
        first.options.get("key", ""), inside.name if inside else "", ", ".join(filter(None, settings)),
        bool(port.error), {"ns": safe(context.topology.label(peer.ns)) if peer else ""},
    )  # fmt: skip


_SHOWN = ("remote_ip", "peer", "key")


def _state(port: OvsPort) -> Cell:
    if port.error:
        return Cell("broken", "bad")
    if any(one.kind == "system" and one.ifindex is None for one in port.interfaces):
        return Cell("no link", "bad")
    if any(one.admin_up and one.carrier for one in port.interfaces):
        return Cell("up", "ok")
    return Cell("down", "warn")


def _link(topology: Topology, one: OvsInterface) -> Link | None:
    return topology.snapshot.link((topology.host, one.ifindex)) if one.ifindex else None


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Return the details of a bridge, a controller, a port or a bond's interface."""
    bridge = next((one for one in topology.snapshot.ovs if one.name == ref.key[0]), None)
    if bridge is None:
        return missing_detail("this bridge")
    is_controller = any(isinstance(part, int) for part in ref.key)
    port = bridge.port(str(ref.key[1])) if len(ref.key) > 1 and not is_controller else None
    if port is None:
        return _bridge_detail(topology, bridge)
    link = next((link for one in port.interfaces if (link := _link(topology, one))), None)
    members = ((safe(one.name), _member(port, one), _target(topology, one)) for one in port.interfaces)
    ids = ((safe(key), cells.text(value), None) for key, value in port.external_ids.items())
    return Detail(
        f"port {safe(port.name)} of {safe(bridge.name)}",
        (
            *cells.section("Port", [ovs_ports.port_line(topology, port)]),
            *(cells.section("Bond", members) if port.is_bond else ()),
            *cells.section("External ids", ids),
            *(common_sections(topology, link, rates) if link else ()),
        ),
        cells.related(topology, link_ref(link.key)) if link else (),
    )


def _member(port: OvsPort, one: OvsInterface) -> Cell:
    return cells.text(", ".join(filter(None, (ovs_ports.member(port, one), one.error))))


def _target(topology: Topology, one: OvsInterface) -> Ref | None:
    link = _link(topology, one)
    return link_ref(link.key) if link else None


def _bridge_detail(topology: Topology, bridge: OvsBridge) -> Detail:
    own = topology.ovs_link(bridge.name)
    network = topology.network_of(own) if own else None
    lines: list[Line] = [("link", cells.text(own.name), link_ref(own.key))] if own else []
    lines += [("network", cells.text(network.name), network_ref(network.id))] if network else []
    ports = (ovs_ports.port_line(topology, port) for port in bridge.ports if port.name != bridge.name)
    return Detail(
        f"Open vSwitch bridge {safe(bridge.name)}",
        (
            *cells.section("Bridge", [*lines, *ovs_ports.bridge_lines(bridge)]),
            *cells.section("OpenFlow controllers", ovs_ports.controller_lines(bridge)),
            *cells.section("Ports", ports),
        ),
        cells.related(topology, link_ref(LinkKey(own.ns, own.ifindex))) if own else (),
    )


VIEW = ListView(
    "ovs", "Open vSwitch", ("openvswitch",), COLUMNS, rows,
    empty="No bridge of Open vSwitch. `vnet-tui network create NAME --kind ovs` creates a network on one, "
    "`ovs-vsctl add-br NAME` only the bridge.",
    help=(
        ("vlan:10", "ports with an access VLAN or trunk"),
        ("kind:vxlan", "tunnels and ports by type"),
        ("end:192.0.2.9", "tunnels by their other end"),
    ),
    parts=frozenset({Part.NAMESPACES, Part.LINKS, Part.OVS}),
    maker_parts=(Part.OVS,),
)  # fmt: skip
