"""Which rules of real tools forbid the fast path, and which don't."""

from __future__ import annotations

import pytest

from bpf import preconditions
from bpf.rule_analysis import PacketLinks
from core.plan.rules import render
from core.plan.tags import VnetNetwork, VnetPort, VnetState
from tests.support.host import ThrowawayHost

pytestmark = pytest.mark.root

_NFT = "nft add rule inet t c "
PLAIN = [
    _NFT + "ct state established,related counter accept",
    _NFT + "ct state { established, related } accept",
    _NFT + "ct state vmap { established : accept, related : accept, invalid : drop }",
    _NFT + "ct state new limit rate 3/second log prefix new",
    _NFT + "ct state invalid log drop",
    _NFT + "ip saddr 10.0.0.0/8 ip daddr @fixed tcp dport { 80, 443 } accept",
    _NFT + "ip6 saddr fd00::/8 ip6 daddr fe80::/10 accept",
    _NFT + 'iifname "br-*" oifname { "a", "b" } meta l4proto icmp accept',
    _NFT + "ether saddr 02:00:00:00:00:01 drop",
    _NFT + "tcp flags syn / syn,rst tcp option maxseg size set rt mtu",
    _NFT + "tcp flags & (fin|syn|rst|ack) == syn limit rate 1/second log",
    _NFT + "fib saddr . iif oif missing drop",
    _NFT + "ct mark and 0xff == 0x1 accept",
    _NFT + "ct state new ct mark set ct mark and 0xffffff00 or 1",
    _NFT + "meta mark 0x1 accept",
    _NFT + "iifname vmap { a : jump plain, b : goto plain }",
    _NFT + "ct state vmap { established : accept, * : jump limited_chain }",
    _NFT + "ip saddr @leaving drop",
    _NFT + "ct status dnat accept",
    _NFT + "rt classid 1 accept",
    _NFT + "tcp flags & (fin | syn | rst | ack) vmap { ack : accept, syn : drop }",
    _NFT + "tcp flags & (syn | ack) > syn drop",
    _NFT + "tcp flags != syn / fin,syn,rst,ack accept",
    _NFT + "@nh,96,32 0x0a090002 drop",
    _NFT + "@ll,96,16 0x0800 drop",
    _NFT + "vlan id 5 limit rate 1/second drop",
    _NFT + "ip6 nexthdr icmpv6 limit rate 1/second drop",
    _NFT + "meta l4proto { 5-20 } meta mark > 5 iif 2-5 accept",
    _NFT + "ct state 0x2-0x8 accept",
    _NFT + "ip version 4 iifname a accept",
    _NFT + "ip6 version 6 iifname a accept",
    _NFT + "ip hdrlength 5 accept",
    _NFT + "ct status & dnat > 0 accept",
    _NFT + "ip saddr @counted accept",
    _NFT + "ct state new ct mark set (ct mark and 0xffffff00) or 1",
    _NFT + "rt type 0 drop",
    _NFT + "rt type 0 limit rate 1/second log",
    _NFT + "frag more-fragments 1 drop",
    _NFT + "dst nexthdr 6 drop",
    _NFT + "mh type 1 drop",
    _NFT + "ip option lsrr type 1 drop",
    *(
        f"{tool} -A FORWARD -m {match} -j DROP"
        for tool in ("ip6tables", "ip6tables-legacy")
        for match in ("rt --rt-type 0", "frag --fragmore", "dst --dst-len 8", "ah --ahspi 5")
    ),
    "ip6tables -A FORWARD -p mh -m mh --mh-type 1 -j DROP",
    "nft add rule inet t input limit rate 3/second log",
    "nft add rule inet t nat meta mark set 1",
    "iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "iptables -A FORWARD -m addrtype --dst-type LOCAL -m comment --comment 'a b' -j ACCEPT",
    "iptables -A FORWARD -p tcp -m multiport --dports 80,443 -j ACCEPT",
    "iptables -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
    "iptables -A FORWARD -m conntrack --ctstatus SEEN_REPLY -j ACCEPT",
    "iptables-legacy -A FORWARD -p tcp ! --syn -j ACCEPT",
    "iptables -A FORWARD -p tcp ! --syn -m conntrack --ctstate DNAT -j ACCEPT",
    "iptables -A FORWARD -p tcp --syn -m limit --limit 1/s -j LOG",
    "iptables-legacy -A FORWARD -m conntrack --ctstate DNAT -j ACCEPT",
    "iptables-legacy -A FORWARD -m mark --mark 1 -m conntrack --ctstate NEW -j CONNMARK --set-mark 1/0xff",
    "iptables -t mangle -A PREROUTING -m conntrack --ctstate NEW -j MARK --set-mark 1",
    "iptables -t raw -A PREROUTING -d 10.0.0.1 ! -i br0 -j DROP",
    "ip6tables -A FORWARD -m conntrack --ctstate INVALID -m limit --limit 1/s -j LOG",
    "iptables-legacy -A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "iptables-legacy -A FORWARD -m conntrack --ctstate NEW -m limit --limit 1/s -j LOG",
    "iptables-legacy -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
    "iptables-legacy -t nat -A POSTROUTING -s 10.9.0.0/24 ! -o br0 -j MASQUERADE",
]
PER_PACKET = {
    _NFT + "tcp flags { ack, psh | ack } drop": "TCP flags",
    _NFT + "tcp flags vmap { psh | ack : drop }": "TCP flags",
    _NFT + "tcp flags . tcp dport { psh | ack . 80 } drop": "TCP flags",
    _NFT + "tcp flags & (psh | ack) vmap { ack : drop }": "TCP flags",
    _NFT + "tcp flags > ack drop": "TCP flags",
    _NFT + "tcp flags 16-23 drop": "TCP flags",
    _NFT + "tcp flags & (psh | urg) != 1-9 drop": "TCP flags",
    _NFT + "@th,104,8 & 0x08 == 0x08 drop": "byte 13 of a header",
    _NFT + "meta l4proto 5-20 limit rate 1/second accept": "limit",
    _NFT + "meta l4proto != 5-20 limit rate 1/second accept": "limit",
    _NFT + "meta l4proto < 20 limit rate 1/second accept": "limit",
    _NFT + "meta l4proto { tcp, udp } numgen random mod 2 0 drop": "numgen",
    _NFT + "ct state established,new numgen inc mod 9 0 drop": "numgen",
    _NFT + "iifname { a, b } jhash ip saddr mod 2 1 drop": "hash",
    _NFT + "meta l4proto & 4 == 4 limit rate 1/second accept": "limit",
    _NFT + "meta protocol & 8 == 8 limit rate 1/second accept": "limit",
    _NFT + "ct state > 7 limit rate 1/second accept": "limit",
    _NFT + "ct state 4-8 limit rate 1/second accept": "limit",
    _NFT + "ct state vmap { 1-4 : jump limited_chain }": "limit",
    _NFT + "ct status 8-9 drop": "the connection's status",
    _NFT + "ct status . ip saddr { dnat . 10.9.0.2 } drop": "the connection's status",
    _NFT + "ct mark . ip saddr { 1 . 10.9.0.2 } drop": "of the ct mark are used",
    _NFT + "ct mark set ct mark | meta mark": "of the ct mark are used",
    _NFT + "ct state new ct mark set ct mark << 4": "of the ct mark are used",
    _NFT + "@ll,112,8 0x45 drop": "byte 14 of a header",
    _NFT + "@ll,120,8 0 drop": "byte 15 of a header",
    _NFT + "@ll,128,16 > 500 drop": "byte 16 of a header",
    _NFT + "@nh,0,8 0x60 drop": "the traffic class",
    _NFT + "ip6 dscp ef drop": "the traffic class",
    _NFT + "@nh,64,32 1 drop": "the time to live",
    _NFT + "@nh,64,16 1 drop": "the time to live",
    _NFT + "@nh,80,16 1 drop": "byte 10 of a header",
    _NFT + "@nh,48,8 6 drop": "fragments",
    _NFT + "@nh,160,128 1 drop": "byte 20 of a header",
    _NFT + "meta nfproto & 2 == 2 @nh,64,32 1 drop": "the time to live",
    _NFT + "ip6 nexthdr tcp accept": "next header",
    _NFT + "ip6 nexthdr != udp drop": "next header",
    _NFT + "ip6 nexthdr { tcp, udp } accept": "next header",
    _NFT + "exthdr rt missing drop": "header options",
    _NFT + "exthdr hbh exists drop": "header options",
    _NFT + "hbh nexthdr 6 drop": "header options",
    _NFT + "limit rate 1/second rt type 0 drop": "limit",
    _NFT + "tcp option maxseg size 1000 drop": "header options",
    "ip6tables -A FORWARD -m hbh --hbh-len 8 -j DROP": "hbh",
    "ip6tables-legacy -A FORWARD -m hbh --hbh-len 8 -j DROP": "hbh",
    "ip6tables -A FORWARD -m limit --limit 1/s -m rt --rt-type 0 -j DROP": "limit",
    "ip6tables -A FORWARD -m ipv6header --header frag -j DROP": "ipv6header",
    _NFT + "ip saddr @limited drop": "each element of its set limited has a limit",
    "iptables -A FORWARD -m conntrack --ctstate DNAT -m limit --limit 1/s -j DROP": "limit",
    "iptables-legacy -A FORWARD -m conntrack --ctstate SNAT -m limit --limit 1/s -j DROP": "limit",
    "iptables-legacy -A FORWARD -p tcp -m tcp --tcp-flags ACK ACK -m tcp --tcp-flags PSH PSH -j DROP": "TCP",
    "iptables-legacy -A FORWARD -m comment --comment 'not -p icmp' -m limit --limit 1/s -j DROP": "limit",
    "iptables-legacy -A FORWARD -m comment --comment --syn -m limit --limit 1/s -j DROP": "limit",
    "iptables-legacy -t mangle -A PREROUTING -m conntrack --ctstate NEW -j CONNMARK"
    " --set-xmark 0x1000000/0x1": "ct mark",
    "iptables -t mangle -A PREROUTING -m conntrack --ctstate NEW -j CONNMARK"
    " --set-xmark 0x1000000/0x1": "of the ct mark are used",
    "iptables-legacy -t mangle -A PREROUTING -m connmark --mark 1/1 -m conntrack --ctstate NEW -j CONNMARK"
    " --set-mark 0x1000000": "ct mark",
    "iptables-legacy -t mangle -A PREROUTING -m conntrack --ctstate NEW -j CONNMARK"
    " --save-mark --nfmask 0xffffffff --ctmask 0xff": "ct mark",
    "iptables -t mangle -A PREROUTING -m conntrack --ctstate NEW -j CONNMARK"
    " --save-mark --nfmask 0xffffffff --ctmask 0xff": "of the ct mark are used",
    _NFT + "limit rate 10/second accept": "limit",
    _NFT + "quota over 10 mbytes drop": "quota",
    _NFT + "ct bytes > 1000 drop": "counters",
    _NFT + "numgen random mod 2 0 drop": "numgen",
    _NFT + "ip ttl < 5 drop": "time to live",
    _NFT + "ip dscp ef drop": "type of service",
    _NFT + "ip6 hoplimit 1 drop": "hop limit",
    _NFT + "meta length > 1000 drop": "single packets",
    _NFT + "udp length > 1000 drop": "byte 4",
    _NFT + "tcp flags psh drop": "TCP flags",
    _NFT + "meta mark set 1": "mark",
    _NFT + "ip dscp set cs1": "type of service",
    _NFT + "log prefix x": "log",
    _NFT + "meta hour 8-17 drop": "single packets",
    _NFT + "ip saddr @seen drop": "set seen is filled by packets",
    _NFT + "ct state vmap { invalid : drop, * : jump limited_chain }": "limit",
    _NFT + "ct state vmap @states": "limit",
    _NFT + "ct timeout set long": "named limit, quota or similar",
    "nft add rule inet t raw ct zone set 1": "sets the conntrack zone",
    "nft add rule bridge b input limit rate 1/second drop": "bridge b input",
    "nft add rule ip late it ip saddr 10.9.0.2 drop": "processes packets after",
    _NFT + "ct status assured drop": "the connection's status",
    _NFT + "ct status { assured, snat } drop": "the connection's status",
    _NFT + "rt mtu < 1400 drop": "the route's MTU",
    _NFT + "symhash mod 2 0 drop": "hash",
    _NFT + "ip6 flowlabel 1 drop": "the flow label",
    "iptables -A FORWARD -m conntrack --ctstatus ASSURED -j DROP": "the connection's status",
    "iptables-legacy -A FORWARD -m conntrack --ctstatus ASSURED -j DROP": "the connection's status",
    "iptables-legacy -A FORWARD -m conntrack --ctexpire 1:9 -j DROP": "timeouts",
    "iptables-legacy -A FORWARD -p tcp --tcp-flags PSH PSH -j DROP": "TCP flags",
    "iptables-legacy -A FORWARD -p tcp --tcp-option 8 -j DROP": "TCP options",
    "iptables -t raw -A PREROUTING -j CT --zone 1": "sets the conntrack zone",
    "iptables-legacy -t raw -A PREROUTING -j CT --zone 1": "sets the conntrack zone",
    _NFT + "add @seen { ip saddr }": "dynset",
    _NFT + "ct mark set 1": "ct mark",
    _NFT + "ct mark 1 drop": "ct mark",
    _NFT + "meta mark set ct mark": "of the ct mark are used",
    _NFT + "ct mark set ct mark and 0x00ffffff": "of the ct mark are used",
    _NFT + "iifname vmap { a : jump limited_chain }": "limit",
    "iptables -A FORWARD -m limit --limit 3/min -j ACCEPT": "limit",
    "iptables -A FORWARD -m statistic --mode random --probability 0.5 -j DROP": "statistic",
    "iptables -A FORWARD -m string --string x --algo bm -j DROP": "string",
    "iptables -A FORWARD -m length --length 100 -j DROP": "length",
    "iptables -A FORWARD -m connlimit --connlimit-above 10 -j DROP": "connlimit",
    "iptables -t mangle -A FORWARD -j TTL --ttl-inc 1": "TTL",
    "iptables -t mangle -A PREROUTING -j CONNMARK --restore-mark": "CONNMARK",
    "iptables -t mangle -A FORWARD -p tcp --tcp-flags ALL ACK -j TCPMSS --set-mss 9": "TCP flags",
    "iptables-legacy -A FORWARD -m limit --limit 3/min -j ACCEPT": "limit",
    "iptables-legacy -t mangle -A FORWARD -j DSCP --set-dscp 1": "DSCP",
    "iptables-legacy -t mangle -A PREROUTING -j CONNMARK --restore-mark": "ct mark",
}


