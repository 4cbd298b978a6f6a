"""Who holds a port of the host already: what is published, rules of others, and processes that listen."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from core.model import FirewallRule
from core.nat.inward import expanded
from core.nat.match import covers, split
from core.nat.paths import PlacedRule
from core.plan import validate
from core.plan.tags import OurPort, Ours, ours
from core.tags import TABLE
from core.text import safe
from core.topology import Topology

_FIRST, _LAST = 8080, 9080
_EVERY = ("0.0.0.0", "::")  # every address of IPv4, of IPv6
_EVERY_PORT = (1, 65535)


@dataclass(frozen=True, slots=True)
class Led:
    """Ports that a rule of others leads elsewhere: `matched` is its address match, `partly` whether only some
    of what comes to them, `to` what it does in short, `place` its table."""

    ipv6: bool
    l4_proto: str
    matched: str
    ports: tuple[int, int]
    partly: bool
    to: str
    place: str


def clash(port: OurPort, now: Ours, topology: Topology) -> str:
    """Who has a port already, in words; "" where nobody has. `now` is what is ours by then."""
    number = validate.port_range(port.host_ports)
    for other in now.ports:
        if (":" in other.address) == (":" in port.address) and _meet(
            port, other.l4_proto, other.host_ip, validate.port_range(other.host_ports)
        ):
            return f"{other.port_id} is published already, to {other.address}"
    for container in topology.snapshot.containers():
        for held in container.ports:
            if _meet(port, held.l4_proto, held.host_ip, (held.host_port, held.host_port)):
                return f"{held.l4_proto}/{held.host_port} is published already, by {safe(container.name)}"
    for led in _on(port, topology):
        if not led.partly:
            return (
                f"{port.l4_proto} port {_shared(led.ports, number)} of the host is taken already: {led.to}, "
                f"by a rule of {led.place} that is not vnet's; take another port{_such_as(port, topology)}"
            )
    for listener in topology.snapshot.host.listening:
        every = listener.address in _EVERY
        address = "" if every else listener.address
        if _meet(port, listener.l4_proto, address, (listener.port, listener.port)):
            return f"a process of the host listens on {listener.l4_proto} port {listener.port} already"
    return ""


def in_part(port: OurPort, topology: Topology) -> Iterator[str]:
    """Warnings of rules of others that take some of what comes to a port."""
    for led in _on(port, topology):
        if led.partly:
            yield (
                f"a rule of {led.place} that is not vnet's leads some of what comes to "
                f"{port.l4_proto} port {port.host_ports} elsewhere ({led.to}): {port.port_id} may not get all"
            )


def free_port(topology: Topology, l4_proto: str) -> str:
    """The first port from 8080 on that nobody holds, "" where all are held."""
    held = {one.port for one in topology.snapshot.host.listening if one.l4_proto == l4_proto}
    held |= {port.host_port for one in topology.snapshot.containers() for port in one.ports}
    ranges = [validate.port_range(port.host_ports) for port in ours(topology.snapshot, topology.host).ports]
    some = (led for led in _led(topology) if led.ports != _EVERY_PORT)
    ranges += [led.ports for led in some if led.l4_proto in ("", l4_proto)]
    for first, last in ranges:
        held.update(range(max(first, _FIRST), min(last, _LAST) + 1))
    return next((str(port) for port in range(_FIRST, _LAST) if port not in held), "")


def _such_as(port: OurPort, topology: Topology) -> str:
    free = free_port(topology, port.l4_proto)
    return f" ({free} is free)" if free else ""


def _meet(port: OurPort, l4_proto: str, host_ip: str, ports: tuple[int, int]) -> bool:
    same = port.host_ip == host_ip or "" in (port.host_ip, host_ip)
    if host_ip in _EVERY:
        same = host_ip == _EVERY[":" in port.address]
    return l4_proto == port.l4_proto and same and _overlap(validate.port_range(port.host_ports), ports)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _shared(one: tuple[int, int], other: tuple[int, int]) -> str:
    first, last = max(one[0], other[0]), min(one[1], other[1])
    return str(first) if first == last else f"{first}-{last}"


def _on(port: OurPort, topology: Topology) -> Iterator[Led]:
    """What rules of others lead elsewhere of a port."""
    ipv6, number = ":" in port.address, validate.port_range(port.host_ports)
    for led in _led(topology):
        same = led.ipv6 == ipv6 and led.l4_proto in ("", port.l4_proto)
        if same and _overlap(led.ports, number) and _reaches(led.matched, port, topology):
            yield led


def _reaches(matched: str, port: OurPort, topology: Topology) -> bool:
    """Whether an address match holds for an address of the host that the port would be published on."""
    own = [port.host_ip] if port.host_ip else _own_addresses(":" in port.address, topology)
    return any(covers(matched, ipaddress.ip_network(one)) is not False for one in own)


def _own_addresses(ipv6: bool, topology: Topology) -> list[str]:
    net = topology.snapshot.nets.get(topology.host)
    links = net.links.values() if net else ()
    return [one.address for link in links for one in link.addresses if (one.family == 6) == ipv6]


def _led(topology: Topology) -> Iterator[Led]:
    for placed in topology.led_in:
        if placed.rule.table != TABLE:
            for rule in expanded(placed.effective):
                yield from _parts(placed, rule, topology)


def _parts(placed: PlacedRule, rule: FirewallRule, topology: Topology) -> Iterator[Led]:
    negated, numbers = split(rule.dport)
    ranges = [validate.port_range(one) for one in numbers if not validate.ports_shape(one)]
    if numbers and not ranges:
        return  # a set that only its name is known of
    # Ports that come from jumps together belong to one of these each: which one cannot be told.
    joined = len(numbers) > 1 and not placed.rule.dport and not placed.rule.translations
    some = bool(rule.src) or (bool(rule.iif) and not split(rule.iif)[0]) or "prerouting" not in placed.hooks
    partly = some or joined or negated or not numbers
    for family in _families(rule):
        for ports in [_EVERY_PORT] if negated or not numbers else ranges:
            for l4_proto in split(rule.l4_proto)[1] or ("",):
                to, place = _to(placed, rule, topology), f"table {rule.family} {safe(rule.table)}"
                yield Led(family, l4_proto, rule.dst, ports, partly, to, place)


def _families(rule: FirewallRule) -> tuple[bool, ...]:
    address = "" if rule.to_address.startswith("@") else rule.to_address
    if rule.family in ("ip", "ip6"):
        return (rule.family == "ip6",)
    return (":" in address,) if address else (False, True)


def _to(placed: PlacedRule, rule: FirewallRule, topology: Topology) -> str:
    """Where the rule leads, by the name of whoever lives there."""
    port = rule.to_port or rule.dport
    if rule.verdict == "redirect":
        return f"it leads to port {safe(port)} of the host" if port else "it leads to the host"
    address = rule.to_address
    owner = topology.container_at(topology.host, address) if address else None
    at = (f"[{address}]:{port}" if ":" in address else f"{address}:{port}").rstrip(":")
    return f"it leads to {f'{safe(owner.name)}, ' if owner else ''}{safe(at) or 'another address'}"
