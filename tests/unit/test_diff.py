"""The sentences of the Events view, from pairs of hand-built snapshots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.diff import changes
from core.model import (
    Address,
    Change,
    Endpoint,
    FirewallRule,
    Link,
    Namespace,
    Neighbour,
    NetState,
    Network,
    NextHop,
    PacketSizes,
    PolicyRule,
    Problem,
    Route,
    Snapshot,
    container_ref,
    link_ref,
    namespace_ref,
    network_ref,
)
from tests.support.host_builder import HOST, conntrack
from tests.support.snapshots import HOSTILE_NAME, many_namespaces, small_host

OLD = small_host()
WEB1 = HOST + 1000


def changes_between(new: Snapshot, old: Snapshot = OLD) -> list[Change]:
    """Return the changes between two snapshots."""
    found = [*changes(old, new, 12.5)]
    assert all(change.at == 12.5 and change.action in ("added", "removed", "changed") for change in found)
    return found


def sentences(new: Snapshot, old: Snapshot = OLD) -> list[str]:
    """Return the sentences of the changes between two snapshots."""
    return [change.sentence for change in changes_between(new, old)]


def with_net(ns: int = HOST, **fields: Any) -> Snapshot:
    """Return the old host with fields of one NetState replaced."""
    return replace(OLD, nets={**OLD.nets, ns: replace(OLD.nets[ns], **fields)})


def named(name: str) -> Link:
    """Return the link with that name in the host namespace."""
    return next(link for link in OLD.nets[HOST].links.values() if link.name == name)


def with_link(which: str, **fields: Any) -> Snapshot:
    """Return the old host with fields of one link replaced."""
    link = replace(named(which), **fields)
    return with_net(links={**OLD.nets[HOST].links, link.ifindex: link})


def without_link(name: str) -> Snapshot:
    """Return the old host without one link."""
    links = {index: link for index, link in OLD.nets[HOST].links.items() if link.name != name}
    return with_net(links=links)


def test_no_change() -> None:
    assert changes_between(OLD) == []
    assert changes_between(small_host()) == []


def test_counters_and_timers_are_not_changes() -> None:
    host = OLD.nets[HOST]
    stale = tuple(replace(each, state="stale") for each in host.neighbours)
    rules = tuple(replace(rule, packets=10**9, bytes=10**12) for rule in OLD.firewalls[HOST].rules)
    moved = replace(
        with_net(neighbours=stale, fdb=()),
        taken_at=99.0,
        conntracks={HOST: conntrack(HOST, [])},
        firewalls={HOST: replace(OLD.firewalls[HOST], rules=rules)},
    )
    assert changes_between(moved) == []


def test_parts_never_read_are_left_out() -> None:
    empty = Snapshot(pending=frozenset({"namespaces", "links", "firewall", "conntrack", "containers", "ovs"}))
    assert changes_between(OLD, empty) == []
    assert changes_between(replace(OLD, namespaces={}, pending=frozenset({"namespaces"})), OLD) == []


def test_the_same_object_is_not_compared() -> None:
    class Untouchable(dict):  # type: ignore[type-arg]
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    net = replace(OLD.nets[HOST], links=Untouchable(), routes=(), rules=(), neighbours=())
    old = replace(OLD, nets={HOST: net, WEB1: OLD.nets[WEB1]})
    assert (
        changes_between(replace(old, nets={HOST: net, WEB1: with_net(WEB1, rules=()).nets[WEB1]}), old) == []
    )


def test_namespaces() -> None:
    more = replace(OLD, namespaces={**OLD.namespaces, 77: Namespace(77, names=("lab",))})
    ref = namespace_ref(77)
    assert changes_between(more) == [Change(12.5, "added", ref, "namespace lab appeared")]
    assert changes_between(OLD, more) == [Change(12.5, "removed", ref, "namespace lab is gone")]
    renamed = replace(OLD, namespaces={**OLD.namespaces, 77: Namespace(77, names=("lab", "b"))})
    assert sentences(renamed, more) == ["namespace lab was named b"]
    assert sentences(more, renamed) == ["namespace lab lost the name b"]


def test_a_link_appears_and_disappears() -> None:
    gone = without_link("veth-web1")
    ref = link_ref(named("veth-web1").key)
    assert changes_between(gone) == [Change(12.5, "removed", ref, "veth veth-web1 is gone from host")]
    assert changes_between(OLD, gone) == [
        Change(12.5, "added", ref, "veth veth-web1 appeared in host as a port of br-app")
    ]
    assert sentences(OLD, without_link("br-app")) == ["bridge br-app appeared in host with 172.18.0.1/16"]


def test_a_reused_index_with_another_kind_is_another_link() -> None:
    assert sentences(with_link("veth-web1", kind="dummy", master=None)) == [
        "veth veth-web1 is gone from host",
        "dummy veth-web1 appeared in host",
    ]


def test_links_of_a_new_namespace_are_not_reported() -> None:
    more = replace(OLD, nets={**OLD.nets, 77: NetState(77, {1: Link(77, 1, "lo", "loopback")})})
    assert changes_between(more) == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "v9"}, "veth veth-web1 in host was renamed to v9"),
        ({"admin_up": False}, "veth veth-web1 in host was set down"),
        ({"admin_up": False, "state": "down"}, "veth veth-web1 in host was set down"),
        ({"state": "down"}, "veth veth-web1 in host is down (was up)"),
        ({"state": "lowerlayerdown"}, "veth veth-web1 in host is down: its other end is down (was up)"),
        ({"mtu": 1400}, "the MTU of veth veth-web1 in host changed from 1500 to 1400"),
        (
            {"sizes": PacketSizes(gso=131072)},
            "gso_max_size of veth veth-web1 in host changed from 0 to 131072 bytes",
        ),
        ({"alias": "x"}, "the alias of veth veth-web1 in host changed from none to x"),
        ({"master": None}, "veth veth-web1 in host is no longer a port of br-app"),
        ({"addresses": (Address(4, "10.0.0.1", 24),)}, "veth veth-web1 in host got the address 10.0.0.1/24"),
        ({"addresses": (Address(6, "fe80::1", 64, "link"),)}, None),
        ({"qdisc": "htb", "carrier": False, "promiscuous": True}, None),
    ],
)
def test_link_changes(fields: dict[str, Any], sentence: str | None) -> None:
    assert sentences(with_link("veth-web1", **fields)) == ([sentence] if sentence else [])


def test_moving_between_bridges() -> None:
    free, db = with_link("veth-web1", master=None), named("br-db").ifindex
    assert sentences(OLD, free) == ["veth veth-web1 in host became a port of br-app"]
    assert sentences(with_link("veth-web1", master=db)) == [
        "veth veth-web1 in host moved from br-app to br-db"
    ]


def test_lost_address() -> None:
    assert sentences(with_link("br-app", addresses=())) == [
        "bridge br-app in host lost the address 172.18.0.1/16"
    ]


def test_bridge_and_port_settings() -> None:
    bridge, port = named("br-app").bridge, named("veth-web1").port
    assert bridge and port
    assert sentences(with_link("br-app", bridge=replace(bridge, stp=True, root_id="8000.x"))) == [
        "stp of bridge br-app in host changed from off to on"
    ]
    assert sentences(with_link("veth-web1", port=replace(port, state="blocking"))) == [
        "state of port veth-web1 of br-app in host changed from forwarding to blocking"
    ]


def test_many_links_become_one_sentence() -> None:
    many = many_namespaces(50)
    one = replace(many.nets[HOST], links={})
    assert sentences(many, replace(many, nets={**many.nets, HOST: one})) == ["53 links appeared in host"]


def test_routes() -> None:
    routes, eth0 = OLD.nets[HOST].routes, named("eth0").ifindex
    other = Route(4, "default", nexthops=(NextHop("192.0.2.9", eth0),), protocol="static")
    assert sentences(with_net(routes=(*routes, Route(4, "10.9.0.0/16", "unreachable", table="7")))) == [
        "route unreachable 10.9.0.0/16 table 7 appeared in host"
    ]
    assert sentences(with_net(routes=routes[1:])) == [
        "route default via 192.0.2.254 dev eth0 is gone from host"
    ]
    assert sentences(with_net(routes=(other, *routes[1:]))) == [
        "route default via 192.0.2.254 dev eth0 in host changed to default via 192.0.2.9 dev eth0"
    ]
    kernels = tuple(route for route in routes if route.protocol != "kernel" and route.table != "local")
    assert sentences(with_net(routes=kernels)) == []


def test_routing_rules() -> None:
    rule = PolicyRule(4, 100, src="10.0.0.0/8", iif="eth0", fwmark=16, table="blue")
    more = with_net(rules=(*OLD.nets[HOST].rules, rule))
    words = "routing rule 100: from 10.0.0.0/8 iif eth0 fwmark 0x10 lookup blue"
    assert sentences(more) == [f"{words} appeared in host"]
    assert sentences(OLD, more) == [f"{words} is gone from host"]


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("reachable", "failed", "neighbour 10.0.0.7 on br-app in host no longer answers"),
        ("probe", "failed", "neighbour 10.0.0.7 on br-app in host no longer answers"),
        ("failed", "reachable", "neighbour 10.0.0.7 on br-app in host answers again"),
        ("incomplete", "failed", None),
        ("reachable", "stale", None),
        ("failed", "incomplete", None),
        ("incomplete", "reachable", None),
    ],
)
def test_neighbours(before: str, after: str, sentence: str | None) -> None:
    at = named("br-app").ifindex
    old, new = (with_net(neighbours=(Neighbour(4, "10.0.0.7", "", at, state),)) for state in (before, after))
    assert sentences(new, old) == ([sentence] if sentence else [])


def with_rules(*rules: FirewallRule) -> Snapshot:
    """Return the old host with those firewall rules."""
    return replace(OLD, firewalls={HOST: replace(OLD.firewalls[HOST], rules=rules)})


def test_firewall_rules() -> None:
    rules = OLD.firewalls[HOST].rules
    where = f"a rule was added to iptables-nft ip nat POSTROUTING in host: {rules[0].text}"
    assert sentences(OLD, with_rules(*rules[1:])) == [where]
    assert sentences(with_rules(*rules[1:])) == [where.replace("was added to", "is gone from")]
    changed = replace(rules[0], text="-j ACCEPT", verdict="accept")
    assert "changed to: -j ACCEPT" in sentences(with_rules(changed, *rules[1:]))[0]
    many = [replace(rules[0], rule_id=str(number)) for number in range(30)]
    assert sentences(with_rules(*rules, *many)) == [
        "30 rules were added to iptables-nft ip nat POSTROUTING in host"
    ]


def test_a_rewritten_own_table_is_reported_by_its_effect() -> None:
    """Rules with the same text but other handles aren't reported; a port is, once."""
    base = replace(OLD.firewalls[HOST].rules[0], backend="nft", family="inet", table="vnet", chain="publish")
    texts = ("jump publish", "masquerade", "masquerade")
    old = [replace(base, rule_id=f"nft/{number}", text=text) for number, text in enumerate(texts)]
    new = [replace(rule, rule_id=f"nft/{number + 40}") for number, rule in enumerate(old)]
    # Reused handles: one of a masquerade rule is now that of a jump.
    new[0] = replace(new[0], rule_id="nft/1", iif="br-x")
    port = replace(base, rule_id="nft/9", text="dnat", comment="vnet publish tcp/8080 80 netns:web")
    before, after = with_rules(*old), with_rules(*new)
    assert sentences(after, before) == []
    assert sentences(with_rules(*new, port), before) == ["port tcp/8080 of host is published by vnet-tui"]
    more = with_rules(*new, replace(base, rule_id="nft/99", text="accept"))
    assert sentences(more, before) == ["vnet-tui's own rules in host were updated: 1 added, 0 removed"]


