"""Tuning: steps, limits, warnings and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.model import BridgePort, BridgeSettings, Link, LinkTuning, PacketSizes
from core.operations import NetnsTarget, SetBridge, SetOffloads, SetSizes, SetSteering, SetSysctl
from core.operations.values import from_record, to_record
from core.plan import Plan, Refused, plan, tuning
from core.plan.requests import Tune
from core.plan.tuning import TuningState, tuned
from core.topology import Topology
from tests.support.host_builder import HOST, HostBuilder, address

WEB = 70
USUAL = PacketSizes(65536, 65536, 65536, 65536, 524280)
CARD = PacketSizes(65536, 65536, 65536, 65536, 65536)
FEATURES = (
    "rx-gro",
    "tx-checksum-ip-generic",
    "tx-generic-segmentation",
    "tx-nocache-copy",
    "tx-tcp-segmentation",
)
VETH = LinkTuning(FEATURES, FEATURES[1:3] + FEATURES[4:], ("0",))
SYSCTLS = {"net.bridge.bridge-nf-call-iptables": "1", "net.bridge.bridge-nf-call-ip6tables": "1"}
SHARED = "web"


def host(sizes: PacketSizes = USUAL, card: bool = False) -> HostBuilder:
    """Return br0 with the container web, and br1; `card`: with the NIC eth0 as a port."""
    made = HostBuilder()
    bridge = made.bridge("br0", ["10.9.0.1/24"])
    made.bridge("br1", ["10.8.0.1/24"])
    made.namespace(WEB, names=(SHARED,))
    made.container("netns", SHARED, WEB, id=SHARED, pid=None)
    made.wire(WEB, bridge, "v-web", ["10.9.0.2/24"])
    if card:
        made.link(HOST, "eth0", "physical", master=bridge.ifindex, port=BridgePort("forwarding"), sizes=CARD)
    for ns, links in made.links.items():
        for index, link in links.items():
            if link.kind in ("bridge", "veth"):
                made.links[ns][index] = replace(link, sizes=sizes)
    return made


def topology(made: HostBuilder | None = None, sysctls: dict[str, str] = SYSCTLS) -> Topology:
    snapshot = (made or host()).snapshot()
    tuning = {
        ns: {index: VETH for index, link in net.links.items() if link.kind in ("veth", "physical")}
        for ns, net in snapshot.nets.items()
    }
    return Topology(
        replace(snapshot, tuning=tuning, host=replace(snapshot.host, sysctls=sysctls, cpus="0-3"))
    )


def bridge_of(now: Topology) -> Link:
    return next(link for link in now.snapshot.nets[HOST].links.values() if link.name == "br0")


def planned(now: Topology | None = None, **wanted: Any) -> Plan:
    now = now or topology()
    made = plan(Tune(bridge_of(now).key, **wanted), now)
    assert isinstance(made, Plan), made
    return made


def refused(now: Topology | None = None, **wanted: Any) -> str:
    now = now or topology()
    made = plan(Tune(bridge_of(now).key, **wanted), now)
    assert isinstance(made, Refused), made
    return "; ".join(made.reasons)


def test_big_tcp_sets_the_bridge_its_ports_and_peers() -> None:
    steps = planned(big_tcp=131072).steps
    assert [(step.name, step.place) for step in steps if isinstance(step, SetSizes)] == [
        ("br0", NetnsTarget()),
        ("v-web", NetnsTarget()),
        ("eth0", NetnsTarget(SHARED)),
    ]
    words = "gso_max_size 131072 gro_max_size 131072 gso_ipv4_max_size 131072 gro_ipv4_max_size 131072"
    assert steps[2].command() == f"ip -n web link set dev eth0 {words}"
    assert steps[2].inverse()[0].command() == steps[2].command().replace("131072", "65536")


def test_a_nic_is_limited_by_its_device() -> None:
    made = planned(topology(host(card=True)), big_tcp=131072)
    assert "eth0 in the host allows 65536 bytes at most" in made.warnings
    assert not any(
        step.name == "eth0" and step.place == NetnsTarget()
        for step in made.steps
        if isinstance(step, SetSizes)
    )


@pytest.mark.parametrize(("size", "most"), [(65537, 524280), (524280, 524280), (524280, 200000)])
def test_sizes_stay_within_the_device(size: int, most: int) -> None:
    made = planned(topology(host(replace(USUAL, tso=most))), big_tcp=size)
    (first, *_) = made.steps
    assert isinstance(first, SetSizes) and {value for _, value in first.sizes} == {min(size, most)}


def test_older_kernels() -> None:
    only_ipv6 = topology(host(PacketSizes(65536, 65536, 0, 0, 524280)))
    made = planned(only_ipv6, big_tcp=131072)
    (first, *_) = made.steps
    assert isinstance(first, SetSizes)
    assert [word for word, _ in first.sizes] == ["gso_max_size", "gro_max_size"]
    assert any("for IPv6 only" in one for one in made.warnings)
    assert "Linux 5.19" in refused(topology(host(PacketSizes(65536, 0, 0, 0, 0))), big_tcp=131072)
    nothing = topology()
    bare = Topology(replace(nothing.snapshot, tuning={}))
    assert "has offloads that can be switched" in refused(bare, offloads=False)
    assert "RPS isn't available" in refused(bare, rps="all")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"big_tcp": 7}, "Try: 65536"),
        ({"big_tcp": 524281}, "to 524280"),
        ({"big_tcp": 65536}, "already have these settings"),
        ({"rps": "off"}, "already have these settings"),
        ({"rps": "0"}, "already have these settings"),
        ({"rps": "1f"}, "CPUs that don't exist"),
        ({"rps": "2-3"}, "isn't a CPU mask"),
        ({"br_netfilter": True}, "already have these settings"),
    ],
)
def test_refusals(wanted: dict[str, Any], words: str) -> None:
    assert words in refused(**wanted)


def test_ipv6_that_is_routed_is_warned_of() -> None:
    six = host()
    bridge = next(index for index, link in six.links[HOST].items() if link.name == "br0")
    plain = six.links[HOST][bridge]
    for addresses, expected in (((), False), (("fe80::1/64",), False), (("fd09::1/64",), True)):
        six.links[HOST][bridge] = replace(plain, addresses=tuple(map(address, addresses)))
        warnings = planned(topology(six), big_tcp=131072).warnings
        assert any("IPv6 connections that leave the bridge" in one for one in warnings) is expected
        assert not any(
            "IPv6 connections that leave" in one for one in planned(topology(six), rps="1").warnings
        )


def test_undo_restores_each_offload() -> None:
    steps = planned(offloads=False).steps
    assert {step.name for step in steps} == {"v-web", "eth0"}  # type: ignore[attr-defined]
    words = "tx-checksum-ip-generic off tx-generic-segmentation off tx-tcp-segmentation off"
    assert steps[0].command() == f"ethtool -K v-web {words}"
    assert steps[0].inverse()[0].command() == f"ethtool -K v-web {words.replace('off', 'on')}"
    (first, *_) = planned(offloads=True).steps
    assert isinstance(first, SetOffloads) and first.features == (("rx-gro", True),)


def test_the_offloads_of_a_nic_are_not_changed() -> None:
    made = planned(topology(host(card=True)), offloads=False)
    assert any("eth0 is a NIC" in one for one in made.warnings)
    assert not any(step.name == "eth0" and step.place == NetnsTarget() for step in made.steps)  # type: ignore[attr-defined]


def test_rps_writes_masks_that_differ() -> None:
    steps = planned(rps="all").steps
    assert [step.cpus for step in steps if isinstance(step, SetSteering)] == ["f", "f"]
    assert steps[0].command() == "echo f > /sys/class/net/v-web/queues/rx-0/rps_cpus"
    inside = "echo f > /sys/class/net/eth0/queues/rx-0/rps_cpus"
    assert steps[1].command() == f"ip netns exec web sh -c '{inside}'"
    assert steps[1].inverse() == (replace(steps[1], cpus="0", before="f"),)  # type: ignore[type-var]


def test_br_netfilter_off_does_not_change_other_bridges() -> None:
    made = host()
    made.rule(
        "DOCKER-USER", "-A X -i br0 -o br0 -j DROP", table="filter", verdict="drop", iif="br0", oif="br0"
    )
    steps = planned(topology(made), br_netfilter=False)
    assert steps.steps == (
        SetBridge("br1", "nf_call_iptables", 1, 0),
        SetSysctl("net.bridge.bridge-nf-call-iptables", "0", "1"),
        SetBridge("br1", "nf_call_ip6tables", 1, 0),
        SetSysctl("net.bridge.bridge-nf-call-ip6tables", "0", "1"),
    )
    text = " ".join(steps.warnings)
    assert "no longer sees packets between containers of br0" in text and "icc=false" in text
    assert "this rule stops working: DOCKER-USER: -A X -i br0 -o br0 -j DROP" in text
    assert "new ones don't" in text


def test_br_netfilter_of_one_bridge_alone() -> None:
    off = dict.fromkeys(SYSCTLS, "0")
    made = host()
    on = planned(topology(made, off), br_netfilter=True)
    assert on.steps == tuple(
        SetBridge("br0", name, 1, 0) for name in ("nf_call_iptables", "nf_call_ip6tables")
    )
    bridge = next(index for index, link in made.links[HOST].items() if link.name == "br0")
    own = BridgeSettings(nf_call_iptables=True)
    made.links[HOST][bridge] = replace(made.links[HOST][bridge], bridge=own)
    now = topology(made, off)
    assert tuned(now, bridge_of(now)).br_netfilter
    assert planned(now, br_netfilter=False).steps == (SetBridge("br0", "nf_call_iptables", 0, 1),)
    assert "modprobe br_netfilter" in refused(topology(host(), {}), br_netfilter=True)
    assert "already have these settings" in refused(topology(host(), {}), br_netfilter=False)


def test_only_requested_settings_change() -> None:
    assert not any(
        isinstance(step, (SetBridge, SetSysctl)) for step in planned(big_tcp=131072, rps="1").steps
    )


def test_current_tuning() -> None:
    now = topology()
    assert tuned(now, bridge_of(now)) == TuningState(65536, None, True, "off")
    mixed = host()
    bridge = next(index for index, link in mixed.links[HOST].items() if link.name == "br0")
    mixed.links[HOST][bridge] = replace(mixed.links[HOST][bridge], sizes=replace(USUAL, gso=131072))
    assert tuned(topology(mixed), bridge_of(topology(mixed))).big_tcp is None


def test_no_bridge_is_refused() -> None:
    now = topology()
    port = next(link for link in now.snapshot.nets[HOST].links.values() if link.name == "v-web")
    made = plan(Tune(port.key, 131072), now)
    assert isinstance(made, Refused) and made.reasons == ("can't tune v-web: v-web isn't a bridge",)


def test_steps_in_the_journal_name_their_link() -> None:
    for step in planned(big_tcp=131072, offloads=False, rps="3").steps:
        assert from_record(to_record(step)) == step
        name, place = step.changed_link()
        assert set(step.affects()) == {f"{name} in {place}"}


@pytest.mark.parametrize(("text", "number"), [("0-1", 3), ("0,2", 5), ("0-3,8-9", 0x30F), ("", 0)])
def test_lists_of_cpus(text: str, number: int) -> None:
    assert tuning.cpus_of_list(text) == number


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (3, "3"), (1 << 32, "1,00000000"), (1 << 70, "40,00000000,00000000")]
)
def test_masks_of_cpus(number: int, text: str) -> None:
    assert tuning.mask_of_cpus(number) == text
    assert tuning.cpus_of_mask(text) == number


@pytest.mark.parametrize("text", ["", "g", "1,2", "-1", "0x", "f f", "٣"])
def test_invalid_masks(text: str) -> None:
    assert tuning.cpus_of_mask(text) is None
