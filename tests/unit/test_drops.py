"""Dropped packets: their reasons, rates, high rates that last, findings, and parsing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from bpf.btf import Btf, BtfError, read_btf
from bpf.drops import parse_headers
from core.diagnose import findings, findings_of
from core.diff import changes
from core.drop_reasons import REASONS, explain
from core.drops import DropMeter, HeavyDropWatch, is_drop
from core.metrics.collector import fill_drops
from core.metrics.samples import SampleSet
from core.model import Drop, HeavyDrop, container_ref
from core.topology import Topology
from core.topology.drops import KnownNamespaces, container_of_drop
from tests.support.host_builder import HOST
from tests.support.snapshots import HOSTILE_NAME, hostile_host, small_host

CLOSED = Drop("NO_SOCKET", HOST, 3, "udp_rcv")


def test_every_reason_of_this_kernel_is_explained() -> None:
    try:
        found = read_btf().enumerators_of("skb_drop_reason")
    except BtfError as error:
        pytest.skip(str(error))
    names = {name.removeprefix("SKB_DROP_REASON_") for name in found}
    names -= {"SKB_NOT_DROPPED_YET", "SKB_CONSUMED", "MAX"}
    unknown = {name for name in names if not name.startswith("SUBSYS") and name not in REASONS}
    assert not unknown, "explain them in core/drop_reasons.py"


@pytest.mark.parametrize("name", REASONS)
def test_an_explanation_is_a_clause_with_a_remedy_for_faults(name: str) -> None:
    reason = REASONS[name]
    assert reason.meaning and not reason.meaning.endswith(".") and len(reason.meaning) < 100
    assert bool(reason.advice) or reason.kind in ("normal", "rule")
    assert reason.advice.count("`") % 2 == 0


@pytest.mark.parametrize(
    ("function", "kind", "word"),
    [
        ("ip6_mc_input", "normal", "multicast"),
        ("__br_forward", "unclear", "no port"),
        ("__allowed_ingress", "fault", "VLAN"),
        ("br_nf_dev_queue_xmit", "fault", "MTU"),
        ("__dev_forward_skb2", "fault", "veth peer"),
        ("some_driver_xmit", "unclear", "no reason"),
        ("", "unclear", "no reason"),
    ],
)
def test_without_a_reason_the_function_explains(function: str, kind: str, word: str) -> None:
    found = explain("NOT_SPECIFIED", function)
    assert found.kind == kind and word in found.meaning
    assert explain("NO_SOCKET", function).kind == "fault"


def test_a_ping_with_a_raw_socket_is_no_fault() -> None:
    assert explain("NO_SOCKET", "ping_rcv").kind == "normal"


def test_an_unknown_reason_is_shown_as_a_fault() -> None:
    assert explain("REASON_OF_THE_FUTURE").kind == "fault"


def test_btf_names_what_is_missing() -> None:
    with pytest.raises(BtfError, match="no enum skb_drop_reason"):
        Btf(b"", 0, [0]).enumerators_of("skb_drop_reason")
    with pytest.raises(BtfError, match="no function kfree"):
        Btf(b"", 0, [0]).parameters("kfree")


# ---- rates


def test_rates_are_those_since_the_last_reading() -> None:
    meter = DropMeter()
    assert meter.feed([replace(CLOSED, packets=10)], 5.0)[0].rate == 0
    other = Drop("PKT_TOO_BIG", HOST, 3)
    found = meter.feed([replace(CLOSED, packets=30), replace(other, packets=50)], 7.0)
    assert [(one.reason, one.packets, one.rate) for one in found] == [
        ("PKT_TOO_BIG", 50, 25.0), ("NO_SOCKET", 30, 10.0),
    ]  # fmt: skip
    assert {one.rate for one in meter.feed([replace(CLOSED, packets=30)], 8.0)} == {0.0}


class SimulatedDrops:
    """Packets of one container, or of none, dropped at a rate that a test sets."""

    def __init__(self, drop: Drop = CLOSED, container: str = "docker:web") -> None:
        self.watch, self.now, self.drop, self.container = HeavyDropWatch(), 100.0, drop, container
        self.heavy: tuple[HeavyDrop, ...] = ()

    def passes(self, seconds: int, rate: float) -> tuple[HeavyDrop, ...]:
        for _ in range(seconds):
            drops = [(replace(self.drop, rate=rate), self.container)]
            self.heavy = self.watch.feed(drops, self.now, self.now + 1)
            self.now += 1
        return self.heavy


def test_a_high_rate_is_reported_after_ten_seconds_and_ends_after_ten() -> None:
    drops = SimulatedDrops()
    assert drops.passes(9, 50) == ()
    (heavy,) = drops.passes(1, 50)
    assert heavy == HeavyDrop("NO_SOCKET", HOST, 3, "docker:web", 50.0)
    assert drops.passes(5, 60)[0] is heavy, "about the same rate is the same object"
    assert drops.passes(1, 500)[0].rate == 500
    assert len(drops.passes(20, 6)) == 1, "more than half of the limit"
    assert len(drops.passes(9, 1)) == 1
    assert drops.passes(1, 1) == ()


def test_bursts_are_not_reported() -> None:
    drops = SimulatedDrops()
    for _ in range(5):
        assert drops.passes(9, 1000) == ()
        assert drops.passes(1, 1) == ()


@pytest.mark.parametrize(
    ("drop", "container", "rate", "reported"),
    [
        (CLOSED, "docker:web", 11, True),
        (CLOSED, "docker:web", 9, False),
        (CLOSED, "", 1e6, False),  # closed ports of the host: the Internet's noise
        (replace(CLOSED, reason="NETFILTER_DROP"), "", 1e6, False),
        (replace(CLOSED, reason="NETFILTER_DROP"), "docker:web", 20, True),
        (replace(CLOSED, reason="NEIGH_FAILED"), "", 101, True),
        (replace(CLOSED, reason="NEIGH_FAILED"), "", 99, False),
        (replace(CLOSED, reason="TCP_OLD_DATA"), "docker:web", 1e6, False),
        (replace(CLOSED, reason="NOT_SPECIFIED"), "docker:web", 1e6, False),
        (replace(CLOSED, reason="NOT_SPECIFIED", function="__dev_forward_skb2"), "docker:web", 20, True),
    ],
)
def test_what_is_reported(drop: Drop, container: str, rate: float, reported: bool) -> None:
    assert bool(SimulatedDrops(drop, container).passes(30, rate)) == reported


def test_a_containers_drops_at_several_links_are_one_problem() -> None:
    watch, now = HeavyDropWatch(), 0.0
    both = [(replace(CLOSED, ifindex=index, rate=rate), "docker:web") for index, rate in ((3, 4.0), (4, 8.0))]
    for now in range(10):
        found = watch.feed(both, float(now), now + 1.0)
    assert [(one.ifindex, one.rate) for one in found] == [(4, 12.0)]


# ---- whose packets


def test_the_container_is_found_by_namespace_address_and_veth() -> None:
    topology = Topology(small_host())
    container = next(one for one in topology.containers.values() if topology.links_of(one))
    assert container.netns is not None
    link = topology.links_of(container)[0]
    peer = topology.peer(link)
    address = topology.addresses_of(container)[0]
    for drop in (
        Drop("NO_SOCKET", container.netns, link.ifindex),
        Drop("NETFILTER_DROP", HOST, 0, address=address, direction="to"),
        Drop("DEV_READY", peer.ns if peer else 0, peer.ifindex if peer else 0),
    ):
        assert container_of_drop(topology, drop) == container, drop
    assert container_of_drop(topology, Drop("NO_SOCKET", HOST, 9999)) is None
    assert container_of_drop(topology, Drop("NO_SOCKET", 0, 0)) is None


def test_drops_of_unseen_namespaces_are_left_out() -> None:
    known = KnownNamespaces()
    known.add(Topology(small_host()))
    foreign = replace(CLOSED, ns=4026539999)
    assert list(known.of([CLOSED, foreign])) == [CLOSED]


# ---- findings, events, metrics


def heavy_of(topology: Topology, rate: float = 20.0) -> HeavyDrop:
    container = next(one for one in topology.containers.values() if topology.links_of(one))
    link = topology.links_of(container)[0]
    return HeavyDrop("NO_SOCKET", link.ns, link.ifindex, container.uid, rate)


def test_a_high_rate_is_a_finding_of_the_container() -> None:
    snapshot = small_host()
    heavy = heavy_of(Topology(snapshot))
    topology = Topology(replace(snapshot, heavy_drops=(heavy,)))
    container = topology.containers[heavy.container]
    (finding,) = (one for one in findings(topology) if one.kind == "drops")
    assert finding in findings_of(topology, container_ref(container.runtime, container.id))
    assert finding.severity == "warn" and "ss -lntup" in finding.advice
    assert f"Packets of {container.name} are dropped at " in finding.sentence
    assert "about 20/s (NO_SOCKET): no process listens" in finding.sentence
    assert not [one for one in findings(Topology(snapshot)) if one.kind == "drops"]


def test_a_finding_of_something_gone_is_left_out() -> None:
    gone = HeavyDrop("NO_SOCKET", 4026539999, 4, "docker:gone", 50.0)
    snapshot = small_host()
    for heavy in (gone, replace(gone, container="")):
        topology = Topology(replace(snapshot, heavy_drops=(heavy,)))
        assert not [one for one in findings(topology) if one.kind == "drops"]


def test_beginning_and_end_are_events() -> None:
    calm = small_host()
    heavy = heavy_of(Topology(calm))
    first, second = (replace(calm, heavy_drops=(replace(heavy, rate=rate),)) for rate in (20.0, 90.0))
    said = [[one.sentence for one in changes(old, new, 1.0)] for old, new in (
        (calm, first), (first, second), (second, calm),
    )]  # fmt: skip
    assert len(said[0]) == len(said[2]) == 1 and said[1] == []
    assert "are dropped, about 20/s: NO_SOCKET" in said[0][0] and "no longer dropped" in said[2][0]


def sample_values(drops: Iterable[Drop], topology: Topology) -> dict[tuple[str, ...], float]:
    samples = SampleSet()
    labels = {inode: topology.label(inode) for inode in topology.snapshot.namespaces}
    fill_drops(samples, topology, labels, lambda _: (drops, 7))
    families = {one.name: one for one in samples.families()}
    assert families["vnet_dropped_uncounted_packets"].samples[0].value == 7
    return {tuple(one.labels.values()): one.value for one in families["vnet_dropped_packets"].samples}


def test_metrics_add_functions_and_leave_out_what_is_normal() -> None:
    topology = Topology(small_host())
    drops = [
        replace(CLOSED, packets=2), replace(CLOSED, function="other", packets=3),
        replace(CLOSED, reason="TCP_OLD_DATA", packets=9), replace(CLOSED, ns=4026539999, packets=9),
    ]  # fmt: skip
    found = sample_values(drops, topology)
    assert [(key[-1], value) for key, value in found.items()] == [("NO_SOCKET", 5.0)]
    assert not is_drop(drops[2])


def test_metrics_of_untrusted_names_are_clean() -> None:
    topology = Topology(hostile_host())
    container = next(one for one in topology.containers.values() if one.name == HOSTILE_NAME)
    assert container.netns is not None
    found = sample_values([Drop("NO_SOCKET", container.netns, 0, packets=1)], topology)
    assert all(text.isprintable() for key in found for text in key)


# ---- packets


@pytest.mark.parametrize(
    ("ethertype", "octets", "expected"),
    [
        (0x0800, "450000200001000040110000c0000201c00002020fa00050" + "00" * 40,
         ("udp", "192.0.2.1", "192.0.2.2", 4000, 80)),
        (0x0800, "450000200001000740110000c0000201c00002020fa00050" + "00" * 40,  # a later fragment
         ("udp", "192.0.2.1", "192.0.2.2", 0, 0)),
        (0x0800, "46000020000100004006000001010101020202020000000000350036" + "00" * 40,  # with options
         ("tcp", "1.1.1.1", "2.2.2.2", 53, 54)),
        (0x0800, "4f0000200001000040110000c0000201c0000202" + "00" * 44,  # longer than what was copied
         ("udp", "192.0.2.1", "192.0.2.2", 0, 0)),
        (0x86DD, "6000000000083a4020010db8000000000000000000000001fe80" + "00" * 13 + "02" + "00" * 24,
         ("icmpv6", "2001:db8::1", "fe80::2", 0, 0)),
        (0x0800, "00" * 64, ("0x0800", "", "", 0, 0)),
        (0x0806, "00" * 64, ("arp", "", "", 0, 0)),
        (0x88B5, "ff" * 64, ("0x88b5", "", "", 0, 0)),
    ],
)  # fmt: skip
def test_headers_are_parsed(ethertype: int, octets: str, expected: tuple[str, str, str, int, int]) -> None:
    assert parse_headers(ethertype, bytes.fromhex(octets)[:64].ljust(64, b"\0")) == expected


def test_documented_kinds_are_those_of_the_table() -> None:
    kinds = {reason.kind for reason in REASONS.values()}
    page = (Path(__file__).parents[2] / "docs" / "drops.md").read_text()
    assert all(re.search(rf"`{kind}`", page) for kind in kinds)
