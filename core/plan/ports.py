"""Plans that publish ports of running containers, and withdraw them."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from core.model import FirewallRule
from core.nat.describe import gatekeeper, restrict_words
from core.nat.entries import expanded
from core.nat.forward_policy import ForwardPath, Published
from core.nat.packets import Kind, PlacedRule, covers, is_loopback, split
from core.operations import SetPort
from core.plan import validate
from core.plan.builder import CannotPlan, PlanBuilder, Target, draft_steps, require, when
from core.plan.connectivity import BRIDGED, forward, warn_of_filters
from core.plan.requests import Publish, Unpublish
from core.plan.tags import COMMENT_BYTES, OurPort, Ours, ours, port_id
from core.tags import TABLE
from core.text import safe
from core.topology import Topology


@dataclass(frozen=True, slots=True)
class _ContainerAddress:
    """Where a container is reached: a network's name and bridge, whether it is internal by intent, and the
    container's addresses."""

    network: str
    bridge: str
    internal: bool
    addresses: tuple[str, ...]


@draft_steps.register
def _(request: Publish, draft: PlanBuilder) -> str:
    inside = request.container_ports or request.host_ports
    require(
        validate.protocol(request.l4_proto),
        validate.ports(request.host_ports),
        when(request.container_ports, validate.ports(inside)),
    )
    host_ports, container_ports = validate.port_range(request.host_ports), validate.port_range(inside)
    require(
        when(
            host_ports[1] - host_ports[0] != container_ports[1] - container_ports[0],
            f"{request.host_ports} and {inside} are not equally many ports",
        ),
        _host_ip(request.host_ip, draft),
    )
    target = draft.target(request.container)
    home = _home(target, request, draft)
    made = tuple(_published(request, inside, target, home))
    require(*dict.fromkeys(clash(port, draft.ours, draft.topology) for port in made))
    for port in made:
        for sentence in in_part(port, draft.topology):
            draft.warn(sentence)
    draft.now(ports=(*draft.ours.ports, *made))
    _let_in(made, home, target, draft)
    return f"publish {made[0].port_id} of {safe(target.name)}"


def _host_ip(text: str, draft: PlanBuilder) -> str:
    if not text:
        return ""
    address = validate.parse_address(text)
    if address is None:
        return f'"{safe(text)}" is no address of this host'
    if address.version == 6 and address.is_loopback:
        return "what comes to ::1 cannot be led elsewhere: the kernel keeps it on the loopback link"
    own = {one.address for link in draft.host.links.values() for one in link.addresses}
    there = str(address) in own or (address.version == 4 and address.is_loopback)
    return "" if there else f"{address} is no address of this host"


def _home(target: Target, request: Publish, draft: PlanBuilder) -> _ContainerAddress:
    """The network to reach the container by. Raises Refusal where there is none."""
    homes = [home for home in _homes(target, draft) if request.network in ("", home.network)]
    name = safe(target.name)
    if not homes:
        where = f" on {safe(request.network)}" if request.network else ""
        raise CannotPlan(
            [f"{name} has no address{where} that the host could lead a port to: attach it first"]
        )
    open_ones = [home for home in homes if not home.internal]
    if not open_ones:
        raise CannotPlan(
            [f"{name} is on an internal network only, which nothing enters: attach it to another"]
        )
    fitting = [home for home in open_ones if _families(request, home)]
    if not fitting:
        raise CannotPlan([f"{name} has no address of the family of {request.host_ip}"])
    return fitting[0]


def _homes(target: Target, draft: PlanBuilder) -> Iterator[_ContainerAddress]:
    """Networks of ours before those of others."""
    for member in draft.ours.members:
        network = draft.ours.networks.get(member.network)
        if member.container == target.uid and network and member.addresses:
            plain = tuple(one.partition("/")[0] for one in member.addresses)
            yield _ContainerAddress(network.name, network.bridge, network.kind == "internal", plain)
    container = draft.topology.containers.get(target.uid)
    if container is None:
        return
    for other in draft.topology.networks_of(container):
        if other.name in draft.ours.networks or other.ns not in (None, draft.topology.host):
            continue
        inside = [ipaddress.ip_network(subnet) for subnet in other.subnets]
        plain = tuple(
            one
            for one in draft.topology.addresses_of(container)
            if any(ipaddress.ip_address(one) in subnet for subnet in inside)
        )
        if plain and other.bridge:
            # What others' rules drop is a warning with a remedy; only an engine's word refuses.
            yield _ContainerAddress(other.name, other.bridge, other.internal, plain)


def _families(request: Publish, home: _ContainerAddress) -> tuple[str, ...]:
    """The container's addresses of the families asked for, one of each."""
    wanted = {":" in request.host_ip} if request.host_ip else {False, True}
    first: dict[bool, str] = {}
    for address in home.addresses:
        first.setdefault(":" in address, address)
    return tuple(first[family] for family in sorted(wanted & first.keys()))


