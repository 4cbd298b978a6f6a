"""Findings: each problem is found once, with a sentence and the objects concerned."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.diagnose import Finding, findings, findings_of
from core.diff import changes
from core.model import (
    FastPathHealth,
    Firewall,
    Network,
    NextHop,
    Route,
    Snapshot,
    Storm,
    container_ref,
    link_ref,
    network_ref,
)
from core.topology import Topology
from tests.support.host_builder import CHAINS, HOST
from tests.support.snapshots import bridged, empty_host, many_namespaces, small_builder, small_host


def found(snapshot: Snapshot, kind: str) -> list[Finding]:
    return [one for one in findings(Topology(snapshot)) if one.kind == kind]


def test_a_healthy_host_has_no_findings() -> None:
    for snapshot in (Snapshot(), empty_host(), many_namespaces(3)):
        assert findings(Topology(snapshot)) == ()


def test_bad_findings_come_before_warnings() -> None:
    kinds = [(one.kind, one.severity) for one in findings(Topology(small_host()))]
    assert kinds == [("dead join", "bad"), ("mtu", "warn"), ("dropped", "warn"), ("route", "info")]


def test_mtus_that_differ_concern_container_port_and_bridge() -> None:
    topology = Topology(small_host())
    (one,) = found(topology.snapshot, "mtu")
    link = next(link for link in topology.snapshot.links() if link.mtu == 1400)
    bridge = topology.bridge_of(link)
    assert bridge is not None and topology.peer(link) is not None
    assert one.ref == link_ref(link.key) and link_ref(bridge.key) in one.related
    assert one.sentence == (
        "eth0 of web2 has MTU 1400, but its bridge br-app has 1500: packets larger than 1400 bytes are lost."
    )
    web2 = next(each for each in topology.containers.values() if each.name == "web2")
    assert one in findings_of(topology, container_ref(web2.runtime, web2.id))
    assert findings_of(topology, link_ref(bridge.key)) == (one,)


def test_an_idle_bridge_in_a_container_is_not_a_finding() -> None:
    host = small_builder()
    nested = host.namespace(HOST + 1, names=("nested",))
    host.container("netns", "nested", nested, id="nested", namespaces={"net": nested})
    bridge = host.link(nested, "docker0", "bridge", ("10.9.0.1/24",), carrier=False, state="down")
    assert not found(host.snapshot(), "link")
    host.links[nested][bridge.ifindex] = replace(bridge, kind="dummy")
    host.wire(nested, host.bridge("br9"), "v9", carrier=False, state="down")
    assert [one.short for one in found(host.snapshot(), "link")] == ["no carrier"]


def test_an_overlap_is_one_finding_of_both_networks() -> None:
    host = small_builder()
    host.bridge("br-old", ("172.18.7.1/24",))
    host.networks.append(bridged("old", "br-old", "172.18.7.0/24", "172.18.7.1"))
    topology = Topology(host.snapshot())
    (one,) = found(topology.snapshot, "overlap")
    assert "app (172.18.0.0/16) and old (172.18.7.0/24) overlap" in one.sentence
    for name in ("net-app", "net-old"):
        assert one in findings_of(topology, network_ref(name))
    assert one not in findings_of(topology, network_ref("net-db"))


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_a_network_shares_its_subnet_with_the_card_that_it_sits_on(driver: str) -> None:
    host = small_builder()
    card = host.link(HOST, "eth1", "physical", ("10.77.0.2/24",))
    host.link(HOST, "shim0", driver, ("10.77.0.3/32",), lower=card.ifindex)
    lan = Network("docker", "net-lan", "lan", driver, ns=HOST, subnets=("10.77.0.0/24",), parent="eth1")
    host.networks.append(lan)
    assert not found(host.snapshot(), "overlap")
    host.link(HOST, "eth2", "physical", ("10.77.0.9/24",))
    (one,) = found(host.snapshot(), "overlap")
    assert "lan (10.77.0.0/24) and eth2 (10.77.0.9/24) overlap" in one.sentence


def test_a_macvlan_network_on_a_bridge_shares_its_subnet() -> None:
    host = small_builder()
    lan = Network("docker", "net-lan", "lan", "macvlan", ns=HOST, subnets=("172.18.0.0/16",), parent="br-app")
    host.networks.append(lan)
    assert not found(host.snapshot(), "overlap")
    host.networks[-1] = replace(lan, parent="eth0")
    assert found(host.snapshot(), "overlap")


def test_overlapping_addresses_of_links_are_not_a_finding() -> None:
    host = small_builder()
    host.link(HOST, "eth1", "physical", ("192.0.2.2/24",))
    assert not found(host.snapshot(), "overlap")


def test_a_dead_join_is_related_to_the_joined_container() -> None:
    (one,) = found(small_host(), "dead join")
    assert one.sentence.startswith("orphan shares the network namespace of the container ffff")


def test_dropped_packets_are_counted_with_their_rule() -> None:
    (one,) = found(small_host(), "dropped")
    assert one.sentence.startswith("A rule dropped 17 packets of web2: drop 172.18.0.3/32 -> *")
    assert [ref.kind for ref in one.related] == ["nat"]


def test_a_bridge_that_is_off_is_found_with_its_ports() -> None:
    host = small_builder()
    links = host.links[HOST]
    number, bridge = next((number, link) for number, link in links.items() if link.name == "br-app")
    links[number] = replace(bridge, admin_up=False, state="down", carrier=False)
    (one,) = found(host.snapshot(), "bridge")
    assert one.sentence == "The bridge br-app is down: its 3 ports can't reach anything."


def test_a_table_nearly_full_is_found() -> None:
    snapshot = small_host()
    for limit, severities in ((3, ["bad"]), (4, []), (0, [])):
        tables = {ns: replace(table, limit=limit) for ns, table in snapshot.conntracks.items()}
        full = found(replace(snapshot, conntracks=tables), "conntrack")
        assert [one.severity for one in full] == severities


def test_a_storm_concerns_bridge_network_port_and_sender() -> None:
    snapshot = small_host()
    links = {link.name: link for link in snapshot.links()}
    bridge, port = links["br-app"], links["veth-web1"]
    storm = Storm(HOST, bridge.ifindex, "broadcast", 12_000.0, 0.97, (port.ifindex,))
    topology = Topology(replace(snapshot, storms=(storm,)))
    (one,) = [each for each in findings(topology) if each.kind == "storm"]
    assert one.severity == "bad" and one.ref == link_ref(bridge.key)
    assert one.sentence.startswith(
        "Broadcast storm on br-app: about 12,000 frames/s, 97% of all frames that enter it; "
        "they enter through veth-web1 (from web1)."
    )
    web1 = next(each for each in topology.containers.values() if each.name == "web1")
    for ref in (link_ref(port.key), network_ref("net-app"), container_ref(web1.runtime, web1.id)):
        assert one in findings_of(topology, ref)


def test_a_storm_on_a_deleted_bridge_is_not_a_finding() -> None:
    assert not found(replace(small_host(), storms=(Storm(HOST, 999, "broadcast", 1e4, 1.0),)), "storm")


def test_begin_and_end_of_a_storm_are_reported_once() -> None:
    calm = small_host()
    bridge = next(link for link in calm.links() if link.name == "br-app")
    storms = [
        replace(calm, storms=(Storm(HOST, bridge.ifindex, "multicast", rate, 0.9),)) for rate in (2e4, 5e4)
    ]
    events = [
        [(change.action, change.sentence) for change in changes(old, new, 0.0)]
        for old, new in ((calm, storms[0]), (storms[0], storms[1]), (storms[1], calm))
    ]
    assert events == [
        [("added", "Multicast storm on br-app: about 20,000 frames/s, 90% of all frames that enter it")],
        [],
        [("removed", "the multicast storm on br-app has ended")],
    ]


def blocked(snapshot: Snapshot) -> list[Finding]:
    """The networks that can't reach the outside."""
    return [one for one in found(snapshot, "forward") if one.ref.kind == "network"]


