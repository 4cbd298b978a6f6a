"""What went wrong in other datapaths, tried on this one: eviction, reused ports, MTUs, checksums, routes."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.fastpath import Talk, eventually
from tests.kernel.fastlab import HOST4, HOST6, PUBLISHED, SECOND4, V4, V6, FastLab
from tests.kernel.streams import FAMILIES, Stream, is_fast
from tests.kernel.wire import CLIENT, SERVER, WAYS, Conversation, Wire

pytestmark = pytest.mark.root
ROOM = 1024  # flows of each family, in the test of eviction


@pytest.fixture(scope="module")
def lab() -> Iterator[FastLab]:
    with FastLab() as made:
        made.accelerate()
        yield made


@pytest.fixture
def own() -> Iterator[FastLab]:
    """A lab of one test's own, without the fast path so far."""
    with FastLab() as made:
        yield made


def talks_fast(lab: FastLab, talk: Talk, *ports: str) -> bool:
    """Wait until ten rounds of a conversation take the fast path at each of these ports."""
    assert lab.fast is not None

    def grows(port: str) -> bool:
        assert lab.fast is not None
        before = lab.fast.count("FAST", port)
        talk.say(10)
        return lab.fast.count("FAST", port) >= before + 10

    return all(eventually(lambda port=port: grows(port)) for port in ports or ("v-a",))


def test_four_times_as_many_flows_as_there_is_room(own: FastLab) -> None:
    """Short UDP flows push each other and the long-lived ones out: those go on, translated as before."""
    fast = own.accelerate("all", f"--flows={ROOM}")
    with (
        Talk(own.host, "a", "far", V4["far"], 7100) as tcp,
        Talk(own.host, "a", "far", V4["far"], 7101, udp=True) as udp,
        Stream(own, "c", "far", V4["far"], port=6100) as stream,
        own.socket("far", socket.AF_INET, socket.SOCK_DGRAM) as server,
    ):
        assert talks_fast(own, tcp) and is_fast(own, "v-c")
        udp.say()
        before = tcp.seen_from, udp.seen_from, fast.count("FAST")
        server.bind(("", 7102))
        server.settimeout(10)
        for turn in range(4 * ROOM):
            _short_flow(own, server, 10_000 + turn)
            if turn % 200 == 0:
                tcp.say()
                udp.say()
        assert (tcp.seen_from, udp.seen_from) == before[:2]
        assert fast.count("FAST") >= before[2] + 4 * ROOM
        assert int(fast.status(flows=True)["flows"]) <= ROOM
        assert talks_fast(own, tcp)
        stream.stop()
        assert stream.lost() == [] and len(set(stream.there.sources)) == 1


def _short_flow(lab: FastLab, server: socket.socket, port: int) -> None:
    """Question, answer, question, answer: the second of each on the fast path."""
    with lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("", port))
        client.settimeout(10)
        for _ in range(2):
            client.sendto(b"%d" % port, (V4["far"], 7102))
            data, source = server.recvfrom(100)
            assert data == b"%d" % port
            server.sendto(data, source)
            assert client.recv(100) == data


@pytest.mark.parametrize("family", [4, 6])
def test_a_port_is_used_again_while_the_old_connection_lingers(lab: FastLab, family: int) -> None:
    """Late FIN and ACK, forgotten entries, the same ports once more: always translated, fast in the end."""
    wire = Wire(lab)
    talk = Conversation(wire, WAYS["translated"], family, TCP, 5900 + family)
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
    own = HOST4 if family == 4 else HOST6
    layer = IP if family == 4 else IPv6
    heard = [Ether(each.frame) for _, step in talk.log for each in step if each.end == "far"]
    assert {frame[layer].src for frame in heard} == {own}
    assert lab.leaked() == []


