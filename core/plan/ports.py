"""Plan to publish ports of running containers, and to unpublish them."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from core.model import FirewallRule
from core.nat.describe import host_firewall, restrict_command
from core.nat.entries import expanded
from core.nat.forward_policy import ForwardPath, Published
from core.nat.packets import Kind, PlacedRule, covers, is_loopback, split
from core.operations import SetPort
from core.plan import validate
from core.plan.builder import CannotPlan, PlanBuilder, Target, plan_steps, require, when
from core.plan.connectivity import BRIDGE_NF_SYSCTL, enable_forwarding, warn_of_filters
from core.plan.requests import Publish, Unpublish
from core.plan.tags import COMMENT_BYTES, VnetPort, VnetState, port_id, vnet_state
from core.text import TABLE, bounds, end_text, quoted, range_text, safe
from core.topology import Topology


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """A container's addresses on a network, which may be `internal`."""

    network: str
    bridge: str
    internal: bool
    addresses: tuple[str, ...]


@plan_steps.register
def plan_publish(request: Publish, builder: PlanBuilder) -> str:
    inside = request.container_ports or request.host_ports
    require(
        validate.protocol(request.l4_proto),
        validate.ports(request.host_ports),
        when(request.container_ports, validate.ports(inside)),
    )
    host_ports, container_ports = bounds(request.host_ports), bounds(inside)
    require(
        when(
            host_ports[1] - host_ports[0] != container_ports[1] - container_ports[0],
            f"{request.host_ports} and {inside} are ranges of different sizes",
        ),
        _check_host_ip(request.host_ip, builder),
    )
    target = builder.target(request.container)
    endpoint = _choose_endpoint(target, request, builder)
    ports = tuple(_new_ports(request, inside, target, endpoint))
    require(*dict.fromkeys(port_conflict(port, builder.vnet, builder.topology) for port in ports))
    for port in ports:
        for sentence in partial_conflicts(port, builder.topology):
            builder.warn(sentence)
    builder.update_vnet(ports=(*builder.vnet.ports, *ports))
    _allow_forwarding(ports, endpoint, target, builder)
    return f"publish {ports[0].port_id} of {safe(target.name)}"


def _check_host_ip(text: str, builder: PlanBuilder) -> str:
    if not text:
        return ""
    address = validate.parse_address(text)
    if address is None:
        return f'"{safe(text)}" isn\'t an address of this host'
    if address.version == 6 and address.is_loopback:
        return "the kernel doesn't forward packets to ::1, as they come from the loopback link"
    own = {one.address for link in builder.host.links.values() for one in link.addresses}
    exists = str(address) in own or (address.version == 4 and address.is_loopback)
    return "" if exists else f"{address} isn't an address of this host"


def _choose_endpoint(target: Target, request: Publish, builder: PlanBuilder) -> _Endpoint:
    """Return the network to forward through. Raises CannotPlan if there is none."""
    endpoints = [
        endpoint for endpoint in _endpoints(target, builder) if request.network in ("", endpoint.network)
    ]
    name = safe(target.name)
    if not endpoints:
        where = f" on {safe(request.network)}" if request.network else ""
        reason = f"{name} has no address{where} that the host can forward a port to"
        network = quoted(request.network) if request.network in builder.vnet.networks else "NETWORK"
        raise CannotPlan([f"{reason}. Try: vnet-tui attach {quoted(target.name)} {network}"])
    reachable = [endpoint for endpoint in endpoints if not endpoint.internal]
    if not reachable:
        reason = f"{name} is only on an internal network, or in a VLAN, which can't be reached"
        raise CannotPlan([f"{reason}. Try: vnet-tui attach {quoted(target.name)} NETWORK"])
    usable = [endpoint for endpoint in reachable if _endpoint_addresses(request, endpoint)]
    if not usable:
        raise CannotPlan([f"{name} has no address of the address family of {request.host_ip}"])
    return usable[0]