def _published(request: Publish, inside: str, target: Target, home: _ContainerAddress) -> Iterator[OurPort]:
    host_ip = str(ipaddress.ip_address(request.host_ip)) if request.host_ip else ""
    for address in _families(request, home):
        port = OurPort(
            target.uid, request.l4_proto, host_ip, _short(request.host_ports), address, _short(inside)
        )
        if len(port.comment().encode()) > COMMENT_BYTES:
            raise CannotPlan([f"the name of {safe(target.name)} is too long for the comment of its rule"])
        yield port


def _short(ports: str) -> str:
    first, last = validate.port_range(ports)
    return str(first) if first == last else f"{first}-{last}"


def _let_in(made: tuple[OurPort, ...], home: _ContainerAddress, target: Target, draft: PlanBuilder) -> None:
    """Have the host forward to the container, from its own loopback address as well."""
    families = {":" in port.address for port in made}
    forward(draft, ipv4=False in families, ipv6=True in families)
    for port in (port for port in made if not is_loopback(port.host_ip)):
        warn_of_filters(draft, home.bridge, ("published", "replies"), published=_judged(port))
    _warn_of_bypass([port for port in made if not is_loopback(port.host_ip)], draft)
    if home.network in draft.ours.networks:
        _hairpin(made, True, draft)
        if any(_by_loopback(port) for port in made):
            draft.sysctl(_route_localnet(home.bridge), "1", _localnet_now(home.bridge, draft))
    else:
        _warn_of_unanswered(made, home, target, draft)
    if True in families:
        draft.warn(f"{made[0].port_id} does not answer at ::1: the kernel keeps that on the loopback link")


def _warn_of_bypass(made: Sequence[OurPort], draft: PlanBuilder) -> None:
    """Say that the host's firewall program has no say in these ports, and how to restrict them."""
    firewall = draft.snapshot.firewalls.get(draft.topology.host)
    program = gatekeeper(firewall) if firewall else ""
    if firewall and program and made:
        found = draft.topology.uplink(draft.topology.host)
        uplink = found[0].name if found else ""
        ways = [
            restrict_words(firewall, port.l4_proto, port.host_ports, ":" in port.address, uplink)
            for port in made
        ]
        draft.warn(
            f"{program}'s rules for incoming connections don't apply to published ports such as "
            f"{made[0].port_id}; to restrict it, run: {'; '.join(ways)}"
        )


def _warn_of_unanswered(
    made: Sequence[OurPort], home: _ContainerAddress, target: Target, draft: PlanBuilder
) -> None:
    """Say from where a port of a container on another engine's network is not reached: what our own bridges
    are set to for it is left as that engine has set it."""
    bridge, first = draft.link(home.bridge), made[0]
    localnet = bool(bridge and bridge.bridge and bridge.bridge.route_localnet)
    if not localnet and any(map(_by_loopback, made)):
        draft.warn(f"{first.port_id} does not answer at 127.0.0.1: {home.bridge} is not vnet's")
    closed = [] if _is_turned_back(first, target, draft) else [f"{safe(target.name)} itself"]
    if draft.snapshot.host.sysctls.get(BRIDGED) != "1":
        closed.append(f"other containers on {home.bridge}")
    closed += [f"containers on {name}" for name in _kept_apart(first, home, draft)]
    if closed:
        draft.warn(f"{first.port_id} does not answer {', '.join(closed)} by the host's addresses")


def _is_turned_back(port: OurPort, target: Target, draft: PlanBuilder) -> bool:
    """Whether what a container sends to its own published port comes back to it: by the bridge's port that
    it came from, and from another address than its own."""
    links = [link for link in draft.snapshot.links() if link.ns == target.ns]
    ends = [draft.topology.peer(link) for link in links]
    hairpin = any(end and end.port and end.port.hairpin for end in ends)
    firewall = draft.snapshot.firewalls.get(draft.topology.host)
    return hairpin and any(
        rule.verdict == "masquerade"
        and rule.src == rule.dst == port.address
        and rule.dport in ("", port.container_ports)
        for rule in (firewall.rules if firewall else ())
    )


def _kept_apart(port: OurPort, home: _ContainerAddress, draft: PlanBuilder) -> Iterator[str]:
    """The engine's other networks whose containers it keeps from that port, also where what is dropped of
    those outside is let pass."""
    judge, uplink = draft.topology.judge, draft.topology.uplink(draft.topology.host)
    if judge is None:
        return
    kinds: tuple[Kind, ...] = ("published", "replies")

    def dropped(link: str) -> set[str]:
        way = ForwardPath(home.bridge, link, published=_judged(port))
        return {one.kind for one in judge.dropping(way, kinds) if one.certain}

    outside = dropped(uplink[0].name if uplink else "")
    for other in draft.topology.networks:
        apart = other.bridge and other.bridge != home.bridge and other.engine != "kernel"
        if apart and dropped(other.bridge) - outside:
            yield safe(other.name)


def _judged(port: OurPort) -> Published:
    return Published(port.address, port.l4_proto, port.container_ports, port.host_ip, port.host_ports)


