"""Find links, namespaces and rules that nothing uses any more."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from core.model import (
    Link,
    Namespace,
    NatEntry,
    Network,
    container_ref,
    link_ref,
    namespace_ref,
    nat_ref,
    network_ref,
)
from core.model.finding import Finding
from core.model.fix import Fix, FixFirewall
from core.nat.packets import Prefix, prefixes
from core.text import quoted as quote
from core.topology import Topology

_ENGINES = ("docker", "podman")


def orphan_veths(topology: Topology) -> Iterator[Finding]:
    """Find veths whose other end is in a namespace without processes and names."""
    if topology.snapshot.host.missing_capabilities:
        return  # then the processes of other namespaces aren't all known
    net = topology.snapshot.nets.get(topology.host)
    for link in net.links.values() if net else ():
        if link.kind == "veth" and (reason := _unused_end(topology, link)):
            where = f", a port of {master.name}," if (master := topology.master_of(link)) else ""
            sentence = f"The other end of {link.name}{where} {reason}."
            advice = f"delete it, if nothing needs it; run: ip link delete {quote(link.name)}"
            yield Finding("orphan", link_ref(link.key), "orphan veth", sentence, "info", (), advice)


def _unused_end(topology: Topology, link: Link) -> str:
    """Return how a veth's other end is unused, "" if it is used or that isn't known."""
    peer = topology.peer(link)
    space = topology.snapshot.namespaces.get(peer.ns) if peer is not None else None
    if space is None or space.is_host or topology.containers_in(space.inode) or _is_used(space):
        return ""
    holder = f" (pid {space.held_fds[0][0]} keeps it open)" if space.held_fds else ""
    return f"is in a namespace without processes and name{holder}"


def _is_used(space: Namespace) -> bool:
    return bool(space.pids or space.names or space.mounts or space.unit)


def empty_namespaces(topology: Topology) -> Iterator[Finding]:
    """Find named namespaces without processes and without a link that is up."""
    for ns, space in topology.snapshot.namespaces.items():
        net = topology.snapshot.nets.get(ns)
        if not space.names or space.is_host or space.pids or space.held_fds or net is None or not net.links:
            continue
        if any(one.kind != "loopback" or one.admin_up for one in net.links.values()):
            continue
        container = topology.container_of(ns)
        ref = container_ref(container.runtime, container.id) if container else namespace_ref(ns)
        sentence = f"The namespace {space.names[0]} has no process and no link that is up: nothing uses it."
        advice = f"delete it, if nothing needs it; run: ip netns delete {quote(space.names[0])}"
        yield Finding("orphan", ref, "empty namespace", sentence, "info", (namespace_ref(ns),), advice)


def rules_without_container(topology: Topology) -> Iterator[Finding]:
    """Find forward rules of the host for addresses of a network that no container has."""
    subnets = [
        (prefix, network)
        for network in topology.networks
        if network.engine in _ENGINES and network.driver == "bridge" and topology.bridge_link(network)
        for one in network.subnets
        for prefix in prefixes(one) or ()
    ]
    for entry in topology.nat if subnets else ():
        if entry.ns == topology.host and entry.kind == "filter" and not entry.containers:
            gone = [
                found for text in (entry.inside, entry.outside) if (found := _gone(topology, text, subnets))
            ]
            if gone:
                yield _without_container(entry, *gone[0])


def _gone(topology: Topology, text: str, subnets: list[tuple[Prefix, Network]]) -> tuple[str, Network] | None:
    """Return an address and its network, if no container and no bridge has it."""
    found = prefixes(text) if text else None
    if not found or len(found) > 1 or found[0].num_addresses > 1:
        return None
    address = found[0].network_address
    network = next((each for prefix, each in subnets if address in prefix), None)
    if network is None or topology.container_at(topology.host, str(address)) is not None:
        return None
    bridge = topology.bridge_link(network)
    own = {ip_address(one.address) for one in bridge.addresses} if bridge else set()
    return None if address in own else (str(address), network)


def _without_container(entry: NatEntry, address: str, network: Network) -> Finding:
    sentence = f"The rule {entry.name} is for {address}, but no container of {network.name} has that address."
    fix = Fix(f"delete the rule {entry.name}", tuple(FixFirewall(entry.ns, one) for one in entry.doing))
    ref, related = nat_ref(entry.ns, entry.entry_id), (network_ref(network.id),)
    short = f"rule for {address}, which is gone"
    return Finding("orphan", ref, short, sentence, "info", related, fix.sentence, (), fix)
