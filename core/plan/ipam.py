"""Find free subnets and addresses that nothing on the host uses."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from itertools import islice

from core.model import Snapshot
from core.plan.tags import vnet_state

type Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network
type Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Free IPv4 subnets are searched here, in this order; engines assign from other pools first.
_POOLS = tuple(map(ipaddress.IPv4Network, ("10.64.0.0/10", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_SUBNET_BITS = {4: 24, 6: 64}
# A neighbour in one of these states didn't answer: its address isn't in use.
_SILENT = ("failed", "incomplete", "none")
# After this many used addresses a subnet counts as exhausted.
_MAX_TRIED = 70_000


class Exhausted(Exception):
    """No free subnet or address is left; the message says where."""


def taken_prefixes(snapshot: Snapshot, everywhere: bool = True) -> dict[Prefix, str]:
    """Return the prefixes in use and a description of each user.

    These are the prefixes of addresses, routes and engines' networks, of all namespaces or (`everywhere`
    False) of the host alone, without default routes and without loopback, link-local and multicast.
    """
    found: dict[Prefix, str] = {}
    host = snapshot.host.netns
    for own in vnet_state(snapshot, host).networks.values():
        for subnet in own.subnets:
            found.setdefault(ipaddress.ip_network(subnet, strict=False), f"network {own.name}")
    for engine in snapshot.engines.values():
        for network in engine.networks:
            for subnet in network.subnets:
                found.setdefault(parse_prefix(subnet), f"{engine.name}'s network {network.name}")
    for ns, net in snapshot.nets.items():
        if ns != host and not everywhere:
            continue
        for link in net.links.values():
            for one in link.addresses:
                found.setdefault(parse_prefix(str(one)), f"{link.name}'s address {one}")
        for route in net.routes:
            if route.dst != "default" and route.kind not in ("local", "broadcast", "anycast", "multicast"):
                found.setdefault(parse_prefix(route.dst), f"the route to {route.dst}")
    return {prefix: who for prefix, who in found.items() if not _is_common(prefix)}


@lru_cache(4096)
def parse_prefix(text: str) -> Prefix:
    """Parse a prefix, or an address with prefix length. Raises ValueError."""
    return ipaddress.ip_network(text.partition("%")[0], strict=False)


def _is_common(prefix: Prefix) -> bool:
    """Return whether every host may have this prefix."""
    first = prefix.network_address
    # A prefix shorter than /8 is half of a default route ("0.0.0.0/1", as VPNs set it).
    return first.is_loopback or first.is_link_local or first.is_multicast or prefix.prefixlen < 8


def overlap(prefix: Prefix, taken: dict[Prefix, str]) -> str:
    """Describe the user of a prefix that overlaps this one, "" for none."""
    return next((who for other, who in taken.items() if overlaps(prefix, other)), "")


def overlaps(one: Prefix, other: Prefix) -> bool:
    """Return whether two prefixes have addresses in common."""
    return one.version == other.version and one.overlaps(other)


def propose_subnet(snapshot: Snapshot, family: int = 4, reserved: Iterable[str] = ()) -> str:
    """Propose a free IPv4 /24, or an IPv6 /64 of this host's unique local prefix.

    The prefix is that of RFC 4193. `reserved` are prefixes of plans that aren't applied yet. Raises
    Exhausted.
    """
    taken = set(taken_prefixes(snapshot)) | set(map(parse_prefix, reserved))
    ranges = sorted(
        (int(one.network_address), int(one.broadcast_address)) for one in taken if one.version == family
    )
    for pool in _POOLS if family == 4 else (_local_prefix(snapshot),):
        found = _gap(pool, 1 << (pool.max_prefixlen - _SUBNET_BITS[family]), ranges)
        if found is not None:
            first = ipaddress.IPv4Address(found) if family == 4 else ipaddress.IPv6Address(found)
            return f"{first}/{_SUBNET_BITS[family]}"
    raise Exhausted(f"no IPv{family} subnet is free. Try: choose one yourself")


def _gap(pool: Prefix, size: int, taken: list[tuple[int, int]]) -> int | None:
    """Return the first address of the first aligned gap of that size.

    `taken`: (first, last), ascending.
    """
    at, end = int(pool.network_address), int(pool.broadcast_address)
    for first, last in taken:
        if at + size <= first:
            break
        at = max(at, (last // size + 1) * size)
    return at if at + size - 1 <= end else None


def _local_prefix(snapshot: Snapshot) -> ipaddress.IPv6Network:
    """Return an fdXX:XXXX:XXXX::/48 that depends on the host name only."""
    global_id = hashlib.sha256(snapshot.host.hostname.encode()).digest()[:5]
    return ipaddress.IPv6Network((b"\xfd" + global_id + bytes(10), 48))


def used_addresses(snapshot: Snapshot) -> set[str]:
    """Return every address in use as text.

    These are the addresses of links of all namespaces, of neighbours that answered, and of endpoints and
    gateways of engines.
    """
    found: set[str] = set()
    for net in snapshot.nets.values():
        for link in net.links.values():
            found.update(one.address for one in link.addresses)
        found.update(one.address for one in net.neighbours if one.state not in _SILENT)
    for engine in snapshot.engines.values():
        for container in engine.containers:
            for end in container.endpoints:
                found.update(text.partition("/")[0] for text in (end.ipv4, end.ipv6, end.gateway) if text)
        for network in engine.networks:
            found.update(network.gateways)
    for own in vnet_state(snapshot, snapshot.host.netns).networks.values():
        found.update(own.gateways)
    return found


def hosts(prefix: Prefix) -> Iterator[Address]:
    """Yield the host addresses of a prefix.

    They exclude the network and broadcast address (IPv4, shorter than /31), and the subnet-router anycast
    address (IPv6, shorter than /127).
    """
    first, last = int(prefix.network_address), int(prefix.broadcast_address)
    if prefix.num_addresses > 2:
        first += 1
        last -= 1 if prefix.version == 4 else 0
    make = ipaddress.IPv4Address if prefix.version == 4 else ipaddress.IPv6Address
    return (make(number) for number in range(first, last + 1))


def next_address(subnet: str, used: Collection[str]) -> str:
    """Return a subnet's lowest free address, without prefix length.

    Raises Exhausted.
    """
    prefix = ipaddress.ip_network(subnet)
    for address in islice(hosts(prefix), _MAX_TRIED):
        if str(address) not in used:
            return str(address)
    raise Exhausted(f"no address is free in {subnet}")


def stable_mac(hostname: str, link: str) -> str:
    """Return a MAC address that depends on host and link name only.

    A bridge's default changes with its ports, while containers have it cached for their gateway.
    """
    digest = hashlib.sha256(f"{hostname}/{link}".encode()).digest()
    return (b"\x02" + digest[:5]).hex(":")
