"""The topology: labels, owners of addresses, members, and the targets of Enter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.flows.columns import Column
from core.model import (
    Container,
    Link,
    Namespace,
    NatEntry,
    Ref,
    Snapshot,
    conntrack_ref,
    container_ref,
    link_ref,
    namespace_ref,
    network_ref,
)
from core.topology import Topology
from core.topology.related import follow, mask_by_name, mask_by_nat_entry, mask_by_network, related
from tests.support.host_builder import HOST, HostBuilder
from tests.support.snapshots import empty_host, hostile_host, many_namespaces, small_host


@pytest.fixture(scope="module")
def topology() -> Topology:
    return Topology(small_host())


def link_named(topology: Topology, name: str, ns: int = HOST) -> Link:
    return next(link for link in topology.snapshot.nets[ns].links.values() if link.name == name)


def container_named(topology: Topology, name: str) -> Container:
    return next(one for one in topology.containers.values() if one.name == name)


def labels(topology: Topology, ref: Ref) -> list[str]:
    return [label for label, _ in related(topology, ref)]


def first(topology: Topology, ref: Ref, beginning: str) -> Ref:
    return next(target for label, target in related(topology, ref) if label.startswith(beginning))


def entry_at(topology: Topology, ref: Ref) -> NatEntry:
    return next(entry for entry in topology.nat if (entry.ns, entry.entry_id) == ref.key)


def the_flows(topology: Topology, mask: Column) -> list[Ref]:
    return [conntrack_ref(HOST, number) for number in topology.flows.column("id")[mask].tolist()]


def peers_of(topology: Topology, mask: Column) -> list[int]:
    """Return the ports of the peers, sorted."""
    return sorted(topology.flows.peer()[1][mask].tolist())


def test_labels_prefer_names_given_by_users(topology: Topology) -> None:
    web1 = container_named(topology, "web1")
    assert topology.label(HOST) == "host"
    assert topology.label(web1.netns or 0) == "web1", "not the sidecar that joined it"
    assert topology.label(12345) == "net:[12345]"


@pytest.mark.parametrize(
    ("space", "label"),
    [
        (Namespace(7, names=("blue", "b"), unit="x.service", command="sh", pids=(4,)), "blue"),
        (Namespace(7, unit="x.service", command="sh", pids=(4,)), "x.service"),
        (Namespace(7, command="sh", pids=(4, 5)), "sh[4]"),
        (Namespace(7, mounts=("/run/ns",)), "net:[7]"),
    ],
)
def test_label_without_a_container(space: Namespace, label: str) -> None:
    assert Topology(Snapshot(namespaces={7: space})).label(7) == label


def test_addresses_belong_to_containers_that_the_host_reaches(topology: Topology) -> None:
    web1 = container_named(topology, "web1")
    assert topology.container_at(HOST, "172.18.0.2") == web1
    assert topology.container_at(HOST, "192.0.2.1") is None, "the host's own address is no container's"
    assert topology.container_at(HOST, "198.51.100.7") is None


def test_addresses_as_seen_from_inside(topology: Topology) -> None:
    web1, web2 = container_named(topology, "web1"), container_named(topology, "web2")
    assert topology.container_at(web1.netns or 0, "172.18.0.2") == web1
    assert topology.container_at(web1.netns or 0, "172.18.0.3") == web2, "beside it on the same bridge"


def test_the_same_address_in_two_places_has_two_owners() -> None:
    host = HostBuilder()
    bridge = host.bridge("br0", ("10.0.0.1/24",))
    router = host.namespace(HOST + 1, names=("router",))
    near = host.namespace(HOST + 2, names=("near",))
    far = host.namespace(HOST + 3, names=("far",))
    host.wire(near, bridge, "v-near", ("10.0.0.2/24",))
    host.link(router, "v-far", "veth", lower=2, lower_nsid=far)
    host.link(far, "eth0", "veth", ("10.0.0.2/24",), lower=2, lower_nsid=router)
    for name, ns in (("near", near), ("far", far), ("router", router)):
        host.container("netns", name, ns, id=name, namespaces={"net": ns})
    topology = Topology(host.snapshot())
    owners = [topology.container_at(ns, "10.0.0.2") for ns in (HOST, router)]
    assert [owner.name for owner in owners if owner] == ["near", "far"]


def test_engines_know_addresses_of_unread_namespaces() -> None:
    snapshot = small_host()
    blind = replace(snapshot, nets={HOST: snapshot.nets[HOST]})
    topology = Topology(blind)
    owner = topology.container_at(HOST, "172.18.0.2")
    assert owner is not None and owner.name == "web1"


def test_members_and_networks_agree(topology: Topology) -> None:
    members = {net.name: {one.name for one in topology.members(net)} for net in topology.networks}
    assert members["app"] == {"web1", "web2", "api", "sidecar"}
    assert members["db"] == {"api", "db"}
    assert members["bridge"] == {"blue"}, "a plain namespace on Docker's bridge"
    api = container_named(topology, "api")
    assert {net.name for net in topology.networks_of(api)} == {"app", "db"}


def test_bridge_of_either_end(topology: Topology) -> None:
    web1 = container_named(topology, "web1")
    outer = link_named(topology, "veth-web1")
    inner = link_named(topology, "eth0", web1.netns or 0)
    bridge = link_named(topology, "br-app")
    assert topology.bridge_of(outer) == topology.bridge_of(inner) == topology.bridge_of(bridge) == bridge
    network = topology.network_of(inner)
    assert network is not None and network.name == "app"
    assert outer in topology.ports_of(bridge.key)


def test_enter_leads_from_the_veth_to_the_conntrack_entry(topology: Topology) -> None:
    trail = [link_ref(link_named(topology, "veth-web2").key)]
    for _ in range(5):
        following = follow(topology, tuple(trail))
        assert following is not None
        trail.append(following)
    peer, container, bridge, network, nat = trail[1:]
    web2 = container_named(topology, "web2")
    assert peer.key[0] == web2.netns
    assert container == container_ref("docker", web2.id)
    assert bridge == link_ref(link_named(topology, "br-app").key)
    assert network == Ref("network", ("net-app",))
    entry = next(one for one in topology.nat if (one.ns, one.entry_id) == nat.key)
    assert web2.uid in entry.containers, "its own published port, not a neighbour's"


def test_relations_lead_from_a_veth_to_its_flows_and_back() -> None:
    topology = Topology(small_host())
    web1 = container_named(topology, "web1")
    outer = link_ref(link_named(topology, "veth-web1").key)
    inner = first(topology, outer, "peer eth0 in web1")
    container = first(topology, inner, "container web1")
    assert first(topology, container, "bridge port veth-web1") == outer
    published = first(topology, container, "published port")
    connections = first(topology, published, "1 connection")
    assert connections == Ref("connections", ("nat", "web1 tcp 8080 -> 172.18.0.2:80"))
    (flow,) = the_flows(topology, mask_by_nat_entry(topology, entry_at(topology, published)))
    assert first(topology, flow, "container web1") == container
    assert first(topology, flow, "published port") == published
    assert first(topology, container, "namespace web1") == namespace_ref(web1.netns or 0)


def test_a_nat_entry_leads_only_to_flows_that_it_translated(topology: Topology) -> None:
    web1 = container_named(topology, "web1")
    ref = container_ref("docker", web1.id)
    published, masquerade = first(topology, ref, "published port"), first(topology, ref, "masquerade")
    inward, outward = (
        mask_by_nat_entry(topology, entry_at(topology, one)) for one in (published, masquerade)
    )
    assert peers_of(topology, inward) == [50000]
    assert peers_of(topology, outward) == [53, 443]
    assert "1 connection" in labels(topology, published)
    assert "2 connections" in labels(topology, masquerade)


def test_connections_are_one_relation_or_none(topology: Topology) -> None:
    found = {
        name: [label for label in labels(topology, container_ref("docker", one.id)) if "connection" in label]
        for name in ("web1", "api", "web2")
        for one in (container_named(topology, name),)
    }
    assert found == {"web1": ["2 connections"], "api": ["1 connection"], "web2": []}
    assert peers_of(topology, mask_by_name(topology.flows, "web1".__eq__)) == [443, 50000]


def test_connections_of_a_network_are_those_of_its_own_addresses(topology: Topology) -> None:
    app, db = (next(net for net in topology.networks if net.name == name) for name in ("app", "db"))
    assert peers_of(topology, mask_by_network(topology, app)) == [53, 443, 50000]
    assert peers_of(topology, mask_by_network(topology, db)) == [], (
        "api's connection begins on the other network"
    )


def test_no_relation_leads_to_itself_or_is_repeated(topology: Topology) -> None:
    for link in topology.snapshot.links():
        targets = [target for _, target in related(topology, link_ref(link.key))]
        assert link_ref(link.key) not in targets
        assert len(targets) == len(set(targets))


def test_a_deleted_item_has_no_relations(topology: Topology) -> None:
    for ref in (
        Ref("link", (HOST, 999)),
        Ref("container", ("docker", "gone")),
        Ref("network", ("gone",)),
        Ref("nat", (HOST, "gone")),
        Ref("conntrack", (HOST, 1)),
        Ref("event", (1,)),
        Ref("problem", ("docker",)),
    ):
        assert related(topology, ref) == ()
        assert follow(topology, (ref,)) is None
    assert follow(topology, ()) is None


def test_the_uplink_is_where_the_default_route_leads(topology: Topology) -> None:
    found = topology.uplink(HOST)
    assert found is not None
    assert (found[0].name, found[1]) == ("eth0", "192.0.2.254")
    assert Topology(empty_host()).uplink(HOST) is None


@pytest.mark.parametrize("snapshot", [Snapshot(), empty_host(), hostile_host(), many_namespaces()])
def test_odd_hosts_have_relations_too(snapshot: Snapshot) -> None:
    topology = Topology(snapshot)
    for link in snapshot.links():
        assert all(label for label, _ in related(topology, link_ref(link.key)))
    for container in topology.containers.values():
        assert related(topology, container_ref(container.runtime, container.id))


def test_a_nat_entry_named_after_its_kind_has_it_once(topology: Topology) -> None:
    texts = [label for network in topology.networks for label in labels(topology, network_ref(network.id))]
    assert [one for one in texts if one.startswith("masquerade ")]
    assert not [one for one in texts if one.startswith("masquerade: masquerade")]
