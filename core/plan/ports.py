"""Plans that publish ports of running containers, and withdraw them."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from core.nat.letting import Published, Way
from core.nat.match import is_loopback
from core.nat.packets import Kind
from core.nat.remedies import gatekeeper, restrict_words
from core.ops import SetPort
from core.plan import validate
from core.plan.base import Refusal, require, when
from core.plan.dispatch import draft_steps
from core.plan.draft import Draft, Target
from core.plan.held import clash, in_part
from core.plan.requests import Publish, Unpublish
from core.plan.tags import COMMENT_BYTES, OurPort, port_id
from core.plan.warnings import BRIDGED, forward, warn_of_filters
from core.text import safe


@dataclass(frozen=True, slots=True)
class _Home:
    """Where a container is reached: a network's name and bridge, whether it is internal by intent, and the
    container's addresses."""

    network: str
    bridge: str
    internal: bool
    addresses: tuple[str, ...]


@draft_steps.register
def _(request: Publish, draft: Draft) -> str:
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


def _host_ip(text: str, draft: Draft) -> str:
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


def _home(target: Target, request: Publish, draft: Draft) -> _Home:
    """The network to reach the container by. Raises Refusal where there is none."""
    homes = [home for home in _homes(target, draft) if request.network in ("", home.network)]
    name = safe(target.name)
    if not homes:
        where = f" on {safe(request.network)}" if request.network else ""
        raise Refusal([f"{name} has no address{where} that the host could lead a port to: attach it first"])
    open_ones = [home for home in homes if not home.internal]
    if not open_ones:
        raise Refusal([f"{name} is on an internal network only, which nothing enters: attach it to another"])
    fitting = [home for home in open_ones if _families(request, home)]
    if not fitting:
        raise Refusal([f"{name} has no address of the family of {request.host_ip}"])
    return fitting[0]


def _homes(target: Target, draft: Draft) -> Iterator[_Home]:
    """Networks of ours before those of others."""
    for member in draft.ours.members:
        network = draft.ours.networks.get(member.network)
        if member.container == target.uid and network and member.addresses:
            plain = tuple(one.partition("/")[0] for one in member.addresses)
            yield _Home(network.name, network.bridge, network.kind == "internal", plain)
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
            yield _Home(other.name, other.bridge, other.internal, plain)


def _families(request: Publish, home: _Home) -> tuple[str, ...]:
    """The container's addresses of the families asked for, one of each."""
    wanted = {":" in request.host_ip} if request.host_ip else {False, True}
    first: dict[bool, str] = {}
    for address in home.addresses:
        first.setdefault(":" in address, address)
    return tuple(first[family] for family in sorted(wanted & first.keys()))


def _published(request: Publish, inside: str, target: Target, home: _Home) -> Iterator[OurPort]:
    host_ip = str(ipaddress.ip_address(request.host_ip)) if request.host_ip else ""
    for address in _families(request, home):
        port = OurPort(
            target.uid, request.l4_proto, host_ip, _short(request.host_ports), address, _short(inside)
        )
        if len(port.comment().encode()) > COMMENT_BYTES:
            raise Refusal([f"the name of {safe(target.name)} is too long for the comment of its rule"])
        yield port


def _short(ports: str) -> str:
    first, last = validate.port_range(ports)
    return str(first) if first == last else f"{first}-{last}"


def _let_in(made: tuple[OurPort, ...], home: _Home, target: Target, draft: Draft) -> None:
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


def _warn_of_bypass(made: Sequence[OurPort], draft: Draft) -> None:
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


def _warn_of_unanswered(made: Sequence[OurPort], home: _Home, target: Target, draft: Draft) -> None:
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


def _is_turned_back(port: OurPort, target: Target, draft: Draft) -> bool:
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


