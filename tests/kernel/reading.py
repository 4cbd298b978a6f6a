"""What the collectors read of a throw-away host, for tests to hold against what iproute2 prints."""

from __future__ import annotations

from core.collect.links import read_net, read_nets
from core.collect.namespaces import read_namespaces
from core.model import Link, NetState
from tests.support.host import ThrowawayHost


def net_of(host: ThrowawayHost, short: str = "host") -> NetState:
    """One of the host's namespaces, its peers looked for in all namespaces."""
    found, _ = read_namespaces(deep=False)
    return read_net(found[host.inode_of(short)], found.values())


def nets_of(host: ThrowawayHost) -> dict[str, NetState]:
    """All of the host's namespaces by their short names."""
    found, _ = read_namespaces(deep=False)
    shorts = {inode: name.removeprefix(f"{host.prefix}-") for inode, ns in found.items() for name in ns.names}
    nets = read_nets([ns for ns in found.values() if ns.names and ns.names[0] in host.names], found.values())
    return {shorts[inode]: net for inode, net in nets.items()}


def links_of(host: ThrowawayHost, short: str = "host") -> dict[str, Link]:
    """The links of one namespace by name."""
    return {link.name: link for link in net_of(host, short).links.values()}
