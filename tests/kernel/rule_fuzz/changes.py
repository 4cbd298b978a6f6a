"""Changes during a connection: commands, their undo, and what they affect."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.kernel.rule_fuzz.traffic import OTHER_MAC, VARIATIONS, Facts


@dataclass(frozen=True, slots=True)
class Change:
    """Scripts that do and undo a change, and what it affects.

    `before` runs at the start (and is undone by `undo`); `facts` describe the packets after the change.
    `touches` are words that rules have too in what they match. With `loose` the kernel itself gives different
    results.
    """

    name: str
    touches: frozenset[str]
    do: str = "true"
    undo: str = "true"
    before: str = ""
    facts: Facts = field(default_factory=Facts)
    loose: bool = False
    takes: float = 0.0  # seconds that have to pass before it


def _change(name: str, touches: str, do: str = "true", undo: str = "true", **more: object) -> Change:
    return Change(name, frozenset(touches.split()), do, undo, **more)  # type: ignore[arg-type]


_DEFAULT = "ip route replace default via 192.0.2.2; ip -6 route replace default via 2001:db8::2"
_SECOND = "ip route replace default via 203.0.113.2; ip -6 route replace default via 2001:db8:cb::2"
# The side that sends first after a connection was deleted decides about its translation: the fast path asks
# for each connection once a second.
_ASKED = 2.5
# It fails if there is no such connection, or nothing to change about one.
_CONNTRACK = "for f in ipv4 ipv6; do for p in tcp udp; do conntrack {} -f $f -p $p {} || true; done; done"
_BY_RULE = (
    "ip rule del lookup 77; ip -6 rule del lookup 77; ip route flush table 77; ip -6 route flush table 77"
)
_TABLE_77 = (
    "ip route add default via 203.0.113.2 table 77; ip -6 route add default via 2001:db8:cb::2 table 77"
)
_RULE = (
    "nft 'add table inet marks; add chain inet marks it {{ type filter hook prerouting priority {}; }}; "
    "add rule inet marks it {}'"
)
_NO_RULE = "nft delete table inet marks"
_NO_CALL = "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0"
_CALL = "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1"


def _renamed(link: str, to: str, after: str = "true") -> tuple[str, str]:
    words = "ip link set {0} down; ip link set {0} name {1}; ip link set {1} up; {2}"
    return words.format(link, to, after), words.format(to, link, after)


def _conntrack(verb: str, words: str = "") -> str:
    return _CONNTRACK.format(verb, words)


ROUTES = (
    _change("the default route moves to another uplink", "route", _SECOND, _DEFAULT),
    _change(
        "a more specific route leads to another uplink", "route",
        "ip route add 198.51.100.0/24 via 203.0.113.2; ip -6 route add 2001:db8:1::/64 via 2001:db8:cb::2",
        "ip route del 198.51.100.0/24; ip -6 route del 2001:db8:1::/64",
    ),
    _change(
        "a policy rule leads to another uplink", "route",
        "ip rule add from 172.17.0.2 lookup 77; ip -6 rule add from fd17::2 lookup 77",
        _BY_RULE, before=_TABLE_77,
    ),
    _change(
        "a policy rule of an incoming link leads to another uplink", "route",
        "ip rule add iif docker0 lookup 77; ip -6 rule add iif docker0 lookup 77",
        _BY_RULE, before=_TABLE_77,
    ),
    _change(
        "the default route is gone", "route fib", "ip route del default; ip -6 route del default",
        _DEFAULT,
    ),
    _change(
        "the route is a black hole", "route fib",
        "ip route add blackhole 198.51.100.2; ip -6 route add blackhole 2001:db8:1::2",
        "ip route del blackhole 198.51.100.2; ip -6 route del blackhole 2001:db8:1::2",
    ),
    _change(
        "the route has two next hops", "route",
        "ip route replace default nexthop via 192.0.2.2 nexthop via 203.0.113.2", _DEFAULT,
    ),
    _change(
        "the route has a realm", "realm", "ip route replace default via 192.0.2.2 realm 5",
        "ip route del default; " + _DEFAULT,
    ),
    _change(
        "the route has a smaller MTU", "mtu", "ip route replace default via 192.0.2.2 mtu 600",
        "ip route del default; " + _DEFAULT, facts=Facts(("length",)),
    ),
    _change(
        "the way back leads to another bridge", "fib iif",
        "ip route add 172.17.0.2/32 dev br-two; ip -6 route add fd17::2/128 dev br-two",
        "ip route del 172.17.0.2/32; ip -6 route del fd17::2/128",
    ),
    _change(
        "the reverse path is looked at", "fib iif",
        "sysctl -qw net.ipv4.conf.docker0.rp_filter=1",
        "sysctl -qw net.ipv4.conf.docker0.rp_filter=0; ip route del 172.17.0.2/32",
        before="ip route add 172.17.0.2/32 dev br-two",
    ),
    _change(
        "the destination is an address of the host", "fib daddr",
        "ip addr add 198.51.100.2/32 dev lo; ip -6 addr add 2001:db8:1::2/128 dev lo",
        "ip addr del 198.51.100.2/32 dev lo; ip -6 addr del 2001:db8:1::2/128 dev lo",
    ),
    _change(
        "the source is an address of the host", "fib saddr",
        "ip addr add 172.17.0.2/32 dev lo", "ip addr del 172.17.0.2/32 dev lo",
    ),
    _change(
        "the host has one more address", "fib",
        "ip addr add 192.0.2.9/24 dev up0", "ip addr del 192.0.2.9/24 dev up0",
    ),
    _change(
        "the uplink loses its address", "route fib",
        "ip addr del 192.0.2.1/24 dev up0",
        f"ip addr add 192.0.2.1/24 dev up0; {_DEFAULT}",
    ),
)  # fmt: skip
LINKS = (
    _change("the uplink is in a group", "group", "ip link set up0 group 7",
            "ip link set up0 group 0"),
    _change("the bridge is in a group", "group", "ip link set docker0 group 7",
            "ip link set docker0 group 0"),
    _change("the other bridge is in a group", "group", "ip link set br-two group 7",
            "ip link set br-two group 0"),
    _change("the bridge's port is in a group", "group port", "ip link set v-a group 7",
            "ip link set v-a group 0"),
    _change("the uplink has another name", "name", *_renamed("up0", "wan9", _DEFAULT)),
    _change("the other bridge has another name", "name", *_renamed("br-two", "br-nine")),
    _change("the bridge's port has another name", "name port", *_renamed("v-a", "wan8")),
    _change("the uplink is down", "down", "ip link set up0 down", f"ip link set up0 up; {_DEFAULT}"),
    _change("a port is down", "down port", "ip link set v-b down", "ip link set v-b up"),
    _change("the other bridge is down", "down", "ip link set br-two down", "ip link set br-two up"),
    _change("the uplink is narrow", "mtu length", "ip link set up0 mtu 1280",
            "ip link set up0 mtu 1500", facts=Facts(("length",))),
    _change("the container has another MAC", "mac",
            f"a ip link set eth0 address {OTHER_MAC}; ip neigh flush dev docker0",
            "a ip link set eth0 address 02:00:00:00:17:02; ip neigh flush dev docker0; "
            "a ip route replace default via 172.17.0.1; a ip -6 route replace default via fd17::1",
            facts=Facts(other_mac=True)),
    _change("another container sends with its addresses", "mac iif fib saddr port", facts=Facts(spoofs=True)),
    _change("the container moves to another bridge", "iif port", "ip link set v-a master br-two",
            "ip link set v-a master docker0; ip link set v-a type bridge_slave hairpin on"),
    _change("two ports are isolated", "port",
            "bridge link set dev v-a isolated on; bridge link set dev v-b isolated on",
            "bridge link set dev v-a isolated off; bridge link set dev v-b isolated off"),
    _change("the bridge filters VLANs", "vlan", "ip link set docker0 type bridge vlan_filtering 1",
            "ip link set docker0 type bridge vlan_filtering 0"),
    _change("a neighbour's MAC is fixed", "mac",
            "ip neigh replace 172.18.0.2 lladdr 02:00:00:00:18:77 dev br-two nud permanent",
            "ip neigh del 172.18.0.2 dev br-two"),
    _change("the uplink is slow", "qdisc", "tc qdisc add dev up0 root tbf rate 8kbit burst 400 limit 800",
            "tc qdisc del dev up0 root", loose=True),
    _change("the container's link is slow", "qdisc",
            "tc qdisc add dev v-a root tbf rate 8kbit burst 400 limit 800", "tc qdisc del dev v-a root",
            loose=True),
    _change("a tc filter drops what comes from a container", "tc",
            "tc qdisc add dev v-a clsact; tc filter add dev v-a ingress protocol ip pref 9 "
            "bpf da bytecode '1,6 0 0 2,'",
            "tc qdisc del dev v-a clsact"),
)  # fmt: skip
HOST = (
    _change("IPv4 forwarding is off", "sysctl", "sysctl -qw net.ipv4.ip_forward=0",
            "sysctl -qw net.ipv4.ip_forward=1"),
    _change("IPv4 forwarding is off on the bridge", "sysctl",
            "sysctl -qw net.ipv4.conf.docker0.forwarding=0",
            "sysctl -qw net.ipv4.conf.docker0.forwarding=1"),
    _change("IPv4 forwarding is off on the uplink", "sysctl", "sysctl -qw net.ipv4.conf.up0.forwarding=0",
            "sysctl -qw net.ipv4.conf.up0.forwarding=1"),
    _change("IPv6 forwarding is off", "sysctl", "sysctl -qw net.ipv6.conf.all.forwarding=0",
            "sysctl -qw net.ipv6.conf.all.forwarding=1"),
    _change("IPv6 forwarding is off, but on on each link", "sysctl",
            "sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.docker0.forwarding=1 "
            "net.ipv6.conf.br-two.forwarding=1 net.ipv6.conf.up0.forwarding=1",
            "sysctl -qw net.ipv6.conf.all.forwarding=1"),
    _change("bridges ask no iptables", "call", _NO_CALL, _CALL),
    _change("bridges ask iptables again", "call", _CALL, _CALL, before=_NO_CALL),
    _change("one bridge asks iptables", "call", "ip link set docker0 type bridge nf_call_iptables 1",
            f"ip link set docker0 type bridge nf_call_iptables 0; {_CALL}", before=_NO_CALL),
    _change("one bridge asks ip6tables", "call", "ip link set docker0 type bridge nf_call_ip6tables 1",
            f"ip link set docker0 type bridge nf_call_ip6tables 0; {_CALL}", before=_NO_CALL),
    _change("the ct mark is set by hand", "ctmark", _conntrack("-U", "--mark 1/0xff"),
            _conntrack("-U", "--mark 0/0xff")),
    _change("connections are deleted", "ctstate", _conntrack("-D"), takes=_ASKED),
    _change("all connections are forgotten", "ctstate", "conntrack -F", takes=_ASKED),
    _change("the time-outs of connections are shortened", "cttime", _conntrack("-U", "--timeout 40")),
    _change("a label is put on connections", "ctlabel",
            _RULE.format(-90, "ct label set 3"), _NO_RULE),
    _change("a policy of IPsec blocks", "xfrm",
            "ip xfrm policy add src 172.17.0.2/32 dst 198.51.100.2/32 dir fwd action block",
            "ip xfrm policy del src 172.17.0.2/32 dst 198.51.100.2/32 dir fwd"),
    _change("packets get a mark", "mark",
            _RULE.format(-400, "meta l4proto { tcp, udp } meta mark set 0x7"), _NO_RULE),
    _change("packets of one container get a mark by which they are routed", "mark route",
            _RULE.format(-400, "ip saddr 172.17.0.2 meta mark set 0x7"),
            f"{_NO_RULE}; ip rule del lookup 77; ip route flush table 77",
            before="ip route add default via 203.0.113.2 table 77; ip rule add fwmark 7 lookup 77"),
    _change("a second passes", "time", takes=1.2),
)  # fmt: skip
PACKETS = tuple(_change(f"packets differ in {name}", name, facts=Facts((name,))) for name in VARIATIONS)
CHANGES = (*ROUTES, *LINKS, *HOST, *PACKETS)
