"""The lab's links, addresses and routes, as batches for ip(8)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from core.lab.blueprint import (
    CONTAINERS,
    INTERNET,
    INTERNET_ADDRESSES,
    NETWORKS,
    OVERLAP,
    UPLINK,
    UPLINK_ADDRESSES,
    UPLINK_GATEWAYS,
    LabContainer,
    LabNetwork,
    LabPort,
)


def netns_names() -> list[str]:
    """The named network namespaces of the lab, in the order in which they are made."""
    return [container.name for container in CONTAINERS if container.own_netns]


def host_batch() -> list[str]:
    """What makes the host's links: bridges, the host ends of veth pairs, the uplink, routes."""
    lines = ["link set lo up"]
    for network in (*NETWORKS, OVERLAP):
        lines += _bridge(network)
    for container in CONTAINERS:
        for port in container.ports:
            lines += _veth(container, port)
    return lines + _uplink()


def container_batch(container: LabContainer) -> list[str]:
    """What makes a container's own side: addresses, and default routes where a NAT network leads out."""
    lines = ["link set lo up"]
    for port in container.ports:
        lines += _addresses(port.inside, port.addresses)
        lines.append(f"link set {port.inside} up")
        network = network_of(port)
        if network.nat:
            lines += [f"route add default via {_plain(gateway)}" for gateway in network.addresses]
    return lines


def internet_batch() -> list[str]:
    """What makes the internet's side of the uplink, and everything that answers behind it."""
    gateways = [f"{gateway}/{64 if ':' in gateway else 24}" for gateway in UPLINK_GATEWAYS]
    return [
        "link set lo up",
        *_addresses("lo", INTERNET_ADDRESSES),
        *_addresses("wan0", gateways),
        "link set wan0 up",
    ]


def extra_host_batch(name: str) -> list[str]:
    """What joins one further plain namespace to the host by a veth pair."""
    return [f"link add v-{name} type veth peer name eth0 netns {name}", f"link set v-{name} up"]


def extra_batch(number: int) -> list[str]:
    """What gives that namespace, the number-th, an address and a running loopback."""
    address = ipaddress.ip_address("10.99.0.1") + number
    return ["link set lo up", f"addr add {address}/32 dev eth0", "link set eth0 up"]


def network_of(port: LabPort) -> LabNetwork:
    """The network that a container's port belongs to."""
    return next(network for network in NETWORKS if network.bridge == port.bridge)


def without_ipv6(lines: list[str]) -> list[str]:
    """The lines that a machine with IPv6 switched off can still take (MAC addresses have no "::")."""
    return [line for line in lines if "::" not in line]


def _bridge(network: LabNetwork) -> Iterator[str]:
    name = network.bridge
    yield f"link add {name} address {_mac(network.addresses[0])} type bridge"
    yield f"link set {name} mtu {network.mtu}"
    yield from _addresses(name, network.addresses)
    yield f"link set {name} up"


def _veth(container: LabContainer, port: LabPort) -> Iterator[str]:
    # eth0 of web1 is v-web1 on the host, eth1 of api is v-api1.
    host_end = f"v-{container.name}{port.inside.removeprefix('eth').strip('0')}"
    mtu = network_of(port).mtu
    yield (
        f"link add {host_end} mtu {mtu} type veth peer name {port.inside} mtu {port.mtu} "
        f"address {_mac(port.addresses[0])} netns {container.name}"
    )
    yield f"link set {host_end} master {port.bridge} up"


def _uplink() -> list[str]:
    return [
        f"link add {UPLINK} address {_mac(UPLINK_ADDRESSES[0])} type veth peer name wan0 netns {INTERNET}",
        *_addresses(UPLINK, UPLINK_ADDRESSES),
        f"link set {UPLINK} up",
        *(f"route add default via {gateway}" for gateway in UPLINK_GATEWAYS),
    ]


def _addresses(link: str, addresses: tuple[str, ...] | list[str]) -> list[str]:
    # Without duplicate address detection (nodad), so that IPv6 works at once.
    return [f"addr add {address} dev {link}{' nodad' if ':' in address else ''}" for address in addresses]


def _mac(address: str) -> str:
    # As Docker makes them: locally administered 02:42, then the IPv4 address.
    packed = ipaddress.ip_interface(address).ip.packed
    return "02:42:" + ":".join(f"{byte:02x}" for byte in packed)


def _plain(address: str) -> str:
    return str(ipaddress.ip_interface(address).ip)
