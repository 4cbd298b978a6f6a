"""Plan attachments of containers to networks: attach, detach and move."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, count

from core.model import Network
from core.operations import (
    AddAddress,
    AddFdb,
    AddNeighbour,
    AddRoute,
    CreateVeth,
    ForgetAttachment,
    NetnsTarget,
    Operation,
    PersistAttachment,
    SetLink,
    SetPort,
    SetStormGuard,
)
from core.plan import etcd, evpn, ipam, ovs, validate
from core.plan.builder import CannotPlan, PlanBuilder, Target, plan_steps, require, when
from core.plan.docker import attach_by_docker, detach_by_docker, find_docker_network
from core.plan.guarded_ports import forget, guard_new_port
from core.plan.overlay import warn_of_range
from core.plan.ports import unpublish
from core.plan.requests import Attach, Detach, Move
from core.plan.tags import ALIAS_BYTES, VnetMember, VnetNetwork, VnetPort
from core.plan.teardown import delete_pair
from core.plan.vxlan import container_mac
from core.text import quoted, safe

# Engines that give a container a new network namespace at each start.
_RUNTIMES = ("docker", "podman")


def persist_steps(
    target: Target, network: VnetNetwork, steps: Iterable[Operation], builder: PlanBuilder
) -> None:
    """Have the agent repeat an attachment's steps whenever the container restarts."""
    forget_attachment(target.uid, network.name, builder)
    if target.uid.partition(":")[0] in _RUNTIMES:
        persist_attachment(PersistAttachment(target.uid, network.name, tuple(steps)), builder)


def forget_attachment(container: str, network: str, builder: PlanBuilder) -> bool:
    """Remove a persistent attachment, and return whether there was one."""
    before = builder.persistent.pop((container, network), None)
    if before is None:
        return False
    builder.add(ForgetAttachment(before))
    return True


def persist_routes(
    target: Target,
    network: VnetNetwork,
    builder: PlanBuilder,
    more: Collection[AddRoute] = (),
    less: Collection[AddRoute] = (),
) -> None:
    """Add routes to a persistent attachment, and remove routes from it."""
    before = builder.persistent.get((target.uid, network.name))
    if before is None:
        return
    steps = tuple(step for step in before.steps_at(target.place) if step not in (*more, *less))
    forget_attachment(before.container, before.network, builder)
    persist_attachment(replace(before, steps=(*steps, *more)), builder)


def persist_guard(member: VnetMember, network: VnetNetwork, builder: PlanBuilder) -> None:
    """Change the storm guard in a persistent attachment as in its network.

    The container keeps its MAC address, as the bridge knows it.
    """
    before, port = builder.persistent.get((member.container, network.name)), builder.link(member.port)
    inner = builder.topology.peer(port) if port else None
    if before is None or inner is None:
        return
    kept = [one for one in before.steps if not _is_of_guard(one)]
    named = [replace(one, peer_mac=inner.mac) if isinstance(one, CreateVeth) else one for one in kept]
    steps = (*named, *guard_new_port(member, network, inner.mac))
    if steps != before.steps:
        forget_attachment(before.container, before.network, builder)
        persist_attachment(replace(before, steps=steps), builder)


def _is_of_guard(step: Operation) -> bool:
    match step:
        case AddFdb():
            return "sticky" in step.flags
        case AddNeighbour():
            return step.extern_learn
        case _:
            return isinstance(step, (SetPort, SetStormGuard))


def persistent_addresses(target: Target, network: VnetNetwork, builder: PlanBuilder) -> tuple[str, ...]:
    """Return a persistent attachment's addresses, and free them for the container."""
    before = builder.persistent.get((target.uid, network.name))
    adding = [step for step in before.steps if isinstance(step, AddAddress)] if before else []
    found = [ipaddress.ip_interface(step.address) for step in adding]
    builder.used.difference_update(str(one.ip) for one in found)
    return tuple(str(one.ip) for one in found if str(one.network) in network.subnets)


def persist_attachment(attachment: PersistAttachment, builder: PlanBuilder) -> None:
    """Make an attachment persistent."""
    builder.add(attachment)
    builder.persistent[attachment.container, attachment.network] = attachment


@plan_steps.register
def plan_attach(request: Attach, builder: PlanBuilder) -> str:
    if request.network not in builder.vnet.networks:
        docker = find_docker_network(request.network, builder)
        if docker is not None:
            return attach_by_docker(request, docker, builder)
    target, network = builder.target(request.container), builder.network(request.network)
    attach(target, network, request.addresses, request.link, builder, request.vlan)
    return f"attach {safe(target.name)} to {network.name}"