def test_the_fast_paths_own_table_is_reported_once() -> None:
    rules = OLD.firewalls[HOST].rules
    place: dict[str, Any] = {"backend": "nft", "family": "inet", "table": "vnet_fastpath", "chain": "mark"}
    own = [replace(rules[0], rule_id=f"own{number}", text="{}", **place) for number in range(3)]
    rewritten = [replace(rule, rule_id=f"new {rule.rule_id}") for rule in own]
    on, again = with_rules(*rules, *own), with_rules(*rules, *rewritten)
    assert sentences(on) == ["the fast path started in host: its table vnet_fastpath was added"]
    assert sentences(OLD, on) == ["the fast path stopped in host: its table vnet_fastpath is gone"]
    assert sentences(again, on) == []
    assert len(sentences(with_rules(*rules[1:], *own))) == 2


def test_chain_policy() -> None:
    firewall = OLD.firewalls[HOST]
    shut = tuple(
        replace(chain, policy="drop") if chain.name == "FORWARD" else chain for chain in firewall.chains
    )
    assert sentences(replace(OLD, firewalls={HOST: replace(firewall, chains=shut)})) == [
        "the policy of iptables-nft ip filter FORWARD in host changed from accept to drop"
    ]


def with_web1(**fields: Any) -> Snapshot:
    """Return the old host with fields of the container web1 replaced."""
    docker = OLD.engines["docker"]
    web1, *others = docker.containers
    engine = replace(docker, containers=(replace(web1, **fields), *others))
    return replace(OLD, engines={**OLD.engines, "docker": engine})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"state": "exited", "pid": None}, "container web1 stopped (exited)"),
        ({"state": "paused"}, "container web1 was paused"),
        ({"pid": 4242}, "container web1 was restarted"),
        ({"name": "web9"}, "container web1 was renamed to web9"),
        ({"endpoints": ()}, "container web1 left the network app"),
        ({"labels": {"a": "b"}}, None),
    ],
)
def test_container_changes(fields: dict[str, Any], sentence: str | None) -> None:
    assert sentences(with_web1(**fields)) == ([sentence] if sentence else [])


