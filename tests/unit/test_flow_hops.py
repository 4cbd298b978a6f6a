"""One connection in several namespaces: the edge hop, and the owners of its ends."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.flows.merge import table_of
from core.model import (
    SOCKET_DTYPE,
    Address,
    Conntrack,
    Container,
    Endpoint,
    Engine,
    Host,
    Link,
    Namespace,
    NetState,
    Network,
    Snapshot,
    Sockets,
)
from core.topology import Topology
from core.topology.flow_index import CLIENTS, FlowView
from tests.support.flow_samples import end, flow, table
from tui.views.flows import FlowRows

HOST, WEB, DB, ALONE, MIDDLE = 100, 200, 300, 400, 500
WEB_AT, DB_AT, PEER = "172.18.0.2", "172.18.0.3", "1.1.1.1:443"
OUT = flow(f"{WEB_AT}:4000", PEER, seen_as="192.0.2.1:4000", counted=True)
INSIDE = flow(f"{WEB_AT}:4000", PEER)


def veth(ns: int, index: int, peer_ns: int, peer: int, *addresses: str, master: int | None = None) -> Link:
    return Link(
        ns, index, f"v{index}", "veth", lower=peer, lower_nsid=peer_ns, master=master,
        addresses=tuple(Address(4, address, 16) for address in addresses),
    )  # fmt: skip


def snapshot(*tables: Conntrack) -> Snapshot:
    """Return a host: two containers on a bridge, a third elsewhere, a lone namespace."""
    host_links = {
        1: Link(HOST, 1, "eth0", "physical", addresses=(Address(4, "192.0.2.1", 24),)),
        2: Link(HOST, 2, "br0", "bridge", addresses=(Address(4, "172.18.0.1", 16),)),
        3: veth(HOST, 3, WEB, 2, master=2),
        4: veth(HOST, 4, DB, 2, master=2),
    }
    nsids = {ns: ns for ns in (HOST, WEB, DB)}
    names = {HOST: "host", WEB: "web", DB: "db", ALONE: "alone", MIDDLE: "middle"}
    containers = (
        Container(
            "docker", "w", "web", endpoints=(Endpoint("net", f"{WEB_AT}/16"),), namespaces={"net": WEB}
        ),
        Container("docker", "d", "db", endpoints=(Endpoint("net", f"{DB_AT}/16"),), namespaces={"net": DB}),
        Container(
            "docker", "o", "other", endpoints=(Endpoint("far", "10.5.0.2/16"),), namespaces={"net": MIDDLE}
        ),
    )
    networks = (
        Network("docker", "n1", "net", bridge="br0", ns=HOST, subnets=("172.18.0.0/16",)),
        Network("docker", "n2", "far", subnets=("10.5.0.0/16",)),
    )
    return Snapshot(
        host=Host(netns=HOST),
        namespaces={ns: Namespace(ns, is_host=ns == HOST, names=(name,)) for ns, name in names.items()},
        nets={
            HOST: NetState(HOST, host_links, nsids=nsids),
            WEB: NetState(WEB, {2: veth(WEB, 2, HOST, 3, WEB_AT)}, nsids=nsids),
            DB: NetState(DB, {2: veth(DB, 2, HOST, 4, DB_AT)}, nsids=nsids),
            ALONE: NetState(ALONE),
        },
        conntracks={one.ns: one for one in tables},
        engines={"docker": Engine("docker", "ok", containers=containers, networks=networks)},
    )


def flows_view(*tables: Conntrack) -> FlowView:
    taken = snapshot(*tables)
    return FlowView.of(Topology(taken), table_of(taken.conntracks))


def edges(found: FlowView) -> list[int]:
    """Return the namespaces of the rows of edge hops."""
    return [found.index.columns.place(row)[0].ns for row in range(len(found)) if found.index.edge[row]]


def test_a_connection_in_a_container_and_its_host_is_one_flow() -> None:
    found = flows_view(table(WEB, INSIDE), table(HOST, OUT))
    assert edges(found) == [HOST]
    assert [found.index.columns.place(row)[0].ns for row in found.index.hops(0)] == [WEB, HOST]


def test_the_same_tuple_in_an_unrelated_namespace_is_another_flow() -> None:
    found = flows_view(table(HOST, OUT), table(ALONE, INSIDE))
    assert edges(found) == [HOST, ALONE]
    assert found.index.hops(0) == [0]


def test_two_containers_on_one_bridge_that_the_host_does_not_track() -> None:
    row = flow(f"{WEB_AT}:4000", f"{DB_AT}:5432")
    found = flows_view(table(DB, row), table(WEB, row))
    assert len(edges(found)) == 1
    hops = [found.index.columns.place(row)[0].ns for row in found.index.hops(0)]
    assert hops == [WEB, DB]


def test_a_counted_hop_is_preferred() -> None:
    uncounted = flow(f"{WEB_AT}:4000", PEER, seen_as="192.0.2.1:4000")
    counted = flow(f"{WEB_AT}:4000", PEER, counted=True)
    assert edges(flows_view(table(HOST, uncounted), table(WEB, counted))) == [WEB]


def test_connections_of_one_namespace_are_not_merged() -> None:
    hairpin = flow(f"{WEB_AT}:1", "192.0.2.1:80", f"{DB_AT}:80", "172.18.0.1:1")
    next_one = flow("172.18.0.1:1", f"{DB_AT}:80")
    assert edges(flows_view(table(HOST, hairpin, next_one))) == [HOST, HOST]


@pytest.mark.parametrize(
    ("origin", "responder", "kind"),
    [
        ("198.51.100.9:1", f"{WEB_AT}:80", "outside"),
        ("172.18.0.1:1", f"{WEB_AT}:80", "host"),
        ("192.0.2.1:1", f"{WEB_AT}:80", "host"),
        (f"{DB_AT}:1", f"{WEB_AT}:80", "beside"),
        ("10.5.0.2:1", f"{WEB_AT}:80", "other network"),
        (f"{WEB_AT}:1", f"{WEB_AT}:80", "itself"),
        (f"{WEB_AT}:1", "198.51.100.9:80", ""),
        ("198.51.100.9:1", "192.0.2.1:22", ""),
    ],
)
def test_kinds_of_clients(origin: str, responder: str, kind: str) -> None:
    found = flows_view(table(HOST, flow(origin, responder)))
    assert CLIENTS[found.index.client[0]] == kind


def socket(local: str, remote: str, **more: Any) -> Any:
    row = np.zeros(1, SOCKET_DTYPE)
    for address, port, text in (("local", "lport", local), ("remote", "rport", remote)):
        raw, number = end(text)
        row[address], row[port] = np.frombuffer(raw, "u1"), number
    row["l4_proto"] = 6
    for name, value in more.items():
        row[name] = value
    return row


def test_sockets_are_found_in_the_namespace_of_their_end() -> None:
    found = flows_view(table(HOST, OUT))
    mine = Sockets(WEB, socket(f"{WEB_AT}:4000", PEER, rtt=1500, pid=42), {42: "curl"})
    strangers = Sockets(ALONE, socket(f"{WEB_AT}:4000", PEER, rtt=9, pid=7), {7: "thief"})
    ends = found.index.process_columns({ALONE: strangers, WEB: mine})
    assert (ends.rtt.tolist(), ends.pids.tolist()) == ([0.0015], [[42, 0]])


@pytest.mark.parametrize(
    ("bound", "family"), [(f"{DB_AT}:53", 4), ("0.0.0.0:53", 4), ("::|53", 6)], ids=["own", "any", "both"]
)  # fmt: skip
def test_a_udp_server_without_a_peer_is_found_by_its_address(bound: str, family: int) -> None:
    asked = flow(f"{WEB_AT}:4000", f"{DB_AT}:53", l4_proto=17)
    found = flows_view(table(HOST, asked, OUT, flow(f"{WEB_AT}:4001", f"{DB_AT}:54", l4_proto=17)))
    no_peer = "::|0" if family == 6 else "0.0.0.0:0"
    server = Sockets(DB, socket(bound, no_peer, l4_proto=17, family=family, pid=8), {8: "dnsmasq"})
    strangers = Sockets(ALONE, socket(bound, no_peer, l4_proto=17, family=family, pid=7), {7: "thief"})
    ends = found.index.process_columns({ALONE: strangers, DB: server})
    assert ends.pids.tolist() == [[0, 8], [0, 0], [0, 0]]


def test_a_socket_bound_to_the_address_precedes_a_wildcard_socket() -> None:
    found = flows_view(table(HOST, flow(f"{WEB_AT}:4000", f"{DB_AT}:53", l4_proto=17)))
    rows = [
        socket(f"{at}:53", "0.0.0.0:0", l4_proto=17, family=4, pid=pid)
        for at, pid in (("0.0.0.0", 1), (DB_AT, 2), ("172.18.0.9", 3))
    ]
    ends = found.index.process_columns({DB: Sockets(DB, np.concatenate(rows), {})})
    assert ends.pids.tolist() == [[0, 2]]


def test_an_index_is_reused_while_owners_stay_the_same() -> None:
    built = snapshot(table(HOST, OUT), table(WEB, INSIDE))
    rows = table_of(built.conntracks)
    first = FlowView.of(Topology(built), rows)
    later = Topology(replace(built, conntracks={}, taken_at=5.0))
    second = FlowView.of(later, rows, first)
    assert second.index is first.index
    assert second.index.topology is later


def test_an_index_forgets_removed_containers_with_the_same_flows() -> None:
    built = snapshot(table(HOST, OUT), table(WEB, INSIDE))
    rows = table_of(built.conntracks)
    first = FlowView.of(Topology(built), rows)
    assert (first.index.edge.tolist(), first.index.owners[first.index.origin[0]].name) == (
        [True, False],
        "web",
    )
    ties = first.index.tie_breakers
    nets = {ns: net for ns, net in built.nets.items() if ns != WEB}
    left = FlowView.of(Topology(replace(built, nets=nets, engines={})), rows, first)
    assert left.index.edge.tolist() == [True, True]
    assert left.index.origin[0] == -1
    assert left.index.columns.names(HOST) == {
        key: name for key, name in first.index.columns.names(HOST).items() if name == "host"
    }
    assert left.index.tie_breakers is ties


def test_a_flow_view_is_freed_without_the_garbage_collector() -> None:
    """Tables are large, objects few: garbage would stay for a long time."""
    built = snapshot(table(HOST, OUT), table(WEB, INSIDE))
    flows_view = FlowView.of(Topology(built), table_of(built.conntracks))
    rows = FlowRows(flows_view.index.topology, flows_view).sorted_by("rate", True)
    assert rows.row(0).cells and rows.head
    gone = weakref.ref(flows_view.index)
    gc.disable()
    try:
        del flows_view, rows
        assert gone() is None
    finally:
        gc.enable()


def test_a_network_filters_the_flows_of_the_view_not_those_of_the_snapshot() -> None:
    """Rates are read more often than the snapshot, and include fast-path flows."""
    newer = table_of({HOST: table(HOST, flow(PEER, PEER), OUT)})
    view = FlowView.of(Topology(snapshot(table(HOST, OUT))), newer)
    for text, count in (("net:net", 1), ("nat:=masquerade", 0)):
        assert len(FlowRows(view.index.topology, view).matching(text)) == count


def test_segments_are_known_only_if_the_kernel_sent_their_count() -> None:
    found = flows_view(table(HOST, OUT, flow(f"{DB_AT}:4000", PEER)))
    full = Sockets(WEB, socket(f"{WEB_AT}:4000", PEER, info=248, retrans=7, lost=2, ooo=1))
    old = Sockets(DB, socket(f"{DB_AT}:4000", PEER, info=192, retrans=3))
    ends = found.index.process_columns({WEB: full, DB: old})
    assert [ends.count(name, 0) for name in ("retrans", "lost", "ooo")] == [7, 2, 1]
    assert [ends.count(name, 1) for name in ("retrans", "lost", "ooo")] == [3, 0, None]
    assert ends.total("retrans").tolist() == [7, 3] and np.isnan(ends.total("ooo")[1])
    assert found.index.process_columns({}).count("retrans", 0) is None