_TABLE = """
table bridge b { chain input { type filter hook input priority 0; }; }
table ip late { chain it { type filter hook postrouting priority 2147483647; }; }
table inet t {
    map states { type ct_state : verdict; elements = { invalid : drop, * : jump limited_chain }; }
    ct timeout long { protocol udp; policy = { replied : 3600 }; }
    chain raw { type filter hook prerouting priority -300; }
    set fixed { type ipv4_addr; elements = { 10.1.1.1 }; }
    set leaving { type ipv4_addr; flags timeout; }
    set seen { type ipv4_addr; flags dynamic; size 10; }
    set counted { type ipv4_addr; counter; elements = { 10.1.1.1 }; }
    set limited { type ipv4_addr; limit rate 1/second; elements = { 10.1.1.1 }; }
    chain plain { accept; }
    chain limited_chain { limit rate 1/second accept; }
    chain c { type filter hook forward priority 0; }
    chain input { type filter hook input priority 0; }
    chain nat { type nat hook prerouting priority -100; }
}"""


def _prepare(host: ThrowawayHost) -> None:
    host.run(["nft", _TABLE])


def test_rules_that_match_all_packets_of_a_connection_do_not_pause(inside_host: ThrowawayHost) -> None:
    _prepare(inside_host)
    for rule in PLAIN:
        inside_host.run(rule)
        assert preconditions.read_preconditions().reasons == (), rule


