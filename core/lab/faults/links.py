"""List faults of links, bridges, their ports and neighbours."""

from __future__ import annotations

from core.lab import builder
from core.lab.blueprint import CONTAINERS
from core.lab.faults.fault import HOST, Culprit, Fault, Probe

# What each probe needs: the published ports, a neighbour in the same network, the internet.
_WEB1_PORT = Probe("internet", "192.0.2.10", port=8080)
_WEB2_PORT = Probe("internet", "192.0.2.10", port=8081)
_WEB1_TO_API = Probe("web1", "api", port=8000)
_API_TO_WEB1 = Probe("api", "web1", port=80)
_API_TO_DB = Probe("api", "db", port=5432)
_WEB1_OUT = Probe("web1", "203.0.113.80", port=443)

_WEB1_MAC = "02:42:ac:12:00:02"
_CACHE = next(one for one in CONTAINERS if one.name == "cache")


def _recreate_cache() -> tuple[str, ...]:
    """Return the commands that recreate `cache` in a new network namespace."""
    (port,) = _CACHE.ports
    return (
        "lab stop cache", "ip link del v-cache", "ip netns del cache", "ip netns add cache",
        *(f"ip {line}" for line in builder.veth(_CACHE, port)),
        *(f"ip -n cache {line}" for line in builder.container_batch(_CACHE)),
        "lab start cache",
    )  # fmt: skip


