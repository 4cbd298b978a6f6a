"""Recognize the packets of a flow at each link; and what functions of the kernel they passed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpf.exemptions import MAX_TRACE, Exemptions
from bpf.functions import FunctionsUnavailable, function_addresses
from core.capture.targets import flow_name, is_flow
from core.flows import ConntrackEntry, address_bytes
from core.model.probe import FunctionCall, PacketTuple
from core.model.refs import LinkKey
from core.probe.flow_packets import MOST_TUPLES, FlowPackets, flow_tuples
from core.probe.packets import decode_frame
from core.probe.sightings import Captured

A, B, HOST = "10.0.0.2", "10.0.1.2", "192.0.2.1"
SENT = PacketTuple("tcp", A, 4000, B, 80)
ENDS = {"sport": 4000, "dport": 80}


def seen(packet: Packet, link: int, at: float, outgoing: bool = False) -> Captured:
    frame = decode_frame(bytes(Ether() / packet))
    assert frame is not None
    return Captured(LinkKey(1, link), at, outgoing, 0, frame)


def grouped(*captured: Captured, sent: PacketTuple = SENT) -> FlowPackets:
    packets = FlowPackets({sent: "original", sent.reverse: "reply"})
    packets.add(captured)
    return packets


def entry(l4_proto: int = 6, **more: object) -> ConntrackEntry:
    usual = dict.fromkeys(ConntrackEntry._fields, 0)
    for side, src, dst in (("orig", A, HOST), ("reply", B, HOST)):
        usual |= {f"{side}_src": address_bytes(src), f"{side}_dst": address_bytes(dst)}  # type: ignore[dict-item]
    ports = {"orig_sport": 4000, "orig_dport": 8080, "reply_sport": 80, "reply_dport": 5000}
    return ConntrackEntry(**usual | ports | {"l4_proto": l4_proto, "family": 4} | more)  # type: ignore[arg-type]


def test_tuples_before_between_and_after_translation() -> None:
    found = flow_tuples([entry()])
    original = {(one.src, one.sport, one.dst, one.dport) for one, way in found.items() if way == "original"}
    assert original == {
        (A, 4000, HOST, 8080), (A, 4000, B, 80), (HOST, 5000, B, 80), (HOST, 5000, HOST, 8080),
    }  # fmt: skip
    assert {one.reverse for one, way in found.items() if way == "reply"} == {
        one for one, way in found.items() if way == "original"
    }
    many = flow_tuples(entry(orig_sport=port) for port in range(1000))
    assert len(many) == MOST_TUPLES


@pytest.mark.parametrize("ports", [True, False])
@pytest.mark.parametrize(("proto", "address"), [(6, A), (17, "fd00::2"), (1, A), (58, "fd00::2")])
def test_names_of_flows_can_be_typed(proto: int, address: str, ports: bool) -> None:
    assert is_flow(flow_name(entry(proto, orig_src=address_bytes(address), orig_sport=4000 * ports)))


def test_segments_translation_and_routing_keep_the_identity() -> None:
    data = Raw(bytes(range(200)))
    whole = IP(src=A, dst=B, id=7) / TCP(**ENDS, seq=100, ack=5, flags="PA") / data
    first = IP(src=A, dst=B, id=7, ttl=63) / TCP(**ENDS, seq=100, ack=5, flags="A") / Raw(bytes(range(100)))
    second = IP(src=A, dst=B, id=8, ttl=63) / TCP(**ENDS, seq=200, ack=5, flags="PA") / Raw(bytes(100))
    packets = grouped(seen(whole, 1, 1.0), seen(first, 2, 1.1, True), seen(second, 2, 1.2, True))
    assert packets.counts == {"original": 2}
    (best,) = packets.best()
    assert [(one.link.ifindex, one.ttl) for one in best.sightings] == [(1, 64), (2, 63)]


def test_the_packet_with_most_places_is_chosen() -> None:
    packets = [IP(src=A, dst=B, id=number) / TCP(**ENDS, seq=number, flags="A") for number in range(3)]
    places = ((0, 2, 1.0), (1, 1, 1.1), (1, 2, 1.2), (2, 1, 1.3), (2, 2, 1.4))
    found = grouped(*(seen(packets[number], link, at) for number, link, at in places))
    (best,) = found.best()
    assert [one.at for one in best.sightings] == [1.1, 1.2], "the first of those"


def test_equal_datagrams_over_ipv6_are_several_packets() -> None:
    sent = PacketTuple("udp", "fd00::2", 4000, "fd01::2", 80)
    packet = IPv6(src="fd00::2", dst="fd01::2") / UDP(**ENDS) / Raw(b"ping")
    places = [(link, 1.0 + turn + link / 10) for turn in range(3) for link in (1, 2)]
    found = grouped(*(seen(packet, link, at) for link, at in places), sent=sent)
    assert found.counts == {"original": 3} and len(found.best()[0].sightings) == 2


def test_other_packets_are_left_out() -> None:
    inner = IP(src=A, dst=B) / TCP(**ENDS)
    error = IP(src=HOST, dst=A) / ICMP(type=3, code=3) / inner
    later = IP(src=A, dst=B, proto=6, frag=100) / Raw(bytes(40))
    other = IP(src=A, dst=B) / TCP(sport=1, dport=80)
    assert grouped(*(seen(one, 1, 1.0) for one in (error, later, other))).best() == ()


def test_functions_belong_to_the_packet_that_was_chosen() -> None:
    packet = IP(src=A, dst=B, id=7) / TCP(**ENDS, seq=100, flags="A") / Raw(b"abc")
    other = IP(src=A, dst=B, id=8) / TCP(**ENDS, seq=100, flags="A") / Raw(b"abc")
    headers = bytes(packet)
    calls = [
        FunctionCall(1.0, "ip_rcv", headers=headers), FunctionCall(1.0, "in_part", headers=headers[:40]),
        FunctionCall(1.0, "other_packet", headers=bytes(other)), FunctionCall(9.0, "later", headers=headers),
        FunctionCall(1.0, "nothing", headers=b""),
    ]  # fmt: skip
    (best,) = grouped(seen(packet, 1, 1.0)).best(calls)
    assert [one.function for one in best.functions] == ["ip_rcv", "in_part"]


# ---- bpf


def test_addresses_of_functions(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    lines = [
        "ffffffff81000000 T register_fprobe_ips", "ffffffff81000010 T ip_rcv",
        "ffffffff81000020 t ip_forward", "ffffffff81000030 t ip_forward",
        "ffffffffc0000000 t veth_xmit\t[veth]", "ffffffff81000040 d tcp_v4_rcv",
        "ffffffff81000050 t ip_rcv.cold",
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    assert function_addresses(path=path) == {"veth_xmit": 0xFFFFFFFFC0000000, "ip_rcv": 0xFFFFFFFF81000010}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ffffffff81000010 T ip_rcv\n", "was built without CONFIG_FPROBE. Try: a kernel with it"),
        ("0000000000000000 T register_fprobe_ips\n0000000000000000 T ip_rcv\n", "the kernel hides"),
    ],
)
def test_kernels_whose_functions_are_not_traced(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "kallsyms").write_text(text)
    with pytest.raises(FunctionsUnavailable, match="can't trace kernel functions: ") as found:
        function_addresses(path=tmp_path / "kallsyms")
    assert reason in str(found.value) and "Try: " in str(found.value)
    with pytest.raises(FunctionsUnavailable):
        function_addresses(path=tmp_path / "missing")


class FullMap:
    """A map with room for one address, and a clock that the test moves."""

    def __init__(self) -> None:
        self.captured: list[str] = []
        self.timers: dict[str, object] = {}

    def capture(self, family: int, packed: bytes, on: bool) -> None:
        text = ".".join(map(str, packed))
        if on and self.captured:
            raise OSError(errno.E2BIG, "full")
        self.captured = [text] if on else []

    def once(self, name: str, after: float, action: object, restart: bool = False) -> None:
        assert 0 < after <= MAX_TRACE
        self.timers[name] = action


def test_a_full_map_leaves_nothing_behind() -> None:
    room = FullMap()
    held = Exemptions(room, room)
    held.capture(A, on=True)
    with pytest.raises(OSError, match="full"):
        held.begin_trace("one", [B], 5)
    with pytest.raises(ValueError, match="time limit"):
        held.begin_trace("two", [B], float("nan"))
    held.capture(A, on=False)
    assert room.captured == [] and held.traced == []
    room.timers["trace one"]()  # type: ignore[operator]
    held.begin_trace("three", [B], 5)
    assert room.captured == held.traced == [B]
    room.timers["trace three"]()  # type: ignore[operator]
    assert room.captured == []
