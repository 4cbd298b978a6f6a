"""Plan networks of vnet: create, remove, join and part them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from core.model import Link, Network
from core.nat.packets import Kind
from core.operations import AddAddress, CreateBridge, DeleteRoute, SetLink
from core.plan import etcd, evpn, ipam, overlay, ovs, validate
from core.plan.attachments import (
    detach_member,
    forget_attachment,
    isolated_members,
    missing_routes,
    persist_routes,
    routes_between,
)
from core.plan.builder import CannotPlan, PlanBuilder, plan_steps, require, when
from core.plan.connectivity import enable_forwarding, warn_of_filters
from core.plan.docker import create_docker_network, find_docker_network, remove_docker_network
from core.plan.ports import restore_ports
from core.plan.requests import CreateNetwork, Join, RemoveNetwork, Separate
from core.plan.tags import ALIAS_BYTES, VnetNetwork, pair
from core.plan.teardown import delete_bridge, empty_link, release_port, static_routes
from core.plan.uplink import bridge_nic, restore_nic
from core.plan.vxlan import gateway_mac
from core.text import safe


@plan_steps.register
def plan_create_network(request: CreateNetwork, builder: PlanBuilder) -> str:
    require(validate.name(request.name, "network's name"), validate.kind(request.kind))
    only = "only an overlay keeps its hosts and addresses in etcd. Try: --kind overlay"
    require(when(request.etcd and request.kind != "overlay", only))
    if request.engine == "docker":
        return create_docker_network(request, builder)
    joins = False
    if request.kind == "overlay":
        joins = bool(request.etcd and request.name in builder.etcd and builder.etcd[request.name].definition)
        request = overlay.complete(request, builder)
    ovs.check_request(request, builder)
    network = design(request, builder)
    if network.kind == "nic-bridged":
        bridge_nic(network, request, builder)
    else:
        _create(network, request, builder)
    builder.update_vnet(networks={**builder.vnet.networks, network.name: network})
    builder.host_names.add(network.bridge)
    if network.kind == "overlay":
        hosts = (request.local, *request.remotes)
        builder.warn(f"on each other host, run: {overlay.join_command(network, hosts, request.etcd)}")
    kinds: tuple[Kind, ...] = () if network.kind == "internal" else ("out", "answers")
    warn_of_filters(builder, network.bridge, kinds, network.subnets)
    return f"{'join' if joins else 'create'} the {network.kind} network {network.name}"


def design(request: CreateNetwork, builder: PlanBuilder) -> VnetNetwork:
    """Return the requested network with all missing values chosen. Raises CannotPlan."""
    bridge = request.bridge or _free_bridge_name(request.name, builder)
    known = {*builder.vnet.networks, *(network.name for network in _engines_networks(builder))} - {
        request.name
    }
    require(
        _check_name_is_free(request.name, builder),
        "" if request.engine == "vnet" else f'unknown engine "{safe(request.engine)}". Try: vnet or docker',
        validate.name(bridge, "bridge's name"),
        f"there is already a link {bridge}. Try: another bridge name" if bridge in builder.host_names else "",
        f"the bridge's name {bridge} is the name of another network" if bridge in known else "",
    )
    if not request.bridge and bridge != _bridge_name(request.name):
        default_name = _bridge_name(request.name)
        builder.warn(
            f"{default_name} exists but belongs to another network: this one uses the bridge {bridge}"
        )
    subnets = _subnets(request, builder)
    gateways = _gateways(request, subnets)
    is_overlay = request.kind == "overlay"
    mtu = overlay.choose_mtu(request, builder) if is_overlay else _mtu(request, subnets, builder)
    network = VnetNetwork(
        request.name, request.kind, bridge, subnets, gateways, request.nat66, request.uplink, mtu,
        request.vni, overlay.choose_ranges(request, subnets) if is_overlay else (), request.evpn,
        request.datapath.replace("system", ""), etcd=bool(request.etcd),
    )  # fmt: skip
    if len(network.tag().encode()) > ALIAS_BYTES:
        raise CannotPlan(["the names are too long for the tag of the bridge. Try: shorter names"])
    return network


def _free_bridge_name(name: str, builder: PlanBuilder) -> str:
    """Return "br-NAME", with a number if that link exists."""
    default_name = _bridge_name(name)
    others = (f"{default_name[: validate.NAME_BYTES - 2]}{number}" for number in range(2, 100))
    return next((each for each in (default_name, *others) if each not in builder.host_names), default_name)


def _bridge_name(name: str) -> str:
    prefixed = f"br-{name}"
    return prefixed if len(prefixed) <= validate.NAME_BYTES else name


def _check_name_is_free(name: str, builder: PlanBuilder) -> str:
    engine = next((network.engine for network in _engines_networks(builder) if network.name == name), "")
    owner = "vnet-tui" if name in builder.vnet.networks else engine
    vnet_bridges = {network.bridge for network in builder.before.networks.values()}
    others = [one for one in builder.topology.networks if one.ns == builder.topology.host]
    if not owner and any(name in (one.name, one.bridge) and one.bridge not in vnet_bridges for one in others):
        return f"there is already a network {name}, which vnet-tui didn't make. Try: another name"
    return f"{owner} already has a network {name}" if owner else ""


def _engines_networks(builder: PlanBuilder) -> list[Network]:
    return [network for engine in builder.snapshot.engines.values() for network in engine.networks]


def _subnets(request: CreateNetwork, builder: PlanBuilder) -> tuple[str, ...]:
    """Return the request's subnets, validated, with free ones for the missing."""
    if request.kind == "nic-bridged":
        require(when(request.subnets, "a NIC-bridged network uses the NIC's subnet. Try: no subnet"))
        return ()
    require(*(validate.subnet(one, builder.prefixes) for one in request.subnets))
    subnets = request.subnets or tuple(_remaining_subnets(request.name, builder))
    families = [_family(one) for one in subnets]
    require(when(len(set(families)) != len(families), "only one subnet of each address family is allowed"))
    missing = (() if families else (4,)) + ((6,) if request.ipv6 and 6 not in families else ())
    # Never a prefix that this plan has already assigned.
    reserved = [*builder.reserved, *(str(prefix) for prefix in builder.prefixes)]
    prefixes = [one for one in reserved if "/" in one]
    try:
        chosen = [ipam.propose_subnet(builder.snapshot, family, prefixes) for family in missing]
    except ipam.Exhausted as error:
        raise CannotPlan([str(error)]) from error
    result = sorted([*(str(ipaddress.ip_network(one)) for one in subnets), *chosen], key=_family)
    for subnet in result:
        builder.prefixes[ipam.parse_prefix(subnet)] = f"network {request.name}"
    return tuple(result)


