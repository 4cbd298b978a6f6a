"""Derive what all hosts of a VXLAN overlay agree on without talking to each other.

VNI and subnet follow from the network's name, the gateway's MAC from the VNI, and the range that a host
assigns addresses from follows from its address in the underlay.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence

from core.model import NetState
from core.operations.links import VXLAN_PORT
from core.reach.packet import Packet
from core.reach.routing import RoutingTables
from core.reach.underlay import has_address, link_to

MOST_VNI = 2**24 - 1
# Docker assigns VNIs from 4096 on, one by one; flannel has 1, Calico 4096.
_FIRST_VNI = 65536
# Subnets by name: /20 of this prefix, and /64 of fdf0::/16.
_SUBNETS4, _SUBNET4_BITS = ipaddress.IPv4Network("10.128.0.0/9"), 20
_SUBNETS6, _SUBNET6_BITS = ipaddress.IPv6Network("fdf0::/16"), 64
# A subnet has at most 2**8 ranges, one for each host.
_MOST_RANGE_BITS = 8


def vni_by_name(name: str) -> int:
    """Return the VNI of a network that is given none."""
    return _FIRST_VNI + _digest(name, "vni") % (MOST_VNI + 1 - _FIRST_VNI)


def subnet_by_name(name: str, family: int) -> str:
    """Return the subnet of a network that is given none: an IPv4 /20 or an IPv6 /64."""
    pool, bits = (_SUBNETS4, _SUBNET4_BITS) if family == 4 else (_SUBNETS6, _SUBNET6_BITS)
    number = _digest(name, f"subnet{family}") % (1 << (bits - pool.prefixlen))
    first = int(pool.network_address) + (number << (pool.max_prefixlen - bits))
    return str(ipaddress.ip_network((first, bits)))


def _digest(name: str, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose}/{name}".encode()).digest()[:8])


def gateway_mac(vni: int) -> str:
    """Return the MAC of the gateway, which is the same on all hosts."""
    return (b"\x02\x00\x5e" + vni.to_bytes(3)).hex(":")


def container_mac(addresses: Sequence[str]) -> str:
    """Return the MAC of a container that follows from its first address.

    So a host that knows the address knows the MAC, and it stays the same when the container restarts.
    """
    packed = ipaddress.ip_interface(addresses[0]).ip.packed
    return (b"\x0a\x58" + packed[-4:]).hex(":")


def range_of(subnet: str, host: str) -> str:
    """Return the part of a subnet that a host assigns addresses of.

    `host` is its address in the underlay. The last bits of it choose the range, so that further hosts change
    none. Hosts of one /24 never share one of 256 ranges.
    """
    prefix = ipaddress.ip_network(subnet)
    bits = min(_MOST_RANGE_BITS, (prefix.max_prefixlen - prefix.prefixlen) // 2)
    number = int(ipaddress.ip_address(host)) % (1 << bits)
    length = prefix.prefixlen + bits
    first = int(prefix.network_address) + (number << (prefix.max_prefixlen - length))
    return str(ipaddress.ip_network((first, length)))


def underlay_mtu(local: str, remotes: Sequence[str], net: NetState) -> tuple[int, str]:
    """Return the least MTU of the links to remote hosts, and the link's name.

    (0, "") if unknown. Without remote hosts it is the link that has the local address.
    """
    tables = RoutingTables(net)
    links = [link_to(tables, Packet(local, one, "udp", dport=VXLAN_PORT)) for one in remotes]
    if not remotes:
        links = [one for one in net.links.values() if has_address(one, local)]
    found = [(link.mtu, link.name) for link in links if link]
    return min(found, default=(0, ""))
