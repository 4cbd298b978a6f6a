"""Check packet matching, marks, client ports, questions, routed networks, outcomes of probes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.diagnose import findings
from core.model import FirewallRule, LinkKey, Snapshot
from core.model.probe import DropEvent, PacketTuple, ProbeResult, Sighting, TraceStep
from core.probe.verify import TIMEOUT, _outcome
from core.reach import UnknownEndpoint, ask, why
from core.reach.client_ports import RANGE, RESERVED, first_free
from core.reach.effects import Effect, apply_effect, effect_of
from core.reach.packet import Hook, Packet, match
from core.topology import Topology
from tests.support.host_builder import HOST
from tests.support.snapshots import small_builder, small_host

PACKET = Packet("10.0.0.2", "10.0.0.3", "tcp", 45678, 80, states=frozenset(("new",)), mark=7)
PING = Packet("10.0.0.2", "10.0.0.3", "icmp", states=frozenset(("new",)))
HOOK = Hook("forward", ("br0",), ("eth0",), False, sets={"inet/fw/hosts": ("10.0.0.3",)})


def nft(text: str, **fields: str) -> FirewallRule:
    """Return a rule whose text has a match that its fields can't hold."""
    return FirewallRule(
        "nft", "inet", "fw", "forward", "inet/fw/forward/1", text, "drop", understood=False, **fields
    )


def iptables(text: str) -> FirewallRule:
    return FirewallRule("iptables-nft", "ip", "filter", "FORWARD", "ip/filter/FORWARD/1", text, "drop",
                        understood=False)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp dport vmap { 22 : drop, 80 : accept }", True),
        ("udp dport vmap { 22 : drop, 80 : accept }", False),
        ("th dport { 22, 80 } drop", True),
        ("th dport { 22, 8080 } drop", False),
        ("meta mark 0x00000007 drop", True),
        ("meta mark & 0x00000001 == 0x00000001 drop", True),
        ("meta mark & 0x00000008 == 0x00000008 drop", False),
        ("ct direction reply drop", False),
        ("fib daddr type local drop", False),
        ("ip daddr @hosts drop", True),
        ('meta time "2026-01-01" drop', None),
        ("meta skuid 1000 drop", None),
    ],
)
def test_text_of_nft_is_matched(text: str, expected: bool | None) -> None:
    assert match(nft(text), PACKET, HOOK) is expected


def test_ports_never_match_icmp() -> None:
    assert match(nft("th dport { 22, 80 } drop"), PING, HOOK) is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-A FORWARD -m mark --mark 0x7 -j DROP", True),
        ("-A FORWARD -m mark ! --mark 0x1/0x1 -j DROP", False),
        ("-A FORWARD -m addrtype --dst-type LOCAL -j DROP", False),
        ("-A FORWARD -m owner --uid-owner 0 -j DROP", None),
    ],
)
def test_text_of_iptables_is_matched(text: str, expected: bool | None) -> None:
    assert match(iptables(text), PACKET, HOOK) is expected


def test_an_unknown_mark_matches_neither_way() -> None:
    unknown = Packet("10.0.0.2", "10.0.0.3", mark=None)
    assert match(nft("meta mark 0x00000007 drop"), unknown, HOOK) is None


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (nft("meta mark set 0x00000003"), Effect("mark", 3)),
        (nft("ct mark set meta mark"), Effect("ct_mark", None, copied="mark")),
        (nft("ct zone set 5"), Effect("zone", 5)),
        (nft("meta mark set meta mark | 0x00000001"), Effect("mark", None)),
        (iptables("-A PREROUTING -j MARK --set-xmark 0x1/0x1"), Effect("mark", 1, 1)),
        (iptables("-A PREROUTING -j CT --zone 9"), Effect("zone", 9)),
        (nft("tcp dport 80 accept"), None),
    ],
)
def test_effects_of_rules(rule: FirewallRule, expected: Effect | None) -> None:
    assert effect_of(rule) == expected


def test_a_mark_is_set_within_its_mask() -> None:
    assert apply_effect(Effect("mark", 8, 8), PACKET, certain=True).mark == 15
    assert apply_effect(Effect("mark", 8), PACKET, certain=False).mark is None


@pytest.mark.parametrize(
    ("sysctls", "expected"),
    [
        ({}, 45678),
        ({RANGE: "40000 40009"}, 40000),
        ({RANGE: "40000 40009", RESERVED: "40000-40004"}, 40005),
        ({RANGE: "40000 40009", RESERVED: "40000-40009"}, 0),
        ({RESERVED: "45678"}, 45679),
    ],
)
def test_ports_of_clients(sysctls: dict[str, str], expected: int) -> None:
    assert first_free(sysctls) == expected


def test_an_unknown_name_suggests_another() -> None:
    with pytest.raises(UnknownEndpoint, match="web1"):
        ask(Topology(small_host()), "wbe1", "web2")