def test_container_starts_and_joins() -> None:
    assert sentences(OLD, with_web1(state="exited", pid=None)) == ["container web1 started"]
    assert sentences(OLD, with_web1(state="paused")) == ["container web1 was resumed"]
    ends = (*OLD.engines["docker"].containers[0].endpoints, Endpoint("db", "172.19.0.9/24"))
    assert sentences(with_web1(endpoints=ends)) == ["container web1 joined the network db with 172.19.0.9/24"]


def with_docker(**fields: Any) -> Snapshot:
    """Return the old host with fields of its Docker engine replaced."""
    return replace(OLD, engines={**OLD.engines, "docker": replace(OLD.engines["docker"], **fields)})


def test_containers_appear_and_disappear() -> None:
    fewer = with_docker(containers=OLD.engines["docker"].containers[1:])
    ref = container_ref("docker", OLD.engines["docker"].containers[0].id)
    assert changes_between(fewer) == [Change(12.5, "removed", ref, "container web1 is gone")]
    assert changes_between(OLD, fewer) == [Change(12.5, "added", ref, "container web1 started")]


def test_containers_of_an_unreachable_engine_are_not_reported_as_removed() -> None:
    problem = Problem("docker", "Docker does not answer", "connection refused", "systemctl start docker")
    silent = with_docker(state="stopped", containers=(), networks=(), problems=(problem,))
    assert sentences(silent) == ["problem: Docker does not answer (connection refused)"]
    assert sentences(OLD, silent)[-1] == "solved: Docker does not answer (connection refused)"


