"""Plan what etcd holds for overlays: definitions, hosts and leased addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from core.model.etcd import Definition, EtcdNetwork, hosts_and_ports
from core.operations import (
    DeleteDefinition,
    JoinEtcd,
    LeaseAddress,
    LeaveEtcd,
    PutDefinition,
    ReleaseAddress,
)
from core.plan.builder import CannotPlan, PlanBuilder, require, when
from core.plan.requests import CreateNetwork
from core.plan.tags import VnetMember, VnetNetwork
from core.plan.vxlan import range_of
from core.reach.packet import Packet
from core.reach.routing import RoutingTables
from core.text import quoted, safe


def complete(request: CreateNetwork, builder: PlanBuilder) -> CreateNetwork:
    """Fill in the hosts, and what etcd's definition says. Raises CannotPlan."""
    from_etcd = "comes from etcd. Try: without it"
    require(
        when(request.remotes, f"--remote {from_etcd}"),
        when(request.peers or request.reflector, f"--peer and --reflector: the list of hosts {from_etcd}"),
        when(request.ranges, "with --etcd a host has no range: it leases addresses of the whole subnet"),
    )
    found = _read(request.name, builder)
    defined = found.definition
    if defined:
        require(*_disagreements(request, defined))
        request = replace(
            request, vni=defined.vni, subnets=defined.subnets, gateways=defined.gateways, mtu=defined.mtu,
            evpn=defined.evpn, asn=defined.asn, ipv6=False,
        )  # fmt: skip
    hosts = _of_one_family(request.local, found.hosts, builder)
    request = replace(request, etcd=found.endpoints)
    return replace(request, peers=hosts) if request.evpn else replace(request, remotes=hosts)


def require_definition(name: str, builder: PlanBuilder) -> None:
    """Raise CannotPlan if etcd doesn't have the network."""
    found = _read(name, builder)
    create = f"vnet-tui network create {quoted(name)} --kind overlay --etcd {found.endpoints}"
    require(
        when(not found.definition, f"etcd at {found.endpoints} has no network of that name. Try: {create}")
    )


def _read(name: str, builder: PlanBuilder) -> EtcdNetwork:
    found = builder.etcd.get(name)
    if found is None:
        raise CannotPlan(["this host no longer knows its etcd. Try: vnet-tui network leave and join"])
    if found.problem:
        raise CannotPlan([f"{found.problem}. Try: {found.remedy}"])
    return found


def _disagreements(request: CreateNetwork, defined: Definition) -> Iterator[str]:
    """Yield what is given but differs from the definition."""
    given = {
        "VNI": (request.vni, defined.vni), "MTU": (request.mtu, defined.mtu),
        "AS number": (request.asn, defined.asn),
    }  # fmt: skip
    for name, (one, other) in given.items():
        yield when(one not in (0, other), f"etcd defines it with the {name} {other}, not {one}")
    for name, texts, existing in (
        ("subnet", request.subnets, defined.subnets), ("gateway", request.gateways, defined.gateways),
    ):  # fmt: skip
        wrong = [one for one in texts if one not in existing]
        yield when(wrong, f"etcd defines it with the {name} {' and '.join(existing)}, not {_shown(wrong)}")
    yield when(
        request.ipv6 and not any(":" in one for one in defined.subnets),
        "etcd defines it without an IPv6 subnet",
    )
    yield when(request.evpn and not defined.evpn, "etcd defines it without EVPN")


def _shown(texts: Sequence[str]) -> str:
    return safe(" and ".join(texts)[:60])


def _of_one_family(local: str, hosts: Collection[str], builder: PlanBuilder) -> tuple[str, ...]:
    """Return the hosts of the local address's family, or of the first's."""
    family = local or next(iter(hosts), "")
    other = [one for one in hosts if (":" in one) != (":" in family)]
    builder.warn(
        when(
            other,
            f"without {_shown(other)}: tunnels to other hosts use {'IPv6' if ':' in family else 'IPv4'}",
        )
    )
    return tuple(one for one in hosts if one not in other)