def test_rules_that_match_single_packets_are_named(inside_host: ThrowawayHost) -> None:
    _prepare(inside_host)
    missing = []
    for rule, word in PER_PACKET.items():
        inside_host.run(rule)
        reasons = preconditions.read_preconditions().reasons
        if not any(word in reason for reason in reasons):
            missing.append((rule, word, reasons))
        for chain in ("inet t c", "inet t raw", "bridge b input", "ip late it"):
            inside_host.run(f"nft flush chain {chain}")
        for tool in ("iptables", "iptables-legacy"):
            for table in ("filter", "mangle", "raw"):
                inside_host.run(f"{tool} -t {table} -F")
        for tool in ("ip6tables", "ip6tables-legacy") if rule.startswith("ip6") else ():
            inside_host.run(f"{tool} -F")
        assert preconditions.read_preconditions().reasons == (), rule
    assert not missing, missing


INVALID = {
    "ct state invalid drop": True,
    "ct state vmap { established : accept, invalid : drop }": True,
    "ct state != { established, related } drop": True,
    "ct state != established drop": True,
    "ct state { invalid, untracked } drop": True,
    "ct state established accept": False,
    "ct state { established, related } accept": False,
    "ct state new drop": False,
    "iifname elsewhere ct state invalid drop": False,
}


