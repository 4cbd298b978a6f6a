"""NAT rules applied to packets, and chains evaluated with and without the port filter."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.model import Chain, Firewall, FirewallRule, Link, NetState, NextHop, Route, Translation
from core.nat.packets import ChainKey
from core.reach.firewall import Decision, Evaluator
from core.reach.packet import Hook, Packet
from core.reach.routing import RoutingTables
from core.reach.translate import translated
from tests.support.host_builder import address

NS = 9
PACKET = Packet("10.0.0.2", "192.0.2.1", "tcp", 45678, 8080, states=frozenset(("new",)))
PACKET6 = Packet("fd00::2", "2001:db8::1", "tcp", 45678, 8080)
PREROUTING, POSTROUTING = Hook("prerouting", ("eth0",)), Hook("postrouting", (), ("eth0",))


def tables() -> RoutingTables:
    links = (
        Link(NS, 1, "lo", "loopback", admin_up=True, addresses=(address("127.0.0.1/8"),)),
        Link(
            NS, 2, "eth0", "veth", admin_up=True,
            addresses=tuple(map(address, ("192.0.2.10/24", "203.0.113.10/24", "2001:db8::10/64"))),
        ),
        Link(NS, 3, "tun0", "tun", admin_up=True),
    )  # fmt: skip
    default = Route(4, "default", nexthops=(NextHop("203.0.113.1", 2),))
    return RoutingTables(NetState(NS, {one.ifindex: one for one in links}, (default,)))


def rule(verdict: str, to: str = "", port: str = "", **fields: object) -> FirewallRule:
    made = FirewallRule("nft", "ip", "nat", "c", "ip/nat/c/1", "", verdict, to_address=to, to_port=port)
    return replace(made, **fields)


def source(one: FirewallRule, packet: Packet = PACKET, link: str = "eth0") -> str | None:
    changed = translated(one, packet, tables(), replace(POSTROUTING, oifs=(link,)))
    assert changed is None or (changed.dst, changed.dport) == (packet.dst, packet.dport)
    return changed.src if changed else None


def target(one: FirewallRule, packet: Packet = PACKET, hook: Hook = PREROUTING) -> tuple[str, int] | None:
    changed = translated(one, packet, tables(), hook)
    assert changed is None or changed.src == packet.src
    return (changed.dst, changed.dport) if changed else None


# ---- sources


def test_masquerade_takes_the_address_next_to_the_gateway() -> None:
    assert source(rule("masquerade")) == "192.0.2.10"
    assert source(rule("masquerade"), replace(PACKET, dst="198.51.100.7")) == "203.0.113.10"
    assert source(rule("masquerade"), PACKET6) == "2001:db8::10"


def test_masquerade_on_a_link_without_an_address_takes_another_one() -> None:
    assert source(rule("masquerade"), link="tun0") == "192.0.2.10"
    assert source(rule("masquerade"), link="lo") == "192.0.2.10"
    assert source(rule("masquerade"), PACKET6, "lo") == "2001:db8::1"


def test_without_links_masquerade_has_no_known_address() -> None:
    assert translated(rule("masquerade"), PACKET, None, POSTROUTING) is None


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (rule("snat", "192.0.2.77"), "192.0.2.77"),
        (rule("snat", "192.0.2.70-192.0.2.79"), "192.0.2.70"),
        (rule("snat", "@map"), None),
        (rule("snat", translations=(Translation(src="10.0.0.2", to_address="192.0.2.5"),)), "192.0.2.5"),
        (rule("snat", translations=(Translation(src="10.0.0.9", to_address="192.0.2.5"),)), None),
    ],
)
def test_snat(one: FirewallRule, expected: str | None) -> None:
    assert source(one) == expected


# ---- destinations


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (rule("dnat", "10.0.0.5", "80"), ("10.0.0.5", 80)),
        (rule("dnat", "10.0.0.5"), ("10.0.0.5", 8080)),
        (rule("dnat", "", "80"), ("192.0.2.1", 80)),
        (rule("dnat", "10.0.0.5-10.0.0.9", "80-89"), ("10.0.0.5", 80)),
        (rule("dnat", "10.0.0.5", "8080-8089", dport="8080-8089"), ("10.0.0.5", 8080)),
        (rule("dnat", "name"), None),
        (rule("dnat"), None),
    ],
)
def test_dnat(one: FirewallRule, expected: tuple[str, int] | None) -> None:
    assert target(one) == expected


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        (Translation(dport="8080", to_address="10.0.0.5", to_port="80"), ("10.0.0.5", 80)),
        (Translation(dport="8000-8100", to_address="10.0.0.5"), ("10.0.0.5", 8080)),
        (Translation(dst="192.0.2.1", l4_proto="tcp", to_address="10.0.0.6"), ("10.0.0.6", 8080)),
        (Translation(dport="8081", to_address="10.0.0.5"), ("192.0.2.1", 8080)),
        (Translation(l4_proto="udp", dport="8080", to_address="10.0.0.5"), ("192.0.2.1", 8080)),
        (Translation(dst="192.0.2.9", to_address="10.0.0.5"), ("192.0.2.1", 8080)),
    ],
)
def test_a_map_translates_only_what_fits(element: Translation, expected: tuple[str, int]) -> None:
    """A packet without an element keeps its destination."""
    assert target(rule("dnat", translations=(element,))) == expected


def test_redirect_leads_to_the_link_that_a_packet_enters_by() -> None:
    assert target(rule("redirect", port="3128")) == ("192.0.2.10", 3128)
    assert target(rule("redirect", port="3128"), PACKET6) == ("2001:db8::10", 3128)
    unnumbered = Hook("prerouting", ("tun0",))
    assert target(rule("redirect", port="3128"), hook=unnumbered) == ("127.0.0.1", 3128)
    assert target(rule("redirect", port="3128"), PACKET6, unnumbered) == ("::1", 3128)


# ---- the port filter

_CHAINS = (
    Chain("nft", "ip", "t", "base", "forward", "filter", 0, "accept"),
    Chain("nft", "ip", "t", "late", "forward", "filter", 10, "drop"),
    Chain("nft", "ip", "t", "one"),
    Chain("nft", "ip", "t", "two"),
)
_PORTS = ("", "", "80", "443", "8080", "80,443", "!80", "8000-8100", "@ports", "@unknown")
_VERDICTS = ("accept", "drop", "reject", "return", "jump", "goto", "")
_TEXTS = ("", "", "meta mark set 0x1", "meta mark 0x1", "meta skuid 7")


class WholeEvaluator(Evaluator):
    """Evaluate every rule of a chain, whatever its port."""

    def rules_for(self, key: ChainKey, port: int) -> Sequence[FirewallRule]:
        return self.rules_of(key)


def random_rules(rng: random.Random) -> Firewall:
    """Return chains of random rules; jumps lead to later chains."""
    made = []
    for place, chain in enumerate(_CHAINS):
        for number in range(rng.randrange(6)):
            verdict = rng.choice(_VERDICTS)
            later = [one.name for one in _CHAINS[max(place + 1, 2) :]]
            if verdict in ("jump", "goto") and not later:
                verdict = "accept"
            text = rng.choice(_TEXTS)
            made.append(
                FirewallRule(
                    "nft",
                    "ip",
                    "t",
                    chain.name,
                    f"ip/t/{chain.name}/{number}",
                    text,
                    verdict,
                    rng.choice(later) if verdict in ("jump", "goto") else "",
                    dport=rng.choice(_PORTS),
                    l4_proto=rng.choice(("", "tcp", "udp")),
                    src=rng.choice(("", "", "10.0.0.0/24", "!10.0.0.2")),
                    understood=not text,
                )
            )
    return Firewall(NS, _CHAINS, tuple(made), sets={"ip/t/ports": ("80", "8000-9000")})


def outcome(decision: Decision) -> tuple[object, ...]:
    return (
        decision.verdict, decision.chain, decision.rule, decision.packet,
        tuple(one for one in decision.rules if one.verdict),
    )  # fmt: skip


@given(st.randoms(use_true_random=False))
def test_rules_for_other_ports_change_nothing(rng: random.Random) -> None:
    firewall = random_rules(rng)
    some, whole = Evaluator(firewall), WholeEvaluator(firewall)
    for port in (0, 22, 80, 443, 8080):
        for l4_proto in ("tcp", "udp", "icmp"):
            packet = replace(PACKET, l4_proto=l4_proto, dport=port, mark=rng.choice((0, 1, None)))
            hook = Hook("forward", ("eth0",), ("eth1",), False, sets=firewall.sets)
            assert outcome(some.evaluate(packet, hook)) == outcome(whole.evaluate(packet, hook))


def test_random_rules_decide_in_every_way() -> None:
    """Otherwise the test above would compare too little."""
    hook = Hook("forward", ("eth0",), ("eth1",), False)
    found = set()
    for seed in range(200):
        firewall = random_rules(random.Random(seed))
        decision = Evaluator(firewall).evaluate(PACKET, replace(hook, sets=firewall.sets))
        found.add((decision.verdict, decision.rule is not None))
    assert found >= {("accept", False), ("drop", True), ("drop", False), ("reject", True), ("unknown", True)}
