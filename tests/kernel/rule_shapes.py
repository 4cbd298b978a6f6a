"""Rules of nftables and iptables in many shapes, each with its expected fields."""

from __future__ import annotations

from typing import Any

from core.model import Translation, VerdictCase

# Sets, maps and chains used by the rules below.
BEFORE = """
table inet t {
    counter web { }
    set blocked { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.1-192.0.2.9 }; }
    map places { type inet_service : ipv4_addr . inet_service; elements = { 8080 : 10.0.0.2 . 80 }; }
    map jumps { type ifname : verdict; elements = { "b7" : jump one }; }
    chain one { }
    chain two { }
    chain post { type nat hook postrouting priority srcnat; policy accept; }
    chain rules { type nat hook prerouting priority dstnat; policy accept; }
}
"""

_VAGUE = {"understood": False}


def _tcp(port: str, **fields: Any) -> dict[str, Any]:
    return {"l4_proto": "tcp", "dport": port, **fields}


def _dnat(address: str, port: str = "", **fields: Any) -> dict[str, Any]:
    return {"verdict": "dnat", "to_address": address, **({"to_port": port} if port else {}), **fields}


SHAPES: dict[str, dict[str, Any]] = {
    "tcp dport 8080 dnat ip to 10.0.0.2:80": _tcp("8080", **_dnat("10.0.0.2", "80")),
    "tcp dport 4 dnat ip6 to [fd00::2]:80": _tcp("4", **_dnat("fd00::2", "80")),
    "udp dport 3 dnat ip to 10.0.0.1-10.0.0.9:1000-2000 random": {
        "l4_proto": "udp", "dport": "3", **_dnat("10.0.0.1-10.0.0.9", "1000-2000"),
    },
    "dnat ip to tcp dport map @places": {
        "verdict": "dnat", "translations": (Translation("", "", "tcp", "", "8080", "10.0.0.2", "80"),),
    },
    "dnat ip to tcp dport map { 22 : 10.0.0.4, 23 : 10.0.0.5 }": {
        "verdict": "dnat",
        "translations": (
            Translation("", "", "tcp", "", "22", "10.0.0.4"),
            Translation("", "", "tcp", "", "23", "10.0.0.5"),
        ),
    },
    "dnat ip to ip daddr . tcp dport map { 192.0.2.1 . 25 : 10.0.0.6 . 2525 }": {
        "verdict": "dnat",
        "translations": (Translation("", "192.0.2.1", "tcp", "", "25", "10.0.0.6", "2525"),),
    },
    "dnat ip to numgen random mod 2 map { 0 : 10.0.0.2, 1 : 10.0.0.3 }": _dnat("10.0.0.2,10.0.0.3", **_VAGUE),
    "tcp dport 80 redirect to :3128": _tcp("80", verdict="redirect", to_port="3128"),
    "ip protocol tcp redirect": {"l4_proto": "tcp", "verdict": "redirect"},
    "meta l4proto { tcp, udp } th dport 53 redirect to :5353": {
        "l4_proto": "tcp,udp", "dport": "53", "verdict": "redirect", "to_port": "5353",
    },
    'iifname vmap { "br0" : jump one, "br1" : goto two, "br2" : drop }': {
        "verdict": "vmap", "target": "one,two", "chosen_by": "iif", **_VAGUE,
        "choices": (VerdictCase("br0", "jump", "one"), VerdictCase("br1", "goto", "two"),
                    VerdictCase("br2", "drop")),
    },
    "iifname vmap @jumps": {
        "verdict": "vmap", "target": "one", "chosen_by": "iif", **_VAGUE,
        "choices": (VerdictCase("b7", "jump", "one"),),
    },
    "jump one": {"verdict": "jump", "target": "one"},
    "goto two": {"verdict": "goto", "target": "two"},
    "tcp dport { 80, 443, 1000-2000 } accept": _tcp("80,443,1000-2000", verdict="accept"),
    "tcp dport != { 53, 54 } drop": _tcp("!53,54", verdict="drop"),
    "udp sport != 53 udp dport 1-1024 drop": {
        "l4_proto": "udp", "sport": "!53", "dport": "1-1024", "verdict": "drop",
    },
    "ip daddr != 10.0.0.1 ip saddr @blocked drop": {"dst": "!10.0.0.1", "src": "@blocked", "verdict": "drop"},
    'iifname { "a", "b" } oif "lo" ip saddr { 10.0.0.1, 10.1.0.0/16, 10.2.0.1-10.2.0.5 } accept': {
        "iif": "a,b", "oif": "lo", "src": "10.0.0.1,10.1.0.0/16,10.2.0.1-10.2.0.5", "verdict": "accept",
    },
    'iifname "eth*" ip6 daddr fd00::/64 return': {"iif": "eth*", "dst": "fd00::/64", "verdict": "return"},
    "ip saddr 10.0.0.0/8 ip saddr != 10.1.0.0/16 drop": {"src": "10.0.0.0/8", "verdict": "drop", **_VAGUE},
    "ct state established,related accept": {"ct_state": "established,related", "verdict": "accept"},
    "ct state vmap { invalid : drop, established : accept }": {
        "verdict": "vmap", "chosen_by": "ct_state", **_VAGUE,
        "choices": (VerdictCase("invalid", "drop"), VerdictCase("established", "accept")),
    },
    "ct status dnat accept": {"verdict": "accept", **_VAGUE},
    "meta mark & 0x000000ff == 0x00000001 accept": {"verdict": "accept", **_VAGUE},
    "fib daddr type local limit rate 3/second burst 5 packets return": {"verdict": "return", **_VAGUE},
    "meta l4proto icmp reject": {"l4_proto": "icmp", "verdict": "reject"},
    "icmp type echo-request accept": {"l4_proto": "icmp", "verdict": "accept", **_VAGUE},
    "meta nfproto ipv4 accept": {"verdict": "accept", **_VAGUE},
    'log prefix "seen # handle 9"': {},
    "meta mark set 0x00000001": {},
    "notrack": {"verdict": "notrack"},
    'drop comment "[red] { } # handle 7"': {"verdict": "drop", "comment": "[red] { } # handle 7"},
    'tcp dport 9 counter name "web" accept': _tcp("9", verdict="accept", packets=0, bytes=0),
    "udp dport 9 counter packets 0 bytes 0 accept": {
        "l4_proto": "udp", "dport": "9", "verdict": "accept", "packets": 0, "bytes": 0,
    },
}  # fmt: skip