def test_rules_about_invalid_packets_are_found_after_accept_rules(
    inside_host: ThrowawayHost,
) -> None:
    links = PacketLinks(frozenset({"br0"}), frozenset({"br0", "up0"}), frozenset({"br0"}))
    _prepare(inside_host)
    inside_host.run("nft add chain inet t further")
    for rule, expected in INVALID.items():
        inside_host.run("nft add rule inet t c ct state established,related accept")
        inside_host.run("nft add rule inet t c jump further")
        inside_host.run(f"nft add rule inet t further {rule}")
        assert bool(preconditions.read_preconditions(links=links).invalid) == expected, rule
        inside_host.run("nft flush chain inet t c")
        inside_host.run("nft flush chain inet t further")
    for tool in ("iptables", "iptables-legacy"):
        inside_host.run(f"{tool} -A FORWARD -m conntrack --ctstate INVALID -j DROP")
        assert preconditions.read_preconditions(links=links).invalid, tool
        inside_host.run(f"{tool} -F FORWARD")
        inside_host.run(f"{tool} -A INPUT -m conntrack --ctstate INVALID -j DROP")
        assert not preconditions.read_preconditions(links=links).invalid, tool


# Several rules, the last of which is reached: chains that are left before a final verdict, and rules that
# seem to match all established packets.
REACHED = {
    "goto from a verdict map": (
        "nft add chain inet t further",
        "nft add rule inet t further ip saddr vmap { 10.9.0.2 : goto empty }",
        "nft add rule inet t further accept",
        _NFT + "jump further",
    ),
    "return from a verdict map": (
        "nft add chain inet t further",
        "nft add rule inet t further ip saddr vmap { 10.9.0.2 : return, 10.9.0.3 : drop }",
        "nft add rule inet t further accept",
        _NFT + "jump further",
    ),
    "goto of iptables-legacy": (
        "iptables-legacy -N empty",
        "iptables-legacy -N further",
        "iptables-legacy -A further -s 10.9.0.2 -g empty",
        "iptables-legacy -A further -j ACCEPT",
        "iptables-legacy -A FORWARD -j further",
    ),
    "not translated": ("iptables -A FORWARD -m conntrack ! --ctstate DNAT -j ACCEPT",),
    "translated": ("iptables-legacy -A FORWARD -m conntrack --ctstate DNAT -j ACCEPT",),
    "two states": (
        "iptables-legacy -A FORWARD -m conntrack --ctstate ESTABLISHED -m conntrack --ctstate DNAT -j ACCEPT",
    ),
}


