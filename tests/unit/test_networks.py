"""Networks of hand-built hosts: their owners and kinds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.export.objects import networks
from core.model import Chain, Firewall, FirewallRule, Host, Network, NextHop, Problem, Route, Snapshot
from core.networks import all_networks, uplinks
from core.topology import Topology
from tests.support.host_builder import HOST, HOST_KINDS, HostBuilder
from tests.support.snapshots import small_builder

FORWARD = Chain("nft", "inet", "fw", "forward", "forward", "filter", 0, "accept")
FORWARD_DROP = Chain("nft", "inet", "fw", "forward", "forward", "filter", 0, "drop")
POSTROUTING = Chain("nft", "inet", "fw", "postrouting", "postrouting", "nat", 100, "accept")


def rule(chain: str, verdict: str, **fields: Any) -> FirewallRule:
    return FirewallRule("nft", "inet", "fw", chain, f"{chain}/{verdict}/{fields}", "", verdict, **fields)


def one_bridge(*addresses: str) -> HostBuilder:
    """Return a host with an uplink and a bridge br0 with one namespace."""
    host = HostBuilder()
    host.link(HOST, "eth0", "physical", ("192.0.2.1/24",))
    host.wire(host.namespace(HOST + 1), host.bridge("br0", addresses, mtu=1400), "v0")
    return host


def kind_of(host: HostBuilder, *rules: FirewallRule, forward: Chain = FORWARD) -> str:
    firewall = Firewall(HOST, (forward, POSTROUTING), rules)
    (network,) = all_networks(host.snapshot(firewalls={HOST: firewall}))
    return network.kind


def test_a_bridge_that_no_engine_owns_is_a_network() -> None:
    host = one_bridge("10.0.0.1/24", "fd00::1/64", "fe80::1/64")
    (network,) = all_networks(host.snapshot())
    assert (network.engine, network.name, network.bridge, network.ns) == ("kernel", "br0", "br0", HOST)
    assert network.subnets == ("10.0.0.0/24", "fd00::/64")
    assert network.gateways == ("10.0.0.1", "fd00::1")
    assert network.mtu == 1400


def test_without_a_gateway_of_the_engine_it_is_the_bridges_address() -> None:
    host = HostBuilder()
    host.bridge("br-a", ("172.30.0.1/24", "fd30::1/64", "10.1.1.1/24", "fe80::1/64"))
    engine_network = Network("docker", "a", "a", "bridge", "", HOST, "br-a", ("172.30.0.0/24", "fd30::/64"))
    for gateways, expected in (
        ((), ("172.30.0.1", "fd30::1")),
        (("172.30.0.254",), ("172.30.0.254", "fd30::1")),
    ):
        host.networks = [replace(engine_network, gateways=gateways)]
        host.containers = []
        host.container("docker", "x", None)
        topology = Topology(host.snapshot())
        (network,) = topology.networks
        assert topology.gateways(network) == expected
        (item,) = networks(topology, None)
        assert item["gateways"] == expected, "and JSON has the same"
    assert topology.gateways(replace(engine_network, bridge="gone")) == ()


def test_the_name_is_read_from_the_tag() -> None:
    host = HostBuilder()
    host.bridge("br-shop", ["10.0.0.1/24"], alias="vnet:net=my%20shop kind=nat")
    host.bridge("br-other", ["10.1.0.1/24"], alias="vnet:kind=nat")
    host.bridge("br-third", ["10.2.0.1/24"], alias="net=shop")
    assert [one.name for one in all_networks(host.snapshot())] == ["my shop", "br-other", "br-third"]


def test_engines_networks_come_first_and_their_bridges_only_once() -> None:
    networks = all_networks(small_builder().snapshot())
    assert [network.name for network in networks] == ["bridge", "app", "db", "host", "none"]
    kinds = {network.name: network.kind for network in networks}
    assert kinds == {"bridge": "nat", "app": "nat", "db": "internal", "host": "host", "none": "none"}
    assert {network.name: network.mtu for network in networks}["app"] == 1500


def test_bridges_of_other_namespaces_are_their_networks() -> None:
    host = small_builder()
    inner = host.namespace(HOST + 7000)
    host.link(inner, "docker0", "bridge", ("172.17.0.1/16",))
    found = [network for network in all_networks(host.snapshot()) if network.ns == inner]
    assert [(network.engine, network.name, network.kind) for network in found] == [("kernel", "docker0", "")]


def test_the_drivers_of_engines_decide_the_kind() -> None:
    host = one_bridge()
    host.container("docker", "any", HOST)
    host.networks += [
        Network("docker", driver, driver, driver) for driver in ("macvlan", "ipvlan", "overlay")
    ]
    kinds = [network.kind for network in all_networks(host.snapshot()) if network.engine == "docker"]
    assert kinds == ["macvlan", "ipvlan", "overlay"]


def test_a_veth_without_a_bridge_is_not_a_network() -> None:
    host = HostBuilder()
    host.link(host.namespace(HOST + 1), "eth0", "veth", ("10.9.0.2/30",), lower=2, lower_nsid=0)
    host.link(HOST, "veth0", "veth", ("10.9.0.1/30",), lower=2, lower_nsid=HOST + 1)
    assert all_networks(host.snapshot()) == ()


def test_without_rules_a_bridge_is_routed_if_it_has_an_address() -> None:
    assert kind_of(one_bridge("10.0.0.1/24")) == "routed"
    assert kind_of(one_bridge()) == "switched"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"src": "10.0.0.0/24", "oif": "!br0"}, "nat"),
        ({"src": "10.0.0.0/8"}, "nat"),
        ({"iif": "br0"}, "nat"),
        ({"oif": "eth0"}, "nat"),
        ({"src": "10.0.0.0/24", "dst": "!224.0.0.0/4"}, "nat"),
        ({"src": "10.1.0.0/24"}, "routed"),
        ({"src": "!10.0.0.0/8"}, "routed"),
        ({"src": "10.0.0.2", "dst": "10.0.0.2"}, "routed"),
        ({"oif": "br0"}, "routed"),
        ({"understood": False}, "routed"),
    ],
)
def test_a_network_is_nat_if_a_masquerade_matches_its_packets(fields: dict[str, Any], kind: str) -> None:
    assert kind_of(one_bridge("10.0.0.1/24"), rule("postrouting", "masquerade", **fields)) == kind


def test_a_masquerade_before_routing_does_not_count() -> None:
    assert kind_of(one_bridge("10.0.0.1/24"), rule("forward", "masquerade", src="10.0.0.0/24")) == "routed"


def test_a_card_among_the_ports_makes_it_nic_bridged() -> None:
    host = one_bridge("10.0.0.1/24")
    host.link(HOST, "eth1", "physical", master=host.links[HOST][3].ifindex)
    masquerade = rule("postrouting", "masquerade", src="10.0.0.0/24")
    assert kind_of(host, masquerade) == "nic-bridged"


def test_a_vxlan_among_the_ports_makes_it_an_overlay() -> None:
    host = one_bridge()
    host.link(HOST, "vx0", "vxlan", master=host.links[HOST][3].ifindex)
    assert kind_of(host) == "overlay"


INTERNAL = [
    pytest.param([rule("forward", "drop", iif="br0")], FORWARD, id="its own drop"),
    pytest.param([rule("forward", "drop", iif="br0", dst="!10.0.0.0/24")], FORWARD, id="Docker's internal"),
    pytest.param([], FORWARD_DROP, id="nothing accepts and the policy drops"),
    pytest.param(
        [rule("forward", "accept", ct_state="established,related"), rule("forward", "reject", iif="br0")],
        FORWARD,
        id="answers pass",
    ),
    pytest.param(
        [
            rule("forward", "accept", understood=False),
            rule("forward", "jump", target="from_br0", iif="br0"),
            rule("from_br0", "accept", oif="br0"),
            rule("from_br0", "drop"),
        ],
        FORWARD_DROP,
        id="a chain of its own drops",
    ),
    pytest.param(
        [rule("forward", "accept", iif="br1"), rule("forward", "accept", dst="10.7.0.2", dport="80")],
        FORWARD_DROP,
        id="others may leave, and anyone may reach one port",
    ),
    pytest.param(
        [
            rule("forward", "jump", target="user"),
            rule("user", "return"),
            rule("user", "accept", iif="br0"),
            rule("forward", "drop", iif="br0"),
        ],
        FORWARD,
        id="an accept behind a return",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "forward"), INTERNAL)
def test_a_network_is_internal_if_no_new_connection_leaves_it(
    rules: list[FirewallRule], forward: Chain
) -> None:
    assert kind_of(one_bridge("10.0.0.1/24"), *rules, forward=forward) == "internal"


OPEN = [
    pytest.param([rule("forward", "drop", iif="br0", l4_proto="udp")], FORWARD, id="one protocol is dropped"),
    pytest.param([rule("forward", "drop", iif="br1")], FORWARD, id="another network's drop"),
    pytest.param([rule("forward", "accept", iif="br0", oif="eth0")], FORWARD_DROP, id="a way out"),
    pytest.param([rule("forward", "accept", oif="eth0")], FORWARD_DROP, id="a way out for all"),
    pytest.param(
        [rule("forward", "jump", target="x", iif="br0", l4_proto="tcp"), rule("x", "accept")],
        FORWARD_DROP,
        id="tcp leaves by a chain",
    ),
    pytest.param(
        [rule("forward", "drop", iif="br0", ct_state="invalid")], FORWARD, id="only what is invalid"
    ),
]


@pytest.mark.parametrize(("rules", "forward"), OPEN)
def test_a_network_is_not_internal_if_a_connection_leaves_it(
    rules: list[FirewallRule], forward: Chain
) -> None:
    assert kind_of(one_bridge("10.0.0.1/24"), *rules, forward=forward) == "routed"


def test_a_drop_precedes_a_masquerade_of_other_networks() -> None:
    drop = rule("forward", "drop", iif="br0")
    host = one_bridge("10.0.0.1/24")
    assert kind_of(host, drop, rule("postrouting", "masquerade", oif="eth0")) == "internal"
    assert kind_of(host, drop, rule("postrouting", "masquerade", src="10.0.0.0/8")) == "internal"
    assert kind_of(host, drop, rule("postrouting", "masquerade", src="10.0.0.0/24")) == "nat"


def test_networks_of_a_host_that_does_not_forward_are_internal() -> None:
    snapshot = one_bridge("10.0.0.1/24").snapshot(
        host=Host(netns=HOST, namespaces=HOST_KINDS, sysctls={"net.ipv4.ip_forward": "0"}),
    )
    assert [network.kind for network in all_networks(snapshot)] == ["internal"]


def test_the_kind_is_open_while_the_rules_are_not_known() -> None:
    host = one_bridge("10.0.0.1/24")
    denied = Firewall(HOST, problems=(Problem("nat", "denied"),))
    for firewalls in ({}, {HOST: denied}):
        assert [network.kind for network in all_networks(host.snapshot(firewalls=firewalls))] == [""]


def test_uplinks_are_the_links_of_the_default_routes_by_metric() -> None:
    host = one_bridge("10.0.0.1/24")
    wlan, tun = host.link(HOST, "wlan0", "physical"), host.link(HOST, "tun0", "tun")
    host.routes[HOST] = [
        Route(4, "default", nexthops=(NextHop("192.0.2.254", wlan.ifindex),), metric=600),
        Route(4, "default", nexthops=(NextHop("192.0.2.254", 2),), metric=100),
        Route(6, "default", nexthops=(NextHop("fe80::1", 2),), metric=1024),
        Route(4, "default", nexthops=(NextHop("", tun.ifindex),), table="51820"),
        Route(4, "default", kind="unreachable", metric=4096),
    ]
    assert [link.name for link in uplinks(host.snapshot())] == ["eth0", "wlan0"]


def test_no_uplinks_while_nothing_is_known() -> None:
    assert uplinks(Snapshot()) == ()


def test_a_swarms_overlay_is_one_network_with_the_bridge_in_its_sandbox() -> None:
    host = HostBuilder()
    overlay = Network("docker", "abcdef0123456789", "ov1", "overlay", ns=HOST, subnets=("10.0.1.0/24",))
    other = replace(overlay, id="fedcba9876543210", name="elsewhere", subnets=("10.0.2.0/24",))
    host.networks = [overlay, other]
    sandbox = host.namespace(HOST + 7, mounts=("/run/docker/netns/1-abcdef0123",))
    ingress = host.namespace(HOST + 8, mounts=("/proc/9/root/run/docker/netns/ingress_sbox",))
    balancer = host.namespace(HOST + 9, mounts=("/var/run/docker/netns/lb_abcdef012",))
    bridge = host.link(sandbox, "br0", "bridge", ("10.0.1.1/24",))
    host.link(sandbox, "vxlan0", "vxlan", master=bridge.ifindex)
    host.container("docker", "web", None)
    topology = Topology(host.snapshot())
    assert [(one.name, one.kind, one.ns, one.bridge) for one in topology.networks] == [
        ("ov1", "overlay", sandbox, "br0"),
        ("elsewhere", "overlay", HOST, ""),
    ]
    labels = [topology.label(ns) for ns in (sandbox, ingress, balancer)]
    assert labels == ["1-abcdef0123", "ingress_sbox", "lb_abcdef012"]


def test_a_bridge_with_only_a_link_local_address_is_switched() -> None:
    assert kind_of(one_bridge("fe80::1/64")) == "switched"