def test_unmanaged_containers_are_not_reported_twice() -> None:
    assert (
        changes_between(
            replace(OLD, engines={**OLD.engines, "plain": replace(OLD.engines["plain"], containers=())})
        )
        == []
    )


def test_networks() -> None:
    made = Network("docker", "n1", "shop", subnets=("172.30.0.0/16",))
    more = with_docker(networks=(*OLD.engines["docker"].networks, made))
    assert changes_between(more) == [
        Change(12.5, "added", network_ref("n1"), "network shop (bridge, 172.30.0.0/16) was created")
    ]
    assert sentences(OLD, more) == ["network shop (bridge, 172.30.0.0/16) was removed"]


def test_nearly_full_conntrack() -> None:
    table = OLD.conntracks[HOST]
    roomy, full = (
        replace(OLD, conntracks={HOST: replace(table, limit=limit)}) for limit in (100, len(table.entries))
    )
    assert sentences(full, roomy) == ["the conntrack table of host is nearly full: 3 of 3 entries"]
    assert sentences(roomy, full) == [
        "the conntrack table of host is no longer nearly full: 3 of 100 entries"
    ]
    assert sentences(roomy) == sentences(replace(OLD, conntracks={HOST: replace(table, limit=0)})) == []


def test_sysctls() -> None:
    counting = replace(OLD, host=replace(OLD.host, sysctls={"net.netfilter.nf_conntrack_count": "7"}))
    assert (
        changes_between(
            replace(OLD, host=replace(OLD.host, sysctls={"net.netfilter.nf_conntrack_count": "8"})), counting
        )
        == []
    )
    closed = replace(OLD, host=replace(OLD.host, sysctls={"net.ipv4.ip_forward": "0"}))
    assert sentences(closed) == ["net.ipv4.ip_forward changed from 1 to 0"]


def test_problems_of_a_removed_namespace_are_not_reported_as_solved() -> None:
    here = Problem("nat", "cannot read rules", ns=WEB1)
    old = replace(OLD, part_problems={"nat": (here,)})
    assert sentences(OLD, old) == ["solved: cannot read rules in web1"]
    spaces = {inode: space for inode, space in OLD.namespaces.items() if inode != WEB1}
    assert sentences(replace(OLD, namespaces=spaces), old) == ["namespace web1 is gone"]


def test_hostile_names_stay_verbatim() -> None:
    assert sentences(with_link("veth-web1", name=HOSTILE_NAME)) == [
        f"veth veth-web1 in host was renamed to {HOSTILE_NAME}"
    ]