def server_address(endpoints: str, builder: PlanBuilder) -> tuple[str, ...]:
    """Return the address of the first etcd server that has a route.

    Without those of this host.
    """
    tables = RoutingTables(builder.host)
    for _, host, _ in hosts_and_ports(endpoints) if endpoints else ():
        try:
            address = str(ipaddress.ip_address(host))
        except ValueError:
            continue
        if not tables.is_local(address) and tables.source_for(tables.lookup(Packet("", address)), address):
            return (address,)
    return ()


def join(network: VnetNetwork, request: CreateNetwork, builder: PlanBuilder) -> None:
    """Add the steps that store the definition, if etcd has none, and this host."""
    found = _read(network.name, builder)
    if not found.definition:
        defined = Definition(
            network.vni, network.subnets, network.gateways, network.mtu, network.evpn, request.asn
        )
        found = replace(found, definition=defined, stored=defined.to_json())
        builder.add(PutDefinition(network.name, found.endpoints, found.stored))
    found = replace(found, host=request.local, hostname=builder.snapshot.host.hostname)
    builder.add(_joining(network.name, found))
    builder.etcd[network.name] = found
    _warn_without_agent(found, builder)


def leave(network: VnetNetwork, builder: PlanBuilder) -> None:
    """Add the steps that remove this host, and the definition with the last one."""
    found = builder.etcd.pop(network.name, None) if network.etcd else None
    if found is None or not found.host:
        return
    if found.problem:
        builder.warn(f"{found.problem}: its leases of this host end by themselves within {found.seconds} s")
    builder.add(LeaveEtcd(_joining(network.name, found)))
    if found.definition and not set(found.hosts) - {found.host}:
        builder.add(DeleteDefinition(PutDefinition(network.name, found.endpoints, found.stored)))


def _joining(name: str, found: EtcdNetwork) -> JoinEtcd:
    return JoinEtcd(name, found.endpoints, found.host, found.hostname, found.seconds, found.stored)


def free_addresses(network: VnetNetwork, subnet: str, builder: PlanBuilder) -> tuple[str, ...]:
    """Return the subnets to search for a free address.

    This host's range comes first, so hosts that lease addresses at the same moment seldom want the same one.
    """
    return (range_of(subnet, _read(network.name, builder).host), subnet)


def leased_by_others(network: VnetNetwork, builder: PlanBuilder) -> dict[str, str]:
    """Return the addresses that other hosts have leased, with the host.

    Raises CannotPlan.
    """
    if not network.etcd:
        return {}
    found = _read(network.name, builder)
    return {address: host for address, host in found.leased.items() if host != found.host}


def lease(member: VnetMember, network: VnetNetwork, builder: PlanBuilder) -> None:
    """Add the steps that lease the addresses of an attachment. Raises CannotPlan."""
    if network.etcd:
        _warn_without_agent(_read(network.name, builder), builder)
        builder.add(*_leases(member, network, builder))


def release(member: VnetMember, network: VnetNetwork | None, builder: PlanBuilder) -> None:
    """Add the steps that end the leases of an attachment.

    Also while etcd doesn't answer.
    """
    found = builder.etcd.get(member.network)
    if network is None or not network.etcd or found is None:
        return
    if found.problem:
        builder.warn(f"{found.problem}: the agent ends the leases of this host's addresses when it does")
    builder.add(*(ReleaseAddress(one) for one in _leases(member, network, builder)))


def _leases(member: VnetMember, network: VnetNetwork, builder: PlanBuilder) -> list[LeaseAddress]:
    found = builder.etcd[network.name]
    return [
        LeaseAddress(network.name, found.endpoints, found.host, one.partition("/")[0], member.container)
        for one in member.addresses
    ]


def _warn_without_agent(found: EtcdNetwork, builder: PlanBuilder) -> None:
    if not found.has_agent:
        builder.warn(
            f"no agent runs on this host: {found.seconds} s from now other hosts may assign its addresses as "
            "well. Try: vnet-tui agent (docs/agent.md)"
        )
