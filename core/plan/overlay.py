"""Plan overlay networks, which join bridges of several hosts.

Their tunnels are those of VXLAN (RFC 7348).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace

from core.model import Link, NetState
from core.model.etcd import is_host
from core.model.link import ALL_ZERO
from core.operations import AddFdb, CreateVxlan, DeleteFdb, DeleteLink, SetLink, SetPort
from core.operations.links import VXLAN_PORT
from core.overlay import OVERHEAD
from core.plan import etcd, evpn, ipam, validate
from core.plan.builder import CannotPlan, PlanBuilder, plan_steps, require, when
from core.plan.requests import CreateNetwork, JoinOverlay, LeaveOverlay, RemoveNetwork
from core.plan.tags import VnetNetwork
from core.plan.teardown import empty_link
from core.plan.vxlan import (
    MOST_VNI,
    range_of,
    subnet_by_name,
    underlay_mtu,
    vni_by_name,
)
from core.reach.packet import Packet
from core.reach.routing import RoutingTables
from core.text import quoted, safe
from core.topology import Topology

_NO_REMOTES = "the hosts find each other"
_WITH_PEERS = "--peer instead of --remote"
_HOSTS_FROM_ETCD = "this host has joined it already, and its hosts come from etcd"


def complete(request: CreateNetwork, builder: PlanBuilder) -> CreateNetwork:
    """Fill in what a request leaves out. Raises CannotPlan."""
    request = etcd.complete(request, builder) if request.etcd else request
    with_evpn = request.evpn or bool(request.peers)
    require(when(with_evpn and request.remotes, f"with EVPN {_NO_REMOTES}. Try: {_WITH_PEERS}"))
    hosts, own = _others(request.peers if with_evpn else request.remotes, builder)
    group = builder.frr.config.group
    others = [one for one in builder.vnet.networks.values() if one.kind == "overlay"]
    static = next((one.name for one in others if not one.evpn), "")
    with_frr = "--evpn" if request.etcd else _WITH_PEERS
    require(
        when(with_evpn and static, f"FRRouting would manage {static} too, which is joined without EVPN"),
        when(not with_evpn and group, f"FRRouting manages all overlays of this host. Try: {with_frr}"),
    )
    if builder.frr.config.evpn:
        builder.warn("FRRouting announces all overlays of this host, and may change this one's hosts as well")
    vni = request.vni or vni_by_name(request.name)
    toward = hosts or (() if request.local else etcd.server_address(request.etcd, builder))
    local = _local(request.local or own or (group.source if group and with_evpn else ""), toward, builder)
    used = next((one for one in builder.host.links.values() if _clashes(one, vni)), None)
    require(
        when(not 0 < vni <= MOST_VNI, f"the VNI {vni} is out of range (1 to {MOST_VNI})"),
        when(used, f"the VNI {vni} is used by the link {safe(used.name) if used else ''}. Try: --vni NUMBER"),
        when(request.uplink, "only a NIC-bridged network has an uplink"),
        when(request.engine != "vnet", "Docker makes its own. Try: docker network create -d overlay"),
    )
    subnets = request.subnets or (
        subnet_by_name(request.name, 4),
        *((subnet_by_name(request.name, 6),) if request.ipv6 else ()),
    )
    return replace(
        request, vni=vni, local=local, evpn=with_evpn,
        remotes=() if with_evpn else hosts, peers=hosts if with_evpn else (),
        subnets=subnets, ipv6=False, nat66=any(":" in one for one in subnets),
    )  # fmt: skip


def _clashes(link: Link, vni: int) -> bool:
    return link.kind == "vxlan" and link.details.get("vni") == vni and link.details.get("port") == VXLAN_PORT


def _addresses(given: Sequence[str]) -> tuple[str, ...]:
    """Return the addresses of remote hosts in their usual form.

    Each is there once. Raises CannotPlan.
    """
    require(*(when(_unusable(one), f'"{safe(one)}" isn\'t the address of a host') for one in given))
    found = tuple(dict.fromkeys(str(ipaddress.ip_address(one)) for one in given))
    mixed = len({":" in one for one in found}) > 1
    require(when(mixed, "remote hosts need addresses of one family, as a tunnel has one local address"))
    return found


def _others(given: Sequence[str], builder: PlanBuilder) -> tuple[tuple[str, ...], str]:
    """Split addresses into those of remote hosts, and this host's own.

    The latter is "" if it isn't among them. So the same command works on all hosts. Raises CannotPlan.
    """
    tables, found = RoutingTables(builder.host), _addresses(given)
    own = [one for one in found if tables.is_local(one)]
    return tuple(one for one in found if one not in own), next(iter(own), "")


def _unusable(text: str) -> bool:
    found = validate.parse_address(text)
    return found is None or not is_host(str(found))


def _local(given: str, remotes: Sequence[str], builder: PlanBuilder) -> str:
    """Return this host's address in the underlay. Raises CannotPlan."""
    tables = RoutingTables(builder.host)
    if given:
        require(
            when(_unusable(given), f'"{safe(given)}" isn\'t the address of a host'),
            when(
                not _unusable(given) and not tables.is_local(given),
                f"{safe(given)} is not an address of this host",
            ),
            when(
                remotes and (":" in given) != (":" in remotes[0]),
                "the local address and the remote hosts must be of the same family",
            ),
        )
        return str(ipaddress.ip_address(given))
    if remotes:
        found = _source(remotes[0], tables)
        if not found:
            raise CannotPlan([f"this host has no route to {remotes[0]}"])
        return found
    uplink = builder.topology.uplink(builder.topology.host)
    own = [one.address for one in uplink[0].addresses if one.scope == "global"] if uplink else []
    if not own:
        remedy = "--remote or --local ADDRESS"
        raise CannotPlan([f"the host has no default route to take its address from. Try: {remedy}"])
    return min(own, key=lambda one: ":" in one)