@pytest.mark.parametrize("port", ["0", "70000", "80/sctp", "http"])
def test_wrong_ports_are_refused(port: str) -> None:
    with pytest.raises(UnknownEndpoint, match="isn't a port"):
        ask(Topology(small_host()), "web1", "web2", port)


def test_both_ends_outside_are_refused() -> None:
    with pytest.raises(UnknownEndpoint, match="both are outside"):
        ask(Topology(small_host()), "203.0.113.1", "203.0.113.2")


def test_a_container_reaches_itself() -> None:
    topology = Topology(small_host())
    answer = why(topology, ask(topology, "web1", "web1"))
    assert (answer.verdict, answer.cause) == ("pass", None)


# ---- networks that are routed on purpose


def routed_host(marked: bool = True, **fields: Any) -> Snapshot:
    """Return the small host without masquerade for `app`, whose fields say that it is meant so."""
    host = small_builder()
    host.rules = [one for one in host.rules if one.src != "172.18.0.0/16"]
    place = next(place for place, one in enumerate(host.networks) if one.name == "app")
    host.networks[place] = replace(host.networks[place], **fields if marked else {})
    return host.snapshot()


@pytest.mark.parametrize("fields", [{"gateway_mode": {"ipv4": "routed"}}, {"masquerade": False}])
def test_packets_of_a_routed_network_keep_their_source_on_purpose(fields: dict[str, Any]) -> None:
    topology = Topology(routed_host(**fields))
    answer = why(topology, ask(topology, "web1", "outside", "443"))
    assert (answer.verdict, answer.cause) == ("pass", None)
    assert answer.sentence == (
        "Packets from web1 to outside on tcp 443 leave this host with their own source: "
        "hosts outside need a route to 172.18.0.0/16 by this host."
    )
    (hop,) = [one for one in answer.there if one.kind == "nat"]
    assert (hop.verdict, hop.fix) == ("pass", None) and "as app is routed" in hop.text
    assert not [one for one in findings(topology) if "masquerade" in one.sentence]


@pytest.mark.parametrize("fields", [{}, {"gateway_mode": {"ipv4": "nat", "ipv6": "routed"}}])
def test_other_networks_without_masquerade_are_a_warning(fields: dict[str, Any]) -> None:
    topology = Topology(routed_host(**fields))
    answer = why(topology, ask(topology, "web1", "outside", "443"))
    assert answer.verdict == "warn" and answer.cause is not None and answer.cause.fix is not None
    assert answer.sentence.endswith("but no rule masquerades app (172.18.0.0/16).")


@pytest.mark.parametrize(
    ("fields", "dropped", "phrases"),
    [
        ({}, "the packets", 2),
        ({"src": "172.18.0.0/16"}, "the packets", 2),
        ({"src": "172.18.0.0/16", "sport": "80"}, "the answers", 1),
    ],
)
def test_a_rule_that_drops_packets_and_answers_is_one_finding(
    fields: dict[str, str], dropped: str, phrases: int
) -> None:
    """web1 sends to the outside, and answers from its port 80."""
    host = small_builder()
    host.rules = [one for one in host.rules if one.verdict != "drop"]
    host.rule("FORWARD", "-A FORWARD -j DROP", table="filter", verdict="drop", l4_proto="tcp", **fields)
    (one,) = [one for one in findings(Topology(host.snapshot())) if one.kind == "forward"]
    subject, _, rest = one.sentence.partition(": ")
    assert subject == f"A rule of filter FORWARD on the host drops {dropped}"
    assert "port 8080/tcp of web1 can't be reached from outside" in rest
    assert ("web1 can't reach the outside" in rest) == (phrases == 2)


# ---- outcomes of probes

SENT = PacketTuple("tcp", "172.18.0.2", 40000, "198.51.100.7", 443)
SEEN = Sighting(LinkKey(HOST, 2), 1.0, "in", "request", SENT)
DROPPED = TraceStep(HOST, "request", "ip", "filter", "FORWARD", "policy", "drop")


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, ""),
        ({"arrived": True}, ", but it arrived"),
        ({"arrived": False}, ", and it didn't arrive"),
        ({"arrived": True, "sightings": (SEEN,)}, ", the request was last seen at eth0 in host"),
        ({"arrived": False, "sightings": (SEEN,)}, ", and it didn't arrive"),
        ({"drops": (DropEvent(1.0, "X", "", HOST, 2, SENT),)}, ", the request was dropped at eth0 in host"),
        (
            {"drops": (DropEvent(1.0, "X", "", HOST, 2, SENT.reverse),)},
            ", the answer was dropped at eth0 in host",
        ),
        ({"steps": (DROPPED,), "arrived": False}, ", a rule in host dropped the request"),
        ({"steps": (replace(DROPPED, role="answer"),)}, ", a rule in host dropped the answer"),
    ],
)
def test_where_a_packet_without_answer_ended(fields: dict[str, Any], end: str) -> None:
    topology = Topology(small_host())
    found = _outcome(topology, ProbeResult("no answer", SENT, **fields))
    assert found == f"no answer within {TIMEOUT:g} s{end}"