def _hairpin(ports: Iterable[OurPort], on: bool, draft: PlanBuilder) -> None:
    """Let the bridge send a container's own frames back to it: with br_netfilter on, what a container sends
    to its own published port is translated in the bridge and leaves by the port that it came in by."""
    addresses = {port.address for port in ports}
    for member in draft.ours.members:
        if addresses & {one.partition("/")[0] for one in member.addresses}:
            link = draft.link(member.port)
            before = bool(link and link.port and link.port.hairpin)
            if before != on:
                draft.do(SetPort(member.port, "hairpin", on, before))


def reopen(ports: Collection[OurPort], bridge: str, draft: PlanBuilder) -> None:
    """What a new bridge must let pass of ports that were published before it was made."""
    _hairpin(ports, True, draft)
    if any(map(_by_loopback, ports)):
        draft.sysctl(_route_localnet(bridge), "1", "0")


def _by_loopback(port: OurPort) -> bool:
    every = not port.host_ip
    return ":" not in port.address and (every or is_loopback(port.host_ip))


def _localnet_now(bridge: str, draft: PlanBuilder) -> str:
    """What it is set to: only a published port of ours sets it."""
    return "1" if any(_on(bridge, port, draft) for port in draft.before.ports if _by_loopback(port)) else "0"


def _on(bridge: str, port: OurPort, draft: PlanBuilder) -> bool:
    """Whether a port's container is reached over that bridge."""
    address = ipaddress.ip_address(port.address)
    return any(
        network.bridge == bridge and any(address in ipaddress.ip_network(one) for one in network.subnets)
        for network in draft.before.networks.values()
    )


def _route_localnet(bridge: str) -> str:
    return f"net.ipv4.conf.{bridge.replace('.', '/')}.route_localnet"


@draft_steps.register
def _(request: Unpublish, draft: PlanBuilder) -> str:
    require(validate.protocol(request.l4_proto), validate.ports(request.host_ports))
    host_ip = str(validate.parse_address(request.host_ip) or request.host_ip)
    wanted = port_id(request.l4_proto, host_ip, _short(request.host_ports))
    found = [port for port in draft.ours.ports if port.port_id == wanted]
    if not found:
        there = ", ".join(dict.fromkeys(port.port_id for port in draft.ours.ports)) or "nothing"
        raise CannotPlan([f"{safe(wanted)} is not published by vnet ({there} is)"])
    withdraw(found, draft)
    return f"withdraw the published port {wanted}"


def withdraw(ports: list[OurPort], draft: PlanBuilder) -> None:
    """Take published ports back; with the last one of a network that way from the host's loopback closes."""
    left = tuple(port for port in draft.ours.ports if port not in ports)
    draft.now(ports=left)
    kept = {port.address for port in left}
    _hairpin([port for port in ports if port.address not in kept], False, draft)
    for network in draft.before.networks.values():
        were = [port for port in ports if _by_loopback(port) and _on(network.bridge, port, draft)]
        if were and not any(_by_loopback(port) and _on(network.bridge, port, draft) for port in left):
            draft.sysctl(_route_localnet(network.bridge), "0", "1")


_FIRST, _LAST = 8080, 9080
_EVERY = ("0.0.0.0", "::")  # every address of IPv4, of IPv6
_EVERY_PORT = (1, 65535)


@dataclass(frozen=True, slots=True)
class ForeignRedirect:
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
    for led in _on_address(port, topology):
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
    for led in _on_address(port, topology):
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


def _on_address(port: OurPort, topology: Topology) -> Iterator[ForeignRedirect]:
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


def _led(topology: Topology) -> Iterator[ForeignRedirect]:
    for placed in topology.led_in:
        if placed.rule.table != TABLE:
            for rule in expanded(placed.effective):
                yield from _parts(placed, rule, topology)


def _parts(placed: PlacedRule, rule: FirewallRule, topology: Topology) -> Iterator[ForeignRedirect]:
    negated, numbers = split(rule.dport)
    ranges = [validate.port_range(one) for one in numbers if not validate.ports_shape(one)]
    if numbers and not ranges:
        return  # a set that only its name is known of
    # Ports that come from jumps together belong to one of these each: which one cannot be told.
    joined = len(numbers) > 1 and not placed.rule.dport and not placed.rule.translations
    some = bool(rule.src) or (bool(rule.iif) and not split(rule.iif)[0]) or "prerouting" not in placed.hooks
    partly = some or joined or negated or not numbers
    for family in _families_of(rule):
        for ports in [_EVERY_PORT] if negated or not numbers else ranges:
            for l4_proto in split(rule.l4_proto)[1] or ("",):
                to, place = _to(placed, rule, topology), f"table {rule.family} {safe(rule.table)}"
                yield ForeignRedirect(family, l4_proto, rule.dst, ports, partly, to, place)


def _families_of(rule: FirewallRule) -> tuple[bool, ...]:
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
