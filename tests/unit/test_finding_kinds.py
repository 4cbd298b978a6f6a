"""Findings about connections, published ports, subnets and leftovers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.diagnose import Finding, findings, findings_by_id, kept
from core.model import (
    CONNTRACK_DTYPE,
    ChecksumErrors,
    Conntrack,
    Container,
    Firewall,
    FirewallRule,
    Listener,
    NextHop,
    PublishedPort,
    Route,
    Snapshot,
    container_ref,
    network_ref,
)
from core.model.fix import FixAddress, FixConnection
from core.topology import Topology
from tests.support.host_builder import CHAINS, HOST, HostBuilder, packed
from tests.support.snapshots import small_builder

CLIENT, OWN = "203.0.113.9", "192.0.2.1"
WEB1_NS = HOST + 1000
HEARD = {HOST: (Listener("tcp", "127.0.0.1", 8081),)}


def found(host: HostBuilder | Snapshot, kind: str, words: str = "", **fields: Any) -> list[Finding]:
    """Return the findings of a kind whose sentence contains some words."""
    kept.forget()  # of snapshots whose counters differ, only the first is examined
    snapshot = host if isinstance(host, Snapshot) else host.snapshot(**fields)
    return [one for one in findings(Topology(snapshot)) if one.kind == kind and words in one.sentence]


def ids(snapshot: Snapshot) -> list[str]:
    topology = Topology(snapshot)
    return list(findings_by_id(topology, findings(topology)))


# ---- connections


def udp_host(target: str = "172.18.0.2", **fields: Any) -> HostBuilder:
    """Build the small host, which also publishes udp 3478 of web1."""
    host = small_builder()
    host.rule(
        "DOCKER", "-A DOCKER ! -i br-app -p udp --dport 3478 -j DNAT", l4_proto="udp", dport="3478",
        iif="!br-app", verdict="dnat", to_address=target, to_port="3478", **fields,
    )  # fmt: skip
    return host


def udp(host: HostBuilder, answer: str, port: int = 3478, client: str = CLIENT, number: int = 40000) -> None:
    host.flow(17, (client, number, OWN, 3478), (answer, port, client, number))


def test_a_connection_to_a_former_target_is_found_and_can_be_deleted() -> None:
    host = udp_host()
    udp(host, "172.18.0.33")
    udp(host, "172.18.0.2", number=40001)
    (one,) = found(host, "conntrack")
    assert one.sentence == (
        "Packets of 203.0.113.9:40000 to udp port 3478 still go to 172.18.0.33:3478, not to "
        "172.18.0.2:3478: its connection is older than the rule."
    )
    assert one.ref.kind == "conntrack" and one.severity == "warn" and one.fix is not None
    entry = host.snapshot().conntracks[HOST].entries[3]
    assert one.fix.steps == (FixConnection(HOST, CLIENT, OWN, 17, 40000, 3478, int(entry["id"])),)
    web1 = next(each for each in host.containers if each.name == "web1")
    assert {ref.kind for ref in one.related} == {"nat", "container"}
    assert container_ref("docker", web1.id) in one.related


def test_stale_connections_of_several_clients_are_one_finding() -> None:
    host = udp_host()
    for number in range(40000, 40150):
        udp(host, "172.18.0.33", number=number)
    (one,) = found(host, "conntrack")
    assert "and 149 more to udp port 3478" in one.sentence
    assert one.fix is not None and len(one.fix.steps) == 100, "the repair is bounded"


@pytest.mark.parametrize(
    ("answer", "port", "client", "is_stale"),
    [
        ("172.18.0.2", 3478, CLIENT, False),
        ("172.18.0.2", 3479, CLIENT, True),  # another port of the container
        (OWN, 3478, CLIENT, True),  # made before the port was published
        (OWN, 3478, "172.18.0.4", False),  # Docker's rule exempts the bridge: a proxy answers
        (OWN, 3478, OWN, False),  # the host itself
    ],
)
def test_where_a_published_port_may_lead(answer: str, port: int, client: str, is_stale: bool) -> None:
    host = udp_host()
    udp(host, answer, port, client)
    assert bool(found(host, "conntrack")) == is_stale


def test_rules_that_say_too_little_make_no_connection_stale() -> None:
    for fields in ({"to_address": ""}, {"verdict": "redirect", "to_address": ""}, {"dport": "@ports"}):
        host = udp_host()
        udp(host, "172.18.0.33")
        host.rules.append(replace(host.rules[-1], rule_id="more", **fields))
        assert not found(host, "conntrack"), fields
    host = udp_host()
    host.rules[-1] = replace(host.rules[-1], iif="br-db")  # for one link only: others may reach the host
    udp(host, OWN)
    assert not found(host, "conntrack")


def test_a_second_target_of_a_port_is_not_stale() -> None:
    host = udp_host()
    host.rules.append(replace(host.rules[-1], rule_id="other", to_address="172.18.0.4"))
    udp(host, "172.18.0.4")
    assert not found(host, "conntrack")


def test_an_id_of_a_stale_connection_stays_the_same() -> None:
    several = []
    for number in (40000, 50000):
        host = udp_host()
        if number == 50000:
            udp(host, "172.18.0.2")  # so that the entry has another id
        udp(host, "172.18.0.33", number=number)
        several.append(set(ids(host.snapshot())))
    assert several[0] == several[1]


def many(count: int, orig_src: str, reply_dst: str, closed_for: int | None = None) -> Conntrack:
    """Return a table with `count` connections to one destination."""
    entries = np.zeros(count, CONNTRACK_DTYPE)
    entries["id"], entries["family"], entries["l4_proto"] = np.arange(count), 4, 6
    entries["orig_sport"] = entries["reply_dport"] = np.arange(count) % 64512 + 1024
    entries["orig_dport"] = entries["reply_sport"] = 443
    for name, text in (("orig_src", orig_src), ("reply_dst", reply_dst)):
        entries[name] = packed(text)
    entries["orig_dst"] = entries["reply_src"] = packed("198.51.100.7")
    entries["tcp_state"] = 3 if closed_for is None else 7
    entries["timeout"] = 120 - (closed_for or 0)
    return Conntrack(HOST, entries, limit=1_000_000)


@pytest.mark.parametrize(
    ("table", "name", "severity"),
    [
        (many(60_000, "10.9.9.9", OWN), f"{OWN} has 60,000 masqueraded", "warn"),
        (many(64_512, "10.9.9.9", OWN), f"{OWN} has 64,512 masqueraded", "bad"),
        (many(25_000, "172.18.0.2", OWN), "web1 has 25,000 connections", "warn"),
        (many(25_000, OWN, OWN), f"{OWN} has 25,000 connections", "warn"),
        (many(25_000, "10.9.9.9", "10.9.9.9"), "", ""),  # a router: clients have ports of their own
        (many(25_000, OWN, OWN, closed_for=90), "", ""),  # their sockets are gone
        (many(20_000, OWN, OWN), "", ""),
    ],
    ids=["nat", "nat full", "container", "host", "forwarded", "closed", "few"],
)
def test_source_ports_to_one_destination_run_out(table: Conntrack, name: str, severity: str) -> None:
    shown = found(small_builder(), "conntrack", conntracks={HOST: table})
    assert [one.severity for one in shown] == ([severity] if severity else [])
    assert all(name in one.sentence and "tcp 198.51.100.7:443" in one.sentence for one in shown)


# ---- published ports


def test_a_published_port_without_rule_and_proxy_is_lost() -> None:
    host = small_builder()
    host.rules = [one for one in host.rules if one.dport != "8080"]
    (one,) = found(host, "nat", listeners=HEARD)
    assert one.severity == "bad" and one.advice.endswith("run: docker restart web1")
    assert one.sentence == (
        "web1 publishes 8080/tcp, but no rule forwards it and no proxy listens: the port can't be reached."
    )
    assert not found(host, "nat"), "what listens wasn't read"
    proxy = {HOST: (*HEARD[HOST], Listener("tcp", "0.0.0.0", 8080))}
    (hidden,) = found(host, "nat", listeners=proxy)
    assert hidden.severity == "info" and "it sees the gateway's address" in hidden.sentence


def lone(host: HostBuilder, **fields: Any) -> Container:
    """Replace web1 by a container with other fields."""
    number = next(place for place, one in enumerate(host.containers) if one.name == "web1")
    host.containers[number] = replace(host.containers[number], **fields)
    return host.containers[number]


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "exited"},
        {"ports": (PublishedPort("tcp", "", 0, 80),)},
        {"ports": (PublishedPort("tcp", "::", 8080, 80),)},
        {"ports": (PublishedPort("sctp", "", 8080, 80),)},
        {"namespaces": {"net": HOST}},
    ],
)
def test_ports_that_need_no_rule(fields: dict[str, Any]) -> None:
    host = small_builder()
    host.rules = [one for one in host.rules if one.dport != "8080"]
    lone(host, **fields)
    assert not found(host, "nat", "publishes", listeners=HEARD)


def test_ports_of_a_routed_network_need_no_rule() -> None:
    host = small_builder()
    host.rules = [one for one in host.rules if one.dport != "8080"]
    app = next(place for place, one in enumerate(host.networks) if one.name == "app")
    host.networks[app] = replace(host.networks[app], gateway_mode={"ipv4": "routed"})
    assert not found(host, "nat", "publishes", listeners=HEARD)


def test_a_lost_port_is_not_named_beside_docker_without_rules() -> None:
    host = small_builder()
    host.rules = [one for one in host.rules if one.dport != "8080" and one.chain != "FORWARD"]
    assert found(host, "engine rules", listeners=HEARD) and not found(host, "nat", listeners=HEARD)


@pytest.mark.parametrize(
    ("fields", "hides"),
    [
        ({}, True),
        ({"oif": "br-*"}, True),
        ({"dst": "172.16.0.0/12"}, True),
        ({"oif": "eth0"}, False),
        ({"oif": "!br-app"}, False),
        ({"src": "172.18.0.0/16"}, False),
        ({"iif": "br-app"}, False),
        ({"dport": "443"}, False),
        ({"understood": False}, False),
    ],
)
def test_a_masquerade_that_hides_the_clients(fields: dict[str, Any], hides: bool) -> None:
    host = small_builder()
    host.rule("POSTROUTING", "-A POSTROUTING -j MASQUERADE", verdict="masquerade", **fields)
    hidden = found(host, "nat", "see this host as the client")
    assert len(hidden) == hides and all("web1" in one.sentence for one in hidden)


RAW = replace(CHAINS[1], table="raw", kind="filter", priority=-300)


def direct_rules(host: HostBuilder, packets: int) -> Snapshot:
    """Return the host with Docker 28's rules for direct access to web1."""
    host.rule(
        "PREROUTING", "-A PREROUTING -d 172.18.0.2/32 ! -i br-app -j DROP", table="raw",
        dst="172.18.0.2/32", iif="!br-app", verdict="drop", packets=packets,
    )  # fmt: skip
    host.rule(
        "DOCKER-FORWARD", "-A DOCKER-FORWARD ! -i br-app -o br-app -j DROP", table="filter", iif="!br-app",
        oif="br-app", verdict="drop", packets=packets,
    )  # fmt: skip
    return host.snapshot(firewalls={HOST: Firewall(HOST, (*CHAINS, RAW), tuple(host.rules))})