def _remaining_subnets(name: str, builder: PlanBuilder) -> Iterator[str]:
    """Yield the free subnets of containers whose network of this name lost its bridge."""
    members = [one for one in builder.vnet.members if one.network == name]
    found = {ipaddress.ip_interface(address).network for one in members for address in one.addresses}
    free = sorted(str(one) for one in found if not validate.subnet(str(one), builder.prefixes))
    # One of each family.
    yield from {_family(one): one for one in free}.values()


def _family(text: str) -> int:
    return 6 if ":" in text else 4


def _gateways(request: CreateNetwork, subnets: tuple[str, ...]) -> tuple[str, ...]:
    require(*(validate.address(one, subnets) for one in request.gateways))
    given = {_family(one): str(ipaddress.ip_address(one)) for one in request.gateways}
    require(when(len(given) != len(request.gateways), "only one gateway for each subnet is allowed"))
    return tuple(given.get(_family(one)) or ipam.next_address(one, ()) for one in subnets)


def _mtu(request: CreateNetwork, subnets: tuple[str, ...], builder: PlanBuilder) -> int:
    uplink = builder.link(request.uplink) if request.uplink else _uplink(builder)
    most = uplink.mtu if uplink and request.kind != "internal" else 0
    if not request.mtu:
        return min(most or 1500, validate.MOST_MTU)
    require(validate.mtu(request.mtu, ipv6=any(":" in one for one in subnets)))
    reason = validate.mtu_of_path(request.mtu, uplink.name if uplink else "", most)
    if reason and request.kind == "nic-bridged":
        raise CannotPlan([reason])
    builder.warn(reason)
    return request.mtu