def attach(
    target: Target, network: VnetNetwork, addresses: tuple[str, ...], link: str, builder: PlanBuilder,
    vlan: int = 0,
) -> VnetMember:  # fmt: skip
    """Add the steps that connect a container to a bridge of vnet by a veth pair."""
    attached = any(_is_of(member, target, network.name) for member in builder.vnet.members)
    require(when(attached, f"{safe(target.name)} is already attached to {network.name}"))
    inner = link or _free_link(target)
    require(
        validate.link_name(inner),
        ovs.vlan_fault(vlan, network),
        when(inner in target.links, f"{safe(target.name)} already has a link {safe(inner)}"),
    )
    previous = persistent_addresses(target, network, builder)
    chosen = _addresses(target, network, addresses or previous, builder)
    if vlan:
        builder.warn(f"{safe(target.name)} reaches only containers of {network.name} in VLAN {vlan}")
    member = VnetMember(
        target.uid, network.name, _port_name(target.name, network, builder), inner, chosen, vlan
    )
    if len(member.tag().encode()) > ALIAS_BYTES:
        raise CannotPlan([f"the name of {safe(target.name)} is too long for the tag of its link"])
    etcd.lease(member, network, builder)
    steps = tuple(_attach_steps(member, target, network, builder))
    replaced = ovs.replaced_port(network, member.port)
    if member.port in ovs.lost_ports(network, builder):
        builder.add(*replaced)
    builder.add(*steps)
    persist_steps(target, network, (*replaced, *steps), builder)
    builder.host_names.add(member.port)
    target.links.add(inner)
    target.destinations.update(network.subnets)
    builder.add_member(member)
    return member


def _is_of(member: VnetMember, target: Target, network: str) -> bool:
    return member.container == target.uid and member.network == network


def _attach_steps(
    member: VnetMember, target: Target, network: VnetNetwork, builder: PlanBuilder
) -> Iterator[Operation]:
    port, inner, place = member.port, member.link, target.place
    # The same after each restart.
    mac = _stable_mac(member, network, builder)
    yield CreateVeth(port, inner, peer_place=place, mtu=network.mtu, peer_mac=mac, alias=member.tag())
    yield ovs.connect_port(network, port, member.vlan)
    yield SetLink(port, "up", "up", "down")
    yield from ovs.inner_steps(network, inner, place)
    yield from (AddAddress(inner, address, place) for address in member.addresses)
    yield SetLink(inner, "up", "up", "down", place)
    yield from _routes(member, target, network, builder)
    yield from evpn.announce(member, network, mac) if network.evpn else ()
    yield from guard_new_port(member, network, mac)


def _stable_mac(member: VnetMember, network: VnetNetwork, builder: PlanBuilder) -> str:
    """Return the MAC of a container that the bridge must know, "" for any.

    With etcd an address may move to another host: other containers then know its MAC already.
    """
    if not network.evpn and not network.guard and not network.etcd:
        return ""
    if member.addresses:
        return container_mac(member.addresses)
    return ipam.stable_mac(builder.snapshot.host.hostname, member.port)


def _routes(
    member: VnetMember, target: Target, network: VnetNetwork, builder: PlanBuilder
) -> Iterator[AddRoute]:
    """Yield a default route for each address family that has none.

    On an internal network only the routes to the networks that it is joined with. A container in a VLAN gets
    none, as the host isn't in it.
    """
    if member.vlan:
        return
    if network.kind == "internal":
        for other in joined_with(network, builder):
            yield from missing_routes(network, other, target, member.link)
        return
    for gateway in network.gateways:
        family = 6 if ":" in gateway else 4
        if family not in target.defaults:
            target.defaults.add(family)
            yield AddRoute(
                "default", member.link, gateway, target.place, protocol="static", family=family,
                metric=_V6_METRIC if family == 6 else 0,
            )  # fmt: skip


# The kernel's metric for an IPv6 route without one (IP6_RT_PRIO_USER): deleting needs it.
_V6_METRIC = 1024


def missing_routes(
    network: VnetNetwork, other: VnetNetwork, target: Target, link: str
) -> tuple[AddRoute, ...]:
    """Return the routes that a container on one network lacks to another's subnets.

    The routes go via the host.
    """
    routes = routes_between(network, other, target.place, link)
    missing = [one for one in routes if one.dst not in target.destinations]
    target.destinations.update(one.dst for one in missing)
    return tuple(missing)