def _endpoints(target: Target, builder: PlanBuilder) -> Iterator[_Endpoint]:
    """Yield the container's networks, those of vnet first."""
    for member in builder.vnet.members:
        network = builder.vnet.networks.get(member.network)
        if member.container == target.uid and network and member.addresses:
            plain = tuple(one.partition("/")[0] for one in member.addresses)
            # The host isn't in a container's VLAN.
            internal = network.kind == "internal" or bool(member.vlan)
            yield _Endpoint(network.name, network.bridge, internal, plain)
    container = builder.topology.containers.get(target.uid)
    if container is None:
        return
    for other in builder.topology.networks_of(container):
        if other.name in builder.vnet.networks or other.ns not in (None, builder.topology.host):
            continue
        inside = [ipaddress.ip_network(subnet) for subnet in other.subnets]
        plain = tuple(
            one
            for one in builder.topology.addresses_of(container)
            if any(ipaddress.ip_address(one) in subnet for subnet in inside)
        )
        if plain and other.bridge:
            # Rules that drop only lead to a warning; the engine's "internal" leads to a refusal.
            yield _Endpoint(other.name, other.bridge, other.internal, plain)


def _endpoint_addresses(request: Publish, endpoint: _Endpoint) -> tuple[str, ...]:
    """Return the container's addresses of the requested families, one of each."""
    families = {":" in request.host_ip} if request.host_ip else {False, True}
    first: dict[bool, str] = {}
    for address in endpoint.addresses:
        first.setdefault(":" in address, address)
    return tuple(first[family] for family in sorted(families & first.keys()))


def _new_ports(request: Publish, inside: str, target: Target, endpoint: _Endpoint) -> Iterator[VnetPort]:
    host_ip = str(ipaddress.ip_address(request.host_ip)) if request.host_ip else ""
    for address in _endpoint_addresses(request, endpoint):
        port = VnetPort(
            target.uid, request.l4_proto, host_ip, _short(request.host_ports), address, _short(inside)
        )
        if len(port.comment().encode()) > COMMENT_BYTES:
            raise CannotPlan([f"the name of {safe(target.name)} is too long for the comment of its rule"])
        yield port


def _short(ports: str) -> str:
    return range_text(*bounds(ports))


def _allow_forwarding(
    ports: tuple[VnetPort, ...], endpoint: _Endpoint, target: Target, builder: PlanBuilder
) -> None:
    """Add the steps by which the host forwards to the container.

    It also forwards from its own loopback address.
    """
    families = {":" in port.address for port in ports}
    enable_forwarding(builder, ipv4=False in families, ipv6=True in families)
    for port in (port for port in ports if not is_loopback(port.host_ip)):
        warn_of_filters(builder, endpoint.bridge, ("published", "replies"), published=_as_published(port))
    _warn_of_bypass([port for port in ports if not is_loopback(port.host_ip)], builder)
    if endpoint.network in builder.vnet.networks:
        _hairpin(ports, True, builder)
        if any(_uses_loopback(port) for port in ports):
            builder.set_sysctl(
                _route_localnet(endpoint.bridge), "1", _current_localnet(endpoint.bridge, builder)
            )
    else:
        _warn_of_unreachable(ports, endpoint, target, builder)
    if True in families:
        builder.warn(
            f"{ports[0].port_id} isn't reachable at ::1: the kernel doesn't forward from the loopback link"
        )


def _warn_of_bypass(ports: Sequence[VnetPort], builder: PlanBuilder) -> None:
    """Warn that the host's firewall program doesn't filter these ports.

    The warning says how to restrict them.
    """
    firewall = builder.snapshot.firewalls.get(builder.topology.host)
    program = host_firewall(firewall) if firewall else ""
    if firewall and program and ports:
        found = builder.topology.uplink(builder.topology.host)
        uplink = found[0].name if found else ""
        commands = [
            restrict_command(firewall, port.l4_proto, port.host_ports, ":" in port.address, uplink)
            for port in ports
        ]
        builder.warn(
            f"{program}'s rules for incoming connections don't apply to published ports such as "
            f"{ports[0].port_id}; to restrict it, run: {'; '.join(commands)}"
        )


def _warn_of_unreachable(
    ports: Sequence[VnetPort], endpoint: _Endpoint, target: Target, builder: PlanBuilder
) -> None:
    """Warn about sources that can't reach a port on another engine's network.

    vnet doesn't change that bridge (route_localnet, hairpin mode).
    """
    bridge, first = builder.link(endpoint.bridge), ports[0]
    localnet = bool(bridge and bridge.bridge and bridge.bridge.route_localnet)
    if not localnet and any(map(_uses_loopback, ports)):
        builder.warn(f"{first.port_id} isn't reachable at 127.0.0.1: {endpoint.bridge} isn't vnet-tui's")
    unreachable = [] if _has_hairpin(first, target, builder) else [f"{safe(target.name)} itself"]
    if builder.snapshot.host.sysctls.get(BRIDGE_NF_SYSCTL) != "1":
        unreachable.append(f"other containers on {endpoint.bridge}")
    unreachable += [f"containers on {name}" for name in _isolated_networks(first, endpoint, builder)]
    if unreachable:
        builder.warn(f"{first.port_id} isn't reachable at the host's addresses from {', '.join(unreachable)}")


