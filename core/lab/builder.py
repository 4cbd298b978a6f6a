"""The lab's links, addresses, routes (batches for ip(8)), nft rules and mounts."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from core.lab.blueprint import (
    CONTAINERS,
    DROPPED_ADDRESS,
    INTERNET,
    INTERNET_ADDRESSES,
    NETWORKS,
    OVERLAP,
    PUBLISHED,
    UPLINK,
    UPLINK_ADDRESSES,
    UPLINK_GATEWAYS,
    LabContainer,
    LabNetwork,
    LabPort,
    LabPublishedPort,
)


def netns_names() -> list[str]:
    """Return the named network namespaces of the lab in the order of creation."""
    return [container.name for container in CONTAINERS if container.own_netns]


def host_batch(healthy: bool = False) -> list[str]:
    """Return the batch for the host: bridges, host ends of veth pairs, uplink, routes."""
    lines = ["link set lo up"]
    for network in NETWORKS if healthy else (*NETWORKS, OVERLAP):
        lines += _bridge(network)
    for container in CONTAINERS:
        for port in container.ports:
            lines += veth(container, port, healthy)
    return lines + _uplink()


def container_batch(container: LabContainer) -> list[str]:
    """Return the batch for a container: addresses, default routes by NAT networks."""
    lines = ["link set lo up"]
    for port in container.ports:
        lines += _addresses(port.inside, port.addresses)
        lines.append(f"link set {port.inside} up")
        network = network_of(port)
        if network.nat:
            lines += [f"route add default via {_address(gateway)}" for gateway in network.addresses]
    return lines


def internet_batch() -> list[str]:
    """Return the batch for the internet: its side of the uplink, and server addresses."""
    gateways = [f"{gateway}/{64 if ':' in gateway else 24}" for gateway in UPLINK_GATEWAYS]
    return [
        "link set lo up",
        *_addresses("lo", INTERNET_ADDRESSES),
        *_addresses("wan0", gateways),
        "link set wan0 up",
    ]


def extra_host_batch(name: str) -> list[str]:
    """Return the batch for the veth pair of an additional namespace."""
    return [f"link add v-{name} type veth peer name eth0 netns {name}", f"link set v-{name} up"]


def extra_batch(number: int) -> list[str]:
    """Return the batch in the additional namespace `number`: an address, and lo up."""
    address = ipaddress.ip_address("10.99.0.1") + number
    return ["link set lo up", f"addr add {address}/32 dev eth0", "link set eth0 up"]


def network_of(port: LabPort) -> LabNetwork:
    """Return the network of a container's port."""
    return next(network for network in NETWORKS if network.bridge == port.bridge)


def without_ipv6(lines: list[str]) -> list[str]:
    """Remove lines with IPv6 addresses (MAC addresses have no "::")."""
    return [line for line in lines if "::" not in line]


def _bridge(network: LabNetwork) -> Iterator[str]:
    name = network.bridge
    yield f"link add {name} address {_mac(network.addresses[0])} type bridge"
    yield f"link set {name} mtu {network.mtu}"
    yield from _addresses(name, network.addresses)
    yield f"link set {name} up"


