"""Packets of known flows leave as scapy builds them."""

from __future__ import annotations

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bpf import layout
from tests.datapath.rig import REDIRECT, ROUTER, SERVER, TO_KERNEL, Rig, changed, plain

pytestmark = pytest.mark.root

ROUTED = {"eth_src": SERVER, "eth_dst": ROUTER, "hops": 63}
OTHER = {4: ("198.51.100.7", "203.0.113.8"), 6: ("2001:db8:7::7", "2001:db8:8::8")}
TRANSLATIONS = ("bridged", "routed", "snat", "snat-port", "dnat", "dnat-port", "both", "bridged-snat")


def translated(name: str, family: int) -> dict[str, str | int]:
    """Return the fields that a kind of translation changes."""
    src, dst = OTHER[family]
    fields: dict[str, str | int] = {} if name.startswith("bridged") else dict(ROUTED)
    if "snat" in name or name == "both":
        fields["src"] = src
    if name.startswith("dnat") or name == "both":
        fields["dst"] = dst
    if name in ("snat-port", "both"):
        fields["sport"] = 61000
    if name in ("dnat-port", "both"):
        fields["dport"] = 8080
    return fields


@pytest.mark.parametrize("payload", [b"", b"x", b"0123456789abcdef", bytes(1400)], ids=len)
@pytest.mark.parametrize("translation", TRANSLATIONS)
@pytest.mark.parametrize("l4", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
def test_the_whole_packet(rig: Rig, family: int, l4: str, translation: str, payload: bytes) -> None:
    packet = plain(l4, family, payload)
    expected = changed(packet, **translated(translation, family))
    rig.flow(packet, "p1", expected)
    outcome = rig.run(packet, "p1")
    assert (outcome.verdict, outcome.result) == ("FAST", REDIRECT)
    assert Ether(outcome.packet).show2(dump=True) == expected.show2(dump=True)
    assert outcome.packet == bytes(expected)


@pytest.mark.parametrize("flags", ["FA", "FAU", "R", "RA"])
@pytest.mark.parametrize("family", [4, 6])
def test_closing_packets_without_a_conntrack_entry_are_translated(rig: Rig, family: int, flags: str) -> None:
    """The kernel would forward it untranslated."""
    packet = plain("tcp", family, b"", flags=flags)
    expected = changed(packet, **translated("snat-port", family))
    rig.flow(packet, "p1", expected, checked=rig.jiffies(ago=1))
    outcome = rig.run(packet, "p1")
    assert (outcome.verdict, outcome.packet) == ("FAST", bytes(expected))


@pytest.mark.parametrize(
    ("flags", "translation", "ago", "epoch"),
    [
        ("S", "snat", 1, 1),
        ("FA", "routed", 1, 1),
        ("FA", "snat", 2000, 1),
        ("FA", "snat", 1, 2),
    ],
    ids=[
        "begins one",
        "not translated",
        "asked too long ago",
        "of another time",
    ],
)
def test_other_closing_packets_are_left_to_the_kernel(
    rig: Rig, flags: str, translation: str, ago: int, epoch: int
) -> None:
    packet = plain("tcp", 4, b"", flags=flags)
    asked = rig.jiffies(ago)
    rig.flow(packet, "p1", changed(packet, **translated(translation, 4)), checked=asked, epoch=epoch)
    outcome = rig.run(packet, "p1")
    assert (outcome.verdict, outcome.packet) == ("TCP_FLAGS", bytes(packet))
    assert rig.flow_of(packet)["action"] < layout.ACTION_KERNEL


def test_a_closing_packet_right_after_a_check_is_left_to_the_kernel(rig: Rig) -> None:
    packet = plain("tcp", 4, b"", flags="FA")

    def ask() -> None:
        rig.flow(packet, "p1", changed(packet, **translated("snat", 4)))

    outcome = rig.run_just_after(ask, packet, "p1")
    assert (outcome.verdict, outcome.packet) == ("TCP_FLAGS", bytes(packet))
    assert rig.flow_of(packet)["action"] < layout.ACTION_KERNEL


@pytest.mark.parametrize("l4", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
def test_translating_both_ways_gives_the_same_packet(rig: Rig, family: int, l4: str) -> None:
    packet = plain(l4, family)
    there = changed(packet, **translated("both", family))
    rig.flow(packet, "p1", there)
    rig.flow(there, "up0", changed(packet, hops=62))
    arrived = Ether(rig.run(packet, "p1").packet)
    assert rig.run(arrived, "up0").packet == bytes(changed(packet, hops=62))


@pytest.mark.parametrize("family", [4, 6])
def test_the_mtu_applies_to_the_segments_of_large_packets(rig: Rig, family: int) -> None:
    packet = plain("tcp", family, bytes(3000))
    rig.flow(packet, "p1", changed(packet, **translated("snat", family)))
    headers = 40 if family == 4 else 60
    fitting = rig.run(packet, "p1", gso_size=1500 - headers)
    assert fitting.verdict == "FAST"
    assert fitting.packet == bytes(changed(packet, **translated("snat", family)))
    assert rig.run(packet, "p1", gso_size=1501 - headers).verdict == "MTU"
    assert rig.run(packet, "p1").verdict == "MTU"


@pytest.mark.parametrize("size", [1472, 1473])
def test_packets_larger_than_the_mtu_are_left_to_the_kernel(rig: Rig, size: int) -> None:
    packet = plain("udp", 4, bytes(size))
    rig.flow(packet, "p1", changed(packet, **translated("routed", 4)))
    outcome = rig.run(packet, "p1")
    assert outcome.verdict == ("FAST" if size == 1472 else "MTU")
    assert (outcome.packet == bytes(packet)) == (size == 1473)


def test_udp_without_a_checksum_stays_so(rig: Rig) -> None:
    packet = plain("udp", 4)
    packet[UDP].chksum = 0
    packet = Ether(bytes(packet))
    rig.flow(packet, "p1", changed(packet, **translated("both", 4)))
    assert Ether(rig.run(packet, "p1").packet)[UDP].chksum == 0


@pytest.mark.parametrize("family", [4, 6])
def test_a_sum_of_zero_is_sent_as_ffff(rig: Rig, family: int) -> None:
    packet = plain("udp", family, b"\0\0")
    target = changed(packet, **translated("snat", family))
    # The payload that makes the translated packet's sum zero: RFC 768 sends it as all ones.
    filler = target[UDP].chksum
    packet = plain("udp", family, filler.to_bytes(2, "big"))
    expected = changed(packet, **translated("snat", family))
    assert expected[UDP].chksum == 0xFFFF
    rig.flow(packet, "p1", expected)
    assert rig.run(packet, "p1").packet == bytes(expected)


@pytest.mark.parametrize("l4", ["tcp", "udp"])
def test_padding_is_removed_like_the_kernel_does(rig: Rig, l4: str) -> None:
    packet = plain(l4, 4, b"", flags="A")
    expected = changed(packet, **translated("snat", 4))
    rig.flow(packet, "p1", expected)
    padded = bytes(packet).ljust(60, b"\0")
    assert rig.run(padded, "p1").packet == bytes(expected)


@pytest.mark.parametrize("family", [4, 6])
def test_the_hop_limit(rig: Rig, family: int) -> None:
    for hops, verdict in ((2, "FAST"), (1, "TTL")):
        packet = plain("udp", family, hops=hops)
        rig.flow(packet, "p1", changed(packet, **(translated("routed", family) | {"hops": 1})))
        outcome = rig.run(packet, "p1")
        assert outcome.verdict == verdict
        if verdict == "TTL":
            assert outcome.result == TO_KERNEL
            assert outcome.packet == bytes(packet)


def test_a_bridged_packet_keeps_its_hop_count(rig: Rig) -> None:
    packet = plain("udp", 4, hops=1)
    rig.flow(packet, "p1")
    outcome = rig.run(packet, "p1")
    assert (outcome.verdict, outcome.packet) == ("FAST", bytes(packet))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("l4", ["tcp", "udp"])
def test_truncated_at_every_byte(rig: Rig, l4: str, family: int) -> None:
    packet = plain(l4, family)
    rig.flow(packet, "p1", changed(packet, **translated("both", family)))
    whole = bytes(packet)
    first = 34 if family == 4 else 54  # the test run itself wants room for an IP header
    for length in range(first, len(whole)):
        outcome = rig.run(whole[:length], "p1")
        assert outcome.result == TO_KERNEL, length
        assert outcome.packet == whole[:length], length


def test_counted_bytes_start_at_the_ip_header(rig: Rig) -> None:
    packet = plain("udp", 4, bytes(72))
    rig.flow(packet, "p1")
    for _ in range(5):
        rig.run(packet, "p1")
    flow = rig.flow_of(packet)
    assert flow is not None
    assert (flow["packets"], flow["bytes"]) == (5, 500)


@pytest.mark.parametrize("tos", [0x00, 0x10, 0x08, 0x18, 0x02, 0xB8])
def test_the_type_of_service_is_kept(rig: Rig, tos: int) -> None:
    packet = plain("udp", 4, tos=tos)
    expected = changed(packet, **translated("snat", 4))
    rig.flow(packet, "p1", expected)
    assert rig.run(packet, "p1").packet == bytes(expected)
    assert Raw in expected
