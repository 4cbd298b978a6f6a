"""Apply a NAT rule to a packet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from core.model import FirewallRule
from core.reach.packet import Hook, Packet
from core.reach.routing import RoutingTables
from core.text import is_address


def translated(rule: FirewallRule, packet: Packet, tables: RoutingTables | None, hook: Hook) -> Packet | None:
    """Return a packet after a NAT rule, None if the new address isn't known."""
    if rule.verdict in ("masquerade", "snat"):
        address = rule.to_address.partition("-")[0]
        if rule.translations:
            fit = [one for one in rule.translations if one.src in ("", packet.src)]
            address = fit[0].to_address if fit else ""
        if rule.verdict == "masquerade":
            address = _own_address(tables, hook.oifs[0], packet)
        return replace(packet, src=address) if is_address(address) else None
    return _with_destination(rule, packet, tables, hook)


def _own_address(tables: RoutingTables | None, name: str, packet: Packet) -> str:
    """Return the address that masquerade chooses: the link's, or any other."""
    if tables is None:
        return ""
    link = next((one for one in tables.net.links.values() if one.name == name), None)
    if link is not None and link.kind == "loopback":
        return packet.dst if packet.is_ipv6 else tables.first_address(False)
    lookup = tables.lookup(replace(packet, src=""), oif=name)
    gateway = lookup.hop.gateway if lookup.hop else ""
    near = tables.address_on(link, gateway or packet.dst) if link is not None else ""
    return near or tables.first_address(packet.is_ipv6)


def _with_destination(
    rule: FirewallRule, packet: Packet, tables: RoutingTables | None, hook: Hook
) -> Packet | None:
    address, port = rule.to_address, rule.to_port
    if rule.verdict == "redirect":
        links = tables.net.links.values() if tables else ()
        own = (one for link in links if link.name in hook.iifs for one in link.addresses)
        fit = (one.address for one in own if (one.family == 6) == packet.is_ipv6)
        address = next(fit, "::1" if packet.is_ipv6 else "127.0.0.1") if hook.iifs else packet.dst
    for one in _fitting(rule, packet):
        address, port = one
        break
    else:
        if rule.translations:
            return packet  # no element of the map fits: the rule does nothing
    first = address.partition("-")[0]
    if (first and not is_address(first)) or not (first or port):
        return None
    new_port = int(port.partition("-")[0]) if port and port.partition("-")[0].isdigit() else packet.dport
    if "-" in port and rule.dport == port:
        new_port = packet.dport
    return replace(packet, dst=first or packet.dst, dport=new_port)


def _fitting(rule: FirewallRule, packet: Packet) -> Iterator[tuple[str, str]]:
    for one in rule.translations:
        low, _, high = one.dport.partition("-")
        in_range = not low or (low.isdigit() and int(low) <= packet.dport <= int(high or low))
        if in_range and one.dst in ("", packet.dst) and one.l4_proto in ("", packet.l4_proto):
            yield one.to_address, one.to_port
