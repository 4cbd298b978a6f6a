"""Known bugs of other datapaths: eviction, reused ports, MTUs, checksums, routes."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.kernel.fastlab import HOST4, HOST6, PUBLISHED, SECOND4, SECOND6, V4, V6, FastLab
from tests.kernel.streams import FAMILIES, Stream, is_fast, talks_fast
from tests.kernel.wire import CLIENT, SERVER, TRAFFIC_PATHS, Conversation, Wire
from tests.support.fastpath import Talk, datagram
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.root
ROOM = 1024  # flows of each family, in the test of eviction


@pytest.fixture(scope="module", params=["kernel", "fast"])
def lab(request: pytest.FixtureRequest) -> Iterator[FastLab]:
    """Run without and with the fast path; no private address may leave by an uplink."""
    with FastLab() as made:
        if request.param == "fast":
            made.accelerate()
        yield made


@pytest.fixture
def kernel_lab() -> Iterator[FastLab]:
    """A lab for one test, without the fast path at first."""
    with FastLab() as made:
        yield made


@pytest.mark.parametrize("accelerated", [False, True], ids=["kernel", "fast"])
def test_four_times_as_many_flows_as_the_cache_holds(kernel_lab: FastLab, accelerated: bool) -> None:
    """UDP flows evict each other and the long-lived ones: all continue, translated."""
    fast = kernel_lab.accelerate("all", f"--flows={ROOM}") if accelerated else None
    with (
        Talk(kernel_lab.host, "a", "far", V4["far"], 7100) as tcp,
        Talk(kernel_lab.host, "a", "far", V4["far"], 7101, udp=True) as udp,
        Stream(kernel_lab, "c", "far", V4["far"], port=6100) as stream,
        kernel_lab.socket("far", socket.AF_INET, socket.SOCK_DGRAM) as server,
    ):
        assert talks_fast(kernel_lab, tcp) and is_fast(kernel_lab, "v-c")
        udp.say()
        before = tcp.seen_from, udp.seen_from
        started = kernel_lab.counted()
        server.bind(("", 7102))
        server.settimeout(PATIENCE)
        sources = [_short_flow(kernel_lab, server, 10_000 + turn) for turn in range(4 * ROOM)]
        again = []
        for turn in range(0, 4 * ROOM, 4):
            again.append(_short_flow(kernel_lab, server, 10_000 + turn))
            if turn % 200 == 0:
                tcp.say()
                udp.say()
        assert again == sources[::4] and len(set(sources)) == 4 * ROOM
        assert (tcp.seen_from, udp.seen_from) == before
        assert kernel_lab.took_fast(least=4 * ROOM, since=started)
        assert fast is None or int(fast.status(flows=True)["flows"]) <= ROOM
        assert talks_fast(kernel_lab, tcp)
        stream.stop()
        assert stream.lost() == [] and len(set(stream.there.sources)) == 1


def _short_flow(lab: FastLab, server: socket.socket, port: int) -> tuple[str, int]:
    """Ask twice; the second packets take the fast path. Return the source."""
    with lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("", port))
        client.settimeout(PATIENCE)
        sources = set()
        for _ in range(2):
            client.sendto(b"%d" % port, (V4["far"], 7102))
            data, source = server.recvfrom(100)
            assert data == b"%d" % port
            sources.add(source)
            server.sendto(data, source)
            assert client.recv(100) == data
    (source,) = sources
    return source


@pytest.mark.parametrize("family", [4, 6])
def test_a_port_is_reused_while_the_old_connection_expires(lab: FastLab, family: int) -> None:
    """Late FIN and ACK, expired entries, the same ports once more: always translated."""
    wire = Wire(lab)
    talk = Conversation(wire, TRAFFIC_PATHS["translated"], family, TCP, 5900 + family)
    talk.open()
    talk.data("fast", CLIENT, b"x", fast=True)
    for turn, forget in enumerate((False, True, True)):
        talk.step("FIN", CLIENT, talk.frame(CLIENT, flags="FA"))
        if forget:
            lab.run(["conntrack", "-D", "-p", "tcp", "-f", f"ipv{family}"], check=False)
        late = talk.frame(CLIENT, seq=talk.seq[CLIENT] + 1)
        wire.send("a", bytes(late))
        wire.send("a", bytes(talk.frame(CLIENT, flags="FA")))
        talk.seq[CLIENT] += 1_000_000 * (turn + 1)
        talk.seq[SERVER] += 2_000_000
        lab.run(["conntrack", "-D", "-p", "tcp", "-f", f"ipv{family}"], check=False) if turn == 2 else None
        talk.open()
        talk.data("fast again", CLIENT, b"y", fast=True)
        talk.data("and back", SERVER, b"z", fast=True)
    wire.close()
    kernel_lab = HOST4 if family == 4 else HOST6
    layer = IP if family == 4 else IPv6
    received = [Ether(each.frame) for _, step in talk.log for each in step if each.end == "far"]
    assert {frame[layer].src for frame in received} == {kernel_lab}
    assert lab.leaked() == []


def test_two_containers_use_the_same_source_port(lab: FastLab) -> None:
    """Three use one source port to one destination: no port is used twice."""
    if lab.fast is None:
        _use_the_same_source_port(lab)
        return
    lab.fast.ask("capture", address=V4["b"])
    try:
        _use_the_same_source_port(lab)
    finally:
        lab.fast.ask("release", address=V4["b"])


def _use_the_same_source_port(lab: FastLab) -> None:
    seen = []
    with lab.socket("far", socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", 7200))
        server.settimeout(PATIENCE)
        clients = [lab.socket(end, socket.AF_INET, socket.SOCK_DGRAM) for end in ("a", "b", "c")]
        for client in clients:
            client.bind(("", 4500))
            client.settimeout(PATIENCE)
        before = lab.counted("v-a"), lab.counted("v-b")
        for turn in range(20):
            # The kernel forwards both first datagrams of a connection, with and without the fast path.
            exchange = partial(datagram, again=lab.fast is None or turn == 0)
            for place, client in enumerate(clients):
                text = b"%d %d" % (place, turn)
                data, source = exchange(server, partial(client.sendto, text, (V4["far"], 7200)))
                seen.append((place, source))
                assert exchange(client, partial(server.sendto, data, source))[0] == text
        for client in clients:
            client.close()
    assert len(set(seen)) == 3 and len({source for _, source in seen}) == 3
    assert lab.took_fast("v-a", since=before[0]) and lab.counted("v-b") == before[1]


def _transfer(here: socket.socket, there: socket.socket, size: int) -> bool:
    """Return whether that many bytes get from one socket to the other."""
    data = bytes(range(256)) * (size // 256)
    here.setblocking(False)
    there.settimeout(PATIENCE)
    sent, got = 0, b""
    deadline = time.monotonic() + PATIENCE
    while len(got) < len(data) and time.monotonic() < deadline:
        with suppress(BlockingIOError):
            sent += here.send(data[sent : sent + 65536])
        got += there.recv(1 << 20)
    here.settimeout(PATIENCE)
    return got == data


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("published", [False, True], ids=["out", "published"])
def test_a_router_with_a_smaller_mtu_on_the_path(lab: FastLab, family: int, published: bool) -> None:
    """Its "too big" reaches the container, which sends smaller packets."""
    known = V4 if family == 4 else V6
    lab.ip("world", "link set down0 mtu 1400\n")
    lab.ip("far", "link set eth0 mtu 1500\n")
    try:
        if published:
            talk = Talk(
                lab.host,
                "far",
                "a",
                HOST4 if family == 4 else HOST6,
                80,
                to=PUBLISHED,
                family=FAMILIES[family],
            )
        else:
            talk = Talk(lab.host, "a", "far", known["far"], 7300, family=FAMILIES[family])
        with talk:
            assert talks_fast(lab, talk)
            sender, receiver = (talk.server, talk.client) if published else (talk.client, talk.server)
            assert _transfer(sender, receiver, 600_000)
            assert _mtu_of(sender, family) == 1400
            assert talks_fast(lab, talk)
    finally:
        lab.ip("world", "link set down0 mtu 1500\n")
        lab.run("ip route flush cache", inside="a")
        lab.run("ip -6 route flush cache", inside="a")


def _mtu_of(sock: socket.socket, family: int) -> int:
    """Return the path MTU that the socket has learned."""
    level, option = (socket.IPPROTO_IP, 14) if family == 4 else (socket.IPPROTO_IPV6, 24)
    return sock.getsockopt(level, option)


def test_large_pings_and_one_source_port_for_every_size(lab: FastLab) -> None:
    assert "1 received" in lab.run(f"ping -c1 -W20 -s 1800 {V4['far']}", inside="a")
    assert "1 received" in lab.run(f"ping -c1 -W20 -s 1800 {V6['far']}", inside="a")
    before = lab.counted("v-a")
    fragments = lab.counted("v-a", "FRAGMENT")
    seen = set()
    with (
        lab.socket("far", socket.AF_INET, socket.SOCK_DGRAM) as server,
        lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("", 7400))
        client.connect((V4["far"], 7400))
        client.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: fragments are made
        client.settimeout(PATIENCE)
        server.settimeout(PATIENCE)
        for size in (100, 4096, 100, 100, 9000, 100) * 5:
            client.send(b"f" * size)
            data, source = server.recvfrom(10_000)
            assert data == b"f" * size
            seen.add(source)
            server.sendto(data, source)
            assert client.recv(10_000) == data
    assert len(seen) == 1
    assert lab.took_fast("v-a", since=before)
    assert lab.fast is None or lab.counted("v-a", "FRAGMENT") > fragments


@pytest.mark.parametrize("state", ["off", "on"])
def test_checksums_on_the_wire_are_right(lab: FastLab, state: str) -> None:
    """With transmit offload off and on at all links."""
    links = [("host", name) for name in ("v-a", "v-b", "v-c", "up0", "docker0", "br-two")]
    for inside, link in (*links, *((end, "eth0") for end in V4)):
        lab.run(["ethtool", "-K", link, "tx", state], inside=inside, check=False)
    wire = Wire(lab)
    wrong, checked = [], 0
    for family, known in ((4, V4), (6, V6)):
        for there, port in (("far", 7500), ("b", 7600), ("c", 7700)):
            for udp in (False, True):
                where = known[there], port + 10 * family + udp
                with Talk(lab.host, "a", there, *where, udp=udp, family=FAMILIES[family]) as talk:
                    wire.arrivals()
                    assert talks_fast(lab, talk)
                    if not udp:
                        assert _transfer(talk.client, talk.server, 200_192)
                    arrived = [each for each in wire.arrivals() if not each.unfinished]
                checked += len(arrived)
                wrong += [each for each in arrived if _is_wrong(each.frame)]
    wire.close()
    assert wrong == []
    assert checked > 100 if state == "off" else checked >= 0


def _is_wrong(frame: bytes) -> bool:
    """Return whether a checksum differs from the one that scapy computes."""
    packet = Ether(frame)
    rebuilt = Ether(frame)
    ip = rebuilt.getlayer(IP) or rebuilt[IPv6]
    if IP in rebuilt:
        del ip.chksum
    for kind in (TCP, UDP):
        if kind in rebuilt:
            del rebuilt[kind].chksum
    return bytes(Ether(bytes(rebuilt)))[: len(frame)] != bytes(packet)


_CHANGES = {
    "a route": (
        "route add 198.51.100.0/24 via 203.0.113.2", "route del 198.51.100.0/24 via 203.0.113.2",
    ),
    "a rule": (
        "route replace default via 203.0.113.2 table 77\nrule add from 172.17.0.2 table 77",
        "rule del from 172.17.0.2 table 77",
    ),
    "a route, IPv6": (
        "route add 2001:db8:1::/64 via 2001:db8:cb::2", "route del 2001:db8:1::/64 via 2001:db8:cb::2",
    ),
    "a rule, IPv6": (
        "route replace default via 2001:db8:cb::2 table 77\nrule add from fd17::2 table 77",
        "rule del from fd17::2 table 77",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _CHANGES)
def test_a_route_changes_during_a_flow(lab: FastLab, name: str) -> None:
    """To the other uplink and back, by a route and by a rule."""
    there, back = _CHANGES[name]
    family = 6 if "IPv6" in name else 4
    first, second, target = (HOST4, SECOND4, V4) if family == 4 else (HOST6, SECOND6, V6)
    with Stream(lab, "a", "far", target["far"], port=6200, family=family) as stream:
        assert is_fast(lab, "v-a", "up0") and stream.flows()
        for lines, source in ((there, second), (back, first)):
            lab.run_with(f"ip -{family} -batch -", lines + "\n")
            assert eventually(lambda source=source: stream.there.sources[-1][0] == source), (
                stream.there.sources
            )
            assert stream.flows()
            assert is_fast(lab, "v-a", "up1" if source == second else "up0")
    lab.run(["conntrack", "-D", "-p", "udp", "--dport", "6200", "-f", f"ipv{family}"], check=False)


@pytest.mark.parametrize(
    "lines",
    [
        "route add default via 203.0.113.2 tos 0x10",
        "route add default via 203.0.113.2 table 78\nrule add dscp 4 table 78",
    ],
    ids=["route", "rule"],
)
def test_the_type_of_service_chooses_the_route_of_each_packet(lab: FastLab, lines: str) -> None:
    """Such packets of a running flow leave as the kernel routes them."""
    with (
        Talk(lab.host, "a", "far", V4["far"], 7850, udp=True) as talk,
        lab.socket("world", socket.AF_PACKET, socket.SOCK_RAW) as tap,
    ):
        assert talks_fast(lab, talk)
        tap.bind(("eth0", 3))
        before = lab.counted("v-a", "MULTIPATH")
        lab.ip("host", lines + "\n")
        assert lab.fast is None or eventually(lambda: talk.say() or lab.counted("v-a", "MULTIPATH") > before)
        tap.setblocking(False)
        talk.client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
        for _ in range(20):
            talk.client.send(b"by the other uplink")
        talk.client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0)
        received: list[Packet] = []
        assert eventually(lambda: talk.client.send(b"last") and _has_received(tap, received, b"last"))
        assert not [frame for frame in received if UDP in frame and frame[IP].tos == 0x10]
        for line in reversed(lines.replace(" add ", " del ").splitlines()):
            lab.ip("host", line + "\n")
    lab.run("conntrack -D -p udp --dport 7850", check=False)


def test_the_type_of_service_chooses_the_route_to_a_container(lab: FastLab) -> None:
    """Packets to a published port follow the route of their type of service."""
    with Talk(lab.host, "far", "a", HOST4, 80, to=PUBLISHED, udp=True) as talk:
        assert talks_fast(lab, talk, "up0")
        before = lab.counted("up0", "MULTIPATH")
        lab.ip("host", "route add blackhole 172.17.0.2 tos 0x10\n")
        assert lab.fast is None or eventually(lambda: talk.say() or lab.counted("up0", "MULTIPATH") > before)
        talk.client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
        for _ in range(20):
            talk.client.send(b"into the hole")
        talk.client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0)
        talk.client.send(b"last")
        assert talk.server.recv(100) == b"last"
        lab.ip("host", "route del blackhole 172.17.0.2 tos 0x10\n")
    lab.run(f"conntrack -D -p udp --dport {PUBLISHED}", check=False)


def _has_received(tap: socket.socket, received: list[Packet], last: bytes) -> bool:
    """Return whether a new frame ends like this; add new frames to `received`."""
    with suppress(BlockingIOError):
        while True:
            received.append(Ether(tap.recv(2000)))
    return any(bytes(frame).endswith(last) for frame in received)


def test_a_new_mtu_of_a_route_applies_during_a_flow(lab: FastLab) -> None:
    """The host reports it to the container, as without the fast path."""
    with (
        lab.socket("far", socket.AF_INET, socket.SOCK_DGRAM) as server,
        lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("", 7800))
        server.settimeout(PATIENCE)
        client.connect((V4["far"], 7800))
        client.settimeout(PATIENCE)
        client.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_PMTUDISC_DO
        for _ in range(10):
            client.send(b"m" * 1400)
            data, source = server.recvfrom(2000)
            server.sendto(data, source)
            client.recv(2000)
        assert lab.took_fast("v-a")
        lab.run("ip route add 198.51.100.2 via 192.0.2.2 mtu 1300")

        def refused() -> bool:
            try:
                client.send(b"m" * 1400)
            except OSError as error:
                return error.errno == errno.EMSGSIZE
            return False

        assert eventually(refused)
        assert client.getsockopt(socket.IPPROTO_IP, 14) == 1300  # IP_MTU
        lab.run("ip route del 198.51.100.2")
    lab.run("ip route flush cache", inside="a")


def test_captured_packets_are_visible_on_the_bridge(lab: FastLab) -> None:
    """A redirected packet doesn't; one of a captured address does."""
    with (
        lab.socket("host", socket.AF_PACKET, socket.SOCK_RAW) as tap,
        Stream(lab, "a", "far", V4["far"], port=6300) as stream,
    ):
        tap.bind(("docker0", 3))
        tap.setblocking(False)
        assert is_fast(lab, "v-a") and stream.flows()
        if lab.fast is not None:
            lab.fast.ask("capture", address=V4["a"])
            assert eventually(lambda: lab.counted(verdict="CAPTURED") > 0)
        _drain(tap)
        assert stream.flows(30)
        assert _drain(tap) >= 30
        if lab.fast is not None:
            lab.fast.ask("release", address=V4["a"])
            assert eventually(lambda: _drain(tap) >= 0 and stream.flows(30) and _drain(tap) < 30)
        stream.stop()
        assert stream.lost() == []


def test_a_captured_udp_connection_that_is_too_young_to_be_assured(kernel_lab: FastLab) -> None:
    """Its replies are left to the kernel at once too, although they arrive for the translated address."""
    fast = kernel_lab.accelerate()
    for port in range(6320, 6340):
        with Stream(kernel_lab, "a", "far", V4["far"], port=port) as stream:
            assert is_fast(kernel_lab, "v-a", "up0")
            fast.ask("capture", address=V4["a"])
            (entry,) = kernel_lab.conntrack(f"dport={port}")
            assert stream.flows(5)  # what was under way
            before = kernel_lab.counted("up0")
            assert stream.flows(30)
            after = kernel_lab.counted("up0")
            fast.ask("release", address=V4["a"])
        if "[ASSURED]" not in entry:
            assert after == before
            return
    pytest.fail("every connection was assured before it was captured")


def _drain(tap: socket.socket) -> int:
    """Return how many UDP frames of the stream the tap has received."""
    count = 0
    while True:
        try:
            frame = tap.recv(2000)
        except BlockingIOError:
            return count
        count += UDP in (packet := Ether(frame)) and 6300 in (packet[UDP].sport, packet[UDP].dport)