def test_what_docker_drops_on_purpose_is_a_note() -> None:
    assert not found(direct_rules(small_builder(), 0), "nat", "Docker lets")
    (one,) = found(direct_rules(small_builder(), 9), "nat", "Docker lets")
    assert one.severity == "info" and "(dropped so far: 9 packets)" in one.sentence
    assert one.ref == network_ref("net-app") and "trusted_host_interfaces=LINK" in one.advice
    (closed,) = found(direct_rules(small_builder(), 9), "dropped", "that no container publishes")
    assert closed.severity == "info" and closed.sentence.startswith(
        "Docker dropped 9 packets to ports of app"
    )


def test_a_vpn_cannot_reach_containers_directly_unless_it_is_trusted() -> None:
    host = small_builder()
    host.link(HOST, "wg0", "wireguard", ("10.99.0.1/24",))
    (one,) = found(direct_rules(host, 0), "nat", "Docker lets")
    assert "clients behind wg0 can use only published ports" in one.sentence
    assert "trusted_host_interfaces=wg0" in one.advice and "--allow-direct-routing" in one.advice
    app = next(place for place, each in enumerate(host.networks) if each.name == "app")
    host.networks[app] = replace(host.networks[app], trusted_links=("wg0",))
    assert not found(direct_rules(host, 0), "nat", "Docker lets")


