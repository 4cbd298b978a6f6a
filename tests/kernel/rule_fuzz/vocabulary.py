"""What nftables rules match in packets and links: a row per expression.

More rows are in state.py and iptables.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.kernel.rule_fuzz.changes import Change

# Hooks by letter: prerouting, forward, postrouting, input; of the bridge family; of single links.
ROUTED_HOOKS, HEADER_HOOKS = "pfo", "pfoBD"


@dataclass(frozen=True, slots=True)
class Row:
    """An expression, match or statement: rules that use it, and what they match.

    `reads` are words of Change.touches. If `whole` is False the texts are conditions, to which a verdict is
    added. `objects` are in the rule's table, `own` are changes of those; $T is the table there. `where` are
    letters of hooks, `family` 4, 6 or 0 for both. `loose`: the kernel itself gives different results.
    `permanent_only`: only from the start, because it matches counters that don't count accelerated packets,
    or restarts connections. Rows of iptables have (table, chain) pairs in `chains`.
    """

    name: str
    texts: tuple[str, ...]
    reads: frozenset[str]
    where: str = ROUTED_HOOKS
    family: int = 0
    whole: bool = False
    objects: str = ""
    own: tuple[Change, ...] = ()
    loose: bool = False
    permanent_only: bool = False
    tool: str = "nft"
    chains: tuple[str, ...] = ()


def row(
    name: str,
    texts: str | tuple[str, ...],
    reads: str = "",
    where: str = ROUTED_HOOKS,
    **more: object,
) -> Row:
    """Return a row; `reads` are words."""
    every = texts if isinstance(texts, tuple) else (texts,)
    return Row(name, every, frozenset(reads.split()), where, **more)  # type: ignore[arg-type]


OURS = "meta l4proto { tcp, udp } "  # the host's own packets are left out if packets are counted
_MAC_A, _MAC_B = "02:00:00:00:17:02", "02:00:00:00:17:03"
META = (
    row("meta iifname", ('iifname { "wan9", "br-nine", "up1" }', 'iifname "wan*"',
    'iifname "br-two" ip saddr 172.17.0.0/16',
         'iifname != { "docker0", "br-two", "up0" }'), "iif name"),
    row("meta oifname", ('iifname "docker0" oifname { "up1", "wan9", "br-nine" }', 'oifname "wan*"',
    'oifname "up1"', 'oifname { "up1", "br-nine" }',
         'ip daddr 198.51.100.0/24 oifname != "up0"'), "route name", "fo"),
    row("meta iif", 'iif "br-two" ip saddr 172.17.0.0/16', "iif"),
    row("meta oif", ('iif "docker0" oif "up1"', 'oif "up1"', 'ip6 daddr 2001:db8:1::/64 oif != "up0"'),
         "route", "fo"),
    row("meta iifgroup", ("iifgroup 7", "iifgroup { 5, 7 }"), "group"),
    row("meta oifgroup", ("oifgroup 7", "iifgroup 0 oifgroup 7"), "group", "fo"),
    row("meta iifkind", 'meta iifkind "veth" oifname "br-nine"', "name", "f"),
    row("meta oifkind", 'meta oifkind "veth" oifname "up1"', "route", "fo"),
    row("meta sdifname", 'meta sdifname "wan9"', "iif name", "p"),
    row("meta mark", ("meta mark 0x7", "meta mark and 0x3 == 0x3"), "mark"),
    row("meta priority", ("meta priority 6", "meta priority != 0"), "tos"),
    row("meta length", ("meta length > 500", "meta length 400-2000", OURS + "meta length != 0-300"), "length",
         HEADER_HOOKS),
    row("meta protocol", ("meta protocol ip6 udp dport 5080", "meta protocol ip udp sport 5080")),
    row("meta l4proto", ("meta l4proto udp ip daddr 172.18.0.2", "meta l4proto tcp ip6 saddr fd17::3"),
         "", HEADER_HOOKS),
    row("meta l4proto compared", ("meta l4proto 5-20 meta length > 500",
         "meta l4proto >= 6 meta length > 500", "meta l4proto & 4 == 4 meta length > 500",
         "meta protocol & 8 == 8 meta length > 500"), "length",
         HEADER_HOOKS),
    row("meta iif compared", ("iif 1-9999 meta length > 500", "iif > 1 meta length > 500"), "length"),
    row("meta skuid", ("meta skuid 0", "meta skgid != 0")),
    row("meta time", ('meta time > "2020-01-01 00:00:00"', 'meta hour "00:00"-"23:59"', "meta day 0-6"),
         "time"),
    row("meta random", OURS + "meta random > 0x7fffffff", loose=True),
    row("meta pkttype", ("meta pkttype host udp dport 80", "meta pkttype != host"), "mac port",
         "pfB"),
    row("meta cgroup", "meta cgroup 1"),
    row("meta cpu", "meta cpu > 100"),
    row("meta rtclassid", ("meta rtclassid 5", "meta rtclassid != 0"), "realm", "fo"),
    row("meta secpath", "meta ipsec exists", "xfrm", "p"),
    row("meta ibrname", ('meta ibrname "br-nine"', 'meta ibrname "br-two" ip saddr 172.17.0.2'), "name port",
         "B"),
    row("meta obrname", 'meta obrname "br-nine"', "name port", "B"),
    row("meta iifname of ports", ('iifname "wan8"', 'iifname != "v-a" ip saddr 172.17.0.2'), "name port",
    "B"),
    row("meta nftrace set", "meta nftrace set 1", whole=True),
    row("meta mark set", ("meta mark set 7", "ip saddr 172.17.0.2 meta mark set mark or 0x100"), whole=True),
    row("meta priority set", "meta priority set 1", where="fo", whole=True),
    row("meta pkttype set", "meta pkttype set host", where="B", whole=True),
)  # fmt: skip
HEADERS = (
    row("ip ttl", ("ip ttl < 40", "ip ttl != 50-64", "ip ttl { 25-31 }"), "ttl", HEADER_HOOKS, family=4),
    row("ip dscp", ("ip dscp ef", "ip dscp != cs0", "ip dscp vmap { ef : drop, cs5 : drop }"), "tos",
         HEADER_HOOKS, family=4),
    row("ip ecn", "ip ecn ect1", "ecn", HEADER_HOOKS, family=4),
    row("ip length", "ip length > 500", "length", HEADER_HOOKS, family=4),
    row("ip id", "ip id 4242", "ident", HEADER_HOOKS, family=4),
    row("ip frag-off", ("ip frag-off & 0x4000 == 0", "ip frag-off & 0x1fff != 0"), "df", HEADER_HOOKS,
    family=4),
    row("ip checksum", "ip checksum < 0x8000", "ident", HEADER_HOOKS, family=4),
    row("ip protocol", "ip protocol udp ip saddr 172.18.0.2", family=4),
    row("ip hdrlength", "ip hdrlength > 5", family=4),
    row("ip saddr", ("ip saddr 172.17.0.2", "ip saddr 172.17.0.0/24 ip daddr 172.18.0.0/24"), "saddr",
    HEADER_HOOKS,
         family=4),
    row("ip daddr", ("ip daddr 172.17.0.2 udp dport 80", "ip daddr 198.51.100.0-198.51.100.9"), "daddr",
         family=4),
    row("ip option", ("ip option rr exists", "ip option lsrr exists"), family=4),
    row("ip6 hoplimit", ("ip6 hoplimit < 40", "ip6 hoplimit 20-31"), "ttl", HEADER_HOOKS, family=6),
    row("ip6 flowlabel", ("ip6 flowlabel 0xabcde", "ip6 flowlabel != 0"), "label", HEADER_HOOKS, family=6),
    row("ip6 dscp", "ip6 dscp ef", "tos", HEADER_HOOKS, family=6),
    row("ip6 ecn", "ip6 ecn ect1", "ecn", HEADER_HOOKS, family=6),
    row("ip6 length", "ip6 length > 500", "length", HEADER_HOOKS, family=6),
    row("ip6 nexthdr", "ip6 nexthdr tcp ip6 daddr fd17::2", family=6),
    row("ip6 saddr", "ip6 saddr fd17::2", "saddr", HEADER_HOOKS, family=6),
    row("exthdr", ("exthdr hbh exists", "frag more-fragments 1", "rt type 2"), family=6),
    row("tcp flags", ("tcp flags & psh == 0", "tcp flags ! psh", "tcp flags & (psh | urg) == psh | urg"),
         "flags urgent", HEADER_HOOKS),
    row("tcp flags looked up", ("tcp flags { psh | ack, ack | urg, ack | psh | urg }", "tcp flags > ack",
         "tcp flags 17-255", "tcp flags . tcp dport { psh | ack . 0-65535 }"), "flags urgent", HEADER_HOOKS),
    row("tcp flags in a verdict map", ("tcp flags vmap { psh | ack : drop, ack | urg : drop }",
         "tcp flags & (psh | ack) vmap { psh | ack : drop }"), "flags urgent", HEADER_HOOKS, whole=True),
    row("byte 13 of UDP", "meta l4proto udp @th,104,8 & 0x02 == 0x02", "payload"),
    row("tcp flags of an opening", ("tcp flags syn / syn,ack,rst,fin", "tcp flags & (fin|rst) != 0"),
    "flags"),
    row("tcp sequence", "tcp sequence 1200-1000000", "", HEADER_HOOKS, permanent_only=True),
    row("tcp ackseq", "tcp ackseq 900500-2000000", permanent_only=True),
    row("tcp window", "tcp window < 1000", "window", HEADER_HOOKS),
    row("tcp urgptr", "tcp urgptr 3", "urgent"),
    row("tcp doff", "tcp doff > 5", "options"),
    row("tcp checksum", "tcp checksum < 0x8000", "payload"),
    row("tcp option", ("tcp option timestamp exists", "tcp option timestamp tsval 7"), "options"),
    row("udp length", ("udp length > 500", "udp length 300-1000"), "length", HEADER_HOOKS),
    row("udp checksum", ("udp checksum 0", "udp checksum < 0x8000"), "checksum payload", HEADER_HOOKS),
    row("th ports", ("th dport 5080 ip saddr 172.17.0.3", "udp dport { 80, 5080 }", "tcp sport 5000-5999"),
    "",
         HEADER_HOOKS),
    row("raw @nh", ("@nh,64,8 < 40", "@nh,64,32 < 0x28000000", "@nh,8,8 != 0", "@nh,16,16 > 500"),
         "ttl tos length", HEADER_HOOKS, family=4),
    row("raw @th", ("udp dport 5080 @th,192,8 0x42", "udp sport 5080 @th,32,16 > 500"), "payload length",
         HEADER_HOOKS),
    row("raw @ih", ("udp dport 5080 @ih,128,8 0x42", "tcp dport 5080 @ih,128,8 0x42"), "payload"),
    row("raw @ll behind Ethernet", ("@ll,120,8 != 0", "@ll,128,16 > 500"), "tos length", "pBD", family=4),
    row("raw @ll", (f"ip saddr 172.17.0.2 @ll,48,48 != 0x{_MAC_A.replace(':', '')}", "@ll,96,16 0x86dd"),
    "mac",
         "pBD"),
    row("ether saddr", (f"iifname docker0 ip saddr 172.17.0.2 ether saddr != {_MAC_A}",
         "ether saddr 02:00:00:00:17:99", f'iifname "docker0" ether saddr != {{ {_MAC_A}, {_MAC_B} }}'),
         "mac",
         "pf"),
    row("ether saddr of ports", f"ip saddr 172.17.0.2 ether saddr != {_MAC_A}", "mac port", "BD"),
    row("ether daddr", ("ether daddr 02:00:00:00:17:99", "ether daddr 02:00:00:00:18:77"), "mac", "pfB"),
    row("ether type", "ether type ip6", "", "pBD"),
    row("vlan", ("vlan id 5", "vlan pcp 1"), "vlan", "BD"),
    row("ip ttl set", ("ip ttl set 9", "ip saddr 172.17.0.2 ip ttl set 9"), "ttl", family=4, whole=True),
    row("ip dscp set", "ip dscp set cs1", "tos", family=4, whole=True),
    row("ip ecn set", "ip ecn set ect1", "ecn", family=4, whole=True),
    row("ip6 hoplimit set", "ip6 hoplimit set 9", "ttl", family=6, whole=True),
    row("udp payload set", "udp dport 5080 @th,192,8 set 0x43", "payload", whole=True),
    row("tcp option set", ("tcp option maxseg size set 1000",
    "tcp flags syn tcp option maxseg size set rt mtu",
         "reset tcp option timestamp"), "options", "f", whole=True),
    row("ether saddr set", "ether saddr set 02:00:00:00:17:55", "mac", "D", whole=True),
)  # fmt: skip
