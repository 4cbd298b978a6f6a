"""Plans that make, remove, join and part networks of ours."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator

from core.model import Link, Network
from core.nat.packets import Kind
from core.operations import AddAddress, CreateBridge, DeleteRoute, SetLink
from core.plan import ipam, validate
from core.plan.attachments import detach_member, forget, persist_routes, routes_to, shut_in, ways_to
from core.plan.builder import CannotPlan, PlanBuilder, draft_steps, require, when
from core.plan.connectivity import forward, warn_of_filters
from core.plan.docker import create_docker_network, find_docker_network, remove_docker_network
from core.plan.ports import reopen
from core.plan.requests import CreateNetwork, Join, Part, RemoveNetwork
from core.plan.tags import ALIAS_BYTES, OurNetwork, pair
from core.plan.teardown import delete_bridge, made_routes, release_port
from core.plan.uplink import bridge_nic, restore_nic
from core.text import safe


@draft_steps.register
def _(request: CreateNetwork, draft: PlanBuilder) -> str:
    require(validate.name(request.name, "network's name"), validate.kind(request.kind))
    if request.engine == "docker":
        return create_docker_network(request, draft)
    network = design(request, draft)
    if network.kind == "nic-bridged":
        bridge_nic(network, request, draft)
    else:
        _make(network, request, draft)
    draft.now(networks={**draft.ours.networks, network.name: network})
    draft.host_names.add(network.bridge)
    kinds: tuple[Kind, ...] = () if network.kind == "internal" else ("out", "answers")
    warn_of_filters(draft, network.bridge, kinds, network.subnets)
    return f"make the {network.kind} network {network.name}"


def design(request: CreateNetwork, draft: PlanBuilder) -> OurNetwork:
    """The network that a request asks for, with everything chosen that it leaves open. Raises Refusal."""
    bridge = request.bridge or _free_bridge_name(request.name, draft)
    known = {*draft.ours.networks, *(network.name for network in _engines_networks(draft))} - {request.name}
    require(
        _taken_name(request.name, draft),
        "" if request.engine == "vnet" else f'there is no engine "{safe(request.engine)}": vnet or docker',
        validate.name(bridge, "bridge's name"),
        f"there is a link {bridge} already: choose another bridge name" if bridge in draft.host_names else "",
        f"the bridge's name {bridge} is that of another network" if bridge in known else "",
    )
    if not request.bridge and bridge != _bridge_name(request.name):
        usual = _bridge_name(request.name)
        draft.warn(f"{usual} exists but belongs to another network: the bridge of this one is {bridge}")
    subnets = _subnets(request, draft)
    gateways = _gateways(request, subnets)
    mtu = _mtu(request, subnets, draft)
    network = OurNetwork(
        request.name, request.kind, bridge, subnets, gateways, request.nat66, request.uplink, mtu
    )
    if len(network.tag().encode()) > ALIAS_BYTES:
        raise CannotPlan(["the tag of this network would not fit its bridge: take shorter names"])
    return network


def _free_bridge_name(name: str, draft: PlanBuilder) -> str:
    """The usual name, or where a link has that already, the same with a number."""
    usual = _bridge_name(name)
    others = (f"{usual[: validate.NAME_BYTES - 2]}{number}" for number in range(2, 100))
    return next((each for each in (usual, *others) if each not in draft.host_names), usual)


def _bridge_name(name: str) -> str:
    prefixed = f"br-{name}"
    return prefixed if len(prefixed) <= validate.NAME_BYTES else name


def _taken_name(name: str, draft: PlanBuilder) -> str:
    whose = next((network.engine for network in _engines_networks(draft) if network.name == name), "")
    whose = "vnet" if name in draft.ours.networks else whose
    mine = {network.bridge for network in draft.before.networks.values()}
    others = [one for one in draft.topology.networks if one.ns == draft.topology.host]
    if not whose and any(name in (one.name, one.bridge) and one.bridge not in mine for one in others):
        return f"{name} is the name of a network already, that is not vnet's: choose another"
    return f"there is a network {name} of {whose}'s already" if whose else ""


def _engines_networks(draft: PlanBuilder) -> list[Network]:
    return [network for engine in draft.snapshot.engines.values() for network in engine.networks]


def _subnets(request: CreateNetwork, draft: PlanBuilder) -> tuple[str, ...]:
    """The request's subnets, checked, and free ones where they are missing."""
    if request.kind == "nic-bridged":
        require(when(request.subnets, "a NIC-bridged network takes part in the card's own subnet: give none"))
        return ()
    require(*(validate.subnet(one, draft.prefixes) for one in request.subnets))
    asked = request.subnets or tuple(_left_subnets(request.name, draft))
    families = [6 if ":" in one else 4 for one in asked]
    require(when(len(set(families)) != len(families), "one subnet of each family at most"))
    wanted = (() if families else (4,)) + ((6,) if request.ipv6 and 6 not in families else ())
    # Never what this plan has given out before.
    held = [*draft.reserved, *(str(prefix) for prefix in draft.prefixes)]
    prefixes = [one for one in held if "/" in one]
    try:
        chosen = [ipam.propose_subnet(draft.snapshot, family, prefixes) for family in wanted]
    except ipam.Exhausted as error:
        raise CannotPlan([str(error)]) from error
    subnets = sorted([*(str(ipaddress.ip_network(one)) for one in asked), *chosen], key=_family)
    for subnet in subnets:
        draft.prefixes[ipam.parse_prefix(subnet)] = f"network {request.name}"
    return tuple(subnets)


