"""What rules can match besides the packet changes during a connection.

Each scenario runs twice, without and with the fast path, with the same result.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP, UDP

from tests.kernel.fastlab import HOST4, MACS, PUBLISHED, SECOND4, V4, V6, FastLab
from tests.kernel.streams import Stream, is_fast, talks_fast
from tests.support.fastpath import Talk
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.root
_RULE = "nft -f - <<< 'table inet extra {{ chain it {{ type filter hook forward priority 5; {}; }}; }}'"
# Seconds. A change takes effect immediately; the rest is for a busy machine.
GRACE = 10.0
_KNOWN = "ping -c1 -W9 203.0.113.2"  # the neighbour that the other route leads to
_SET = (
    "nft -f - <<< 'table inet blocked { set s { type ipv4_addr; }; "
    "chain it { type filter hook forward priority 5; ip saddr @s drop; }; }'"
)
_OTHER_MAC = "02:00:00:00:17:99"


def run_shell(lab: FastLab, command: str, inside: str = "host") -> None:
    """Run a command line in a shell."""
    lab.run(["bash", "-euc", command], inside=inside)


@dataclass(frozen=True)
class Change:
    """A permanent rule, and a change after which a stream must stop."""

    change: str
    rule: str = ""
    inside: str = "host"
    path: str = "out"
    before: str = ""
    part: str = ""  # of tests/support/kernel_parts.py


CHANGES = {
    "the default route moves to another link": Change(
        "ip route replace default via 203.0.113.2", "iifname docker0 oifname up1 drop", before=_KNOWN,
    ),
    "a policy rule leads to another link": Change(
        "ip rule add from 172.17.0.2 lookup 77", "iifname docker0 oifname up1 drop",
        before=f"ip route add default via 203.0.113.2 table 77; {_KNOWN}",
    ),
    "the way out is put into a group": Change("ip link set up0 group 7", "oifgroup 7 drop"),
    "the way in is put into a group": Change("ip link set up0 group 7", "iifgroup 7 drop", path="published"),
    "the bridge is put into a group": Change("ip link set docker0 group 7", "iifgroup 7 drop"),
    "the way out gets another name": Change(
        "ip link set up0 down; ip link set up0 name wan9; ip link set wan9 up; "
        "ip route add default via 192.0.2.2",
        "oifname wan9 drop",
    ),
    "the container has another MAC": Change(
        f"ip link set eth0 address {_OTHER_MAC}",
        f"iifname docker0 ip saddr 172.17.0.2 ether saddr != {MACS['a']} drop", inside="a",
    ),
    "the way back leads to another bridge": Change(
        "ip route add 172.17.0.2/32 dev br-two", before="sysctl -qw net.ipv4.conf.docker0.rp_filter=1"
    ),
    "the reverse path is looked at from now on": Change(
        "sysctl -qw net.ipv4.conf.docker0.rp_filter=1; ip route add 172.17.0.2/32 dev br-two"
    ),
    "the ct mark is set by hand": Change(
        "conntrack -U -p udp --orig-port-dst 6000 --mark 1/0xff", "ct mark and 0xff == 1 drop"
    ),
    "one bridge alone asks ip6tables": Change(
        "ip6tables -I FORWARD -s fd17::2 -j DROP", path="bridged six",
        before="sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0; "
        "ip link set docker0 type bridge nf_call_ip6tables 1",
    ),
    "an address is put into a set": Change("nft add element inet blocked s { 172.17.0.2 }", before=_SET),
    "an address leaves a set": Change(
        "nft delete element inet blocked s { 172.17.0.2 }",
        before=_SET.replace("@s drop", "!= @s iifname docker0 drop")
        + "; nft add element inet blocked s { 172.17.0.2 }",
    ),
    "an address is in a set for a while": Change(
        "true", before=_SET.replace("ipv4_addr;", "ipv4_addr; flags timeout;")
        .replace("@s drop", "!= @s iifname docker0 drop")
        + "; nft add element inet blocked s { 172.17.0.2 timeout 5s }",
    ),
    "IPv6 forwarding is off, but on on each link": Change(
        "sysctl -qw net.ipv6.conf.all.forwarding=0; "
        "sysctl -qw net.ipv6.conf.docker0.forwarding=1 net.ipv6.conf.up0.forwarding=1", path="six",
    ),
    "IPv6 forwarding was forced on a link": Change(
        "sysctl -qw net.ipv6.conf.docker0.force_forwarding=0", path="six",
        before="sysctl -qw net.ipv6.conf.all.forwarding=0; ip -6 route replace default via 2001:db8::2; "
        "sysctl -qw net.ipv6.conf.docker0.forwarding=1 net.ipv6.conf.up0.forwarding=1; "
        "sysctl -qw net.ipv6.conf.docker0.force_forwarding=1 net.ipv6.conf.up0.force_forwarding=1",
        part="force_forwarding",
    ),
    "IPv6 forwarding was forced everywhere": Change(
        "sysctl -qw net.ipv6.conf.all.force_forwarding=0", path="six",
        before="sysctl -qw net.ipv6.conf.all.forwarding=0; ip -6 route replace default via 2001:db8::2; "
        "sysctl -qw net.ipv6.conf.docker0.forwarding=1 net.ipv6.conf.up0.forwarding=1; "
        "sysctl -qw net.ipv6.conf.all.force_forwarding=1", part="force_forwarding",
    ),
}  # fmt: skip


def stream(lab: FastLab, path: str) -> Stream:
    match path:
        case "published":
            return Stream(lab, "far", "a", HOST4, port=80, to=PUBLISHED)
        case "six":
            return Stream(lab, "a", "far", V6["far"], family=6)
        case "bridged six":
            return Stream(lab, "a", "b", V6["b"], family=6)
    return Stream(lab, "a", "far", V4["far"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.kernel_has(each.part)] if each.part else [])
        for name, each in CHANGES.items()
    ],
)
def test_a_change_outside_the_packet_stops_a_connection(lab: FastLab, name: str) -> None:
    case = CHANGES[name]
    for command in (case.rule and _RULE.format(case.rule), case.before):
        if command:
            run_shell(lab, command)
    with stream(lab, case.path) as flow:
        assert flow.flows()
        assert is_fast(lab, "v-a", "v-b" if case.path.startswith("bridged") else "up0")
        run_shell(lab, case.change, case.inside)
        changed = time.monotonic()
        assert flow.is_cut(flow.there)
        # Long enough for flows to be checked again.
        sent = flow.sent
        assert eventually(lambda: flow.sent > sent + 500)
        assert flow.there.latest < changed + GRACE


def test_packets_of_the_host_with_a_containers_address_admit_nothing(lab: FastLab) -> None:
    """It passes other rules than forwarded packets of the same connection."""
    with Talk(lab.host, "a", "far", V4["far"], udp=True) as talk:
        assert talks_fast(lab, talk, "v-a", "up0")
        lab.run("iptables -t mangle -I PREROUTING -s 172.17.0.2 -p udp -j DROP")
        assert eventually(lambda: not talk.passes())
        port = talk.client.getsockname()[1]
        packet = IP(src=V4["a"], dst=V4["far"]) / UDP(sport=port, dport=7000) / b"from the host"
        with closing(lab.socket("host", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as raw:
            for _ in range(20):
                raw.sendto(bytes(packet), (V4["far"], 0))
                assert talk.server.recv(100) == b"from the host"
                talk.client.send(b"from the container")
                time.sleep(0.1)
            raw.sendto(bytes(packet), (V4["far"], 0))
            assert talk.server.recv(100) == b"from the host"


def test_a_ct_mark_set_before_the_first_data_is_noticed(lab: FastLab) -> None:
    """It is set between the handshake and the data from which the fast path learns."""
    run_shell(lab, _RULE.format("ct mark and 0xff == 1 drop"))
    with Talk(lab.host, "a", "far", V4["far"]) as talk:
        assert eventually(lambda: lab.conntrack("dport=7000", "[ASSURED]"))
        lab.run("conntrack -U -p tcp --orig-port-dst 7000 --mark 1/0xff")
        talk.client.send(b"is anybody there?")

        def sent_again() -> int:
            return talk.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[2]

        assert eventually(lambda: sent_again() >= 4)
        talk.server.setblocking(False)
        with pytest.raises(BlockingIOError):
            talk.server.recv(100)
        # As long as the mark is there: what comes then is fast in the end.
        lab.run("conntrack -U -p tcp --orig-port-dst 7000 --mark 0/0xff")
        talk.server.setblocking(True)
        assert talk.server.recv(100) == b"is anybody there?"
        assert talks_fast(lab, talk, "v-a", "up0")


@contextmanager
def sources_at(lab: FastLab, inside: str, link: str) -> Iterator[set[str]]:
    """Collect the IPv4 sources of all UDP that enters by a link."""
    sources: set[str] = set()
    with closing(lab.socket(inside, socket.AF_PACKET, socket.SOCK_RAW)) as raw:
        raw.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)
        raw.bind((link, 0x0800))
        raw.setblocking(False)
        yield sources
        while True:
            try:
                frame, where = raw.recvfrom(200)
            except BlockingIOError:
                return
            if frame[23] == 17 and where[2] != socket.PACKET_OUTGOING:
                sources.add(socket.inet_ntoa(frame[26:30]))


def test_after_a_missing_route_the_source_is_that_of_the_new_route(lab: FastLab) -> None:
    with stream(lab, "out") as flow, sources_at(lab, "world", "eth1") as by_the_second:
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")
        lab.run("ip route del default via 192.0.2.2")
        assert flow.is_cut(flow.there)
        lab.run("ip route add default via 203.0.113.2")
        assert flow.flows(300)
    assert [source for source, _ in flow.there.sources] == [HOST4, SECOND4]
    assert by_the_second == {SECOND4}


def test_a_container_cannot_send_in_another_containers_connection(lab: FastLab) -> None:
    """c takes a's address and ports, past reverse path and bridge rules."""
    run_shell(lab, _RULE.format("iifname br-two oifname up0 drop"))
    run_shell(lab, "sysctl -qw net.ipv4.conf.docker0.rp_filter=1 net.ipv4.conf.br-two.rp_filter=1")
    with Talk(lab.host, "a", "far", V4["far"], udp=True) as talk:
        assert talks_fast(lab, talk, "v-a", "up0")
        port = talk.client.getsockname()[1]
        lab.run(f"ip addr add {V4['a']}/32 dev lo", inside="c")
        lab.run(f"ip addr add {V4['a']}/32 dev eth0", inside="c")
        with closing(lab.socket("c", socket.AF_INET, socket.SOCK_DGRAM)) as spoofer:
            spoofer.bind((V4["a"], port))
            for number in range(400):
                spoofer.sendto(b"stolen %d" % number, (V4["far"], 7000))
                time.sleep(0.005)  # longer than a second in all, after which conntrack is asked again
        talk.server.settimeout(1)
        with pytest.raises(TimeoutError):
            talk.server.recv(2000)
        talk.server.settimeout(PATIENCE)
        talk.say(10)