def _uplink(builder: PlanBuilder) -> Link | None:
    found = builder.topology.uplink(builder.topology.host)
    return found[0] if found else None


def _create(network: VnetNetwork, request: CreateNetwork, builder: PlanBuilder) -> None:
    has_ipv6_nat = network.is_translated and any(":" in one for one in network.subnets)
    require(
        when(request.uplink, "only a NIC-bridged network has an uplink"),
        when(request.nat66 and not has_ipv6_nat, "NAT66 needs a NAT network with an IPv6 subnet"),
    )
    if network.etcd:
        etcd.join(network, request, builder)
    if network.kind == ovs.KIND:
        builder.add(ovs.create_bridge(network, _mac(network, builder)))
    else:
        made = CreateBridge(
            network.bridge,
            mac=_mac(network, builder),
            mtu=network.mtu,
            alias=network.tag(),
            vlan_filtering=request.vlan_filtering,
        )
        builder.add(made)
    for subnet, gateway in zip(network.subnets, network.gateways, strict=True):
        builder.add(AddAddress(network.bridge, f"{gateway}/{ipaddress.ip_network(subnet).prefixlen}"))
        builder.used.add(gateway)
    if network.kind == "overlay":
        overlay.add_tunnel(network, request, builder)
    builder.add(SetLink(network.bridge, "up", "up", "down"))
    _reattach_members(network, builder)
    if network.kind != "internal":
        families = {_family(subnet) for subnet in network.subnets}
        enable_forwarding(builder, ipv4=4 in families, ipv6=6 in families)


def _reattach_members(network: VnetNetwork, builder: PlanBuilder) -> None:
    """Attach the containers whose network had this name and lost its bridge."""
    subnets, addresses = set(map(ipaddress.ip_network, network.subnets)), set()
    for member in builder.vnet.members:
        port = builder.link(member.port)
        if member.network != network.name or port is None or builder.topology.master_of(port) is not None:
            continue
        label = _label(member.container, builder)
        if {ipaddress.ip_interface(one).network for one in member.addresses} <= subnets:
            etcd.lease(member, network, builder)
            builder.add(ovs.connect_port(network, port.name, member.vlan))
            builder.add_side_effect(f"{label} is attached again: the bridge of its network was deleted")
            addresses |= {one.partition("/")[0] for one in member.addresses}
        else:
            builder.warn(
                f"{label} stays disconnected: its address is in the subnet of an earlier {network.name}. "
                f"Detach and attach it, or choose that subnet"
            )
    restore_ports([port for port in builder.vnet.ports if port.address in addresses], network.bridge, builder)


def _mac(network: VnetNetwork, builder: PlanBuilder) -> str:
    if network.kind == "overlay":
        return gateway_mac(network.vni)
    return ipam.stable_mac(builder.snapshot.host.hostname, network.bridge)


@plan_steps.register
def plan_remove_network(request: RemoveNetwork, builder: PlanBuilder) -> str:
    if request.name not in builder.vnet.networks:
        docker = find_docker_network(request.name, builder)
        if docker is not None:
            return remove_docker_network(docker, builder)
    network = builder.network(request.name)
    bridge = builder.link(network.bridge)
    if bridge is None:
        raise CannotPlan([f"the bridge {network.bridge} doesn't exist yet"])
    builder.defer_rules()
    for one, other in sorted(builder.vnet.joined):
        if network.name in (one, other):
            plan_steps(Separate(one, other), builder)
    for member in [one for one in builder.vnet.members if one.network == network.name]:
        builder.add_side_effect(f"{_label(member.container, builder)} is detached from {network.name}")
        detach_member(member, builder)
    _forget_persistent(network, builder)
    tunnel = overlay.tunnel_of(network, builder.topology) if network.kind == "overlay" else None
    _release_others(network, bridge, tunnel, builder)
    if network.evpn:
        evpn.leave(network, builder)
    if tunnel:
        overlay.delete_tunnel(tunnel, builder)
    if network.kind == "nic-bridged":
        restore_nic(network, bridge, builder)
    elif network.kind == ovs.KIND:
        empty_link(builder, bridge)
        ovs.delete_bridge(builder, bridge)
    else:
        delete_bridge(builder, bridge)
    etcd.leave(network, builder)
    _free(network, builder)
    return f"remove the network {network.name}"


