"""Free subnets and addresses: none that is in use."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.model import Endpoint, Neighbour, Network, Route
from core.plan import ipam
from tests.support.host_builder import HOST, HostBuilder


def prefixes(version: int, shortest: int, longest: int) -> st.SearchStrategy[str]:
    make = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    bits = 32 if version == 4 else 128
    return st.builds(
        lambda number, length: str(make((number, length), strict=False)),
        st.integers(10 << (bits - 8), (11 << (bits - 8)) - 1) if version == 4 else st.integers(0, 2**128 - 1),
        st.integers(shortest, longest),
    )


@given(st.lists(prefixes(4, 8, 32), max_size=12), st.lists(prefixes(4, 12, 30), max_size=4))
def test_a_proposed_subnet_overlaps_with_nothing(routes: list[str], reserved: list[str]) -> None:
    host = HostBuilder()
    host.routes[HOST] = [Route(4, dst) for dst in routes]
    found = ipaddress.ip_network(ipam.propose_subnet(host.snapshot(), 4, reserved))
    assert not any(found.overlaps(ipaddress.ip_network(one)) for one in [*routes, *reserved])
    assert found.prefixlen == 24 and found.is_private


@given(st.lists(prefixes(6, 8, 128), max_size=8))
def test_a_proposed_ipv6_subnet_overlaps_with_nothing(routes: list[str]) -> None:
    host = HostBuilder()
    host.routes[HOST] = [Route(6, dst) for dst in routes]
    taken = [one for one in map(ipaddress.ip_network, routes) if one.prefixlen >= 8]
    try:
        found = ipaddress.ip_network(ipam.propose_subnet(host.snapshot(), 6))
    except ipam.Exhausted:
        pool = ipaddress.ip_network("fd00::/8")
        assert any(one.overlaps(pool) for one in taken)
        return
    assert found.prefixlen == 64 and not any(found.overlaps(one) for one in taken)


def test_networks_and_addresses_of_engines_are_in_use() -> None:
    host = HostBuilder()
    host.link(HOST, "eth0", "physical", ["10.64.0.7/24"])
    host.container("docker", "web", None)
    host.networks.append(Network("docker", "n", "front", subnets=("10.64.1.0/24",)))
    assert ipam.propose_subnet(host.snapshot()) == "10.64.2.0/24"
    assert ipam.propose_subnet(host.snapshot(), reserved=["10.64.2.128/25"]) == "10.64.3.0/24"


def test_halves_of_a_default_route_are_ignored() -> None:
    host = HostBuilder()
    host.routes[HOST] = [Route(4, "0.0.0.0/1"), Route(4, "128.0.0.0/1"), Route(4, "default")]
    assert ipam.propose_subnet(host.snapshot()) == "10.64.0.0/24"


@given(st.integers(20, 32), st.data())
def test_next_address_is_a_free_host_address(length: int, data: st.DataObject) -> None:
    subnet = ipaddress.ip_network(f"10.9.16.0/{length}")
    used = data.draw(st.sets(st.sampled_from([str(one) for one in list(subnet)[:40]])))
    try:
        found = ipaddress.ip_address(ipam.next_address(str(subnet), used))
    except ipam.Exhausted:
        assert {str(one) for one in ipam.hosts(subnet)} <= used
        return
    assert str(found) not in used and found in subnet
    if length < 31:
        assert found not in (subnet.network_address, subnet.broadcast_address)


@pytest.mark.parametrize(
    ("subnet", "addresses"),
    [
        ("10.9.0.0/31", ["10.9.0.0", "10.9.0.1"]),
        ("10.9.0.4/32", ["10.9.0.4"]),
        ("10.9.0.0/30", ["10.9.0.1", "10.9.0.2"]),
        ("fd00::/127", ["fd00::", "fd00::1"]),
        ("fd00::/126", ["fd00::1", "fd00::2", "fd00::3"]),
    ],
)
def test_hosts_of_small_subnets(subnet: str, addresses: list[str]) -> None:
    assert [str(one) for one in ipam.hosts(ipaddress.ip_network(subnet))] == addresses


def test_used_addresses_are_those_of_links_neighbours_and_endpoints() -> None:
    host = HostBuilder()
    host.link(HOST, "eth0", "physical", ["10.9.0.1/24"])
    host.namespace(2)
    host.link(2, "eth0", "veth", ["10.9.0.2/24"])
    host.container(
        "docker", "web", None, endpoints=(Endpoint("n", "10.9.0.3/24", "fd00::3/64", "10.9.0.254"),)
    )
    host.neighbours[HOST] = [
        Neighbour(4, "10.9.0.4", "02:00:00:00:00:04", 2, "stale"),
        Neighbour(4, "10.9.0.5", "", 2, "failed"),
    ]
    used = ipam.used_addresses(host.snapshot())
    assert {"10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.254", "fd00::3"} <= used
    assert ipam.next_address("10.9.0.0/24", used) == "10.9.0.5"


def test_exhausted() -> None:
    with pytest.raises(ipam.Exhausted, match=r"10\.9\.0\.0/30"):
        ipam.next_address("10.9.0.0/30", {"10.9.0.1", "10.9.0.2"})
