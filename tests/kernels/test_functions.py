"""Trace kernel functions: `vnet-tui trace --functions`."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf.functions import FUNCTIONS, function_addresses
from tests.support.fastpath import Talk
from tests.support.host import ThrowawayHost
from tests.support.router import router
from tests.support.waiting import repeating

pytestmark = pytest.mark.root
NEEDS_FPROBE = pytest.mark.kernel_has("fprobe")

A, B, GATEWAY, A6, B6 = "10.46.1.2", "10.46.2.2", "10.46.1.1", "fd46:1::2", "fd46:2::2"
_RULES = f"""
table ip nat {{ chain pre {{ type nat hook prerouting priority -100; tcp dport 8080 dnat to {B}:80; }}; }}
table ip6 track {{ chain pass {{ type filter hook forward priority 0; ct state invalid drop; }}; }}
table ip closed {{ chain pass {{ type filter hook forward priority 0; tcp dport 81 drop; }}; }}
"""


@pytest.fixture(scope="module")
def routed() -> Iterator[ThrowawayHost]:
    """Yield a router between containers a and b; port 8080 is forwarded to b."""
    with router(46) as host:
        host.run(["nft", _RULES])
        yield host


def traced(host: ThrowawayHost, *arguments: str) -> dict[str, Any]:
    done = host.vnet("trace", *arguments, "--functions", "--json")
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout))


def names(calls: list[dict[str, Any]]) -> list[str]:
    assert [one["at"] for one in calls] == sorted(one["at"] for one in calls)
    return [one["function"] for one in calls]


def assert_in_order(found: list[str], *wanted: str) -> None:
    places = [found.index(one) for one in wanted]
    assert places == sorted(places), found


@NEEDS_FPROBE
def test_most_functions_exist() -> None:
    known = function_addresses()
    assert {"ip_rcv", "ip_forward", "ip_output", "veth_xmit", "tcp_v4_rcv", "br_handle_frame"} <= known.keys()
    assert len(known) > len(FUNCTIONS) * 2 // 3, FUNCTIONS.keys() - known.keys()


@NEEDS_FPROBE
@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_functions_of_an_existing_flow(routed: ThrowawayHost, udp: bool) -> None:
    asked, port = (B, 90) if udp else (GATEWAY, 8080)
    talk = Talk(routed, "a", "b", asked, 90 if udp else 80, udp=udp, to=port)
    with repeating(talk.say, 0.05):
        sport = talk.client.getsockname()[1]
        found = traced(routed, f"{'udp' if udp else 'tcp'}:{A}:{sport}-{asked}:{port}", "--for", "60")
    sent, reply = found["packets"]
    calls = names(sent["functions"])
    receive = "udp_rcv" if udp else "tcp_v4_rcv"
    assert_in_order(calls, "veth_xmit", "br_handle_frame", "ip_rcv", "ip_forward", receive)
    assert [calls.count(one) for one in ("ip_forward", receive)] == [1, 1], "of one packet only"
    assert not set(calls) & {"kfree_skb_reason", "sk_skb_reason_drop"}, "it wasn't dropped"
    places = {one["function"]: one["namespace"] for one in sent["functions"]}
    assert (places["ip_forward"], places[receive]) == ("host", routed.full("b"))
    assert_in_order(names(reply["functions"]), "ip_forward", receive)


@NEEDS_FPROBE
def test_functions_of_an_ipv6_flow(routed: ThrowawayHost) -> None:
    talk = Talk(routed, "a", "b", B6, 91, family=socket.AF_INET6)
    with repeating(talk.say, 0.05):
        port = talk.client.getsockname()[1]
        found = traced(routed, f"[{A6}]:{port}-[{B6}]:91", "--for", "60")
    for packet in found["packets"]:
        assert_in_order(names(packet["functions"]), "ipv6_rcv", "ip6_forward", "tcp_v6_rcv")


@NEEDS_FPROBE
def test_functions_of_a_probe(routed: ThrowawayHost) -> None:
    for words, receive in ((("--port", "95/tcp"), "tcp_v4_rcv"), ((), "icmp_rcv")):
        found = traced(routed, routed.full("a"), routed.full("b"), *words)
        asked = [one for one in found["functions"] if one["role"] == "request"]
        assert_in_order(names(asked), "ip_output", "ip_rcv", "ip_forward", receive)
        assert any(one["role"] == "answer" and one["function"] == receive for one in found["functions"])


@NEEDS_FPROBE
def test_a_dropped_probe_ends_where_it_is_freed(routed: ThrowawayHost) -> None:
    found = traced(routed, routed.full("a"), routed.full("b"), "--port", "81/tcp")
    calls = names([one for one in found["functions"] if one["role"] == "request"])
    assert "ip_forward" in calls and "tcp_v4_rcv" not in calls
    assert {"kfree_skb_reason", "sk_skb_reason_drop"} & set(calls)


def test_functions_are_listed_or_the_kernel_lacks_them(routed: ThrowawayHost) -> None:
    has_fprobes = " register_fprobe_ips\n" in Path("/proc/kallsyms").read_text()
    talk = Talk(routed, "a", "b", GATEWAY, 80, to=8080)
    with repeating(talk.say, 0.05):
        sport = talk.client.getsockname()[1]
        flow = f"{A}:{sport}-{GATEWAY}:8080"
        for words in ((flow,), (routed.full("a"), routed.full("b"))):
            done = routed.vnet("trace", *words, "--functions")
            if has_fprobes:
                assert "ip_forward" in done.stdout
            else:
                assert done.returncode == 1 and "was built without CONFIG_FPROBE" in done.stderr
            assert "Traceback" not in done.stderr