@pytest.mark.parametrize("name", REACHED)
def test_packets_that_a_chain_does_not_decide_reach_the_next_rule(
    inside_host: ThrowawayHost, name: str
) -> None:
    _prepare(inside_host)
    inside_host.run("nft add chain inet t empty")
    for rule in REACHED[name]:
        inside_host.run(rule)
    assert preconditions.read_preconditions().reasons == ()
    tool = REACHED[name][-1].split()[0]
    limit = _NFT + "limit rate 1/second drop"
    inside_host.run(limit if tool == "nft" else f"{tool} -A FORWARD -m limit --limit 1/s -j DROP")
    assert any(": limit" in reason for reason in preconditions.read_preconditions().reasons), (
        preconditions.read_preconditions()
    )


NAMED_LINKS = ("iif 1-9", "iif > 1", "iif != 7", "iifname != virbr0", "iif & 1 == 1", "meta iif >= 3")


def test_only_a_rule_with_one_link_name_concerns_only_that_link(inside_host: ThrowawayHost) -> None:
    links = PacketLinks(frozenset({"br0", "#2"}), frozenset({"br0", "up0"}), frozenset({"br0"}))
    _prepare(inside_host)
    for words in NAMED_LINKS:
        inside_host.run(_NFT + words + " limit rate 1/second drop")
        assert preconditions.read_preconditions(links=links).reasons, words
        inside_host.run("nft flush chain inet t c")
    inside_host.run(_NFT + "iif 7 limit rate 1/second drop")
    inside_host.run(_NFT + "iifname virbr0 limit rate 1/second drop")
    assert preconditions.read_preconditions(links=links).reasons == ()