LEAVING: dict[str, dict[str, Any]] = {
    "ip saddr 10.0.0.0/24 masquerade random": {"src": "10.0.0.0/24", "verdict": "masquerade"},
    "ip saddr 10.0.0.0/24 tcp dport 1 masquerade to :1024-65535": _tcp(
        "1", src="10.0.0.0/24", verdict="masquerade", to_port="1024-65535"
    ),
    'oifname "eth0" snat ip to 192.0.2.1': {"oif": "eth0", "verdict": "snat", "to_address": "192.0.2.1"},
    "snat ip to ip saddr map { 10.0.0.1 : 192.0.2.4 }": {
        "verdict": "snat", "translations": (Translation(src="10.0.0.1", to_address="192.0.2.4"),),
    },
}  # fmt: skip

# By table, chain and arguments of iptables.
IPTABLES: dict[tuple[str, str, str], dict[str, Any]] = {
    ("nat", "PREROUTING", "! -i br0 -p tcp --dport 8080 -j DNAT --to-destination 172.18.0.2:80"): {
        "iif": "!br0", "l4_proto": "tcp", "dport": "8080", "verdict": "dnat", "to_address": "172.18.0.2",
        "to_port": "80",
    },
    ("nat", "PREROUTING", "-d 192.0.2.1 -p udp --dport 9:20 -j DNAT --to-destination 10.0.0.1-10.0.0.9"): {
        "dst": "192.0.2.1", "l4_proto": "udp", "dport": "9-20", "verdict": "dnat",
        "to_address": "10.0.0.1-10.0.0.9",
    },
    ("nat", "PREROUTING", "-m addrtype --dst-type LOCAL -j RETURN"): {"verdict": "return", **_VAGUE},
    ("nat", "PREROUTING", "-p tcp -m multiport --dports 80,443,8000:8010 -j REDIRECT --to-ports 3128"): {
        "l4_proto": "tcp", "dport": "80,443,8000-8010", "verdict": "redirect", "to_port": "3128",
    },
    ("nat", "POSTROUTING", "-s 172.18.0.0/16 ! -o br0 -j MASQUERADE"): {
        "src": "172.18.0.0/16", "oif": "!br0", "verdict": "masquerade",
    },
    ("nat", "POSTROUTING", "-o eth+ -j SNAT --to-source 192.0.2.9"): {
        "oif": "eth*", "verdict": "snat", "to_address": "192.0.2.9",
    },
    ("filter", "FORWARD", "-o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"): {
        "oif": "br0", "ct_state": "related,established", "verdict": "accept",
    },
    ("filter", "FORWARD", "-m limit --limit 3/sec -j DROP"): {"verdict": "drop", **_VAGUE},
    ("filter", "FORWARD", "-j LOG --log-prefix 'seen -j DROP '"): {},
    ("filter", "FORWARD", "-m comment --comment '! -j \"x\" \\ it'\"'\"'s' -j DROP"): {
        "comment": "! -j \"x\" \\ it's", "verdict": "drop",
    },
    ("filter", "FORWARD", "-m comment --comment -j -s 10.0.0.1 -j REJECT"): {
        "comment": "-j", "src": "10.0.0.1", "verdict": "reject",
    },
    ("filter", "FORWARD", "-m iprange --src-range 10.0.0.1-10.0.0.9 ! -p udp"): {
        "src": "10.0.0.1-10.0.0.9", "l4_proto": "!udp",
    },
    ("filter", "FORWARD", "-s 10.0.0.0/8 -j own"): {"src": "10.0.0.0/8", "verdict": "jump", "target": "own"},
    ("filter", "FORWARD", "-g own"): {"verdict": "goto", "target": "own"},
    ("raw", "PREROUTING", "-p udp -j CT --notrack"): {"l4_proto": "udp", "verdict": "notrack"},
}  # fmt: skip
IP6TABLES: dict[tuple[str, str, str], dict[str, Any]] = {
    ("nat", "PREROUTING", "-d 2001:db8::1 -p tcp --dport 80 -j DNAT --to-destination [fd00::2]:8080"): {
        "dst": "2001:db8::1", "l4_proto": "tcp", "dport": "80", "verdict": "dnat", "to_address": "fd00::2",
        "to_port": "8080",
    },
    ("nat", "PREROUTING", "-j DNAT --to-destination fd00::2"): {"verdict": "dnat", "to_address": "fd00::2"},
    ("nat", "POSTROUTING", "-s fd00::/64 -j MASQUERADE"): {"src": "fd00::/64", "verdict": "masquerade"},
    ("filter", "FORWARD", "-p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT"): {
        "l4_proto": "icmpv6", "verdict": "accept", **_VAGUE,
    },
}  # fmt: skip