def vnet_port(host: HostBuilder, **fields: Any) -> FirewallRule:
    return host.rule(
        "published", "dnat ip to 172.18.0.2:80", backend="nft", table="vnet", l4_proto="tcp", dport="7000",
        verdict="dnat", to_address="172.18.0.2", to_port="80", **fields,
    )  # fmt: skip


def test_a_process_behind_a_port_of_vnet_gets_no_connections() -> None:
    host = small_builder()
    vnet_port(host)
    chain = replace(CHAINS[1], backend="nft", table="vnet", name="published")
    firewalls = {HOST: Firewall(HOST, (*CHAINS, chain), tuple(host.rules))}
    for address, shows in (("0.0.0.0", True), ("127.0.0.1", False)):
        listeners = {HOST: (Listener("tcp", address, 7000),)}
        shown = found(host, "nat", "it gets no connections", firewalls=firewalls, listeners=listeners)
        assert [one.severity for one in shown] == ["info"] * shows


# ---- subnets


def routed(dst: str, link: str, protocol: str = "static", **fields: Any) -> HostBuilder:
    """Build the small host with a VPN and a route by one of its links."""
    host = small_builder()
    host.link(HOST, "tun0", "tun", ("10.8.0.2/24",))
    index = next(one.ifindex for one in host.links[HOST].values() if one.name == link)
    host.routes[HOST].append(Route(4, dst, nexthops=(NextHop("", index),), protocol=protocol, **fields))
    return host