def _source(remote: str, tables: RoutingTables) -> str:
    """Return the source address of packets to a remote host.

    It is "" without a route.
    """
    return tables.source_for(tables.lookup(Packet("", remote)), remote)


def choose_mtu(request: CreateNetwork, builder: PlanBuilder) -> int:
    """Return the requested MTU, or the largest that fits into the underlay."""
    most, link = underlay_mtu(request.local, request.other_hosts, builder.host)
    overhead = OVERHEAD[6 if ":" in request.local else 4]
    fits = max(most - overhead, 0)
    if not request.mtu:
        return min(fits or 1500 - overhead, validate.MOST_MTU)
    require(validate.mtu(request.mtu, ipv6=any(":" in one for one in request.subnets)))
    if fits and request.mtu > fits:
        builder.warn(
            f"the MTU {request.mtu} is above {fits}, that of {safe(link)} ({most}) without the outer headers "
            f"({overhead} bytes): larger packets are lost"
        )
    return request.mtu


def choose_ranges(request: CreateNetwork, subnets: Sequence[str]) -> tuple[str, ...]:
    """Return this host's range in each subnet. Raises CannotPlan."""
    if request.etcd:
        return ()
    given: dict[int, str] = {}
    for text in request.ranges:
        try:
            prefix = ipaddress.ip_network(text)
        except ValueError as error:
            raise CannotPlan([f'"{safe(text)}" isn\'t a range. Try: one such as 10.9.0.64/26']) from error
        inside = any(_is_inside(prefix, ipaddress.ip_network(one)) for one in subnets)
        require(when(not inside, f"the range {prefix} is not in {' or '.join(subnets)}"))
        given[prefix.version] = str(prefix)
    found = []
    for subnet in subnets:
        own = given.get(6 if ":" in subnet else 4)
        found.append(own or range_of(subnet, request.local))
        for remote in request.other_hosts if not own else ():
            same = range_of(subnet, remote) == found[-1]
            require(
                when(
                    same,
                    f"this host ({request.local}) and {remote} would both assign addresses of {found[-1]}. "
                    "Try: --range, with another one on each host",
                )
            )
    return tuple(found)


def _is_inside(one: ipam.Prefix, other: ipam.Prefix) -> bool:
    return one.version == other.version and ipam.overlaps(one, other) and one.prefixlen >= other.prefixlen


