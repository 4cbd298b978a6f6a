"""Traffic through the kernel and through the fast path is the same bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, PadN, fragment6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.kernel.fastlab import BRIDGES, MACS, V4, V6, FastLab
from tests.kernel.wire import CLIENT, SERVER, TRAFFIC_PATHS, Conversation, TrafficPath, Wire, segments

pytestmark = pytest.mark.root
BOTH = (CLIENT, SERVER)


@pytest.fixture(scope="module")
def wires() -> Iterator[tuple[Wire, Wire]]:
    """Two equal labs: without and with the fast path."""
    yield from _two_labs()


def _two_labs(*silent: str) -> Iterator[tuple[Wire, Wire]]:
    """Build two labs; br_netfilter is off for the tools in `silent`."""
    with FastLab() as kernel, FastLab() as fast:
        for lab in (kernel, fast):
            _prepare(lab)
            for name in silent:
                lab.run(f"sysctl -qw net.bridge.bridge-nf-call-{name}=0")
        fast.accelerate()
        made = Wire(kernel), Wire(fast)
        yield made
        for each in made:
            each.close()


def _prepare(lab: FastLab) -> None:
    """Add static neighbours and links with a small MTU."""
    lab.ip("host", "".join(f"link set {name} mtu 1400\n" for name in ("v-c", "br-two", "up0")))
    lab.ip("c", "link set eth0 mtu 1400")
    lab.ip("world", "link set eth0 mtu 1400")
    for known in (V4, V6):
        gateways = {
            "docker0": "172.17.0.1" if known is V4 else "fd17::1",
            "br-two": "172.18.0.1" if known is V4 else "fd18::1",
        }
        neighbours = [
            ("host", known[end], MACS[end], BRIDGES.get(end, "up0")) for end in ("a", "b", "c", "world")
        ]
        neighbours += [(end, gateways[bridge], MACS[bridge], "eth0") for end, bridge in BRIDGES.items()]
        neighbours += [("a", known["b"], MACS["b"], "eth0"), ("b", known["a"], MACS["a"], "eth0")]
        neighbours += [("world", "192.0.2.1" if known is V4 else "2001:db8::1", MACS["up0"], "eth0")]
        neighbours += [("world", known["far"], MACS["far"], "down0")]
        for inside, address, mac, link in neighbours:
            lab.ip(inside, f"neigh replace {address} lladdr {mac} dev {link} nud permanent\n")


@pytest.mark.parametrize("proto", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("path", TRAFFIC_PATHS)
def test_the_same_packets_arrive(
    wires: tuple[Wire, Wire], path: str, family: int, proto: type[Packet]
) -> None:
    _compare(
        wires,
        TRAFFIC_PATHS[path],
        family,
        proto,
        5100 + list(TRAFFIC_PATHS).index(path) * 4 + family // 3 + (proto is TCP),
    )


def _compare(
    wires: tuple[Wire, Wire], path: TrafficPath, family: int, proto: type[Packet], sport: int
) -> None:
    kernel, fast = (_answers(Conversation(wire, path, family, proto, sport)) for wire in wires)
    assert [name for name, _ in kernel] == [name for name, _ in fast]
    for (name, expected), (_, found) in zip(kernel, fast, strict=True):
        message = f"{name}:\n" + "\n".join(map(str, (*expected, "but the fast path:", *found)))
        assert [each.compared() for each in expected] == [each.compared() for each in found], message
        assert expected, f"{name}: nothing arrived"


@pytest.fixture(scope="module")
def switching() -> Iterator[tuple[Wire, Wire]]:
    """The same without br_netfilter: bridges ask no rules."""
    yield from _two_labs("iptables", "ip6tables", "arptables")


@pytest.mark.parametrize("proto", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("path", ["same bridge", "published to itself"])
def test_the_same_packets_arrive_without_br_netfilter(
    switching: tuple[Wire, Wire], path: str, family: int, proto: type[Packet]
) -> None:
    routed = replace(TRAFFIC_PATHS[path], routers=int(path == "published to itself"), fast=True)
    _compare(switching, routed, family, proto, 5200 + family + (proto is TCP))


@pytest.mark.parametrize("asked", [4, 6])
def test_the_same_packets_arrive_with_br_netfilter_for_one_family(asked: int) -> None:
    """br_netfilter bridges packets of a published port only for that family."""
    path = TRAFFIC_PATHS["published to its neighbour"]
    for wires in _two_labs("ip6tables" if asked == 4 else "iptables"):
        for family in (4, 6):
            _compare(wires, replace(path, routers=int(family != asked)), family, UDP, 5300 + family)


def _answers(talk: Conversation) -> list[tuple[str, Any]]:
    proto = talk.proto
    talk.open()
    _sizes(talk)
    _header_fields(talk)
    _time_to_live(talk)
    _offloads(talk)
    _not_plain(talk)
    _errors(talk)
    if proto is TCP:
        _flags(talk)
        _close_and_open_again(talk)
    return talk.log


def _sizes(talk: Conversation) -> None:
    """Packets around the smallest MTU of the path, with and without "don't fragment"."""
    headers = (20 if talk.family == 4 else 40) + (20 if talk.proto is TCP else 8)
    for side in BOTH:
        own = 1400 if talk.ends[side] == "c" else 1500
        for size in (0, 1, 25, 1000, talk.path.mtu - headers - 1, talk.path.mtu - headers):
            talk.step(f"{size} bytes", side, talk.frame(side, b"x" * size), fast=size > 0)
        if own > talk.path.mtu:
            over = b"y" * (talk.path.mtu - headers + 1)
            talk.step("too big", side, talk.frame(side, over), to=side)
            if talk.family == 4:
                talk.step("too big, in parts", side, talk.frame(side, over, {"flags": 0}), count=2)


def _header_fields(talk: Conversation) -> None:
    """Type of service, congestion marks, identification, flow label."""
    field = "tos" if talk.family == 4 else "tc"
    for side in BOTH:
        for value in (0, 1, 2, 3, 0x10, 0x1E, 0xB8, 0xFF):
            talk.step(f"{field} {value}", side, talk.frame(side, b"tos", {field: value}), fast=True)
        if talk.family == 4:
            talk.step("without DF", side, talk.frame(side, b"df", {"flags": 0, "id": 7}), fast=True)
            talk.step("reserved bit", side, talk.frame(side, b"evil", {"flags": "evil"}), fast=False)
        else:
            talk.step("flow label", side, talk.frame(side, b"label", {"fl": 0xABCDE}), fast=True)


def _time_to_live(talk: Conversation) -> None:
    field = "ttl" if talk.family == 4 else "hlim"
    for side in BOTH:
        for value in (1, 2, 3, 4, 64, 255):
            arrives = value > talk.path.routers
            talk.step(f"{field} {value}", side, talk.frame(side, b"ttl", {field: value}),
                      to=1 - side if arrives else side, fast=value > 3)  # fmt: skip


def _offloads(talk: Conversation) -> None:
    """Frames of a host with offloads, and UDP without a checksum."""
    for side in BOTH:
        data, offload = segments(talk.frame(side, b"unfinished"))
        talk.step("checksum unfinished", side, Raw(data), fast=True, offload=offload)
        if talk.proto is TCP:
            data, offload = segments(talk.frame(side, b"z" * 12_000), 1200)
            talk.step("to be cut up", side, Raw(data), fast=True, offload=offload)
        elif talk.family == 4:
            talk.step("no checksum", side, talk.frame(side, b"none", chksum=0), fast=True)
        padded = talk.frame(side, b"p")
        talk.step("padded", side, Raw(bytes(padded).ljust(100, b"\0")), fast=True)


def _not_plain(talk: Conversation) -> None:
    """Options and fragments."""
    for side in BOTH:
        talk.step("options", side, _with_options(talk, side))
        if talk.proto is UDP:
            whole = talk.frame(side, b"f" * 2400, {"flags": 0, "id": 4711} if talk.family == 4 else {})
            parts = _fragments(whole)
            _together(talk, "fragments", side, parts)
            _together(talk, "fragments, the last first", side, parts[::-1])


def _with_options(talk: Conversation, side: int) -> Packet:
    """A packet that the kernel forwards."""
    if talk.family == 4:
        return talk.frame(side, b"the marker", {"options": b"\x01\x01\x01\x00"})
    inner = talk.frame(side, b"the marker").payload.payload
    return talk.around(side, IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)]) / inner)


def _fragments(whole: Packet) -> list[Packet]:
    if IP in whole:
        return [Ether(bytes(each)) for each in fragment(whole, 1000)]
    inner = IPv6(bytes(whole[IPv6]))
    header = IPv6(src=inner.src, dst=inner.dst, hlim=inner.hlim) / IPv6ExtHdrFragment(id=99) / inner.payload
    parts = fragment6(header, 1100)
    return [Ether(src=whole.src, dst=whole.dst) / each for each in parts]


def _together(talk: Conversation, name: str, side: int, parts: list[Packet]) -> None:
    """Send packets that conntrack waits for, then others that show they have arrived."""
    for part in parts:
        talk.wire.send(talk.ends[side], bytes(part))
    talk.step(name, side, _with_options(talk, side), marker=b"the marker")


def _errors(talk: Conversation) -> None:
    """ICMP errors about the conversation, from either side; they end nothing."""
    for side in BOTH:
        talk.data("before an error", 1 - side, b"about this")
        talk.step("unreachable", side, talk.error(side))
        talk.data("about this one", 1 - side, b"about this")
        talk.step("too big, says the far side", side, talk.error(side, too_big=True))
        talk.step("after it", side, talk.frame(side, b"after"), fast=True)


def _flags(talk: Conversation) -> None:
    for side in BOTH:
        for flags in ("A", "PA", "PAU", "PAEC", "PAN"):
            talk.step(flags, side, talk.frame(side, b"flags", flags=flags, urgptr=3), fast=True)
        options = [("NOP", None), ("NOP", None), ("Timestamp", (7, 9))]
        talk.step("TCP options", side, talk.frame(side, b"stamped", options=options), fast=True)
        talk.step("no window", side, talk.frame(side, b"", window=0), fast=True)


def _close_and_open_again(talk: Conversation) -> None:
    """FIN in both directions, late acknowledgements, the same ports; then a reset."""
    talk.step("FIN", CLIENT, talk.frame(CLIENT, flags="FA"))
    talk.seq[CLIENT] += 1
    talk.step("its ACK", SERVER, talk.frame(SERVER))
    talk.data("data after it", SERVER, b"still half open")
    talk.step("the other FIN", SERVER, talk.frame(SERVER, flags="FA"))
    talk.seq[SERVER] += 1
    talk.step("the last ACK", CLIENT, talk.frame(CLIENT))
    talk.step("a late ACK", CLIENT, talk.frame(CLIENT))
    talk.seq[CLIENT] += 500_000
    talk.seq[SERVER] += 700_000
    talk.open()
    for side in BOTH:
        talk.data("after reopening", side, b"again", fast=True)
    talk.step("RST", SERVER, talk.frame(SERVER, flags="RA"))
