"""Plan overlays whose hosts find each other by BGP EVPN (RFC 8365) of FRRouting.

FRRouting announces the MACs of the bridge's ports and the neighbours of the bridge, and installs those of
other hosts in the tables of the tunnel and the bridge. Nothing is learned from packets that cross a tunnel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from core.frr_config import group_for, sorted_peers
from core.model.overlay import EvpnGroup
from core.operations import (
    AddFdb,
    AddNeighbour,
    AnnounceMac,
    ConfigureFrr,
    DeleteNeighbour,
    Operation,
    WithdrawMac,
)
from core.plan.builder import CannotPlan, PlanBuilder
from core.plan.requests import CreateNetwork
from core.plan.tags import VnetMember, VnetNetwork

# A static entry would count as one that never moves to another host.
_FLAGS = ("extern_learn",)


def add_sessions(request: CreateNetwork, builder: PlanBuilder) -> None:
    """Add the step that opens sessions with the peers of a request. Raises CannotPlan."""
    group = builder.frr.config.group
    peers = {*request.peers, *(group.peers if group else ())}
    reflector = request.reflector or bool(group and group.reflector)
    found = group_for(builder.frr, request.local, peers, request.asn, reflector)
    if isinstance(found, str):
        raise CannotPlan([found])
    _configure(builder, found)


def remove_sessions(peers: Sequence[str], builder: PlanBuilder) -> None:
    """Add the step that closes the sessions to some hosts."""
    group = builder.frr.config.group
    if group is None:
        return
    remaining = [one for one in group.peers if one not in sorted_peers(peers)]
    _configure(builder, replace(group, peers=sorted_peers(remaining)))


def leave(network: VnetNetwork, builder: PlanBuilder) -> None:
    """Add the step that removes vnet's sessions with the last network that needs them."""
    others = [one for one in builder.vnet.networks.values() if one.evpn and one.name != network.name]
    if builder.frr.config.group is not None and not others:
        _configure(builder, None)


def _configure(builder: PlanBuilder, group: EvpnGroup | None) -> None:
    before = builder.frr.config.group
    if group == before:
        return
    builder.add(ConfigureFrr(group, before))
    config = replace(builder.frr.config, group=group, asn=group.asn if group else builder.frr.config.asn)
    builder.frr = replace(builder.frr, config=config)


def announce(member: VnetMember, network: VnetNetwork, mac: str) -> Iterator[Operation]:
    """Yield the steps after which FRRouting announces a container.

    It does so before the container sends anything.
    """
    entry = AddFdb(member.port, mac, on_master=True, state="permanent", flags=_FLAGS)
    yield AnnounceMac(entry, network.vni)
    for address in member.addresses:
        yield AddNeighbour(network.bridge, address.partition("/")[0], mac)


def withdraw(member: VnetMember, network: VnetNetwork, builder: PlanBuilder) -> Iterator[Operation]:
    """Yield the steps after which FRRouting announces a container no longer."""
    bridge, port = builder.link(network.bridge), builder.link(member.port)
    addresses = {address.partition("/")[0] for address in member.addresses}
    for one in builder.host.neighbours if bridge else ():
        if bridge and one.ifindex == bridge.ifindex and one.address in addresses and one.state == "permanent":
            yield DeleteNeighbour(AddNeighbour(network.bridge, one.address, one.mac))
    for entry in builder.host.fdb if port else ():
        if port and entry.port == port.ifindex and "extern_learn" in entry.flags:
            added = AddFdb(port.name, entry.mac, on_master=True, state="permanent", flags=_FLAGS)
            yield WithdrawMac(AnnounceMac(added, network.vni))
