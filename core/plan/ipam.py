"""Free subnets and free addresses: none that overlaps or is in use anywhere on the host."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from itertools import islice

from core.model import Snapshot
from core.plan.tags import ours

type Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network
type Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Where free IPv4 subnets are looked for, in this order; engines hand out others first.
_POOLS = tuple(map(ipaddress.IPv4Network, ("10.64.0.0/10", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_SUBNET_BITS = {4: 24, 6: 64}
# A neighbour in one of these states did not answer: its address is not in use.
_SILENT = ("failed", "incomplete", "none")
# Beyond this many addresses tried in vain a subnet counts as exhausted.
_MOST_TRIED = 70_000


class Exhausted(Exception):
    """Nothing free is left; the text says where."""


def taken_prefixes(snapshot: Snapshot, everywhere: bool = True) -> dict[Prefix, str]:
    """What is taken by whom, in words: prefixes of links' addresses, routes and engines' networks, of all
    namespaces or (`everywhere` False) of the host's alone; default routes and what each host has (loopback,
    link-local, multicast) are left out."""
    found: dict[Prefix, str] = {}
    host = snapshot.host.netns
    for own in ours(snapshot, host).networks.values():
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
    return {prefix: who for prefix, who in found.items() if not _everyones(prefix)}


@lru_cache(4096)
def parse_prefix(text: str) -> Prefix:
    """A prefix, or that of an address with its prefix length. Raises ValueError."""
    return ipaddress.ip_network(text.partition("%")[0], strict=False)


def _everyones(prefix: Prefix) -> bool:
    first = prefix.network_address
    # Shorter than /8 is a default route in pieces ("0.0.0.0/1", as a VPN sets it).
    return first.is_loopback or first.is_link_local or first.is_multicast or prefix.prefixlen < 8


def overlap(prefix: Prefix, taken: dict[Prefix, str]) -> str:
    """Whom a prefix overlaps with, in words; "" where with nobody."""
    return next((who for other, who in taken.items() if overlaps(prefix, other)), "")


def overlaps(one: Prefix, other: Prefix) -> bool:
    """Whether two prefixes have addresses in common."""
    return one.version == other.version and one.overlaps(other)


def propose_subnet(snapshot: Snapshot, family: int = 4, reserved: Iterable[str] = ()) -> str:
    """A free /24, or a free IPv6 /64 of this host's own unique local prefix (RFC 4193). `reserved` are
    prefixes of plans that are not done yet. Raises Exhausted."""
    taken = set(taken_prefixes(snapshot)) | set(map(parse_prefix, reserved))
    mine = sorted(
        (int(one.network_address), int(one.broadcast_address)) for one in taken if one.version == family
    )
    for pool in _POOLS if family == 4 else (_local_prefix(snapshot),):
        found = _gap(pool, 1 << (pool.max_prefixlen - _SUBNET_BITS[family]), mine)
        if found is not None:
            first = ipaddress.IPv4Address(found) if family == 4 else ipaddress.IPv6Address(found)
            return f"{first}/{_SUBNET_BITS[family]}"
    raise Exhausted(f"no IPv{family} subnet is free: give one yourself")


def _gap(pool: Prefix, size: int, taken: list[tuple[int, int]]) -> int | None:
    """The first address of the first aligned gap of that size; `taken` are (first, last), ascending."""
    at, end = int(pool.network_address), int(pool.broadcast_address)
    for first, last in taken:
        if at + size <= first:
            break
        at = max(at, (last // size + 1) * size)
    return at if at + size - 1 <= end else None


def _local_prefix(snapshot: Snapshot) -> ipaddress.IPv6Network:
    """An fdXX:XXXX:XXXX::/48 that is the same on this host each time."""
    global_id = hashlib.sha256(snapshot.host.hostname.encode()).digest()[:5]
    return ipaddress.IPv6Network((b"\xfd" + global_id + bytes(10), 48))


def used_addresses(snapshot: Snapshot) -> set[str]:
    """Every address in use, in text: links' of all namespaces, neighbours that answered, engines' endpoints
    and gateways."""
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
    for own in ours(snapshot, snapshot.host.netns).networks.values():
        found.update(own.gateways)
    return found


def hosts(prefix: Prefix) -> Iterator[Address]:
    """The addresses that a prefix has for its members: without network and broadcast address (IPv4, shorter
    than /31), without the subnet-router anycast address (IPv6, shorter than /127)."""
    first, last = int(prefix.network_address), int(prefix.broadcast_address)
    if prefix.num_addresses > 2:
        first += 1
        last -= 1 if prefix.version == 4 else 0
    make = ipaddress.IPv4Address if prefix.version == 4 else ipaddress.IPv6Address
    return (make(number) for number in range(first, last + 1))


def next_address(subnet: str, used: Collection[str]) -> str:
    """The lowest free address of a subnet, without prefix length. Raises Exhausted."""
    prefix = ipaddress.ip_network(subnet)
    for address in islice(hosts(prefix), _MOST_TRIED):
        if str(address) not in used:
            return str(address)
    raise Exhausted(f"no address is free in {subnet}")
