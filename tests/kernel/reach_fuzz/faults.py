"""Break a random host in ways that people and programs break hosts."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.kernel.reach_fuzz.cases import Case


def add(case: Case, rng: random.Random) -> None:
    """Add one fault."""
    one = rng.choice(case.containers)
    bridge = rng.choice(case.bridges)[0]
    inner = "eth0"
    port = f"v{one.name}0" if one.links[0][0] else "eth0"
    enter = f"nsenter --net=/run/netns/{one.name}"
    other = rng.choice(case.containers)
    own = rng.choice(one.addresses)
    options = [
        f"ip link set {port} down",
        f"ip -n {one.name} link set {inner} down",
        f"ip link set {bridge} down",
        f"ip link set {port} mtu 600",
        "ip route del default",
        "ip route replace default via 192.0.2.99",
        "ip -6 route del default",
        f"ip -n {one.name} route del default",
        f"ip -n {one.name} route add 203.0.113.0/24 via {own}" if ":" not in own else "true",
        f"ip -n {one.name} route add blackhole 203.0.113.0/24",
        f"ip -n {one.name} route add unreachable 10.20.0.0/16",
        "ip route add prohibit 203.0.113.80",
        "ip -6 route add unreachable 2001:db8:80::80",
        "ip -n outside route add blackhole 192.0.2.10/32",
        f"sysctl -qw net/ipv4/conf/{bridge}/rp_filter=1",
        "sysctl -qw net/ipv4/conf/all/rp_filter=1",
        "sysctl -qw net/ipv4/conf/all/rp_filter=2",
        f"{enter} sysctl -qw net/ipv4/conf/eth0/rp_filter=1",
        "sysctl -qw net/ipv4/ip_forward=0",
        "sysctl -qw net/ipv6/conf/all/forwarding=0",
        f"sysctl -qw net/ipv4/conf/{bridge}/forwarding=0",
        f"{enter} sysctl -qw net/ipv6/conf/eth0/disable_ipv6=1",
        f"{enter} sysctl -qw net/ipv4/icmp_echo_ignore_all=1",
        f"{enter} sysctl -qw net/ipv4/ip_default_ttl=1",
        f"{enter} sysctl -qw net/ipv4/conf/eth0/arp_ignore=8",
        f"ip -n {one.name} link set eth0 arp off",
        f"ip -n {one.name} neigh replace {_gateway(one.links[0])} lladdr 02:00:00:00:00:99 dev eth0",
        "ip neigh replace 192.0.2.1 lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
        f"ip addr del {_gateway4(bridge)}/24 dev {bridge}",
        f"ip addr add {own}/{128 if ':' in own else 32} dev lo",
        f"sysctl -qw net/ipv4/conf/{bridge}/route_localnet=1",
        "sysctl -qw net/bridge/bridge-nf-call-iptables=1",
        "sysctl -qw net/bridge/bridge-nf-call-ip6tables=1",
        f"ip -n {one.name} addr add 10.2{bridge[2:]}.0.1/32 dev lo",
        "ip route add throw 203.0.113.80",
        "ip route replace default via 192.0.2.1 src 10.20.0.1",
        "sysctl -qw net/ipv4/conf/eth0/proxy_arp=1",
        f"ip -n {other.name} route replace default via 10.2{bridge[2:]}.0.77",
    ]
    if one.links[0][0] and one.name != "deep":
        options += [
            f"ip link set {port} nomaster",
            f"bridge link set dev {port} isolated on",
            f"bridge link set dev {port} hairpin on",
            f"bridge link set dev {port} flood off learning off",
            f"bridge link set dev {port} locked on learning off",
            f"bridge link set dev {port} state 0",
            f"bridge link set dev {port} learning off",
            f"bridge fdb replace {_mac(one.name)} dev {port} master static",
            f"bridge fdb replace {_mac(other.name)} dev {port} master static",
            f"ip -n {one.name} addr add 10.2{one.links[0][0][2:]}.0.50/24 dev eth0",
        ]
        options += _same_mac(one.name, other.name)
    case.faults.append(rng.choice(options))


def _same_mac(one: str, other: str) -> list[str]:
    return [f"ip -n {one} link set eth0 address {_mac(other)}"] if one != other else []


def _mac(name: str) -> str:
    return f"$(ip -n {name} -br link show eth0 | awk '{{print $3}}')"


def _gateway(link: tuple[str, str, str]) -> str:
    bridge, ipv4, _ = link
    net = bridge.removeprefix("br")
    if not bridge:
        return "192.0.2.1"
    return f"10.2{net}.0.1" if ipv4 else f"fd00:2{net}::1"


def _gateway4(bridge: str) -> str:
    return f"10.2{bridge.removeprefix('br')}.0.1"
