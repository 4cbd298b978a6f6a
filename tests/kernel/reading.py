"""Read a throw-away host with the collectors, for comparison with iproute2."""

from __future__ import annotations

from collections.abc import Iterable

from core.collect.links import read_nets
from core.collect.namespaces import read_namespaces
from core.model import Link, Namespace, NetState
from tests.support.host import ThrowawayHost


def read_net(namespace: Namespace, known: Iterable[Namespace] = ()) -> NetState:
    """Read one namespace, which exists; peers are looked up among `known`."""
    return read_nets((namespace,), known)[namespace.inode]


def net_of(host: ThrowawayHost, short: str = "host") -> NetState:
    """Read one of the host's namespaces; peers are looked up in all of them."""
    found, _ = read_namespaces(deep=False)
    return read_net(found[host.inode_of(short)], found.values())


def nets_of(host: ThrowawayHost) -> dict[str, NetState]:
    """Read all of the host's namespaces, by short name."""
    found, _ = read_namespaces(deep=False)
    shorts = {inode: name.removeprefix(f"{host.prefix}-") for inode, ns in found.items() for name in ns.names}
    nets = read_nets([ns for ns in found.values() if ns.names and ns.names[0] in host.names], found.values())
    return {shorts[inode]: net for inode, net in nets.items()}


def links_of(host: ThrowawayHost, short: str = "host") -> dict[str, Link]:
    """Read the links of one namespace, by name."""
    return {link.name: link for link in net_of(host, short).links.values()}
