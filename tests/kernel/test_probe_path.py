"""The path MTU and the hops of a path through real routers, compared with ip(8) and traceroute's rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from core.model import Namespace
from core.model.probe import Hop, MtuStep, ProbeRequest
from core.probe.path import hops, path_mtu
from core.probe.run import ProbeError, probe
from tests.support.host import ThrowawayHost
from tests.support.waiting import scaled, wait_until

pytestmark = pytest.mark.root

_NAMES = ("host", "r1", "r2", "end")
TARGETS = ("10.53.3.2", "fd53:3::2")
_SECONDS = scaled(30.0)


def space(host: ThrowawayHost, short: str) -> Namespace:
    return Namespace(host.inode_of(short), entry=f"/run/netns/{host.full(short)}")


def request(host: ThrowawayHost, target: str, protocol: Any = "icmp", **more: Any) -> ProbeRequest:
    usual = {
        "timeout": scaled(2.0), "through": tuple(space(host, name) for name in ("r1", "r2")),
        "destination": space(host, "end"), "port": 0 if protocol == "icmp" else 33434,
    }  # fmt: skip
    return ProbeRequest(space(host, "host"), target, protocol, **(usual | more))


def _build(host: ThrowawayHost, net: str, target: str) -> None:
    """Connect host, r1, r2 and end in a chain, each by its link right with the next one's left."""
    length = 64 if ":" in net else 24
    for name in _NAMES[1:]:
        host.namespace(name)
    for name in _NAMES:
        host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1", name)
        host.run("sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0", name)
    for number, (left, right) in enumerate(pairwise(_NAMES), 1):
        host.run(f"ip link add right type veth peer name left netns {host.full(right)}", left)
        for name, link, last in ((left, "right", 1), (right, "left", 2)):
            host.run(f"ip addr add {net.format(number)}{last}/{length} dev {link}", name)
            host.run(f"ip link set {link} up", name)
    for number, name in enumerate(_NAMES, 1):
        if number < len(_NAMES):
            host.run(f"ip route add default via {net.format(number)}2", name)
        for before in range(1, number - 1):
            via = f"{net.format(number - 1)}1"
            host.run(f"ip route add {net.format(before)}0/{length} via {via}", name)
    words = f"ping -c 1 -W 1 {target}"
    wait_until(lambda: "1 received" in host.run(words, check=False), target)


@pytest.fixture(scope="module")
def made() -> Iterator[ThrowawayHost]:
    """Yield a chain with IPv4: a link with an MTU below 1280 loses IPv6."""
    host = ThrowawayHost()
    try:
        _build(host, "10.53.{}.", TARGETS[0])
        yield host
    finally:
        host.close()


@pytest.fixture
def chain(made: ThrowawayHost) -> Iterator[ThrowawayHost]:
    """Yield the chain; MTUs, rules and learned MTUs are as before after the test."""
    yield made
    for name in _NAMES:
        made.run("nft flush ruleset", name)
        for link in ("left", "right"):
            made.run(f"ip link set {link} mtu 1500", name, check=False)
        made.run("ip route flush cache", name)


@pytest.fixture(scope="module")
def chain6() -> Iterator[ThrowawayHost]:
    """Yield a chain with IPv6."""
    host = ThrowawayHost()
    try:
        _build(host, "fd53:{}::", TARGETS[1])
        yield host
    finally:
        host.close()


@pytest.fixture
def pytest_request(request: pytest.FixtureRequest) -> pytest.FixtureRequest:
    """Yield pytest's own `request`, a name that a function here has."""
    return request


def set_mtu(host: ThrowawayHost, mtu: int, left: str = "r1", right: str = "r2") -> None:
    """Set the MTU of both ends of a link."""
    host.run(f"ip link set right mtu {mtu}", left)
    host.run(f"ip link set left mtu {mtu}", right)


def drop_all(host: ThrowawayHost, hook: str) -> None:
    chain = f"chain c {{ type filter hook {hook} priority 0 ; policy drop ; }}"
    host.run(["nft", f"table inet f {{ {chain}\n }}\n"], "r1")


def test_whole_mtu(chain: ThrowawayHost) -> None:
    found = path_mtu(request(chain, TARGETS[0]), _SECONDS)
    assert (found.mtu, found.steps, found.silent, found.complete) == (1500, (MtuStep(1500),), False, True)


@pytest.mark.parametrize("protocol", ["icmp", "udp", "tcp"])
def test_small_link_in_the_middle(chain: ThrowawayHost, protocol: str) -> None:
    set_mtu(chain, 600)
    found = path_mtu(request(chain, TARGETS[0], protocol), _SECONDS)
    assert (found.mtu, found.silent) == (600, False)
    assert found.steps == (MtuStep(1500), MtuStep(600, "10.53.1.2"))


def test_mtu_of_ipv6(chain6: ThrowawayHost) -> None:
    assert path_mtu(request(chain6, TARGETS[1]), _SECONDS).steps == (MtuStep(1500),)
    set_mtu(chain6, 1300)
    found = path_mtu(request(chain6, TARGETS[1]), _SECONDS)
    assert found.steps == (MtuStep(1500), MtuStep(1300, "fd53:1::2")) and found.mtu == 1300