def test_one_port_of_two_containers(lab: FastLab) -> None:
    """Both use one source port to one destination, over both paths: no port is given twice."""
    assert lab.fast is not None
    lab.fast.ask("capture", address=V4["b"])
    seen = []
    with lab.socket("far", socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", 7200))
        server.settimeout(10)
        clients = [lab.socket(end, socket.AF_INET, socket.SOCK_DGRAM) for end in ("a", "b", "c")]
        for client in clients:
            client.bind(("", 4500))
            client.settimeout(10)
        before = lab.fast.count("FAST", "v-a"), lab.fast.count("FAST", "v-b")
        for turn in range(20):
            for place, client in enumerate(clients):
                client.sendto(b"%d %d" % (place, turn), (V4["far"], 7200))
                data, source = server.recvfrom(100)
                seen.append((place, source))
                server.sendto(data, source)
                assert client.recv(100) == b"%d %d" % (place, turn)
        for client in clients:
            client.close()
    lab.fast.ask("release", address=V4["b"])
    assert len(set(seen)) == 3 and len({source for _, source in seen}) == 3
    assert lab.fast.count("FAST", "v-a") > before[0] and lab.fast.count("FAST", "v-b") == before[1]


def _transfer(here: socket.socket, there: socket.socket, size: int) -> bool:
    """Whether that many bytes get from one socket to the other."""
    data = bytes(range(256)) * (size // 256)
    here.setblocking(False)
    there.settimeout(10)
    sent, got = 0, b""
    deadline = time.monotonic() + 20
    while len(got) < len(data) and time.monotonic() < deadline:
        with suppress(BlockingIOError):
            sent += here.send(data[sent : sent + 65536])
        got += there.recv(1 << 20)
    here.settimeout(10)
    return got == data


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("published", [False, True], ids=["out", "published"])
def test_a_router_with_a_smaller_mtu_on_the_path(lab: FastLab, family: int, published: bool) -> None:
    """Its "too big" reaches the container that sends, translated: it goes on with smaller packets."""
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
    """The path MTU that the socket has learned."""
    level, option = (socket.IPPROTO_IP, 14) if family == 4 else (socket.IPPROTO_IPV6, 24)
    return sock.getsockopt(level, option)


def test_large_pings_and_one_source_port_for_every_size(lab: FastLab) -> None:
    assert "1 received" in lab.run(f"ping -c1 -W5 -s 1800 {V4['far']}", inside="a")
    assert "1 received" in lab.run(f"ping -c1 -W5 -s 1800 {V6['far']}", inside="a")
    assert lab.fast is not None
    before = lab.fast.count("FAST", "v-a")
    seen = set()
    with (
        lab.socket("far", socket.AF_INET, socket.SOCK_DGRAM) as server,
        lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("", 7400))
        client.connect((V4["far"], 7400))
        client.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: fragments are made
        client.settimeout(10)
        server.settimeout(10)
        for size in (100, 4096, 100, 100, 9000, 100) * 5:
            client.send(b"f" * size)
            data, source = server.recvfrom(10_000)
            assert data == b"f" * size
            seen.add(source)
            server.sendto(data, source)
            assert client.recv(10_000) == data
    assert len(seen) == 1
    assert lab.fast.count("FAST", "v-a") > before and lab.fast.count("FRAGMENT", "v-a") > 0


@pytest.mark.parametrize("state", ["off", "on"])
def test_checksums_on_the_wire_are_right(lab: FastLab, state: str) -> None:
    """Whoever computes them: with transmit offload off and on at all links."""
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
    """Whether the transport checksum (or IPv4's) is not what scapy computes anew."""
    packet = Ether(frame)
    anew = Ether(frame)
    ip = anew.getlayer(IP) or anew[IPv6]
    if IP in anew:
        del ip.chksum
    for kind in (TCP, UDP):
        if kind in anew:
            del anew[kind].chksum
    return bytes(Ether(bytes(anew)))[: len(frame)] != bytes(packet)


def test_a_route_changes_under_a_running_flow(lab: FastLab) -> None:
    """To the other uplink and back, by a route and by a rule: packets leave there, from its address."""
    changes = (
        ("route add 198.51.100.0/24 via 203.0.113.2", "route del 198.51.100.0/24 via 203.0.113.2"),
        (
            "rule add from 172.17.0.2 table 77\nroute add default via 203.0.113.2 table 77",
            "rule del from 172.17.0.2 table 77",
        ),
    )  # fmt: skip
    for there, back in changes:
        with Stream(lab, "a", "far", V4["far"], port=6200) as stream:
            assert is_fast(lab, "v-a", "up0")
            for lines, source in ((there, SECOND4), (back, HOST4)):
                lab.ip("host", lines + "\n")
                assert eventually(lambda source=source: stream.there.sources[-1][0] == source), (
                    stream.there.sources
                )
                assert stream.flows()
                assert is_fast(lab, "v-a", "up1" if source == SECOND4 else "up0")
        lab.run("conntrack -D -p udp --dport 6200", check=False)
    lab.ip("host", "route flush table 77\n")


def test_a_routes_mtu_counts_under_a_running_flow(lab: FastLab) -> None:
    """The host tells the container, as it does without us."""
    with (
        lab.socket("far", socket.AF_INET, socket.SOCK_DGRAM) as server,
        lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("", 7800))
        server.settimeout(10)
        client.connect((V4["far"], 7800))
        client.settimeout(10)
        client.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_PMTUDISC_DO
        for _ in range(10):
            client.send(b"m" * 1400)
            data, source = server.recvfrom(2000)
            server.sendto(data, source)
            client.recv(2000)
        assert lab.fast is not None and lab.fast.count("FAST", "v-a") > 0
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


def test_what_is_captured_shows_on_the_bridge(lab: FastLab) -> None:
    """A redirected packet does not; one of a captured address does."""
    assert lab.fast is not None
    with (
        lab.socket("host", socket.AF_PACKET, socket.SOCK_RAW) as tap,
        Stream(lab, "a", "far", V4["far"], port=6300) as stream,
    ):
        tap.bind(("docker0", 3))
        tap.setblocking(False)
        assert is_fast(lab, "v-a") and stream.flows()
        lab.fast.ask("capture", address=V4["a"])
        assert eventually(lambda: lab.fast is not None and lab.fast.count("CAPTURED") > 0)
        _drain(tap)
        assert stream.flows(30)
        assert _drain(tap) >= 30
        lab.fast.ask("release", address=V4["a"])
        assert is_fast(lab, "v-a")
        _drain(tap)
        assert stream.flows(30)
        assert _drain(tap) < 30
        stream.stop()
        assert stream.lost() == []


def _drain(tap: socket.socket) -> int:
    """How many UDP frames of the stream the tap has heard."""
    count = 0
    while True:
        try:
            frame = tap.recv(2000)
        except BlockingIOError:
            return count
        count += UDP in (packet := Ether(frame)) and 6300 in (packet[UDP].sport, packet[UDP].dport)