def _left_subnets(name: str, draft: PlanBuilder) -> Iterator[str]:
    """Those of the containers of a network of that name whose bridge somebody deleted, where still free."""
    members = [one for one in draft.ours.members if one.network == name]
    left = {ipaddress.ip_interface(address).network for one in members for address in one.addresses}
    free = sorted(str(one) for one in left if not validate.subnet(str(one), draft.prefixes))
    # Of each family one, should they differ.
    yield from {_family(one): one for one in free}.values()


def _family(text: str) -> int:
    return 6 if ":" in text else 4


def _gateways(request: CreateNetwork, subnets: tuple[str, ...]) -> tuple[str, ...]:
    require(*(validate.address(one, subnets) for one in request.gateways))
    given = {_family(one): str(ipaddress.ip_address(one)) for one in request.gateways}
    require(when(len(given) != len(request.gateways), "one gateway for each subnet at most"))
    return tuple(given.get(_family(one)) or ipam.next_address(one, ()) for one in subnets)


def _mtu(request: CreateNetwork, subnets: tuple[str, ...], draft: PlanBuilder) -> int:
    way = draft.link(request.uplink) if request.uplink else _way_out(draft)
    most = way.mtu if way and request.kind != "internal" else 0
    if not request.mtu:
        return min(most or 1500, validate.MOST_MTU)
    require(validate.mtu(request.mtu, ipv6=any(":" in one for one in subnets)))
    told = validate.mtu_of_path(request.mtu, way.name if way else "", most)
    if told and request.kind == "nic-bridged":
        raise CannotPlan([told])
    draft.warn(told)
    return request.mtu


def _way_out(draft: PlanBuilder) -> Link | None:
    found = draft.topology.uplink(draft.topology.host)
    return found[0] if found else None


def _make(network: OurNetwork, request: CreateNetwork, draft: PlanBuilder) -> None:
    translatable = network.kind == "nat" and any(":" in one for one in network.subnets)
    require(
        when(request.uplink, "only a NIC-bridged network takes a link as its port"),
        when(request.nat66 and not translatable, "NAT66 is for a NAT network with an IPv6 subnet"),
    )
    made = CreateBridge(
        network.bridge,
        mac=stable_mac(draft.snapshot.host.hostname, network.bridge),
        mtu=network.mtu,
        alias=network.tag(),
        vlan_filtering=request.vlan_filtering,
    )
    draft.do(made)
    for subnet, gateway in zip(network.subnets, network.gateways, strict=True):
        draft.do(AddAddress(network.bridge, f"{gateway}/{ipaddress.ip_network(subnet).prefixlen}"))
        draft.used.add(gateway)
    draft.do(SetLink(network.bridge, "up", "up", "down"))
    _take_back(network, draft)
    if network.kind != "internal":
        families = {_family(subnet) for subnet in network.subnets}
        forward(draft, ipv4=4 in families, ipv6=6 in families)


def _take_back(network: OurNetwork, draft: PlanBuilder) -> None:
    """The containers of a network of that name whose bridge somebody deleted are on it again."""
    subnets, back = set(map(ipaddress.ip_network, network.subnets)), set()
    for member in draft.ours.members:
        port = draft.link(member.port)
        if member.network != network.name or port is None or port.master is not None:
            continue
        label = _label(member.container, draft)
        if {ipaddress.ip_interface(one).network for one in member.addresses} <= subnets:
            draft.do(SetLink(port.name, "master", network.bridge, ""))
            draft.hit(f"{label}, which was on a network of that name, is on it again")
            back |= {one.partition("/")[0] for one in member.addresses}
        else:
            draft.warn(
                f"{label} stays cut off, with an address of another {network.name} whose bridge is gone: "
                f"detach and attach it, or give that subnet"
            )
    reopen([port for port in draft.ours.ports if port.address in back], network.bridge, draft)