def add_tunnel(network: VnetNetwork, request: CreateNetwork, builder: PlanBuilder) -> None:
    """Add the steps that create the tunnel as a port of the network's bridge."""
    link = f"vx{network.vni}"
    require(when(link in builder.host_names, f"there is already a link {link}"))
    builder.add(
        CreateVxlan(
            link, network.vni, request.local, mtu=network.mtu, alias=network.tunnel_tag(),
            learning=not network.evpn,
        ),
        SetLink(link, "master", network.bridge, ""),
        # FRRouting alone fills the tables.
        *([SetPort(link, "learning", False, True)] if network.evpn else []),
        # Each host's gateway answers for itself: requests for it must not cross the tunnel.
        SetPort(link, "neigh_suppress", True, False),
        *(flood_entry(link, remote) for remote in request.remotes),
        SetLink(link, "up", "up", "down"),
    )  # fmt: skip
    if network.evpn:
        evpn.add_sessions(request, builder)
    builder.host_names.add(link)


def flood_entry(link: str, remote: str) -> AddFdb:
    """Return the step that adds a remote host to a tunnel's flood list."""
    return AddFdb(link, ALL_ZERO, on_master=False, state="permanent", dst=remote)


def join_command(network: VnetNetwork, hosts: Sequence[str], endpoints: str = "") -> str:
    """Return the command that joins a network on another host.

    It has only the options that don't follow from the network's name. `endpoints` are the URLs of etcd, if
    known.
    """
    words = ["vnet-tui network join", quoted(network.name)]
    if network.etcd:
        return " ".join([*words, "--etcd", endpoints or "URL"])
    words += [f"--{'peer' if network.evpn else 'remote'} {one}" for one in hosts]
    if network.vni != vni_by_name(network.name):
        words.append(f"--vni {network.vni}")
    by_name = {subnet_by_name(network.name, 4)}, {subnet_by_name(network.name, family) for family in (4, 6)}
    if set(network.subnets) == by_name[1]:
        words.append("--ipv6")
    elif set(network.subnets) != by_name[0]:
        words += [f"--subnet {one}" for one in network.subnets]
    for subnet, gateway in zip(network.subnets, network.gateways, strict=True):
        words += [f"--gateway {gateway}"] if gateway != ipam.next_address(subnet, ()) else []
    return " ".join(words)


def tunnel_of(network: VnetNetwork, topology: Topology) -> Link | None:
    """Return the tunnel link of an overlay network."""
    net = topology.snapshot.nets.get(topology.host)
    bridge = next((one for one in net.links.values() if one.name == network.bridge), None) if net else None
    ports = topology.ports_of(bridge.key) if bridge else ()
    return next((one for one in ports if one.kind == "vxlan" and one.details.get("vni") == network.vni), None)


def remotes_of(tunnel: Link, net: NetState) -> tuple[str, ...]:
    """Return the remote hosts that a tunnel was given: its permanent flood entries.

    With EVPN there are none: FRRouting adds and deletes all entries.
    """
    if not tunnel.details.get("learning"):
        return ()
    of_flood_list = (tunnel.ifindex, ALL_ZERO, "permanent")
    return tuple(one.dst for one in net.fdb if one.dst and (one.port, one.mac, one.state) == of_flood_list)


def delete_tunnel(tunnel: Link, builder: PlanBuilder) -> None:
    """Add the steps that delete a tunnel link, after its entries and settings."""
    builder.add(*(DeleteFdb(flood_entry(tunnel.name, one)) for one in remotes_of(tunnel, builder.host)))
    empty_link(builder, tunnel)
    details = tunnel.details
    again = CreateVxlan(
        tunnel.name, int(details["vni"]), str(details.get("local", "")),
        port=int(details.get("port", VXLAN_PORT)), mtu=tunnel.mtu, mac=tunnel.mac, alias=tunnel.alias,
        learning=bool(details.get("learning", True)),
    )  # fmt: skip
    builder.add(DeleteLink(tunnel.name, again=again))