def _free(network: VnetNetwork, builder: PlanBuilder) -> None:
    """Mark the network's name, bridge and subnets as free."""
    builder.update_vnet(
        networks={name: one for name, one in builder.vnet.networks.items() if name != network.name}
    )
    builder.host_names.discard(network.bridge)
    for subnet in map(ipam.parse_prefix, network.subnets):
        for taken in [one for one in builder.prefixes if one.version == subnet.version]:
            if ipam.overlaps(taken, subnet):
                del builder.prefixes[taken]
    builder.used.difference_update(network.gateways)


def _forget_persistent(network: VnetNetwork, builder: PlanBuilder) -> None:
    """Forget the attachments of stopped containers."""
    for container in [one for one, name in builder.persistent if name == network.name]:
        builder.add_side_effect(
            f"{_label(container, builder)} is no longer attached to {network.name} when it starts"
        )
        forget_attachment(container, network.name, builder)


def _release_others(network: VnetNetwork, bridge: Link, tunnel: Link | None, builder: PlanBuilder) -> None:
    """Detach ports that vnet didn't attach."""
    if network.kind == ovs.KIND:
        ovs.release_others(network, builder)
        return
    ports = {member.port for member in builder.before.members} | ({tunnel.name} if tunnel else set())
    for port in builder.topology.ports_of(bridge.key):
        if port.name not in ports and port.name != network.uplink:
            builder.add_side_effect(
                f"{safe(port.name)}, which vnet-tui didn't attach, is detached from {network.bridge}"
            )
            release_port(builder, port, builder.netns_target(port.ns))


def _label(uid: str, builder: PlanBuilder) -> str:
    container = builder.topology.containers.get(uid)
    return safe(container.name if container else uid.partition(":")[2])


@plan_steps.register
def plan_join(request: Join, builder: PlanBuilder) -> str:
    one, other = _pair(request, builder)
    across = next((network.name for network in (one, other) if network.kind == "overlay"), "")
    require(when(across, f"containers of {across} on other hosts couldn't answer. Try: vnet-tui attach"))
    names = pair(one.name, other.name)
    common = {_family(subnet) for subnet in one.subnets} & {_family(subnet) for subnet in other.subnets}
    require(
        when(names in builder.vnet.joined, f"{one.name} and {other.name} are already joined"),
        when(not common, f"{one.name} and {other.name} have no subnets of the same address family"),
    )
    builder.update_vnet(joined=builder.vnet.joined | {names})
    enable_forwarding(builder, ipv4=4 in common, ipv6=6 in common)
    for network, to in ((one, other), (other, one)):
        subnets = [subnet for subnet in network.subnets if _family(subnet) in common]
        warn_of_filters(builder, network.bridge, ("joined",), subnets, to=to.bridge)
        for target, link in isolated_members(network, builder):
            routes = missing_routes(network, to, target, link)
            builder.add(*routes)
            persist_routes(target, network, builder, more=routes)
    return f"join {one.name} and {other.name}"


@plan_steps.register
def plan_separate(request: Separate, builder: PlanBuilder) -> str:
    one, other = _pair(request, builder)
    joined = pair(one.name, other.name)
    require(when(joined not in builder.vnet.joined, f"{one.name} and {other.name} aren't joined"))
    builder.update_vnet(joined=builder.vnet.joined - {joined})
    for network, to in ((one, other), (other, one)):
        for target, link in isolated_members(network, builder):
            existing = static_routes(builder, target, link)
            routes = routes_between(network, to, target.place, link)
            builder.add(*(DeleteRoute(one) for one in routes if one in existing))
            target.destinations.difference_update(one.dst for one in routes if one in existing)
            persist_routes(target, network, builder, less=routes)
    return f"separate {one.name} from {other.name}"


def _pair(request: Join | Separate, builder: PlanBuilder) -> tuple[VnetNetwork, VnetNetwork]:
    one, other = builder.network(request.network), builder.network(request.other)
    require(when(one == other, "they are the same network"))
    return one, other