def stable_mac(hostname: str, bridge: str) -> str:
    """A local address that is the bridge's each time: one that the kernel derives from the ports changes
    with them, under containers that know their gateway by it."""
    digest = hashlib.sha256(f"{hostname}/{bridge}".encode()).digest()
    return (b"\x02" + digest[:5]).hex(":")


@draft_steps.register
def _(request: RemoveNetwork, draft: PlanBuilder) -> str:
    if request.name not in draft.ours.networks:
        docker = find_docker_network(request.name, draft)
        if docker is not None:
            return remove_docker_network(docker, draft)
    network = draft.network(request.name)
    bridge = draft.link(network.bridge)
    if bridge is None:
        raise CannotPlan([f"the bridge {network.bridge} is not there yet"])
    draft.removing()
    for one, other in sorted(draft.ours.joined):
        if network.name in (one, other):
            draft_steps(Part(one, other), draft)
    for member in [one for one in draft.ours.members if one.network == network.name]:
        draft.hit(f"{_label(member.container, draft)} is detached from {network.name}")
        detach_member(member, draft)
    _forget_kept(network, draft)
    _release_others(network, bridge, draft)
    if network.kind == "nic-bridged":
        restore_nic(network, bridge, draft)
    else:
        delete_bridge(draft, bridge)
    _free(network, draft)
    return f"remove the network {network.name}"


def _free(network: OurNetwork, draft: PlanBuilder) -> None:
    """Note that the network's name, bridge and subnets are free again."""
    draft.now(networks={name: one for name, one in draft.ours.networks.items() if name != network.name})
    draft.host_names.discard(network.bridge)
    for subnet in map(ipam.parse_prefix, network.subnets):
        for taken in [one for one in draft.prefixes if one.version == subnet.version]:
            if ipam.overlaps(taken, subnet):
                del draft.prefixes[taken]
    draft.used.difference_update(network.gateways)


def _forget_kept(network: OurNetwork, draft: PlanBuilder) -> None:
    """Containers that are down are not attached again either when they start."""
    for container in [one for one, name in draft.kept if name == network.name]:
        draft.hit(f"{_label(container, draft)} is attached to {network.name} no more when it starts")
        forget(container, network.name, draft)


def _release_others(network: OurNetwork, bridge: Link, draft: PlanBuilder) -> None:
    """Take ports off the bridge that somebody else put there."""
    ours = {member.port for member in draft.before.members}
    for port in draft.topology.ports_of(bridge.key):
        if port.name not in ours and port.name != network.uplink:
            draft.hit(f"{safe(port.name)}, which vnet did not attach, is taken off {network.bridge}")
            release_port(draft, port, draft.place_of(port.ns))


def _label(uid: str, draft: PlanBuilder) -> str:
    container = draft.topology.containers.get(uid)
    return safe(container.name if container else uid.partition(":")[2])


@draft_steps.register
def _(request: Join, draft: PlanBuilder) -> str:
    one, other = _pair(request, draft)
    names = pair(one.name, other.name)
    common = {_family(subnet) for subnet in one.subnets} & {_family(subnet) for subnet in other.subnets}
    require(
        when(names in draft.ours.joined, f"{one.name} and {other.name} are joined already"),
        when(
            not common, f"{one.name} and {other.name} have no subnets of one address family to route between"
        ),
    )
    draft.now(joined=draft.ours.joined | {names})
    forward(draft, ipv4=4 in common, ipv6=6 in common)
    for network, to in ((one, other), (other, one)):
        subnets = [subnet for subnet in network.subnets if _family(subnet) in common]
        warn_of_filters(draft, network.bridge, ("joined",), subnets, to=to.bridge)
        for target, link in shut_in(network, draft):
            ways = routes_to(network, to, target, link)
            draft.do(*ways)
            persist_routes(target, network, draft, more=ways)
    return f"route between {one.name} and {other.name}"


@draft_steps.register
def _(request: Part, draft: PlanBuilder) -> str:
    one, other = _pair(request, draft)
    joined = pair(one.name, other.name)
    require(when(joined not in draft.ours.joined, f"{one.name} and {other.name} are apart already"))
    draft.now(joined=draft.ours.joined - {joined})
    for network, to in ((one, other), (other, one)):
        for target, link in shut_in(network, draft):
            there = made_routes(draft, target, link)
            ways = ways_to(network, to, target.place, link)
            draft.do(*(DeleteRoute(way) for way in ways if way in there))
            target.ways.difference_update(way.dst for way in ways if way in there)
            persist_routes(target, network, draft, less=ways)
    return f"keep {one.name} and {other.name} apart"


def _pair(request: Join | Part, draft: PlanBuilder) -> tuple[OurNetwork, OurNetwork]:
    one, other = draft.network(request.network), draft.network(request.other)
    require(when(one == other, "two different networks are needed"))
    return one, other