@plan_steps.register
def plan_join_overlay(request: JoinOverlay, builder: PlanBuilder) -> str:
    wanted = request.network
    if wanted.name not in builder.vnet.networks:
        if wanted.etcd:
            etcd.require_definition(wanted.name, builder)
        plan_steps(wanted, builder)
        return f"join the overlay network {wanted.name}"
    network = _overlay(wanted.name, builder)
    differs = wanted.vni not in (0, network.vni) or not set(wanted.subnets) <= set(network.subnets)
    existing = f"VNI {network.vni} and the subnet {' and '.join(network.subnets)}"
    require(
        when(differs, f"this host has it with {existing}. Try: vnet-tui network leave {network.name}"),
        when(
            wanted.etcd and not network.etcd,
            f"this host has joined it without etcd. Try: vnet-tui network leave {network.name}",
        ),
        when(network.etcd, _HOSTS_FROM_ETCD) or _wrong_option(network, wanted.remotes, wanted.peers),
    )
    tunnel = _tunnel(network, builder)
    hosts = _others(wanted.peers if network.evpn else wanted.remotes, builder)[0]
    local = str(tunnel.details.get("local", ""))
    known = _known(network, tunnel, builder)
    new = tuple(one for one in hosts if one not in known)
    require(
        when(not new and not wanted.reflector, "this host has joined it already, with these hosts"),
        *(when((":" in one) != (":" in local), f"{one} isn't of the family of {local}") for one in new),
    )
    if network.evpn:
        evpn.add_sessions(replace(wanted, local=local, peers=new), builder)
    else:
        builder.add(*(flood_entry(tunnel.name, one) for one in new))
    _warn_of_hosts(network, local, new, builder)
    return f"add {', '.join(new)} to the hosts of {network.name}"


def _wrong_option(network: VnetNetwork, remotes: Sequence[str], peers: Sequence[str]) -> str:
    """Return why these hosts can't be given for an existing network, "" if they can."""
    if network.etcd:
        return when(remotes or peers, _HOSTS_FROM_ETCD)
    if network.evpn:
        return when(remotes, f"with EVPN {_NO_REMOTES}. Try: {_WITH_PEERS}")
    return when(peers, f"{network.name} is joined without EVPN. Try: --remote instead of --peer")


def _known(network: VnetNetwork, tunnel: Link, builder: PlanBuilder) -> tuple[str, ...]:
    """Return the other hosts that this one was given."""
    group = builder.frr.config.group
    if network.evpn:
        return group.peers if group else ()
    return remotes_of(tunnel, builder.host)


def _warn_of_hosts(network: VnetNetwork, local: str, hosts: Sequence[str], builder: PlanBuilder) -> None:
    """Warn of hosts that assign the same addresses, or with a smaller MTU."""
    for subnet, own in zip(network.subnets, network.ranges, strict=True):
        for host in hosts:
            if range_of(subnet, host) == own:
                builder.warn(f"{host} assigns addresses of {own} as well, unless it has another --range")
    fits = underlay_mtu(local, hosts, builder.host)[0] - OVERHEAD[6 if ":" in local else 4]
    if 0 < fits < network.mtu:
        builder.warn(
            f"the path to {', '.join(hosts)} allows an MTU of {fits}, {network.name} has {network.mtu}: "
            "larger packets are lost"
        )


@plan_steps.register
def plan_leave_overlay(request: LeaveOverlay, builder: PlanBuilder) -> str:
    network = _overlay(request.name, builder)
    require(_wrong_option(network, request.remotes, request.peers))
    if not request.remotes and not request.peers:
        plan_steps(RemoveNetwork(network.name), builder)
        return f"leave the overlay network {network.name}"
    tunnel, hosts = _tunnel(network, builder), _addresses(request.peers or request.remotes)
    known = _known(network, tunnel, builder)
    require(*(when(one not in known, f"{one} isn't one of its hosts") for one in hosts))
    if network.evpn:
        evpn.remove_sessions(hosts, builder)
    else:
        builder.add(*(DeleteFdb(flood_entry(tunnel.name, one)) for one in hosts))
    return f"remove {', '.join(hosts)} from the hosts of {network.name}"


def _overlay(name: str, builder: PlanBuilder) -> VnetNetwork:
    network = builder.network(name)
    require(when(network.kind != "overlay", f"{network.name} is of the kind {network.kind}"))
    return network


def _tunnel(network: VnetNetwork, builder: PlanBuilder) -> Link:
    tunnel = tunnel_of(network, builder.topology)
    if tunnel is None:
        remedy = f"vnet-tui network leave {network.name}"
        raise CannotPlan([f"its tunnel vx{network.vni} is missing. Try: {remedy}"])
    return tunnel


def warn_of_range(network: VnetNetwork, addresses: Sequence[str], builder: PlanBuilder) -> None:
    """Warn of addresses that another host may assign as well."""
    for address in addresses:
        own = [one for one in network.ranges if (":" in one) == (":" in address)]
        if own and not any(ipaddress.ip_address(address) in ipaddress.ip_network(one) for one in own):
            builder.warn(f"{address} is outside of {own[0]}: another host may assign it as well")
