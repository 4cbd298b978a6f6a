"""List faults of addresses, routes, forwarding and network sysctls."""

from __future__ import annotations

from core.lab.faults.fault import HOST, Culprit, Fault, Probe

_WEB1_PORT = Probe("internet", "192.0.2.10", port=8080)
_WEB1_OUT = Probe("web1", "203.0.113.80", port=443)
_WEB2_OUT = Probe("web2", "203.0.113.80", port=443)
_API_OUT = Probe("api", "203.0.113.80", port=443)
_BLOG_OUT_IPV6 = Probe("blog", "2001:db8:80::80", port=443)

ROUTING = (
    Fault(
        "host-no-default-route", "The host has no IPv4 default route",
        ("ip route del default",), _WEB1_OUT, Culprit("route", "default"),
        undo=("ip route replace default via 192.0.2.1",),
    ),
    Fault(
        "host-wrong-gateway", "The host's default route leads to 192.0.2.99, which doesn't exist",
        ("ip route replace default via 192.0.2.99",), _WEB1_OUT, Culprit("route", "default"),
        undo=("ip route replace default via 192.0.2.1",),
    ),
    Fault(
        "wrong-source", "The host's default route makes it send from 10.89.0.1, which gets no answers",
        ("ip route replace default via 192.0.2.1 src 10.89.0.1",),
        Probe(HOST, "203.0.113.80", port=443), Culprit("route", "default"),
        undo=("ip route replace default via 192.0.2.1",),
    ),
    Fault(
        "container-no-default-route", "api has no default route",
        ("ip -n api route del default",), _API_OUT, Culprit("route", "default", "api"),
        undo=("ip -n api route replace default via 172.18.0.1",),
    ),
    Fault(
        "container-wrong-gateway", "web2's default route leads to 172.18.0.77, which doesn't exist",
        ("ip -n web2 route replace default via 172.18.0.77",), _WEB2_OUT, Culprit("route", "default", "web2"),
        undo=("ip -n web2 route replace default via 172.18.0.1",),
    ),
    Fault(
        "ip-forward-off", "The host doesn't forward IPv4 (ip_forward=0)",
        ("sysctl -qw net/ipv4/ip_forward=0",), _WEB1_OUT, Culprit("sysctl", "net.ipv4.ip_forward"),
    ),
    Fault(
        "bridge-forwarding-off", "The host doesn't forward what arrives from br-shop",
        ("sysctl -qw net/ipv4/conf/br-shop/forwarding=0",),
        _WEB1_OUT, Culprit("sysctl", "net.ipv4.conf.br-shop.forwarding"),
    ),
    Fault(
        "ipv6-forwarding-off", "The host doesn't forward IPv6",
        ("sysctl -qw net/ipv6/conf/all/forwarding=0",),
        _BLOG_OUT_IPV6, Culprit("sysctl", "net.ipv6.conf.all.forwarding"), ipv6=True,
    ),
    Fault(
        "ipv6-disabled", "IPv6 is disabled on eth0 of blog",
        ("ip netns exec blog sysctl -qw net/ipv6/conf/eth0/disable_ipv6=1",),
        Probe("internet", "2001:db8::10", port=8090),
        Culprit("sysctl", "net.ipv6.conf.eth0.disable_ipv6", "blog"),
        undo=(
            "ip -n blog addr replace fd19:b10c::2/64 dev eth0 nodad",
            "ip -n blog -6 route replace default via fd19:b10c::1",
        ),
        ipv6=True,
    ),
    Fault(
        "rp-filter", "api answers by another link than its requests arrive on, and rp_filter=1 drops them",
        (
            "ip -n api route replace default via 10.89.0.1",
            "ip netns exec api sysctl -qw net/ipv4/conf/eth0/rp_filter=1",
        ),
        Probe("internet", "192.0.2.10", "udp", port=3478, origin="203.0.113.9"),
        Culprit("sysctl", "net.ipv4.conf.eth0.rp_filter", "api"),
        undo=("ip -n api route replace default via 172.18.0.1",),
    ),
    Fault(
        "blackhole-route", "The host has a blackhole route for 203.0.113.0/24",
        ("ip route add blackhole 203.0.113.0/24",), _WEB1_OUT, Culprit("route", "203.0.113.0/24"),
        undo=("ip route del blackhole 203.0.113.0/24",),
    ),
    Fault(
        "return-route", "web2 sends answers for 203.0.113.0/24 to a gateway that doesn't exist",
        ("ip -n web2 route add 203.0.113.0/24 via 172.18.0.77",),
        Probe("internet", "192.0.2.10", port=8081, origin="203.0.113.140"),
        Culprit("route", "203.0.113.0/24", "web2"),
        undo=("ip -n web2 route del 203.0.113.0/24 via 172.18.0.77",),
    ),
    Fault(
        "vpn-route", "A VPN's route 128.0.0.0/1 takes all traffic to the internet, but its peer is gone",
        (
            "ip link add vpn0 type veth peer name vpn0 netns internet",
            "ip -n internet link set vpn0 up",
            "ip addr add 10.8.0.2/24 dev vpn0",
            "ip link set vpn0 up",
            "ip route add 128.0.0.0/1 via 10.8.0.1",
        ),
        _WEB1_OUT, Culprit("route", "128.0.0.0/1"),
        undo=("ip link del vpn0",),
    ),
    Fault(
        "overlapping-subnet", "br-guest has the subnet 172.18.0.0/24, inside that of br-shop",
        (
            "ip link add br-guest type bridge",
            "ip addr add 172.18.0.254/24 dev br-guest",
            "ip link set br-guest up",
        ),
        _WEB1_PORT, Culprit("address", "172.18.0.254/24"),
        undo=("ip link del br-guest",),
    ),
    Fault(
        "policy-rule", "A policy rule sends web1's packets to table 200, which has only a blackhole route",
        ("ip route add blackhole default table 200", "ip rule add from 172.18.0.2 lookup 200 prio 100"),
        _WEB1_OUT, Culprit("policy rule", "from 172.18.0.2 lookup 200"),
        undo=("ip rule del from 172.18.0.2 lookup 200 prio 100", "ip route del blackhole default table 200"),
    ),
    Fault(
        "policy-prohibit", "A policy rule prohibits what api sends through the host",
        ("ip rule add from 172.18.0.4 prio 101 prohibit",),
        _API_OUT, Culprit("policy rule", "from 172.18.0.4 prohibit"),
        undo=("ip rule del from 172.18.0.4 prio 101 prohibit",),
    ),
    Fault(
        "gateway-address-gone", "br-shop has lost its address, which is its containers' gateway",
        ("ip addr del 172.18.0.1/16 dev br-shop",), _WEB1_OUT, Culprit("address", "172.18.0.1"),
        undo=("ip addr replace 172.18.0.1/16 dev br-shop",),
    ),
    Fault(
        "wrong-prefix", "web1's address has prefix /30 instead of /16, so web2 is no neighbour",
        (
            "ip -n web1 addr add 172.18.0.2/30 dev eth0",
            "ip -n web1 addr del 172.18.0.2/16 dev eth0",
            "ip -n web1 route replace default via 172.18.0.1",
        ),
        Probe("web1", "web2", port=80), Culprit("address", "172.18.0.2/30", "web1"),
        undo=(
            "ip -n web1 addr add 172.18.0.2/16 dev eth0",
            "ip -n web1 addr del 172.18.0.2/30 dev eth0",
            "ip -n web1 route replace default via 172.18.0.1",
        ),
    ),
    Fault(
        "ttl-1", "web1 sends packets with TTL 1, which the host doesn't forward",
        ("ip netns exec web1 sysctl -qw net/ipv4/ip_default_ttl=1",),
        _WEB1_OUT, Culprit("sysctl", "net.ipv4.ip_default_ttl", "web1"),
    ),
    Fault(
        "no-ephemeral-ports", "All local ports of web1 are reserved, so it can't open connections",
        (
            "ip netns exec web1 sysctl -qw net/ipv4/ip_local_reserved_ports=40000-40009",
            "ip netns exec web1 sysctl -qw net/ipv4/ip_local_port_range='40000 40009'",
        ),
        Probe("web1", "api", port=8000), Culprit("sysctl", "net.ipv4.ip_local_reserved_ports", "web1"),
    ),
    Fault(
        "br-netfilter", "br_netfilter passes frames between web1 and api to a rule for routed packets",
        (
            "nft add table ip guests",
            "nft add chain ip guests forward { type filter hook forward priority 10; }",
            "nft add rule ip guests forward iifname br-shop oifname br-shop drop",
            "sysctl -qw net/bridge/bridge-nf-call-iptables=1",
        ),
        Probe("web1", "api", port=8000), Culprit("sysctl", "net.bridge.bridge-nf-call-iptables"),
    ),
)  # fmt: skip
