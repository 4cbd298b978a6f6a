"""Matches and targets of iptables: rows as in vocabulary.py."""

from __future__ import annotations

from tests.kernel.rule_fuzz.changes import Change
from tests.kernel.rule_fuzz.vocabulary import Row

_ANY = ("filter FORWARD", "mangle FORWARD", "mangle PREROUTING", "raw PREROUTING", "mangle POSTROUTING")
_FILTER, _MANGLE = ("filter FORWARD",), ("mangle FORWARD", "mangle PREROUTING", "mangle POSTROUTING")
_EARLY = ("raw PREROUTING", "mangle PREROUTING")
_RAW, _LATE = ("raw PREROUTING",), ("filter FORWARD", "mangle POSTROUTING")
_OUT = ("filter FORWARD", "mangle FORWARD")
_BOTH = "iptables iptables-legacy"


def _row(
    name: str, texts: str | tuple[str, ...], reads: str = "", chains: tuple[str, ...] = _ANY, **more: object
) -> Row:
    """Return a row; conditions get `-j DROP`."""
    every = texts if isinstance(texts, tuple) else (texts,)
    words = frozenset(reads.split())
    name = f"iptables {name}"
    return Row(name, every, words, chains=chains, tool="iptables", **more)  # type: ignore[arg-type]