def _kept_apart(port: OurPort, home: _Home, draft: Draft) -> Iterator[str]:
    """The engine's other networks whose containers it keeps from that port, also where what is dropped of
    those outside is let pass."""
    judge, uplink = draft.topology.judge, draft.topology.uplink(draft.topology.host)
    if judge is None:
        return
    kinds: tuple[Kind, ...] = ("published", "replies")

    def dropped(link: str) -> set[str]:
        way = Way(home.bridge, link, published=_judged(port))
        return {one.kind for one in judge.dropping(way, kinds) if one.certain}

    outside = dropped(uplink[0].name if uplink else "")
    for other in draft.topology.networks:
        apart = other.bridge and other.bridge != home.bridge and other.engine != "kernel"
        if apart and dropped(other.bridge) - outside:
            yield safe(other.name)


def _judged(port: OurPort) -> Published:
    return Published(port.address, port.l4_proto, port.container_ports, port.host_ip, port.host_ports)


def _hairpin(ports: Iterable[OurPort], on: bool, draft: Draft) -> None:
    """Let the bridge send a container's own frames back to it: with br_netfilter on, what a container sends
    to its own published port is translated in the bridge and leaves by the port that it came in by."""
    addresses = {port.address for port in ports}
    for member in draft.ours.members:
        if addresses & {one.partition("/")[0] for one in member.addresses}:
            link = draft.link(member.port)
            before = bool(link and link.port and link.port.hairpin)
            if before != on:
                draft.do(SetPort(member.port, "hairpin", on, before))


def reopen(ports: Collection[OurPort], bridge: str, draft: Draft) -> None:
    """What a new bridge must let pass of ports that were published before it was made."""
    _hairpin(ports, True, draft)
    if any(map(_by_loopback, ports)):
        draft.sysctl(_route_localnet(bridge), "1", "0")


def _by_loopback(port: OurPort) -> bool:
    every = not port.host_ip
    return ":" not in port.address and (every or is_loopback(port.host_ip))


def _localnet_now(bridge: str, draft: Draft) -> str:
    """What it is set to: only a published port of ours sets it."""
    return "1" if any(_on(bridge, port, draft) for port in draft.before.ports if _by_loopback(port)) else "0"


def _on(bridge: str, port: OurPort, draft: Draft) -> bool:
    """Whether a port's container is reached over that bridge."""
    address = ipaddress.ip_address(port.address)
    return any(
        network.bridge == bridge and any(address in ipaddress.ip_network(one) for one in network.subnets)
        for network in draft.before.networks.values()
    )


def _route_localnet(bridge: str) -> str:
    return f"net.ipv4.conf.{bridge.replace('.', '/')}.route_localnet"


@draft_steps.register
def _(request: Unpublish, draft: Draft) -> str:
    require(validate.protocol(request.l4_proto), validate.ports(request.host_ports))
    host_ip = str(validate.parse_address(request.host_ip) or request.host_ip)
    wanted = port_id(request.l4_proto, host_ip, _short(request.host_ports))
    found = [port for port in draft.ours.ports if port.port_id == wanted]
    if not found:
        there = ", ".join(dict.fromkeys(port.port_id for port in draft.ours.ports)) or "nothing"
        raise Refusal([f"{safe(wanted)} is not published by vnet ({there} is)"])
    withdraw(found, draft)
    return f"withdraw the published port {wanted}"


def withdraw(ports: list[OurPort], draft: Draft) -> None:
    """Take published ports back; with the last one of a network that way from the host's loopback closes."""
    left = tuple(port for port in draft.ours.ports if port not in ports)
    draft.now(ports=left)
    kept = {port.address for port in left}
    _hairpin([port for port in ports if port.address not in kept], False, draft)
    for network in draft.before.networks.values():
        were = [port for port in ports if _by_loopback(port) and _on(network.bridge, port, draft)]
        if were and not any(_by_loopback(port) and _on(network.bridge, port, draft) for port in left):
            draft.sysctl(_route_localnet(network.bridge), "0", "1")