def veth(container: LabContainer, port: LabPort, healthy: bool = False) -> Iterator[str]:
    """Yield the lines for a veth pair; if healthy, both ends have the network's MTU."""
    # eth0 of web1 is v-web1 on the host, eth1 of api is v-api1.
    host_end = f"v-{container.name}{port.inside.removeprefix('eth').strip('0')}"
    mtu = network_of(port).mtu
    yield (
        f"link add {host_end} mtu {mtu} type veth peer name {port.inside} mtu {mtu if healthy else port.mtu} "
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
    # Like Docker: locally administered 02:42, then the IPv4 address.
    packed = ipaddress.ip_interface(address).ip.packed
    return "02:42:" + ":".join(f"{byte:02x}" for byte in packed)


def _address(address: str) -> str:
    return str(ipaddress.ip_interface(address).ip)


def ruleset(ipv6: bool = True, healthy: bool = False) -> str:
    """Return the nft script: tables for NAT, and one that filters forwarded packets."""
    tables = [nat_table("ip"), _forward_table(healthy)]
    if ipv6:
        tables.append(nat_table("ip6"))
    return "\n".join(tables)


def nat_table(family: str) -> str:
    """Return the nft script of the NAT table of a family, "ip" or "ip6"."""
    published = "\n".join(_dnat(publish) for publish in PUBLISHED if _family(publish.address) == family)
    masquerades = "\n".join(
        _masquerade(network, address)
        for network in NETWORKS if network.nat
        for address in network.addresses if _family(address) == family
    )  # fmt: skip
    loopback = "127.0.0.0/8" if family == "ip" else "::1"
    return f"""
table {family} hostnat {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local counter jump published
    }}
    chain output {{
        type nat hook output priority -100; policy accept;
        {family} daddr != {loopback} fib daddr type local counter jump published
    }}
    chain published {{
{published}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
{masquerades}
    }}
}}"""


_AUDIT = (
    f'        oifname "{UPLINK}" ip saddr {DROPPED_ADDRESS} counter drop '
    'comment "web2 stays in during the audit"'
)


def _forward_table(healthy: bool) -> str:
    jumps = "\n".join(
        f'        iifname "{network.bridge}" counter jump {_chain(network)}' for network in NETWORKS
    )
    chains = "\n".join(_network_chain(network) for network in NETWORKS)
    return f"""
table inet hostfw {{
{chains}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established,related counter accept comment "established connections"
        ct state invalid counter drop comment "invalid packets"
{"" if healthy else _AUDIT}
        ct status dnat counter accept comment "published ports"
{jumps}
        counter comment "between networks or from outside: dropped by policy"
    }}
}}"""


def _network_chain(network: LabNetwork) -> str:
    bridge = network.bridge
    # With br_netfilter, bridged packets pass here too.
    rules = [f'oifname "{bridge}" counter accept comment "within {bridge}"']
    if network.nat:
        rules.append(f'oifname "{UPLINK}" counter accept comment "{bridge} to the uplink"')
    else:
        rules.append(f'counter drop comment "{bridge} is internal"')
    body = "\n".join(f"        {rule}" for rule in rules)
    return f"    chain {_chain(network)} {{\n{body}\n    }}"


def _dnat(publish: LabPublishedPort) -> str:
    address = f"[{publish.address}]" if ":" in publish.address else publish.address
    return (
        f"        {publish.l4_proto} dport {publish.host_port} counter "
        f'dnat to {address}:{publish.port} comment "{publish.comment}"'
    )


def _masquerade(network: LabNetwork, address: str) -> str:
    subnet = ipaddress.ip_interface(address).network
    return (
        f'        {_family(address)} saddr {subnet} oifname != "{network.bridge}" counter masquerade '
        f'comment "{network.bridge} with the host address"'
    )


def _chain(network: LabNetwork) -> str:
    return "from_" + network.bridge.removeprefix("br-")


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip"


_libc = ctypes.CDLL(None, use_errno=True)

# sys/mount.h
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2


def make_mounts_private() -> None:
    """Stop the propagation of mounts from and to other mount namespaces."""
    mount("none", "/", "", _MS_REC | _MS_PRIVATE)


def mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    """Mount a file system of that kind; raises OSError (mount(2))."""
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None), target)


def unmount(target: str) -> None:
    """Detach the top mount at `target`, even if in use; raises OSError (umount2(2))."""
    _check(_libc.umount2(target.encode(), _MNT_DETACH), target)


def mount_empty_run() -> None:
    """Mount an empty /run, and unmount all namespaces.

    This hides the sockets of engines and other namespaces, and keeps no namespace alive by a copied mount.
    """
    for target in reversed(_mounts_to_remove()):
        with suppress(OSError):  # hidden under a later mount, so unreachable already
            unmount(target)
    for folder in ("/run", "/var/run"):
        if not Path(folder).is_symlink():
            mount("run", folder, "tmpfs")


def _mounts_to_remove() -> list[str]:
    # Fields of proc_pid_mountinfo(5): 4 is the mount point, with octal escapes; the type follows " - ".
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), left.split()[4])
        if point.startswith(("/run/", "/var/run/")) or right.startswith("nsfs "):
            found.append(point)
    return found


def _check(result: int, target: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)
