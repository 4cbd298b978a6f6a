"""Describe ports of Open vSwitch: VLANs, tunnels, bonds and errors."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import Link, LinkKey, OvsBridge, OvsInterface, OvsPort, link_ref
from core.text import safe
from core.topology import Topology
from tui.views import cells
from tui.views.cells import Line
from tui.views.rows import Cell

# Options that a tunnel's line begins with; "remote_ip" is written as its end.
_FIRST = ("key", "local_ip")


def vlans(port: OvsPort) -> str:
    """Return a port's VLANs: "10", "trunk 5 6", "10, trunk 5 6", or "" for all."""
    words = [str(port.tag)] if port.tag is not None else []
    words += [f"trunk {' '.join(map(str, port.trunks))}"] if port.trunks else []
    return ", ".join(words)


def vlans_of(topology: Topology, link: Link) -> str:
    """Return the VLANs of the Open vSwitch ports that a link is."""
    return "; ".join(filter(None, (vlans(port) for _, port in topology.ovs_ports_of(link))))


def master_text(topology: Topology, link: Link) -> str:
    """Return the name of a link's master, with the VLANs of a port of Open vSwitch."""
    master, tags = topology.master_of(link), vlans_of(topology, link)
    if master is None:
        return ""
    return f"{master.name} VLAN {tags}" if tags else master.name


def tunnel(one: OvsInterface) -> str:
    """Return a tunnel's or patch's type, its other end, and its options."""
    options = dict(one.options)
    remote, peer = options.pop("remote_ip", ""), options.pop("peer", "")
    words = [f"{one.kind} to {remote or peer}" if remote or peer else one.kind]
    names = [*(name for name in _FIRST if name in options), *(name for name in options if name not in _FIRST)]
    return " ".join((*words, *(f"{name}={options[name]}" for name in names)))


def tunnels_of(topology: Topology, link: Link) -> str:
    """Return the tunnels that send by a link of the kernel's datapath, "" for none."""
    found = ((port.name, one) for _, port in topology.ovs_ports_of(link) for one in port.interfaces)
    return "; ".join(f"{name}: {tunnel(one)}" for name, one in found if one.remote)


def bond(port: OvsPort) -> str:
    """Return a bond's mode and state."""
    words = [f"bond {port.bond_mode or 'active-backup'}"]
    words += [f"LACP {port.lacp}"] if port.lacp and port.lacp != "off" else []
    words += [f"sends by {port.bond_active}"] if port.bond_active else []
    return " ".join(words)


def member(port: OvsPort, one: OvsInterface) -> str:
    """Return the state of one interface of a bond."""
    state = "up" if one.carrier and one.admin_up else "down"
    return f"{state}, active" if port.bond_active == one.name else state


def words(port: OvsPort) -> str:
    """Return everything about a port on one line, with the error of a broken one."""
    tags = vlans(port)
    found = [f"VLAN {tags}" if tags[:1].isdigit() else tags, port.vlan_mode]
    if port.is_bond:
        found += [bond(port), *(f"{one.name} {member(port, one)}" for one in port.interfaces)]
    else:
        found += [tunnel(one) for one in port.interfaces]
    return ", ".join(filter(None, (*found, port.error)))


def controller_lines(bridge: OvsBridge) -> Iterator[Line]:
    """Yield a line for each OpenFlow controller."""
    for one in bridge.controllers:
        state = " ".join(("connected" if one.is_connected else "not connected", one.role)).strip()
        yield safe(one.target), cells.text(state, "" if one.is_connected else "warn"), None


def port_line(topology: Topology, port: OvsPort) -> Line:
    """Return the line of a port; Enter leads to its link."""
    ifindex = next((one.ifindex for one in port.interfaces if one.ifindex), None)
    target = link_ref(LinkKey(topology.host, ifindex)) if ifindex else None
    return safe(port.name), cells.text(words(port), "bad" if port.error else ""), target


def link_lines(topology: Topology, link: Link) -> Iterator[Line]:
    """Yield the lines of a link that is a port of Open vSwitch."""
    for bridge, port in topology.ovs_ports_of(link):
        if port.name != bridge.name:
            own = topology.ovs_link(bridge.name)
            title = safe(port.name if port.name != link.name else "port")
            yield "bridge", cells.text(bridge.name), link_ref(own.key) if own else None
            yield title, cells.text(words(port), "bad" if port.error else ""), None
            for key, value in port.external_ids.items():
                yield safe(key), cells.text(value), None


def bridge_lines(bridge: OvsBridge) -> Iterator[Line]:
    """Yield the settings of a bridge."""
    yield "datapath", Cell("in user space" if bridge.datapath == "netdev" else "the kernel's"), None
    yield "without controller", cells.text(bridge.fail_mode or "standalone"), None
    yield "spanning tree", Cell("RSTP") if bridge.rstp else cells.on_off(bridge.stp), None
    if bridge.protocols:
        yield "OpenFlow", cells.text(" ".join(bridge.protocols)), None
    for key, value in bridge.external_ids.items():
        yield safe(key), cells.text(value), None