def routes_between(
    network: VnetNetwork, other: VnetNetwork, place: NetnsTarget, link: str
) -> tuple[AddRoute, ...]:
    """Return a container's routes from one network to another's subnets, via the host."""
    gateways = {":" in gateway: gateway for gateway in network.gateways}
    return tuple(
        AddRoute(
            subnet, link, gateways[":" in subnet], place, protocol="static", family=6 if ":" in subnet else 4,
            metric=_V6_METRIC if ":" in subnet else 0,
        )
        for subnet in other.subnets
        if (":" in subnet) in gateways
    )  # fmt: skip


def joined_with(network: VnetNetwork, builder: PlanBuilder) -> Iterator[VnetNetwork]:
    """Yield the networks that this one is joined with."""
    for names in sorted(builder.vnet.joined):
        if network.name in names:
            other = names[1] if names[0] == network.name else names[0]
            if other in builder.vnet.networks:
                yield builder.vnet.networks[other]


def isolated_members(network: VnetNetwork, builder: PlanBuilder) -> Iterator[tuple[Target, str]]:
    """Yield the containers on an internal network, and their links.

    They have no default route there.
    """
    for member in builder.vnet.members if network.kind == "internal" else ():
        if member.network == network.name:
            yield builder.target(member.container), member.link


def _free_link(target: Target) -> str:
    return next(name for number in count() if (name := f"eth{number}") not in target.links)


def _port_name(container: str, network: VnetNetwork, builder: PlanBuilder) -> str:
    """Return a free name for the host's end: "v-CONTAINER".

    It is shortened and numbered if needed.
    """
    base = re.sub(r"[^A-Za-z0-9_.-]", "", container) or "c"
    size = validate.NAME_BYTES - len("v-")
    ends = chain([""], (f"-{number}" for number in count(2)))
    names = (f"v-{base[: size - len(end)]}{end}" for end in ends)
    taken = builder.host_names - ovs.lost_ports(network, builder)
    return next(name for name in names if name not in taken)


def _addresses(
    target: Target, network: VnetNetwork, requested: tuple[str, ...], builder: PlanBuilder
) -> tuple[str, ...]:
    """Return an address with prefix length in each subnet.

    It is the requested one, or the next free one that no published port of another (perhaps removed)
    container forwards to.
    """
    published = {port.address: port for port in builder.vnet.ports if port.container != target.uid}
    leased = etcd.leased_by_others(network, builder)
    require(
        *(validate.address(one, network.subnets, builder.used) for one in requested),
        *(
            when(one in leased, f"{one} is leased to {leased.get(one) or 'another host'}")
            for one in requested
        ),
    )
    given = {":" in one: str(ipaddress.ip_address(one)) for one in requested}
    require(when(len(given) != len(requested), "only one address of each family is allowed"))
    chosen = []
    ranges = network.ranges or network.subnets
    used = builder.used | published.keys() | leased.keys()
    warn_of_range(network, tuple(given.values()), builder)
    for subnet, own in zip(network.subnets, ranges, strict=True):
        try:
            places = etcd.free_addresses(network, subnet, builder) if network.etcd else (own,)
            address = given.get(":" in subnet) or _next_address(places, used)
        except ipam.Exhausted as error:
            raise CannotPlan([f"{network.name} is full: {error}"]) from error
        builder.warn(_port_warning(published.get(address), target))
        builder.used.add(address)
        chosen.append(f"{address}/{ipaddress.ip_network(subnet).prefixlen}")
    return tuple(chosen)


def _next_address(places: Iterable[str], used: Collection[str]) -> str:
    """Return a free address in the first of these subnets that has one.

    Raises Exhausted.
    """
    *first, last = places
    for place in first:
        with suppress(ipam.Exhausted):
            return ipam.next_address(place, used)
    return ipam.next_address(last, used)


def _port_warning(port: VnetPort | None, target: Target) -> str:
    if port is None:
        return ""
    return (
        f"port {port.port_id} still forwards to {port.address} (published for {safe(port.container)}), so "
        f"{safe(target.name)} receives it. Try: vnet-tui unpublish {port.port_id}"
    )


