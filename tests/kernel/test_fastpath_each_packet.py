"""Rules that match each packet of a connection, timeout policies and zones.

What arrives, and what conntrack stores, is the same without and with the fast path.
test_fastpath_rule_analysis.py has many more such rules, and checks that they are named.
"""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import pytest

from tests.kernel.fastlab import HOST4, V4, FastLab
from tests.kernel.streams import Stream, is_fast, talks_fast
from tests.kernel.test_fastpath_admission import run_shell, sources_at
from tests.support.fastpath import Talk
from tests.support.waiting import eventually

pytestmark = pytest.mark.root
_LIMIT = "limit rate over 5/second drop"
_OWN = "nft -f - <<< 'table {0} own {{ {1} }}'"
_BASE = "chain it {{ type filter hook {0} priority {1}; {2}; }};"
_LIBERAL = "net.netfilter.nf_conntrack_tcp_be_liberal"

LIMITS = {
    "the catch-all element of an anonymous verdict map": (
        "inet",
        f"chain limited {{ {_LIMIT}; }}; "
        + _BASE.format("forward", 0, "ct state vmap { invalid : drop, * : jump limited }"),
    ),
    "the catch-all element of a named verdict map": (
        "inet",
        f"chain limited {{ {_LIMIT}; }}; "
        "map states { type ct_state : verdict; elements = { invalid : drop, * : jump limited }; }; "
        + _BASE.format("forward", 0, "ct state vmap @states"),
    ),
    "the input of a bridge": ("bridge", _BASE.format("input", 0, f"ether type ip {_LIMIT}")),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_accepts_some_packets(lab: FastLab, name: str) -> None:
    with Stream(lab, "a", "far", V4["far"]) as flow:
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")
        family, chains = LIMITS[name]
        run_shell(lab, _OWN.format(family, chains))
        # Of 250 datagrams a second, 5 pass in each direction; the first ones may have passed before the rule.
        first = flow.sent
        assert eventually(lambda: flow.sent > first + 750)
        arrived = sum(number > first + 250 for number in flow.there.sent_at)
        assert 0 < arrived < 250


def test_a_chain_after_all_others_drops(lab: FastLab) -> None:
    with Stream(lab, "a", "far", V4["far"]) as flow:
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")
        run_shell(
            lab, _OWN.format("ip", _BASE.format("postrouting", 2147483647, f"ip daddr {V4['far']} drop"))
        )
        assert flow.is_cut(flow.there)


def test_a_time_out_policy_is_kept(lab: FastLab) -> None:
    """An idle UDP connection keeps the hour that its rule sets."""
    policy = "ct timeout long { protocol udp; policy = { unreplied : 3600, replied : 3600 }; };"
    run_shell(
        lab,
        _OWN.format("ip", policy + _BASE.format("prerouting", -150, "udp dport 6000 ct timeout set long")),
    )
    with Stream(lab, "a", "far", V4["far"]) as flow:
        assert flow.flows(600)  # more than the second after which a flow is checked again
        (line,) = lab.conntrack("dport=6000")
        assert int(line.split()[2]) > 3000


def test_two_tenants_with_the_same_address_are_distinguished_by_zone(lab: FastLab) -> None:
    """c has a's address, its own zone and source: it never leaves as a does."""
    run_shell(lab, _OWN.format("ip", _BASE.format("prerouting", -300, "iifname br-two ct zone set 1")))
    run_shell(
        lab,
        _OWN.replace("own", "other").format(
            "ip",
            "chain it { type nat hook postrouting priority 90; oifname up0 ct zone 1 snat to 192.0.2.7; };",
        ),
    )
    with (
        Talk(lab.host, "a", "far", V4["far"], udp=True) as talk,
        sources_at(lab, "world", "eth0") as sources,
        closing(lab.socket("c", socket.AF_INET, socket.SOCK_DGRAM)) as tenant,
    ):
        for _ in range(5):
            talk.say(10)
        lab.run(f"ip addr add {V4['a']}/32 dev eth0", inside="c")
        tenant.bind((V4["a"], talk.client.getsockname()[1]))
        for number in range(50):
            tenant.sendto(b"of tenant %d" % number, (V4["far"], 7000))
        while talk.server.recv(100) != b"of tenant 49":
            pass
    assert sources == {HOST4, "192.0.2.7"}


def transfer(talk: Talk, size: int) -> None:
    """Send that many bytes from the client to the server."""
    sending = threading.Thread(target=talk.client.sendall, args=(bytes(size),))
    sending.start()
    while size > 0:
        size -= len(talk.server.recv(1 << 16))
    sending.join()


def test_the_global_liberal_sysctl_does_not_affect_fast_connections(lab: FastLab) -> None:
    """It is 0 while megabytes bypass conntrack: no packet becomes invalid."""
    run_shell(lab, _OWN.format("inet", _BASE.format("forward", 0, "ct state invalid drop")))
    with Talk(lab.host, "a", "far", V4["far"]) as talk:
        assert talks_fast(lab, talk, "v-a", "up0")
        transfer(talk, 4 << 20)
        run_shell(lab, f"sysctl -qw {_LIBERAL}=0")
        run_shell(lab, "nft add rule inet own it ip saddr 198.51.100.77 drop")
        transfer(talk, 1 << 20)
        assert talks_fast(lab, talk, "v-a", "up0")


OPENS = {
    "an established connection": _BASE.format(
        "forward", 0, f"ip daddr {V4['far']} ct state established drop"
    ),
    "a translated connection": _BASE.format("postrouting", -10, f"ip daddr {V4['far']} ct status snat drop"),
}


@pytest.mark.parametrize("name", OPENS)
def test_a_rule_that_accepts_only_the_opening_packet_stops_the_rest(lab: FastLab, name: str) -> None:
    """That a new connection passed the rules says nothing about its later packets."""
    before = lab.fast.status()["generation"] if lab.fast else 0
    run_shell(lab, _OWN.format("ip", OPENS[name]))
    if fast := lab.fast:  # else the first packet is of the generation before
        assert eventually(lambda: fast.status()["generation"] not in (0, before))
    with Stream(lab, "a", "far", V4["far"], pace=0.03) as flow:  # each is answered before the next
        assert eventually(lambda: flow.there.sent_at), "the first one"
        assert flow.is_cut(flow.there)
        assert len(flow.there.sent_at) < 50