def _has_hairpin(port: VnetPort, target: Target, builder: PlanBuilder) -> bool:
    """Return whether a container can reach its own published port.

    That needs hairpin mode of its bridge port, and a masquerade rule for its own address.
    """
    links = [link for link in builder.snapshot.links() if link.ns == target.ns]
    ends = [builder.topology.peer(link) for link in links]
    hairpin = any(end and end.port and end.port.hairpin for end in ends)
    firewall = builder.snapshot.firewalls.get(builder.topology.host)
    return hairpin and any(
        rule.verdict == "masquerade"
        and rule.src == rule.dst == port.address
        and rule.dport in ("", port.container_ports)
        for rule in (firewall.rules if firewall else ())
    )


def _isolated_networks(port: VnetPort, endpoint: _Endpoint, builder: PlanBuilder) -> Iterator[str]:
    """Yield the engine's other networks that can't reach the port.

    Isolation rules drop the packets of their containers.
    """
    evaluator, uplink = builder.topology.policy_evaluator, builder.topology.uplink(builder.topology.host)
    if evaluator is None:
        return
    kinds: tuple[Kind, ...] = ("published", "replies")

    def dropped(link: str) -> set[str]:
        path = ForwardPath(endpoint.bridge, link, published=_as_published(port))
        return {one.kind for one in evaluator.dropping(path, kinds) if one.certain}

    outside = dropped(uplink[0].name if uplink else "")
    for other in builder.topology.networks:
        is_other = other.bridge and other.bridge != endpoint.bridge and other.engine != "kernel"
        if is_other and dropped(other.bridge) - outside:
            yield safe(other.name)


def _as_published(port: VnetPort) -> Published:
    return Published(port.address, port.l4_proto, port.container_ports, port.host_ip, port.host_ports)


def _hairpin(ports: Iterable[VnetPort], on: bool, builder: PlanBuilder) -> None:
    """Switch hairpin mode of bridge ports.

    With br_netfilter, packets of a container to its own published port are translated in the bridge and leave
    by the port that they came in by.
    """
    addresses = {port.address for port in ports}
    for member in builder.vnet.members:
        network = builder.vnet.networks.get(member.network)
        if network and network.kind == "ovs":
            continue  # its packets come back by the bridge's own link
        if addresses & {one.partition("/")[0] for one in member.addresses}:
            link = builder.link(member.port)
            before = bool(link and link.port and link.port.hairpin)
            if before != on:
                builder.add(SetPort(member.port, "hairpin", on, before))


def restore_ports(ports: Collection[VnetPort], bridge: str, builder: PlanBuilder) -> None:
    """Set up a new bridge for ports that were published before it was created."""
    _hairpin(ports, True, builder)
    if any(map(_uses_loopback, ports)):
        builder.set_sysctl(_route_localnet(bridge), "1", "0")


def _uses_loopback(port: VnetPort) -> bool:
    every = not port.host_ip
    return ":" not in port.address and (every or is_loopback(port.host_ip))


def _current_localnet(bridge: str, builder: PlanBuilder) -> str:
    """Return the current route_localnet: only ports that vnet published set it."""
    return (
        "1"
        if any(_is_behind(bridge, port, builder) for port in builder.before.ports if _uses_loopback(port))
        else "0"
    )


def _is_behind(bridge: str, port: VnetPort, builder: PlanBuilder) -> bool:
    """Return whether a port's container is connected to that bridge."""
    address = ipaddress.ip_address(port.address)
    return any(
        network.bridge == bridge and any(address in ipaddress.ip_network(one) for one in network.subnets)
        for network in builder.before.networks.values()
    )


def _route_localnet(bridge: str) -> str:
    return f"net.ipv4.conf.{bridge.replace('.', '/')}.route_localnet"