@plan_steps.register
def plan_detach(request: Detach, builder: PlanBuilder) -> str:
    if request.network not in builder.vnet.networks:
        docker = find_docker_network(request.network, builder)
        if docker is not None:
            return detach_by_docker(request, docker, builder)
    # A network that lost its bridge is only known by its attachments.
    known = any(one.network == request.network for one in builder.vnet.members)
    name, uid = (
        request.network if known else builder.network(request.network).name,
        builder.container_uid(request.container),
    )
    attached = any((one.container, one.network) == (uid, name) for one in builder.vnet.members)
    if (not attached or _has_ended(uid, builder)) and forget_attachment(uid, name, builder):
        return f"forget the attachment of {safe(request.container)} to {safe(name)}"
    target = builder.target(request.container)
    builder.defer_rules()
    detach_member(_member(target, name, builder), builder)
    return f"detach {safe(target.name)} from {safe(name)}"


def _has_ended(uid: str, builder: PlanBuilder) -> bool:
    """Return whether the container has stopped.

    Its veth pair disappears a moment later, with its namespace.
    """
    container = builder.topology.containers.get(uid)
    return container is not None and container.netns is None


def _member(target: Target, network: str, builder: PlanBuilder) -> VnetMember:
    found = next((member for member in builder.vnet.members if _is_of(member, target, network)), None)
    if found is None:
        raise CannotPlan([f"vnet-tui hasn't attached {safe(target.name)} to {safe(network)}"])
    return found


def detach_member(member: VnetMember, builder: PlanBuilder) -> None:
    """Add the steps that remove published ports and the attachment."""
    port = builder.link(member.port)
    if port is None:
        raise CannotPlan([f"the link {member.port} doesn't exist yet"])
    addresses = {address.partition("/")[0] for address in member.addresses}
    published = [one for one in builder.vnet.ports if one.address in addresses]
    for one in published:
        builder.add_side_effect(f"its port {one.port_id} is no longer published")
    unpublish(published, builder)
    inner = builder.topology.peer(port)
    forget_attachment(member.container, member.network, builder)
    network = builder.vnet.networks.get(member.network)
    if network and network.evpn:
        builder.add(*evpn.withdraw(member, network, builder))
    if inner is not None:
        builder.add(*ovs.disconnect_steps(member, builder.netns_target(inner.ns), builder))
    if network is not None and network.guard:
        builder.add(*forget(member, network, port, builder))
    delete_pair(builder, port)
    etcd.release(member, network, builder)
    builder.drop_member(member)
    builder.used.difference_update(addresses)
    if inner is not None and member.container in builder.topology.containers:
        _drop_link(builder.target(member.container), inner.ifindex, member, builder)


def _drop_link(target: Target, ifindex: int, member: VnetMember, builder: PlanBuilder) -> None:
    """Drop a link of a container and its routes from the target."""
    target.links.discard(member.link)
    net = builder.snapshot.nets.get(target.ns or 0)
    for route in net.routes if net else ():
        if any(hop.ifindex == ifindex for hop in route.nexthops):
            target.destinations.discard(route.dst)
            if route.dst == "default":
                target.defaults.discard(route.family)


@plan_steps.register
def plan_move(request: Move, builder: PlanBuilder) -> str:
    networks = [_docker_network(name, builder) for name in (request.network, request.to)]
    if any(networks):
        return _move_by_docker(request, networks, builder)
    target = builder.target(request.container)
    network, to = builder.network(request.network), builder.network(request.to)
    require(when(network == to, f"{safe(target.name)} is already on {to.name}"))
    member = _member(target, network.name, builder)
    builder.defer_rules()
    detach_member(member, builder)
    attach(target, to, request.addresses, member.link, builder)
    return f"move {safe(target.name)} from {network.name} to {to.name}"


def _docker_network(name: str, builder: PlanBuilder) -> Network | None:
    return None if name in builder.vnet.networks else find_docker_network(name, builder)


def _separate_steps(request: Move) -> str:
    container, network, to = map(quoted, (request.container, request.network, request.to))
    return f"vnet-tui attach {container} {to}, then vnet-tui detach {container} {network}"


def _move_by_docker(request: Move, networks: list[Network | None], builder: PlanBuilder) -> str:
    """Plan to attach before detaching, so that the container is always connected."""
    source, to = networks
    if source is None or to is None:
        raise CannotPlan([f"only one of the networks is Docker's. Try: {_separate_steps(request)}"])
    container = builder.container(request.container)
    is_attached = any(end.network == source.name for end in container.endpoints)
    attach_request = Attach(request.container, to.name, request.addresses)
    attach_by_docker(attach_request, to, builder, source if is_attached else None)
    detach_by_docker(Detach(request.container, source.name), source, builder)
    return f"move {safe(container.name)} from {safe(source.name)} to {safe(to.name)}"