def test_two_small_links(chain: ThrowawayHost) -> None:
    set_mtu(chain, 1400)
    set_mtu(chain, 1300, "r2", "end")
    found = path_mtu(request(chain, TARGETS[0]), _SECONDS)
    assert found.steps == (MtuStep(1500), MtuStep(1400, "10.53.1.2"), MtuStep(1300, "10.53.2.2"))
    assert found.mtu == 1300


def test_black_hole(chain: ThrowawayHost) -> None:
    set_mtu(chain, 1234)
    drop = "type filter hook output priority 0 ; icmp type destination-unreachable drop ;"
    chain.run(["nft", f"table inet f {{ chain c {{ {drop} }}\n }}\n"], "r1")
    found = path_mtu(request(chain, TARGETS[0]), _SECONDS)
    assert (found.mtu, found.silent, found.complete) == (1234, True, True)
    assert found.steps == (MtuStep(1500),), "only that of the sending host"
    left = chain.json("ip -j link show left", "r1")[0]["ifindex"]
    assert found.last_seen is not None and found.last_seen.link == (chain.inode_of("r1"), left)
    assert (found.last_seen.length, found.last_hop) == (1235, "10.53.1.2")


def test_no_time_to_search(chain: ThrowawayHost) -> None:
    set_mtu(chain, 1234)
    chain.run(
        ["nft", "table inet f { chain c { type filter hook output priority 0 ; policy drop ; }\n }\n"], "r1"
    )
    found = path_mtu(request(chain, TARGETS[0]), 0.3)
    assert found.mtu is None or (found.mtu < 1234 and not found.complete)


def test_nothing_arrives(chain: ThrowawayHost) -> None:
    chain.run(
        ["nft", "table inet f { chain c { type filter hook forward priority 0 ; policy drop ; }\n }\n"], "r1"
    )
    assert path_mtu(request(chain, TARGETS[0]), 0.5).mtu is None


def test_unreachable(chain: ThrowawayHost) -> None:
    chain.run("ip route add prohibit 192.0.2.1", "r1")
    found = path_mtu(request(chain, "192.0.2.1"), _SECONDS)
    chain.run("ip route del prohibit 192.0.2.1", "r1")
    assert found.mtu is None and found.error and found.error.sender == "10.53.1.2"
    assert found.error.name == "communication administratively prohibited"


def test_large_probe(chain: ThrowawayHost) -> None:
    set_mtu(chain, 600)
    result = probe(request(chain, TARGETS[0], size=1000))
    assert (result.outcome, result.sender) == ("unreachable", "10.53.1.2")
    assert result.error and (result.error.name, result.error.mtu) == ("fragmentation needed", 600)
    assert {one.length for one in result.sightings if one.role == "request"} == {1000}


@pytest.mark.parametrize("protocol", ["icmp", "udp", "tcp"])
@pytest.mark.parametrize(("fixture", "target"), zip(("chain", "chain6"), TARGETS, strict=True))
def test_hops(pytest_request: Any, fixture: str, target: str, protocol: str) -> None:
    found = hops(request(pytest_request.getfixturevalue(fixture), target, protocol), _SECONDS)
    net = "10.53.{}.2" if target == TARGETS[0] else "fd53:{}::2"
    assert [(one.ttl, one.address) for one in found] == [(n, net.format(n)) for n in (1, 2, 3)]
    assert [one.is_target for one in found] == [False, False, True]
    assert all(one.rtt is not None and one.rtt > 0 for one in found)


def test_silent_hop(chain: ThrowawayHost) -> None:
    drop = "type filter hook output priority 0 ; icmp type time-exceeded drop ;"
    chain.run(["nft", f"table inet f {{ chain c {{ {drop} }}\n }}\n"], "r1")
    found = hops(request(chain, TARGETS[0], timeout=scaled(0.5)), _SECONDS)
    assert [one.address for one in found] == ["", "10.53.2.2", TARGETS[0]]


def test_hops_end_at_an_error(chain: ThrowawayHost) -> None:
    reject = "type filter hook forward priority 0 ; reject with icmpx admin-prohibited ;"
    chain.run(["nft", f"table inet f {{ chain c {{ {reject} }}\n }}\n"], "r2")
    found = hops(request(chain, TARGETS[0]), _SECONDS)
    assert [one.address for one in found] == ["10.53.1.2", "10.53.2.2", "10.53.2.2"]
    assert found[-1].error and not found[-1].is_target
    assert hops(request(chain, "192.0.2.1", protocol="udp", timeout=0.3), 0.5)[-1].error
    (first,) = hops(replace(request(chain, "10.53.3.1"), source="10.99.9.9"), _SECONDS)
    assert first == Hop(1, error=first.error) and first.error


def test_gone(chain: ThrowawayHost) -> None:
    gone = replace(request(chain, TARGETS[0]), namespace=Namespace(1, entry="/run/netns/gone"))
    for measure in (path_mtu, hops):
        with pytest.raises(ProbeError, match="namespace no longer exists"):
            measure(gone)