@plan_steps.register
def plan_unpublish(request: Unpublish, builder: PlanBuilder) -> str:
    require(validate.protocol(request.l4_proto), validate.ports(request.host_ports))
    host_ip = str(validate.parse_address(request.host_ip) or request.host_ip)
    requested = port_id(request.l4_proto, host_ip, _short(request.host_ports))
    found = [port for port in builder.vnet.ports if port.port_id == requested]
    if not found:
        known = ", ".join(dict.fromkeys(port.port_id for port in builder.vnet.ports)) or "none"
        raise CannotPlan([f"vnet-tui doesn't publish {safe(requested)} (published ports: {known})"])
    unpublish(found, builder)
    return f"unpublish {requested}"


def unpublish(ports: list[VnetPort], builder: PlanBuilder) -> None:
    """Unpublish ports.

    With the last one of a network its route_localnet is switched off as well.
    """
    remaining = tuple(port for port in builder.vnet.ports if port not in ports)
    builder.update_vnet(ports=remaining)
    addresses = {port.address for port in remaining}
    _hairpin([port for port in ports if port.address not in addresses], False, builder)
    for network in builder.before.networks.values():
        removed = [
            port for port in ports if _uses_loopback(port) and _is_behind(network.bridge, port, builder)
        ]
        if removed and not any(
            _uses_loopback(port) and _is_behind(network.bridge, port, builder) for port in remaining
        ):
            builder.set_sysctl(_route_localnet(network.bridge), "0", "1")


_FIRST, _LAST = 8080, 9080
_EVERY = ("0.0.0.0", "::")  # every address of IPv4, of IPv6
_EVERY_PORT = (1, 65535)


@dataclass(frozen=True, slots=True)
class ForeignRedirect:
    """Ports that a rule of another program redirects.

    `matched`: its address match. `partly`: only some packets. `to`: short description of the destination.
    `table`: its table, with family.
    """

    ipv6: bool
    l4_proto: str
    matched: str
    ports: tuple[int, int]
    partly: bool
    to: str
    table: str


def port_conflict(port: VnetPort, now: VnetState, topology: Topology) -> str:
    """Describe what already uses a port, "" for nothing.

    `now` is the VnetState after the steps so far.
    """
    number = bounds(port.host_ports)
    for other in now.ports:
        if (":" in other.address) == (":" in port.address) and _conflicts(
            port, other.l4_proto, other.host_ip, bounds(other.host_ports)
        ):
            return (
                f"{other.port_id} is already published, to {other.address}. "
                f"Try: another port{_suggestion(port, topology)}, or vnet-tui unpublish {other.port_id}"
            )
    for container in topology.snapshot.containers():
        for one in container.ports:
            if _conflicts(port, one.l4_proto, one.host_ip, (one.host_port, one.host_port)):
                return (
                    f"{one.l4_proto}/{one.host_port} is already published, by {safe(container.name)}. "
                    f"Try: another port{_suggestion(port, topology)}"
                )
    for redirect in _redirects_of(port, topology):
        if not redirect.partly:
            return (
                f"{port.l4_proto} port {_common_ports(redirect.ports, number)} of the host is in use: a rule "
                f"in {redirect.table} (not vnet-tui's) {redirect.to}. "
                f"Try: another port{_suggestion(port, topology)}"
            )
    for listener in topology.snapshot.host.listening:
        every = listener.address in _EVERY
        address = "" if every else listener.address
        if _conflicts(port, listener.l4_proto, address, (listener.port, listener.port)):
            return (
                f"a process of the host already listens on {listener.l4_proto} port {listener.port}. "
                f"Try: another port{_suggestion(port, topology)}"
            )
    return ""


def partial_conflicts(port: VnetPort, topology: Topology) -> Iterator[str]:
    """Yield warnings about other programs' rules that redirect some packets of a port."""
    for redirect in _redirects_of(port, topology):
        if redirect.partly:
            yield (
                f"some packets to {port.l4_proto} port {port.host_ports} may not reach {port.port_id}: "
                f"a rule in {redirect.table} (not vnet-tui's) {redirect.to}"
            )