ROWS = (
    _row("-i", ("-i wan+", "-i br-two -s 172.17.0.0/16"), "iif name",
         (*_OUT, "raw PREROUTING", "mangle PREROUTING"), family=4),
    _row("-o", ("-i docker0 -o up1", "-o wan+", "-d 198.51.100.2 ! -o up0"), "route name", _OUT,
         family=4),
    _row("-o of IPv6", "-i docker0 -o up1", "route", _OUT, family=6),
    _row("-s", "-s 172.17.0.2", "saddr", family=4),
    _row("-f", "-f", family=4),
    _row("physdev", ("-m physdev --physdev-in wan8", "-m physdev ! --physdev-in v-a -s 172.17.0.2 -i docker0",
         "-m physdev --physdev-in v-a --physdev-is-bridged --physdev-out wan8"), "port name iif", _FILTER,
         family=4),
    _row("mac", ("-i docker0 -s 172.17.0.2 -m mac ! --mac-source 02:00:00:00:17:02",
         "-m mac --mac-source 02:00:00:00:17:99"), "mac", (*_EARLY, "filter FORWARD"), family=4),
    _row("mark", ("-m mark --mark 7", "-m mark --mark 0x3/0x3"), "mark"),
    _row("connmark", ("-m connmark --mark 1/0xff", "-m connmark --mark 1/0x1"), "ctmark", _OUT),
    _row("connmark, all bits", ("-m connmark --mark 1", "-m connmark ! --mark 0"), "ctmark", _OUT),
    _row("conntrack", ("-m conntrack --ctstate NEW", "-m conntrack --ctstate INVALID",
         "-m conntrack ! --ctstate ESTABLISHED,RELATED"), "ctstate", _OUT),
    _row("conntrack, translated", ("-m conntrack --ctstate DNAT -m length --length 500:2000",
         "-m conntrack --ctstate SNAT -m length --length 500:2000"), "length", _OUT),
    _row("conntrack status", ("-m conntrack --ctstatus NONE", "-m conntrack --ctstate DNAT"), "ctstate",
         _OUT),
    _row("conntrack expire", "-m conntrack --ctexpire 1:60", "cttime", _OUT),
    _row("conntrack direction", ("-m conntrack --ctdir REPLY -i up1", "-m conntrack --ctdir REPLY"),
         "route",
         _OUT),
    _row("state", ("-m state --state NEW", "-m state --state INVALID"), "ctstate", _OUT),
    _row("limit", ("-p udp -m limit --limit 5/sec --limit-burst 2",), loose=True),
    _row("hashlimit", ("-p udp -m hashlimit --hashlimit-above 5/sec --hashlimit-burst 2 --hashlimit-name h "
         "--hashlimit-mode srcip",), loose=True, chains=_FILTER),
    _row("statistic nth", "-p udp -m statistic --mode nth --every 7 --packet 0", loose=True),
    _row("statistic random", "-p udp -m statistic --mode random --probability 0.5", loose=True),
    _row("length", ("-m length --length 500:2000", "-p udp -m length --length 500:2000"), "length"),
    _row("ttl", ("-m ttl --ttl-lt 40", "-m ttl --ttl-eq 30"), "ttl", family=4),
    _row("hl", "-m hl --hl-lt 40", "ttl", family=6),
    _row("tos", ("-m tos --tos 0xb8", "-m tos ! --tos 0"), "tos"),
    _row("dscp", ("-m dscp --dscp 46", "-m dscp --dscp-class EF"), "tos"),
    _row("ecn", ("-m ecn --ecn-ip-ect 1", "-p tcp -m ecn --ecn-tcp-cwr"), "ecn", family=4),
    _row("u32", ("-m u32 --u32 '5>>24=0:40'", "-m u32 --u32 '0&0xFFFF=500:2000'"), "ttl length", family=4),
    _row("string", "-m string --algo bm --hex-string '|42|'", "payload"),
    _row("bpf", ("-m bpf --bytecode '4,48 0 0 8,37 1 0 40,6 0 0 65535,6 0 0 0'",), "ttl",
         family=4),
    _row("time", ("-m time --timestart 00:00 --timestop 23:59", "-m time --datestart 2020-01-01"), "time"),
    _row("quota", "-p udp --dport 5080 -m quota --quota 2000 -j ACCEPT", loose=True, whole=True),
    _row("recent", ("-m recent --name r --rcheck", "-m recent --name r --set"), "", _FILTER),
    _row("recent, filled by hand", "-m recent --name r --rcheck", "", _FILTER,
         own=(Change("an address is written to it", frozenset(),
              "test -e /proc/net/xt_recent/r && echo +172.17.0.2 > /proc/net/xt_recent/r; true",
              "test -e /proc/net/xt_recent/r && echo / > /proc/net/xt_recent/r; true"),), family=4),
    _row("set", "-m set --match-set s src", "", family=4,
         own=(Change("an address is put into it", frozenset(), "ipset add s 172.17.0.2",
         "ipset del s 172.17.0.2"),),
         objects="ipset -exist create s hash:ip"),
    _row("rpfilter", ("-m rpfilter --invert", "-m rpfilter --loose --invert"), "fib iif route", _EARLY),
    _row("addrtype", ("-m addrtype --dst-type LOCAL -i docker0", "-m addrtype --src-type LOCAL"),
         "fib daddr saddr", _EARLY),
    _row("policy", ("-m policy --dir in --pol ipsec", "-m policy --dir out --pol ipsec"), "xfrm", _FILTER),
    _row("connbytes", ("-m connbytes --connbytes 3000 --connbytes-dir both --connbytes-mode bytes",
         "-m connbytes --connbytes 20 --connbytes-dir original --connbytes-mode packets"), "", _OUT,
         permanent_only=True),
    _row("connlimit", "-p udp -m connlimit --connlimit-above 1", "", _FILTER, permanent_only=True),
    _row("connlabel", "-m connlabel --label 3", "ctlabel", _FILTER),
    _row("pkttype", ("-m pkttype --pkt-type unicast -p udp --dport 80", "-m pkttype --pkt-type multicast"),
         "mac port", _EARLY),
    _row("comment", "-m comment --comment 'a b' -p udp --dport 5080 -s 172.17.0.3", family=4),
    _row("comment like an option", "-m comment --comment 'not -p icmp' -m length --length 500:2000",
         "length"),
    _row("multiport", "-p udp -m multiport --dports 80,5080"),
    _row("iprange", "-m iprange --src-range 172.17.0.2-172.17.0.2", "saddr", family=4),
    _row("owner", "-m owner --uid-owner 0", chains=("mangle POSTROUTING",)),
    _row("cluster", "-m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 0xdead",
         "",
         _EARLY, family=4),
    _row("cpu", "-m cpu --cpu 99"),
    _row("devgroup", ("-m devgroup --src-group 7", "-m devgroup --dst-group 7"), "group", _OUT),
    _row("realm", "-m realm --realm 5", "realm", _OUT, family=4),
    _row("helper", "-m helper --helper ftp", "", _OUT),
    _row("nfacct", "-m nfacct --nfacct-name n", "", _OUT),
    _row("socket", ("-m socket", "-m socket --transparent"), "", _EARLY),
    _row("cgroup", "-m cgroup --cgroup 1", "", ("mangle POSTROUTING",)),
    _row("tcp flags", ("-p tcp --tcp-flags PSH NONE", "-p tcp --tcp-flags SYN,RST SYN",
         "-p tcp ! --tcp-flags URG NONE"), "flags urgent"),
    _row("tcp option", "-p tcp --tcp-option 8", "options"),
    _row("tcpmss", "-p tcp -m tcpmss --mss 1000:2000", "", _FILTER),
    _row("REJECT", ("-p udp --dport 5080 -j REJECT", "-p tcp --dport 5080 -j REJECT --reject-with tcp-reset"),
         "", _FILTER, family=4, whole=True),
    _row("MARK", ("-j MARK --set-mark 7", "-s 172.17.0.2 -j MARK --or-mark 0x100"), "mark", _MANGLE,
         family=4, whole=True),
    _row("CONNMARK", ("-j CONNMARK --restore-mark", "-j CONNMARK --save-mark",
         "-j CONNMARK --set-mark 1/0xff"),
         "mark ctmark", _MANGLE, whole=True),
    _row("TCPMSS", ("-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
         "-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000"), "", ("mangle FORWARD",), whole=True),
    _row("TTL", ("-j TTL --ttl-set 9", "-j TTL --ttl-inc 1"), "ttl", _MANGLE, family=4, whole=True),
    _row("HL", "-j HL --hl-set 9", "ttl", _MANGLE, family=6, whole=True),
    _row("DSCP", "-j DSCP --set-dscp 8", "tos", _MANGLE, whole=True),
    _row("TOS", "-j TOS --set-tos 8", "tos", _MANGLE, whole=True),
    _row("LOG", ("-j LOG", "-m conntrack --ctstate NEW -j LOG"), "", _OUT, whole=True),
    _row("NFLOG", "-j NFLOG --nflog-group 5", "", _OUT, whole=True),
    _row("CT", ("-j CT --notrack", "-p udp -j CT --zone 1", "-i docker0 -j CT --zone 1",
         "-j CT --ctevents new"), "", _RAW, permanent_only=True, whole=True),
    _row("NOTRACK", "-p udp --dport 5080 -j NOTRACK", "", _RAW, permanent_only=True, whole=True),
    _row("TPROXY", "-p udp --dport 5080 -j TPROXY --on-port 9999", "", ("mangle PREROUTING",), whole=True),
    _row("CLASSIFY", "-j CLASSIFY --set-class 1:1", "", ("mangle POSTROUTING",), whole=True),
    _row("NFQUEUE", "-p udp -j NFQUEUE --queue-num 5 --queue-bypass", "", _OUT, whole=True),
    _row("TEE", "-j TEE --gateway 172.18.0.2", "", _MANGLE, family=4, whole=True),
    _row("CHECKSUM", "-p udp -j CHECKSUM --checksum-fill", "", _MANGLE, whole=True),
    _row("CONNSECMARK", "-j CONNSECMARK --restore", "", ("mangle FORWARD",), whole=True),
    _row("TRACE", "-p udp --dport 5080 -j TRACE", "", _RAW, whole=True),
    _row("SET", "-j SET --add-set s src", "", _OUT, family=4, whole=True,
         objects="ipset -exist create s hash:ip"),
    _row("RATEEST", "-j RATEEST --rateest-name e --rateest-interval 250ms --rateest-ewma 0.5s", "",
         ("mangle PREROUTING",), whole=True),
)  # fmt: skip
