"""List faults of packet filters and NAT."""

from __future__ import annotations

from core.lab import builder
from core.lab.faults.fault import Culprit, Fault, Probe

_WEB1_PORT = Probe("internet", "192.0.2.10", port=8080)
_WEB2_PORT = Probe("internet", "192.0.2.10", port=8081)
_WEB1_OUT = Probe("web1", "203.0.113.80", port=443)
_API_OUT = Probe("api", "203.0.113.80", port=443)
_API_TO_WEB1 = Probe("api", "web1", port=80)

_FORGET = "conntrack -D -p udp -s 203.0.113.9 -d 192.0.2.10 --sport 40000 --dport 3478"

FIREWALL = (
    Fault(
        "foreign-ruleset", "Another program's rule set with policy drop doesn't know br-shop",
        (
            "nft add table inet office",
            "nft add chain inet office forward { type filter hook forward priority 5; policy drop; }",
            "nft add rule inet office forward ct state established,related accept",
            "nft add rule inet office forward ct status dnat accept",
            'nft add rule inet office forward iifname { "br-blog", "br-data" } accept',
        ),
        _WEB1_OUT, Culprit("rule", "inet office forward"),
    ),
    Fault(
        "drop-counted", "A rule with a counter drops what is forwarded to web1",
        ("nft insert rule inet hostfw forward ip daddr 172.18.0.2 counter drop",),
        _WEB1_PORT, Culprit("rule", "inet hostfw forward"),
    ),
    Fault(
        "drop-silent", "A rule without a counter drops what is forwarded to web2",
        ("nft insert rule inet hostfw forward ip daddr 172.18.0.3 drop",),
        _WEB2_PORT, Culprit("rule", "inet hostfw forward"),
    ),
    Fault(
        "egress-drop", "A forgotten rule keeps web2 from the internet",
        (
            "nft insert rule inet hostfw forward oifname eth0 ip saddr 172.18.0.3 counter drop "
            'comment "web2 stays in during the audit"',
        ),
        Probe("web2", "203.0.113.80", port=443), Culprit("rule", "inet hostfw forward"),
    ),
    Fault(
        "reject", "A rule rejects what api sends to the internet",
        ("nft insert rule inet hostfw forward oifname eth0 ip saddr 172.18.0.4 reject",),
        _API_OUT, Culprit("rule", "inet hostfw forward"),
    ),
    Fault(
        "accept-missing", "The rule that accepts packets from br-shop to the uplink is gone",
        ('lab delete-rule inet hostfw from_shop "br-shop to the uplink"',),
        _WEB1_OUT, Culprit("rule", "inet hostfw forward"),
    ),
    Fault(
        "published-accept-missing", "The rule that accepts packets to published ports is gone",
        ('lab delete-rule inet hostfw forward "published ports"',),
        _WEB1_PORT, Culprit("rule", "inet hostfw forward"),
    ),
    Fault(
        "raw-drop", "A rule in the raw table drops the published port 8080",
        (
            "nft add table ip lockdown",
            "nft add chain ip lockdown prerouting { type filter hook prerouting priority raw; }",
            "nft add rule ip lockdown prerouting iifname eth0 tcp dport 8080 drop",
        ),
        _WEB1_PORT, Culprit("rule", "ip lockdown prerouting"),
    ),
    Fault(
        "ingress-drop", "A netdev rule drops what web1 sends, before the bridge sees it",
        (
            "nft add table netdev shaping",
            "nft add chain netdev shaping web1 { type filter hook ingress device v-web1 priority 0; }",
            "nft add rule netdev shaping web1 meta protocol ip drop",
        ),
        _WEB1_OUT, Culprit("rule", "netdev shaping web1"),
    ),
    Fault(
        "bridge-drop", "A rule of the bridge family drops frames from api to web1",
        (
            "nft add table bridge segments",
            "nft add chain bridge segments forward { type filter hook forward priority 0; }",
            "nft add rule bridge segments forward ip saddr 172.18.0.4 ip daddr 172.18.0.2 drop",
        ),
        _API_TO_WEB1, Culprit("rule", "bridge segments forward"),
    ),
    Fault(
        "container-input-drop", "web1's own packet filter drops its port 80",
        (
            "ip netns exec web1 nft add table inet guard",
            "ip netns exec web1 nft add chain inet guard input { type filter hook input priority 0; }",
            "ip netns exec web1 nft add rule inet guard input tcp dport 80 drop",
        ),
        _API_TO_WEB1, Culprit("rule", "inet guard input", "web1"),
    ),
    Fault(
        "container-output-drop", "web1's own packet filter drops what it sends to port 8000",
        (
            "ip netns exec web1 nft add table inet guard",
            "ip netns exec web1 nft add chain inet guard output { type filter hook output priority 0; }",
            "ip netns exec web1 nft add rule inet guard output tcp dport 8000 drop",
        ),
        Probe("web1", "api", port=8000), Culprit("rule", "inet guard output", "web1"),
    ),
    Fault(
        "host-input-drop", "The host drops what containers of br-shop send to their gateway",
        (
            "nft add table inet gate",
            "nft add chain inet gate input { type filter hook input priority 0; }",
            "nft add rule inet gate input iifname br-shop counter drop",
        ),
        Probe("web1", "172.18.0.1", "icmp"), Culprit("rule", "inet gate input"),
    ),
    Fault(
        "masquerade-missing", "The masquerade rule of br-shop is gone",
        ('lab delete-rule ip hostnat postrouting "br-shop with the host address"',),
        _WEB1_OUT, Culprit("rule", "ip hostnat postrouting"),
    ),
    Fault(
        "nat-table-gone", "A firewall reload has removed the host's NAT table",
        ("nft delete table ip hostnat",), _WEB1_PORT, Culprit("rule", "ip hostnat"),
        undo=("nft delete table ip hostnat", f"nft {builder.nat_table('ip')}"),
    ),
    Fault(
        "stale-conntrack", "A conntrack entry still sends a client's datagrams to an address that is gone",
        (
            _FORGET,
            "conntrack -I -p udp -s 203.0.113.9 -d 192.0.2.10 --sport 40000 --dport 3478 -t 3600 "
            "-u SEEN_REPLY -r 172.18.0.33 -q 203.0.113.9 --reply-port-src 3478 --reply-port-dst 40000",
        ),
        Probe("internet", "192.0.2.10", "udp", port=3478, origin="203.0.113.9", origin_port=40000),
        Culprit("conntrack entry", "udp 203.0.113.9:40000 192.0.2.10:3478"),
        undo=(_FORGET,),
    ),
    Fault(
        "snat-wrong-address", "A rule before the masquerade gives br-shop an address that no one has",
        (
            "nft insert rule ip hostnat postrouting ip saddr 172.18.0.0/16 oifname eth0 "
            "counter snat to 192.0.2.77",
        ),
        _WEB1_OUT, Culprit("rule", "ip hostnat postrouting"),
    ),
    Fault(
        "dnat-shadowed", "A rule before it forwards port 8080 to api instead of web1",
        ("nft insert rule ip hostnat published tcp dport 8080 counter dnat to 172.18.0.4:80",),
        _WEB1_PORT, Culprit("rule", "ip hostnat published"),
    ),
    Fault(
        "dnat-stale", "Port 8081 is forwarded to 172.18.0.33, an address that no one has",
        (
            'lab delete-rule ip hostnat published "shop admin on web2"',
            "nft add rule ip hostnat published tcp dport 8081 counter dnat to 172.18.0.33:80 "
            'comment "shop admin on web2"',
        ),
        _WEB2_PORT, Culprit("rule", "ip hostnat published"),
    ),
    Fault(
        "dnat-missing", "The rule that publishes port 8081 is gone",
        ('lab delete-rule ip hostnat published "shop admin on web2"',),
        _WEB2_PORT, Culprit("rule", "ip hostnat published"),
    ),
    Fault(
        "dnat-loopback-only", "Port 8081 is published on 127.0.0.1 only",
        (
            'lab delete-rule ip hostnat published "shop admin on web2"',
            "nft add rule ip hostnat published ip daddr 127.0.0.1 tcp dport 8081 counter "
            'dnat to 172.18.0.3:80 comment "shop admin on web2"',
        ),
        _WEB2_PORT, Culprit("rule", "ip hostnat published"),
    ),
    Fault(
        "untracked", "web1's packets bypass conntrack (notrack), so they aren't translated",
        (
            "nft add table ip speedup",
            "nft add chain ip speedup prerouting { type filter hook prerouting priority raw; }",
            "nft add rule ip speedup prerouting ip saddr 172.18.0.2 notrack",
        ),
        _WEB1_OUT, Culprit("rule", "ip speedup prerouting"),
    ),
    Fault(
        "conntrack-zone", "Packets from the uplink are in conntrack zone 5, so answers match no connection",
        (
            "nft add table ip tenants",
            "nft add chain ip tenants prerouting { type filter hook prerouting priority raw; }",
            "nft add rule ip tenants prerouting iifname eth0 ct zone set 5",
        ),
        _WEB1_OUT, Culprit("rule", "ip tenants prerouting"),
    ),
)  # fmt: skip