def test_chains_nested_too_deeply_are_not_skipped(inside_host: ThrowawayHost) -> None:
    inside_host.run("iptables-legacy -N c0")
    inside_host.run("iptables-legacy -A c0 -m limit --limit 1/s -j DROP")
    for number in range(1, 40):
        inside_host.run(f"iptables-legacy -N c{number}")
        inside_host.run(f"iptables-legacy -A c{number} -j c{number - 1}")
    assert preconditions.read_preconditions().reasons == ()
    inside_host.run("iptables-legacy -A FORWARD -j c39")
    assert preconditions.read_preconditions().reasons


# wg-quick's own rules, of nftables and of iptables.
WG_QUICK = (
    (_NFT + "meta l4proto udp meta mark set ct mark",),
    (_NFT + "meta l4proto udp mark 0xca6c ct mark set mark",),
    ("iptables -t mangle -A POSTROUTING -m mark --mark 51820 -p udp -j CONNMARK --save-mark",),
    ("iptables -t mangle -A PREROUTING -p udp -j CONNMARK --restore-mark",),
    ("iptables-legacy -t mangle -A PREROUTING -p udp -j CONNMARK --restore-mark",),
)


@pytest.mark.parametrize("rules", WG_QUICK)
def test_rules_that_copy_whole_marks_pause_it(inside_host: ThrowawayHost, rules: tuple[str, ...]) -> None:
    _prepare(inside_host)
    for rule in rules:
        inside_host.run(rule)
    assert preconditions.read_preconditions().marks_in_use


def test_rules_after_an_accept_of_established_are_not_reached(inside_host: ThrowawayHost) -> None:
    _prepare(inside_host)
    inside_host.run("nft flush chain inet t plain")
    inside_host.run("nft add rule inet t plain ct state established,related accept")
    inside_host.run("nft add rule inet t c jump plain")
    inside_host.run("nft add rule inet t c limit rate 3/second log")
    assert preconditions.read_preconditions().reasons == ()
    inside_host.run("nft insert rule inet t plain iifname br0 return")
    assert preconditions.read_preconditions().reasons


def test_our_own_table_does_not_pause_it(inside_host: ThrowawayHost) -> None:
    shop = VnetNetwork("shop", "nat", "br-shop", ("10.9.0.0/24", "fd09::/64"), ("10.9.0.1", "fd09::1"))
    vault = VnetNetwork("vault", "internal", "br-vault", ("10.8.0.0/24",), ("10.8.0.1",))
    lan = VnetNetwork("lan", "routed", "br-lan", ("10.7.0.0/24",), ("10.7.0.1",))
    web = VnetPort("netns:web", "tcp", "", "8000-8002", "10.9.0.2", "80-82")
    vnet = VnetState(
        {one.name: one for one in (shop, vault, lan)}, ports=(web,), joined=frozenset({("shop", "vault")})
    )
    inside_host.run(["nft", render(vnet)])
    assert "masquerade" in inside_host.run("nft list ruleset")
    found = preconditions.read_preconditions()
    assert (found.reasons, found.marks_in_use, found.bridge_rules) == ((), False, False)


def test_bridge_rules_and_ipsec_policies_are_seen(inside_host: ThrowawayHost) -> None:
    assert not preconditions.read_preconditions().bridge_rules
    inside_host.run("nft add table bridge b")
    inside_host.run(["nft", "add chain bridge b f { type filter hook forward priority 0; }"])
    inside_host.run("nft add rule bridge b f ether type arp accept")
    found = preconditions.read_preconditions()
    assert found.bridge_rules and found.reasons == ()
    inside_host.run("nft flush ruleset")
    inside_host.run("nft add table netdev n")
    inside_host.run(["nft", "add chain netdev n i { type filter hook ingress device lo priority 0; }"])
    assert not preconditions.read_preconditions().bridge_rules
    inside_host.run("nft add rule netdev n i ip saddr 10.9.0.2 drop")
    assert preconditions.read_preconditions().bridge_rules
    inside_host.run("ip xfrm policy add src 10.9.0.0/24 dst 10.8.0.0/24 dir fwd", check=False)
    has_ipsec = "dir fwd" in inside_host.run("ip xfrm policy", check=False)
    assert any("IPsec" in reason for reason in preconditions.read_preconditions().reasons) == has_ipsec