def test_a_network_blocked_by_other_programs_rules() -> None:
    """A chain's policy drops its packets, until a rule accepts them."""
    host = small_builder()
    eth0 = next(link for link in host.links[HOST].values() if link.name == "eth0")
    host.routes[HOST] = [Route(4, "default", nexthops=(NextHop("192.0.2.254", eth0.ifindex),))]
    drop = tuple(replace(one, policy="drop") if one.name == "FORWARD" else one for one in CHAINS)
    usual = replace(host.rule("FORWARD", "x", table="filter"), verdict="accept", iif="docker0")
    back = replace(usual, iif="", oif="docker0", ct_state="related,established")
    now = host.snapshot(firewalls={HOST: Firewall(HOST, drop, (*host.rules, usual, back))})
    (one,) = blocked(now)
    assert one.ref == network_ref("net-app") and one.short == "no outside access"
    ways = [
        "iptables -I FORWARD -i br-app -o eth0 -j ACCEPT",
        "iptables -I FORWARD -o br-app -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    ]
    assert one.advice.endswith(f": {'; '.join(ways)}")
    rules = (*host.rules, usual, back, replace(usual, iif="br-app", oif="eth0"))
    (half,) = blocked(host.snapshot(firewalls={HOST: Firewall(HOST, drop, rules)}))
    assert half.advice.endswith(f": {ways[1]}"), "answers are dropped still"
    rules = (*rules, replace(back, oif="br-app"))
    assert not blocked(host.snapshot(firewalls={HOST: Firewall(HOST, drop, rules)}))


def test_a_host_without_a_default_route_is_a_finding() -> None:
    host = small_builder()
    host.routes[HOST] = [Route(4, "192.0.2.0/24", nexthops=(NextHop("", 1),))]
    (one,) = found(host.snapshot(), "way out")
    assert "no default route" in one.sentence and "undo" in one.advice
    host.routes[HOST].append(Route(6, "default", nexthops=(NextHop("fe80::1", 1),)))
    assert "default route for IPv4" in found(host.snapshot(), "way out")[0].sentence
    host.routes[HOST].append(Route(4, "default", nexthops=(NextHop("192.0.2.254", 1),)))
    assert not found(host.snapshot(), "way out")


def test_findings_have_advice() -> None:
    """Findings that the user can act on have advice."""
    advice = {one.kind: one.advice for one in findings(Topology(small_host()))}
    assert all(advice.values()) and "--mtu 1500" in advice["mtu"]
    assert "delete the rule; run: iptables -t filter" in advice["dropped"]


def test_unreachable_docker_rules_count_as_missing() -> None:
    host = small_builder()
    assert not found(host.snapshot(), "engine rules")
    host.rules = [rule for rule in host.rules if rule.chain != "FORWARD"]  # iptables -F
    (one,) = found(host.snapshot(), "engine rules")
    assert one.severity == "bad" and one.sentence.startswith(
        "Docker's rules are missing in the iptables table filter: "
    )
    assert (
        one.advice == "restart Docker; run: systemctl restart docker"
        and network_ref("net-app") in one.related
    )
    host.rules = []
    (one,) = found(host.snapshot(), "engine rules")
    assert "tables nat and filter: published ports and masquerading don't work; " in one.sentence


def test_a_docker_that_may_create_no_rules_is_a_warning() -> None:
    host = small_builder()
    host.rules = []
    none = {HOST: Firewall(HOST, tuple(chain for chain in CHAINS if chain.hook))}
    (one,) = found(host.snapshot(firewalls=none), "engine rules")
    assert one.severity == "warn" and '"iptables": false' in one.advice
    for backend, kind in (("nft", "nat"), ("nft", "filter")):
        table = replace(CHAINS[0], backend=backend, table="docker-bridges", kind=kind)
        assert not found(host.snapshot(firewalls={HOST: Firewall(HOST, (table,))}), "engine rules")


# ---- the fast path


def test_a_fast_path_that_was_never_turned_on_is_no_finding() -> None:
    for health in (FastPathHealth(), FastPathHealth("off"), FastPathHealth("on", ("app",))):
        assert not found(small_host(fast_path=health), "fast path")


@pytest.mark.parametrize(
    ("health", "short", "words"),
    [
        (
            FastPathHealth("paused", ("app",), reasons=("a rule limits", "x")),
            "paused",
            ": a rule limits (and 1",
        ),
        (FastPathHealth("silent", ("app",)), "doesn't answer", "so the kernel forwards everything"),
        (FastPathHealth("off", ("app",), reasons=("it needs BTF",)), "can't start", "on for app."),
        (FastPathHealth("off", left=True), "left behind", "left settings behind"),
    ],
)
def test_a_fast_path_that_does_not_forward_is_a_warning(
    health: FastPathHealth, short: str, words: str
) -> None:
    (one,) = found(small_host(fast_path=health), "fast path")
    assert (one.severity, one.short, one.ref.kind) == ("warn", f"fast path {short}", "namespace")
    assert words in one.sentence and one.evidence == health.reasons and "run: vnet-tui" in one.advice
    assert one.related == ((network_ref("net-app"),) if health.targets else ())


def test_links_that_the_fast_path_leaves_out_are_one_finding_per_reason() -> None:
    why, host = "another program or filter is attached to its ingress", small_builder()
    refused = {"veth-web1": why, "veth-api": why, "veth-web2": "its address is on another port", "gone": why}
    health = FastPathHealth("on", ("app",), refused=refused)
    (one,) = found(host.snapshot(fast_path=health), "fast path")
    assert one.sentence == f"The fast path leaves the packets of veth-web1, veth-api to the kernel: {why}."
    links = {link.name: link_ref(link.key) for link in host.links[HOST].values()}
    assert (one.ref, one.related, one.severity) == (links["veth-web1"], (links["veth-api"],), "warn")
    (one,) = found(host.snapshot(fast_path=replace(health, targets=("all",))), "fast path")
    assert one.severity == "info"


def test_a_network_that_the_fast_path_waits_for_is_no_warning() -> None:
    health = FastPathHealth("on", ("app", "new"), unknown=("new",))
    (one,) = found(small_host(fast_path=health), "fast path")
    assert one.severity == "info" and "waits for new" in one.sentence