def free_port(topology: Topology, l4_proto: str) -> str:
    """Return the first unused port from 8080 on, "" if there is none."""
    used = {one.port for one in topology.snapshot.host.listening if one.l4_proto == l4_proto}
    used |= {port.host_port for one in topology.snapshot.containers() for port in one.ports}
    ranges = [bounds(port.host_ports) for port in vnet_state(topology.snapshot, topology.host).ports]
    redirects = (one for one in _redirects(topology) if one.ports != _EVERY_PORT)
    ranges += [one.ports for one in redirects if one.l4_proto in ("", l4_proto)]
    for first, last in ranges:
        used.update(range(max(first, _FIRST), min(last, _LAST) + 1))
    return next((str(port) for port in range(_FIRST, _LAST) if port not in used), "")


def _suggestion(port: VnetPort, topology: Topology) -> str:
    free = free_port(topology, port.l4_proto)
    return f" ({free} is free)" if free else ""


def _conflicts(port: VnetPort, l4_proto: str, host_ip: str, ports: tuple[int, int]) -> bool:
    same = port.host_ip == host_ip or "" in (port.host_ip, host_ip)
    if host_ip in _EVERY:
        same = host_ip == _EVERY[":" in port.address]
    return l4_proto == port.l4_proto and same and _overlap(bounds(port.host_ports), ports)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _common_ports(one: tuple[int, int], other: tuple[int, int]) -> str:
    return range_text(max(one[0], other[0]), min(one[1], other[1]))


def _redirects_of(port: VnetPort, topology: Topology) -> Iterator[ForeignRedirect]:
    """Yield the redirects of other programs that match a port."""
    ipv6, number = ":" in port.address, bounds(port.host_ports)
    for one in _redirects(topology):
        same = one.ipv6 == ipv6 and one.l4_proto in ("", port.l4_proto)
        if same and _overlap(one.ports, number) and _matches(one.matched, port, topology):
            yield one


def _matches(matched: str, port: VnetPort, topology: Topology) -> bool:
    """Return whether an address match covers an address that the port is published on."""
    own = [port.host_ip] if port.host_ip else _own_addresses(":" in port.address, topology)
    return any(covers(matched, ipaddress.ip_network(one)) is not False for one in own)


def _own_addresses(ipv6: bool, topology: Topology) -> list[str]:
    net = topology.snapshot.nets.get(topology.host)
    links = net.links.values() if net else ()
    return [one.address for link in links for one in link.addresses if (one.family == 6) == ipv6]


def _redirects(topology: Topology) -> Iterator[ForeignRedirect]:
    for placed in topology.dnat_rules:
        if placed.rule.table != TABLE:
            for rule in expanded(placed.effective):
                yield from _rule_redirects(placed, rule, topology)


def _rule_redirects(placed: PlacedRule, rule: FirewallRule, topology: Topology) -> Iterator[ForeignRedirect]:
    negated, numbers = split(rule.dport)
    ranges = [bounds(one) for one in numbers if not validate.ports_shape(one)]
    if numbers and not ranges:
        return  # a set whose elements aren't known
    # Ports from several jumps each belong to one jump; which one isn't known.
    joined = len(numbers) > 1 and not placed.rule.dport and not placed.rule.translations
    some = bool(rule.src) or (bool(rule.iif) and not split(rule.iif)[0]) or "prerouting" not in placed.hooks
    partly = some or joined or negated or not numbers
    for family in _rule_families(rule):
        for ports in [_EVERY_PORT] if negated or not numbers else ranges:
            for l4_proto in split(rule.l4_proto)[1] or ("",):
                to, table = _destination(rule, topology), f"table {rule.family} {safe(rule.table)}"
                yield ForeignRedirect(family, l4_proto, rule.dst, ports, partly, to, table)


def _rule_families(rule: FirewallRule) -> tuple[bool, ...]:
    address = "" if rule.to_address.startswith("@") else rule.to_address
    if rule.family in ("ip", "ip6"):
        return (rule.family == "ip6",)
    return (":" in address,) if address else (False, True)


def _destination(rule: FirewallRule, topology: Topology) -> str:
    """Describe the destination of a rule, with the name of its owner."""
    port = rule.to_port or rule.dport
    if rule.verdict == "redirect":
        return f"redirects it to port {safe(port)} of the host" if port else "redirects it to the host"
    address = rule.to_address
    owner = topology.container_at(topology.host, address) if address else None
    at = safe(end_text(address, port)) or "another address"
    return f"redirects it to {f'{safe(owner.name)}, ' if owner else ''}{at}"
