"""Plans that attach containers to our own bridges, detach and move them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import chain, count

from core.model import Network
from core.operations import (
    AddAddress,
    AddRoute,
    CreateVeth,
    ForgetAttachment,
    NetnsTarget,
    Operation,
    PersistAttachment,
    SetLink,
)
from core.plan import ipam, validate
from core.plan.builder import CannotPlan, PlanBuilder, Target, draft_steps, require, when
from core.plan.docker import attach_by_docker, detach_by_docker, find_docker_network
from core.plan.ports import withdraw
from core.plan.requests import Attach, Detach, Move
from core.plan.tags import ALIAS_BYTES, OurMember, OurNetwork, OurPort
from core.plan.teardown import delete_pair
from core.text import safe

# Engines whose containers get another network namespace with each start.
_RUNTIMES = ("docker", "podman")


def persist_steps(
    target: Target, network: OurNetwork, steps: Iterable[Operation], draft: PlanBuilder
) -> None:
    """Have the agent do the steps of an attachment again whenever its container restarts."""
    forget(target.uid, network.name, draft)
    if target.uid.partition(":")[0] in _RUNTIMES:
        persist(PersistAttachment(target.uid, network.name, tuple(steps)), draft)


def forget(container: str, network: str, draft: PlanBuilder) -> bool:
    """Have the agent do it no more; says whether it would have."""
    before = draft.kept.pop((container, network), None)
    if before is None:
        return False
    draft.do(ForgetAttachment(before))
    return True


def persist_routes(
    target: Target,
    network: OurNetwork,
    draft: PlanBuilder,
    more: Collection[AddRoute] = (),
    less: Collection[AddRoute] = (),
) -> None:
    """Have the agent make other routes when it makes an attachment again."""
    before = draft.kept.get((target.uid, network.name))
    if before is None:
        return
    left = tuple(step for step in before.steps_at(target.place) if step not in (*more, *less))
    forget(before.container, before.network, draft)
    persist(replace(before, steps=(*left, *more)), draft)


def persistent_addresses(target: Target, network: OurNetwork, draft: PlanBuilder) -> tuple[str, ...]:
    """The addresses that are kept for a container that is to be attached anew, given free for it."""
    before = draft.kept.get((target.uid, network.name))
    adding = [step for step in before.steps if isinstance(step, AddAddress)] if before else []
    found = [ipaddress.ip_interface(step.address) for step in adding]
    draft.used.difference_update(str(one.ip) for one in found)
    return tuple(str(one.ip) for one in found if str(one.network) in network.subnets)


def persist(wanted: PersistAttachment, draft: PlanBuilder) -> None:
    """Have the agent do it."""
    draft.do(wanted)
    draft.kept[wanted.container, wanted.network] = wanted


@draft_steps.register
def _(request: Attach, draft: PlanBuilder) -> str:
    if request.network not in draft.ours.networks:
        docker = find_docker_network(request.network, draft)
        if docker is not None:
            return attach_by_docker(request, docker, draft)
    target, network = draft.target(request.container), draft.network(request.network)
    attach(target, network, request.addresses, request.link, draft)
    return f"attach {safe(target.name)} to {network.name}"


def attach(
    target: Target, network: OurNetwork, addresses: tuple[str, ...], link: str, draft: PlanBuilder
) -> OurMember:
    """Add the steps that join a container to a bridge of ours by a veth pair."""
    there = any(_is(member, target, network.name) for member in draft.ours.members)
    require(when(there, f"{safe(target.name)} is attached to {network.name} already"))
    inner = link or _free_link(target)
    require(
        validate.link_name(inner),
        when(inner in target.links, f"{safe(target.name)} has a link {safe(inner)} already"),
    )
    held = persistent_addresses(target, network, draft)
    chosen = _addresses(target, network, addresses or held, draft)
    member = OurMember(target.uid, network.name, _port_name(target.name, draft), inner, chosen)
    if len(member.tag().encode()) > ALIAS_BYTES:
        raise CannotPlan([f"the name of {safe(target.name)} is too long for the tag of its link"])
    steps = tuple(_wiring(member, target, network, draft))
    draft.do(*steps)
    persist_steps(target, network, steps, draft)
    draft.host_names.add(member.port)
    target.links.add(inner)
    target.ways.update(network.subnets)
    draft.add_member(member)
    return member


def _is(member: OurMember, target: Target, network: str) -> bool:
    return member.container == target.uid and member.network == network


def _wiring(
    member: OurMember, target: Target, network: OurNetwork, draft: PlanBuilder
) -> Iterator[Operation]:
    port, inner, place = member.port, member.link, target.place
    yield CreateVeth(port, inner, peer_place=place, mtu=network.mtu, alias=member.tag())
    yield SetLink(port, "master", network.bridge, "")
    yield SetLink(port, "up", "up", "down")
    yield from (AddAddress(inner, address, place) for address in member.addresses)
    yield SetLink(inner, "up", "up", "down", place)
    yield from _routes(member, target, network, draft)


def _routes(member: OurMember, target: Target, network: OurNetwork, draft: PlanBuilder) -> Iterator[AddRoute]:
    """A default route for each family in which the container has none; on an internal network only the ways
    to the networks that it is joined with."""
    if network.kind == "internal":
        for other in joined_with(network, draft):
            yield from routes_to(network, other, target, member.link)
        return
    for gateway in network.gateways:
        family = 6 if ":" in gateway else 4
        if family not in target.defaults:
            target.defaults.add(family)
            yield AddRoute(
                "default", member.link, gateway, target.place, protocol="static", family=family,
                metric=_V6_METRIC if family == 6 else 0,
            )  # fmt: skip


# What the kernel gives an IPv6 route without a metric (IP6_RT_PRIO_USER), said so that it can be taken away.
_V6_METRIC = 1024


def routes_to(network: OurNetwork, other: OurNetwork, target: Target, link: str) -> tuple[AddRoute, ...]:
    """The ways that a container on one network lacks to the subnets of another, by the host."""
    missing = [way for way in ways_to(network, other, target.place, link) if way.dst not in target.ways]
    target.ways.update(way.dst for way in missing)
    return tuple(missing)


def ways_to(network: OurNetwork, other: OurNetwork, place: NetnsTarget, link: str) -> tuple[AddRoute, ...]:
    """The ways from a container on one network to the subnets of another, by the host."""
    gateways = {":" in gateway: gateway for gateway in network.gateways}
    return tuple(
        AddRoute(
            subnet, link, gateways[":" in subnet], place, protocol="static", family=6 if ":" in subnet else 4,
            metric=_V6_METRIC if ":" in subnet else 0,
        )
        for subnet in other.subnets
        if (":" in subnet) in gateways
    )  # fmt: skip


def joined_with(network: OurNetwork, draft: PlanBuilder) -> Iterator[OurNetwork]:
    """The networks that one is routed to."""
    for names in sorted(draft.ours.joined):
        if network.name in names:
            other = names[1] if names[0] == network.name else names[0]
            if other in draft.ours.networks:
                yield draft.ours.networks[other]


def shut_in(network: OurNetwork, draft: PlanBuilder) -> Iterator[tuple[Target, str]]:
    """The containers on an internal network and their links there: they have no default route by it."""
    for member in draft.ours.members if network.kind == "internal" else ():
        if member.network == network.name:
            yield draft.target(member.container), member.link


def _free_link(target: Target) -> str:
    return next(name for number in count() if (name := f"eth{number}") not in target.links)


def _port_name(container: str, draft: PlanBuilder) -> str:
    """A name for the host's end: "v-" and the container's, cut and numbered until it is free."""
    base = re.sub(r"[^A-Za-z0-9_.-]", "", container) or "c"
    size = validate.NAME_BYTES - len("v-")
    ends = chain([""], (f"-{number}" for number in count(2)))
    names = (f"v-{base[: size - len(end)]}{end}" for end in ends)
    return next(name for name in names if name not in draft.host_names)


def _addresses(
    target: Target, network: OurNetwork, wanted: tuple[str, ...], draft: PlanBuilder
) -> tuple[str, ...]:
    """An address with prefix length in each subnet of the network: those wanted, else the next free that no
    port of another container leads to, which that may have left behind."""
    led = {port.address: port for port in draft.ours.ports if port.container != target.uid}
    require(*(validate.address(one, network.subnets, draft.used) for one in wanted))
    given = {":" in one: str(ipaddress.ip_address(one)) for one in wanted}
    require(when(len(given) != len(wanted), "one address of each family at most"))
    chosen = []
    for subnet in network.subnets:
        try:
            address = given.get(":" in subnet) or ipam.next_address(subnet, draft.used | led.keys())
        except ipam.Exhausted as error:
            raise CannotPlan([f"{network.name} is full: {error}"]) from error
        draft.warn(_led(led.get(address), target))
        draft.used.add(address)
        chosen.append(f"{address}/{ipaddress.ip_network(subnet).prefixlen}")
    return tuple(chosen)


def _led(port: OurPort | None, target: Target) -> str:
    if port is None:
        return ""
    return (
        f"{safe(target.name)} gets what comes to {port.port_id}, which leads to {port.address} since it was "
        f"published of {safe(port.container)}: vnet-tui unpublish ends that"
    )


@draft_steps.register
def _(request: Detach, draft: PlanBuilder) -> str:
    if request.network not in draft.ours.networks:
        docker = find_docker_network(request.network, draft)
        if docker is not None:
            return detach_by_docker(request, docker, draft)
    # A network whose bridge somebody deleted is known by its attachments alone.
    known = any(one.network == request.network for one in draft.ours.members)
    name, uid = (
        request.network if known else draft.network(request.network).name,
        draft.uid_of(request.container),
    )
    there = any((one.container, one.network) == (uid, name) for one in draft.ours.members)
    if (not there or _has_ended(uid, draft)) and forget(uid, name, draft):
        return f"attach {safe(request.container)} to {safe(name)} no more when it starts"
    target = draft.target(request.container)
    draft.removing()
    detach_member(_member(target, name, draft), draft)
    return f"detach {safe(target.name)} from {safe(name)}"


def _has_ended(uid: str, draft: PlanBuilder) -> bool:
    """Whether the container runs no more: its veth pair goes with its namespace, a moment later."""
    container = draft.topology.containers.get(uid)
    return container is not None and container.netns is None


def _member(target: Target, network: str, draft: PlanBuilder) -> OurMember:
    found = next((member for member in draft.ours.members if _is(member, target, network)), None)
    if found is None:
        raise CannotPlan([f"{safe(target.name)} is not attached to {safe(network)} by vnet"])
    return found


def detach_member(member: OurMember, draft: PlanBuilder) -> None:
    """Add the steps that take an attachment away whole, its published ports before."""
    port = draft.link(member.port)
    if port is None:
        raise CannotPlan([f"the link {member.port} is not there yet"])
    addresses = {address.partition("/")[0] for address in member.addresses}
    published = [one for one in draft.ours.ports if one.address in addresses]
    for one in published:
        draft.hit(f"its port {one.port_id} is published no more")
    withdraw(published, draft)
    inner = draft.topology.peer(port)
    forget(member.container, member.network, draft)
    delete_pair(draft, port)
    draft.drop_member(member)
    draft.used.difference_update(addresses)
    if inner is not None and member.container in draft.topology.containers:
        _forget(draft.target(member.container), inner.ifindex, member, draft)


def _forget(target: Target, ifindex: int, member: OurMember, draft: PlanBuilder) -> None:
    """Note that a link inside a container is gone, and the routes over it."""
    target.links.discard(member.link)
    net = draft.snapshot.nets.get(target.ns or 0)
    for route in net.routes if net else ():
        if any(hop.ifindex == ifindex for hop in route.nexthops):
            target.ways.discard(route.dst)
            if route.dst == "default":
                target.defaults.discard(route.family)


@draft_steps.register
def _(request: Move, draft: PlanBuilder) -> str:
    dockers = [_dockers_network(name, draft) for name in (request.network, request.to)]
    if any(dockers):
        return _move_by_docker(request, dockers, draft)
    target = draft.target(request.container)
    network, to = draft.network(request.network), draft.network(request.to)
    require(when(network == to, f"{safe(target.name)} is on {to.name} already"))
    member = _member(target, network.name, draft)
    draft.removing()
    detach_member(member, draft)
    attach(target, to, request.addresses, member.link, draft)
    return f"move {safe(target.name)} from {network.name} to {to.name}"


def _dockers_network(name: str, draft: PlanBuilder) -> Network | None:
    return None if name in draft.ours.networks else find_docker_network(name, draft)


def _move_by_docker(request: Move, networks: list[Network | None], draft: PlanBuilder) -> str:
    """Have Docker attach before it detaches, so that there is a way at each moment."""
    there, to = networks
    if there is None or to is None:
        raise CannotPlan(["one of the two networks is Docker's, the other is not: attach, then detach"])
    container = draft.container(request.container)
    is_there = any(end.network == there.name for end in container.endpoints)
    asked = Attach(request.container, to.name, request.addresses)
    attach_by_docker(asked, to, draft, there if is_there else None)
    detach_by_docker(Detach(request.container, there.name), there, draft)
    return f"have Docker move {safe(container.name)} from {safe(there.name)} to {safe(to.name)}"