LINKS = (
    Fault(
        "host-end-down", "The host's end of web1's veth pair is down",
        ("ip link set v-web1 down",), _WEB1_PORT, Culprit("link", "v-web1"),
        undo=("ip link set v-web1 up",),
    ),
    Fault(
        "container-end-down", "eth0 in web1 is down",
        ("ip -n web1 link set eth0 down",), _WEB1_PORT, Culprit("link", "eth0", "web1"),
        undo=("ip -n web1 link set eth0 up", "ip -n web1 route replace default via 172.18.0.1"),
    ),
    Fault(
        "bridge-down", "The bridge br-data is down",
        ("ip link set br-data down",), _API_TO_DB, Culprit("link", "br-data"),
        undo=("ip link set br-data up",),
    ),
    Fault(
        "uplink-down", "The host's uplink eth0 is down",
        ("ip link set eth0 down",), _WEB1_OUT, Culprit("link", "eth0"),
        undo=(
            "ip link set eth0 up",
            "ip addr replace 2001:db8::10/64 dev eth0 nodad",
            "ip route replace default via 192.0.2.1",
            "ip -6 route replace default via 2001:db8::1",
        ),
    ),
    Fault(
        "container-mtu", "eth0 in web1 has MTU 600",
        ("ip -n web1 link set eth0 mtu 600",),
        Probe("api", "web1", "icmp", size=1400), Culprit("link", "eth0", "web1"),
        undo=("ip -n web1 link set eth0 mtu 1500",),
    ),
    Fault(
        "blog-mtu", "eth0 in blog has MTU 1500, its bridge and port have 1400",
        ("ip -n blog link set eth0 mtu 1500",),
        Probe("blog", "172.19.0.1", "icmp", size=1450), Culprit("link", "eth0", "blog"),
        undo=("ip -n blog link set eth0 mtu 1400",),
    ),
    Fault(
        "bridge-mtu", "br-shop has MTU 9000, all its ports 1500",
        ("ip link set br-shop mtu 9000",),
        Probe(HOST, "web1", "icmp", size=4000), Culprit("link", "br-shop"),
        undo=("ip link set br-shop mtu 1500",),
    ),
    Fault(
        "uplink-mtu", "The host's uplink eth0 has MTU 1400, the provider sends 1500",
        ("ip link set eth0 mtu 1400",),
        Probe("internet", "192.0.2.10", "udp", port=3478, size=1450), Culprit("link", "eth0"),
        undo=("ip link set eth0 mtu 1500",),
    ),
    Fault(
        "port-off-bridge", "web2's veth pair isn't attached to its bridge",
        ("ip link set v-web2 nomaster",), _WEB2_PORT, Culprit("link", "v-web2"),
        undo=("ip link set v-web2 master br-shop",),
    ),
    Fault(
        "port-isolated", "The bridge ports of web1 and api are isolated from each other",
        ("bridge link set dev v-web1 isolated on", "bridge link set dev v-api isolated on"),
        _WEB1_TO_API, Culprit("link", "v-web1"),
        undo=("bridge link set dev v-web1 isolated off", "bridge link set dev v-api isolated off"),
    ),
    Fault(
        # Without STP the kernel keeps no blocking state: br_set_port_state() in net/bridge/br_netlink.c.
        "stp-listening", "STP keeps web2's bridge port listening and learning for a minute",
        (
            "ip link set br-shop type bridge stp_state 1 forward_delay 3000",
            "ip link set v-web2 down",
            "ip link set v-web2 up",
        ),
        _WEB2_PORT, Culprit("link", "v-web2"),
        undo=(
            "ip link set br-shop type bridge stp_state 0 forward_delay 1500",
            "bridge link set dev v-web2 state 3",
        ),
    ),
    Fault(
        "port-disabled", "STP state disabled on db's bridge port",
        ("bridge link set dev v-db state 0",), _API_TO_DB, Culprit("link", "v-db"),
        undo=("bridge link set dev v-db state 3",),
    ),
    Fault(
        "port-locked", "web2's bridge port is locked and its MAC address isn't allowed",
        ("bridge link set dev v-web2 locked on", "ip link set dev v-web2 type bridge_slave fdb_flush"),
        _WEB2_PORT, Culprit("link", "v-web2"),
        undo=("bridge link set dev v-web2 locked off",),
    ),
    Fault(
        "port-silent", "web1's bridge port neither learns addresses nor gets flooded frames",
        (
            "bridge link set dev v-web1 learning off flood off",
            "ip link set dev v-web1 type bridge_slave fdb_flush",
        ),
        _API_TO_WEB1, Culprit("link", "v-web1"),
        undo=("bridge link set dev v-web1 learning on flood on",),
    ),
    Fault(
        "vlan-mismatch", "br-shop filters VLANs, and web2's port is in VLAN 20 instead of 1",
        (
            "ip link set br-shop type bridge vlan_filtering 1",
            "bridge vlan del dev v-web2 vid 1",
            "bridge vlan add dev v-web2 vid 20 pvid untagged",
        ),
        _WEB2_PORT, Culprit("link", "v-web2"),
        undo=(
            "bridge vlan del dev v-web2 vid 20",
            "bridge vlan add dev v-web2 vid 1 pvid untagged",
            "ip link set br-shop type bridge vlan_filtering 0",
        ),
    ),
    Fault(
        "fdb-wrong-port", "A sticky fdb entry sends web1's frames to web2's port",
        (f"bridge fdb replace {_WEB1_MAC} dev v-web2 master sticky static",),
        _API_TO_WEB1, Culprit("fdb entry", _WEB1_MAC),
        undo=(f"bridge fdb del {_WEB1_MAC} dev v-web2 master",),
    ),
    Fault(
        "neighbour-wrong", "web1 has a permanent neighbour entry for api with a MAC address that no one has",
        ("ip -n web1 neigh replace 172.18.0.4 lladdr 02:00:00:00:00:99 nud permanent dev eth0",),
        _WEB1_TO_API, Culprit("neighbour", "172.18.0.4", "web1"),
        undo=("ip -n web1 neigh del 172.18.0.4 dev eth0",),
    ),
    Fault(
        "gateway-neighbour-wrong", "The host has a permanent neighbour entry with a wrong MAC for its router",
        ("ip neigh replace 192.0.2.1 lladdr 02:00:00:00:00:98 nud permanent dev eth0",),
        _WEB1_OUT, Culprit("neighbour", "192.0.2.1"),
        undo=("ip neigh del 192.0.2.1 dev eth0",),
    ),
    Fault(
        "arp-off", "eth0 in web1 doesn't use ARP",
        ("ip -n web1 link set eth0 arp off",), _WEB1_TO_API, Culprit("link", "eth0", "web1"),
        undo=("ip -n web1 link set eth0 arp on",),
    ),
    Fault(
        "arp-ignored", "web1 doesn't answer ARP requests (arp_ignore=8)",
        (
            "ip netns exec web1 sysctl -qw net/ipv4/conf/eth0/arp_ignore=8",
            "ip -n api neigh flush dev eth0",
        ),
        _API_TO_WEB1, Culprit("sysctl", "net.ipv4.conf.eth0.arp_ignore", "web1"),
    ),
    Fault(
        "duplicate-address", "web2 has api's address 172.18.0.4 too",
        (
            "ip -n web2 addr add 172.18.0.4/16 dev eth0",
            "ip -n web1 neigh flush dev eth0",
            # Its ARP request makes web1 learn the wrong MAC address.
            "ip netns exec web2 ping -c 1 -W 1 -q -I 172.18.0.4 172.18.0.2",
        ),
        _WEB1_TO_API, Culprit("address", "172.18.0.4", "web2"),
        undo=("ip -n web2 addr del 172.18.0.4/16 dev eth0", "ip -n web1 neigh flush dev eth0"),
    ),
    Fault(
        "duplicate-mac", "web2 has web1's MAC address",
        (
            # New neighbour entries aren't probed during the next seconds: any packet of web1, an answer too,
            # makes the bridge learn its port again.
            "ip -n api neigh flush dev eth0",
            "ip netns exec api ping -c 1 -W 1 -q 172.18.0.2",
            "ip -n web1 neigh flush dev eth0",
            f"ip -n web2 link set eth0 address {_WEB1_MAC}",
            "ip netns exec web2 ping -c 1 -W 1 -q 172.18.0.1",  # the bridge learns the wrong port
        ),
        _API_TO_WEB1, Culprit("link", "eth0", "web2"),
        undo=(
            "ip -n web2 link set eth0 address 02:42:ac:12:00:03",
            "ip netns exec web1 ping -c 1 -W 1 -q 172.18.0.1",
        ),
    ),
    Fault(
        "dead-namespace", "cache was recreated; its sidecar cache-stats is in the old network namespace",
        _recreate_cache(), Probe("cache-stats", "10.89.0.3", port=6379), Culprit("container", "cache-stats"),
        undo=("lab stop cache-stats", "lab start cache-stats"),
    ),
    Fault(
        "loopback-down", "The loopback link of web1 is down",
        ("ip -n web1 link set lo down",),
        Probe("web1", "127.0.0.1", port=80), Culprit("link", "lo", "web1"),
        undo=("ip -n web1 link set lo up",),
    ),
)  # fmt: skip