@pytest.mark.parametrize(
    ("dst", "link", "severity"),
    [
        ("172.18.5.0/24", "tun0", "warn"),
        ("172.18.0.0/16", "tun0", "warn"),
        ("172.16.0.0/12", "tun0", "info"),
        ("0.0.0.0/1", "tun0", ""),
        ("10.20.0.0/16", "tun0", ""),
        ("172.18.5.0/24", "br-app", ""),
    ],
)
def test_a_route_into_a_container_network(dst: str, link: str, severity: str) -> None:
    shown = found(routed(dst, link), "overlap", "app (")
    assert [one.severity for one in shown] == ([severity] if severity else [])
    assert all(one.evidence == (f"{dst} dev tun0",) for one in shown)


def test_only_routes_that_someone_made_overlap() -> None:
    for fields in ({"protocol": "kernel"}, {"table": "200"}, {"kind": "blackhole"}):
        assert not found(routed("172.18.5.0/24", "tun0", **fields), "overlap", "route")


def test_two_overlapping_routes_have_two_ids() -> None:
    host = routed("172.18.5.0/24", "tun0")
    host.routes[HOST].append(replace(host.routes[HOST][-1], dst="172.18.6.0/24"))
    every = ids(host.snapshot())
    del host.routes[HOST][-2]
    assert len(ids(host.snapshot())) == len(every) - 1
    assert set(ids(host.snapshot())) < set(every), "the id of one doesn't depend on the other"


def test_an_overlapping_bridge_without_ports_loses_its_address() -> None:
    host = small_builder()
    guest = host.bridge("br-guest", ("172.18.9.1/24",))
    (one,) = found(host, "overlap", "br-guest")
    assert one.fix is not None
    assert one.fix.steps == (FixAddress(guest.key, guest.addresses[0], False),)
    host.wire(host.namespace(HOST + 50, pids=(9,)), guest, "veth-guest")
    (used,) = found(host, "overlap", "br-guest")
    assert used.fix is None and "give br-guest, which has fewer ports, another subnet" in used.advice


# ---- leftovers


def test_a_veth_to_a_namespace_without_processes_is_an_orphan() -> None:
    host = small_builder()
    space = host.namespace(HOST + 50, held_fds=((77, 9),))
    bridge = next(one for one in host.links[HOST].values() if one.name == "br-db")
    host.wire(space, bridge, "veth-old", ("172.19.0.9/24",))
    (one,) = found(host, "orphan", "veth-old")
    assert one.severity == "info" and "a port of br-db, is in a namespace without processes" in one.sentence
    assert "(pid 77 keeps it open)" in one.sentence and one.advice.endswith("ip link delete veth-old")
    uses: Sequence[dict[str, Any]] = ({"pids": (5,)}, {"names": ("x",)}, {"mounts": ("/run/x",)})
    for fields in uses:
        host.spaces[space] = replace(host.spaces[space], **fields)
        assert not found(host, "orphan", "veth-old")
        host.spaces[space] = replace(host.spaces[space], pids=(), names=(), mounts=())


def test_a_veth_is_no_orphan_if_processes_cannot_be_read() -> None:
    host = small_builder()
    space = host.namespace(HOST + 50)
    bridge = next(one for one in host.links[HOST].values() if one.name == "br-db")
    host.wire(space, bridge, "veth-old")
    snapshot = host.snapshot()
    assert found(snapshot, "orphan", "veth-old")
    lacking = replace(snapshot.host, missing_capabilities=("CAP_SYS_PTRACE",))
    assert not found(replace(snapshot, host=lacking), "orphan", "veth-old")


def test_a_named_namespace_that_nothing_uses() -> None:
    host = small_builder()
    space = host.namespace(HOST + 50, names=("old",))
    assert not found(host, "orphan"), "its loopback is up, so it was set up"
    host.links[space][1] = replace(host.links[space][1], admin_up=False)
    (one,) = found(host, "orphan")
    assert one.severity == "info" and one.advice.endswith("; run: ip netns delete old")
    host.spaces[space] = replace(host.spaces[space], pids=(7,))
    assert not found(host, "orphan")


def test_a_forward_rule_for_an_address_that_is_gone() -> None:
    host = small_builder()
    for address in ("172.18.0.77/32", "172.18.0.2/32", "172.18.0.1/32", "10.5.0.1/32", "172.18.0.0/24"):
        text = f"-A FORWARD -d {address} -j ACCEPT"
        host.rule("FORWARD", text, table="filter", dst=address, verdict="accept")
    (one,) = found(host, "orphan")
    assert one.severity == "info" and "is for 172.18.0.77, but no container of app has" in one.sentence
    assert one.fix is not None and len(one.fix.steps) == 1


# ---- ids


def test_names_that_are_not_unicode_have_ids() -> None:
    """Names from files may have lone surrogates of any kind."""
    host = small_builder()
    every = set(ids(host.snapshot()))
    for name in ("\ud800", "\udc80"):
        orphan = host.containers.pop(5)
        host.containers.insert(5, replace(orphan, name=name))
        assert len(set(ids(host.snapshot())) - every) == 1


# ---- checksums


def checksums(*, ns: int = WEB1_NS, kind: str = "", **fields: Any) -> list[Finding]:
    """Return the findings of the small host, one of whose namespaces had wrong checksums."""
    host = small_builder()
    if kind:
        host.link(HOST, "flannel.1", kind, ("10.244.0.0/32",))
    errors = ChecksumErrors("udp", **{"received": 200, "wrong": 100, "recent": 10, "seconds": 1.0, **fields})
    return found(host, "checksum", checksum_errors={ns: (errors,)})


def test_wrong_checksums_name_the_link_that_receives_them() -> None:
    (one,) = checksums()
    assert one.severity == "warn" and one.ref.kind == "link" and one.ref.key[0] == WEB1_NS
    assert one.sentence == (
        "web1 drops UDP packets that arrive by eth0: their checksums are wrong (100 of 200)."
    )
    assert one.evidence == ("InCsumErrors of UDP in web1: 100 (+10 in 1 s)",)


def test_with_a_vxlan_link_its_checksum_offload_is_suspected() -> None:
    for ns in (HOST, WEB1_NS):
        (one,) = checksums(ns=ns, kind="vxlan")
        assert one.advice.endswith("run: ethtool -K flannel.1 tx-checksum-ip-generic off")


@pytest.mark.parametrize(
    ("fields", "severity"),
    [({"recent": 0}, "info"), ({"wrong": 3, "received": 9}, "warn"), ({"wrong": 9, "recent": 0}, None),
     ({"wrong": 100, "received": 10_001}, None)],
)  # fmt: skip
def test_few_wrong_checksums_are_no_warning(fields: dict[str, int], severity: str | None) -> None:
    assert [one.severity for one in checksums(**fields)] == ([severity] if severity else [])


def test_wrong_checksums_of_a_host_without_vxlan_are_no_finding() -> None:
    assert not checksums(ns=HOST)
