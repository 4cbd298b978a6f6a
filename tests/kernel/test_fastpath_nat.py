"""Requirements for NATs (RFC 4787, 5382, 5508, 7857), on both paths."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from scapy.layers.inet import TCP

from tests.kernel.fastlab import HOST4, HOST6, PUBLISHED, V4, V6, FastLab
from tests.kernel.streams import FAMILIES, Stream, is_fast, talks_fast
from tests.kernel.wire import CLIENT, SERVER, TRAFFIC_PATHS, Conversation, Wire
from tests.support.fastpath import Talk
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.root
_RECVERR = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
_HOPS = {4: (socket.IPPROTO_IP, socket.IP_TTL), 6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)}
_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_MTU = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}
_CLOSING = 120  # seconds that conntrack keeps what is closing, at most
_UNACKNOWLEDGED = 300  # seconds that it keeps what waits for an acknowledgement, at most


@pytest.fixture(scope="module", params=["kernel", "fast"])
def lab(request: pytest.FixtureRequest) -> Iterator[FastLab]:
    """Run without and with the fast path; no private address may leave by an uplink."""
    with FastLab() as made:
        if request.param == "fast":
            made.accelerate()
        yield made


def timer_of(lab: FastLab, *words: str) -> int:
    """Return the remaining seconds of the one entry with these words, or 0."""
    found = lab.conntrack(*words)
    assert len(found) <= 1, found
    return int(found[0].split()[2]) if found else 0


def test_established_connections_keep_for_days_and_streams_for_two_minutes(lab: FastLab) -> None:
    with (
        Talk(lab.host, "a", "far", V4["far"], 7010) as tcp,
        Stream(lab, "a", "far", V4["far"], port=6010) as udp,
    ):
        assert talks_fast(lab, tcp) and udp.flows() and is_fast(lab, "v-a")
        assert timer_of(lab, "tcp", "ESTABLISHED", "dport=7010") > 7440
        assert eventually(lambda: timer_of(lab, "udp", "dport=6010", "[ASSURED]") >= 115)
        lab.run("ping -c1 -W20 198.51.100.2", inside="b")
        kept = int(lab.run("sysctl -n net.netfilter.nf_conntrack_icmp_timeout"))
        assert 0 < timer_of(lab, "icmp", f"src={V4['b']}") <= kept


@pytest.mark.parametrize("outbound", [True, False], ids=["outbound", "inbound"])
def test_traffic_on_the_fast_path_refreshes_the_mapping(lab: FastLab, outbound: bool) -> None:
    with Stream(lab, "a", "far", V4["far"], port=6020) as udp:
        assert udp.flows() and is_fast(lab, "v-a")
        assert eventually(lambda: lab.conntrack("udp", "dport=6020", "[ASSURED]"))
        udp.stop()
        lab.run("conntrack -U -p udp --dport 6020 -t 20")
        assert timer_of(lab, "udp", "dport=6020", "[ASSURED]") <= 20
        before = lab.counted("v-a" if outbound else "up0")

        def renewed() -> bool:
            if outbound:
                udp.client.sendto(b"again" * 10, (V4["far"], 6020))
            else:
                udp.server.sendto(b"again" * 10, udp.there.sources[-1])
            return timer_of(lab, "udp", "dport=6020", "[ASSURED]") > 100

        assert eventually(lambda: renewed() and lab.took_fast("v-a" if outbound else "up0", since=before))
    lab.run("conntrack -D -p udp --dport 6020", check=False)


@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("who", ["a", "b", "c", "far"])
def test_hairpin_and_published_ports(lab: FastLab, who: str, family: int, udp: bool) -> None:
    """The published address works from everywhere, with the same client address."""
    own = HOST4 if family == 4 else HOST6
    with Talk(lab.host, who, "a", own, 80, udp=udp, to=PUBLISHED, family=FAMILIES[family]) as talk:
        talk.say(3)
        assert who == "a" or talks_fast(lab, talk)
        expected = (V4 if family == 4 else V6)[who]
        if who in ("a", "c"):
            expected = "172.17.0.1" if family == 4 else "fd17::1"
        assert talk.seen_from[0].removeprefix("::ffff:") == expected


def _refused(sock: socket.socket) -> bool:
    try:
        sock.send(b"anybody?")
        sock.settimeout(0.3)
        sock.recv(100)
    except OSError as error:
        return error.errno == errno.ECONNREFUSED
    return False


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("published", [False, True], ids=["from outside", "from inside"])
def test_icmp_errors_are_translated_and_end_no_connection(lab: FastLab, published: bool, family: int) -> None:
    own, known = (HOST4, V4) if family == 4 else (HOST6, V6)
    if published:
        here, there, target, port = "far", "a", (own, PUBLISHED), 80
    else:
        here, there, target, port = "a", "far", (known["far"], 7030), 7030
    with ExitStack() as stack:
        client = stack.enter_context(lab.socket(here, FAMILIES[family], socket.SOCK_DGRAM))
        client.connect(target)
        seen = []
        for _ in range(3):
            with lab.socket(there, FAMILIES[family], socket.SOCK_DGRAM) as server:
                server.bind(("", port))
                server.settimeout(PATIENCE)
                client.settimeout(PATIENCE)
                before = lab.counted("up0")
                for turn in range(10):
                    client.send(b"%d" % turn)
                    data, source = server.recvfrom(100)
                    seen.append(source)
                    server.sendto(data, source)
                    assert client.recv(100) == b"%d" % turn
                assert lab.took_fast("up0", since=before)
            assert eventually(lambda: _refused(client))
            assert len(lab.conntrack("udp", f"dport={target[1]}", f"sport={client.getsockname()[1]}")) == 1
        assert len(set(seen)) == 1


@pytest.mark.parametrize("family", [4, 6])
def test_traceroute_through_the_nat(lab: FastLab, family: int) -> None:
    """With a small TTL each router answers the container of an accelerated flow."""
    known = V4 if family == 4 else V6
    expected = ("172.17.0.1", "192.0.2.2") if family == 4 else ("fd17::1", "2001:db8::2")
    with Talk(lab.host, "a", "far", known["far"], 7040 + family, udp=True, family=FAMILIES[family]) as talk:
        assert talks_fast(lab, talk)
        talk.client.setsockopt(*_RECVERR[family], 1)
        for hops, offender in enumerate(expected, 1):
            talk.client.setsockopt(*_HOPS[family], hops)
            talk.client.send(b"how far")
            assert eventually(lambda: _offender(talk.client, family)) == offender
        talk.client.setsockopt(*_HOPS[family], 3)
        talk.client.send(b"as far as that")
        assert talk.server.recv(100) == b"as far as that"
        talk.client.setsockopt(*_HOPS[family], 64)
        assert lab.fast is None or lab.counted("v-a", "TTL") > 0
        assert talks_fast(lab, talk)


def _offender(sock: socket.socket, family: int) -> str:
    """Return who sent the ICMP error on the socket's error queue (sock_extended_err)."""
    try:
        _, ancillary, _, _ = sock.recvmsg(100, 500, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        return ""
    data = next(data for level, kind, data in ancillary if (level, kind) == _RECVERR[family])
    number, _, _, _ = struct.unpack_from("=IBBB", data)
    assert number == errno.EHOSTUNREACH
    octets = data[20:24] if family == 4 else data[24:40]
    return socket.inet_ntop(FAMILIES[family], octets)


@pytest.mark.parametrize("family", [4, 6])
def test_too_big_for_the_uplink_is_reported_to_the_container(lab: FastLab, family: int) -> None:
    known = (V4 if family == 4 else V6)["far"]
    with Talk(lab.host, "a", "far", known, 7050 + family, udp=True, family=FAMILIES[family]) as talk:
        assert talks_fast(lab, talk)
        lab.run("ip link set up0 mtu 1300")
        talk.client.setsockopt(*_DISCOVER[family], 2)  # IP_PMTUDISC_DO

        def refused() -> bool:
            try:
                talk.client.send(b"m" * 1400)
            except OSError as error:
                return error.errno == errno.EMSGSIZE
            return False

        assert eventually(refused)
        assert talk.client.getsockopt(*_MTU[family]) == 1300
        while talk.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            pass
        talk.forget()  # forwarded before the event of the MTU
        assert talks_fast(lab, talk)
        lab.run("ip link set up0 mtu 1500")
    lab.run(f"ip -{family} route flush cache", inside="a")


def test_fin_and_reset_end_connections_completely(lab: FastLab) -> None:
    for turn in range(60):
        with Talk(lab.host, "a", "far", V4["far"], 7060) as talk:
            talk.say(3)
            assert talk.seen_from[0] == HOST4
            if turn % 3:
                side = talk.client if turn % 3 == 1 else talk.server
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                side.close()
    assert lab.took_fast("v-a", 60)

    def longest() -> int:
        return max((int(line.split()[2]) for line in lab.conntrack("tcp", "dport=7060")), default=0)

    assert eventually(lambda: longest() <= _CLOSING), "an entry stays as if its connection were open"
    assert lab.leaked() == []


def test_late_packets_after_a_reset_do_not_reopen_the_entry(lab: FastLab) -> None:
    """Late data after the other side's reset: conntrack soon expires the entry."""
    wire = Wire(lab)
    for side in (CLIENT, SERVER):
        talk = Conversation(wire, TRAFFIC_PATHS["translated"], 4, TCP, 5950 + side)
        talk.open()
        for each in (CLIENT, SERVER):
            talk.data("data", each, b"x" * 100, fast=True)
        talk.step("RST", side, talk.frame(side, flags="RA"))
        # Conntrack can't check a RST after packets that it didn't see: bpf.connections expires the entry
        # later.
        at_most = _UNACKNOWLEDGED if lab.fast else _CLOSING
        assert timer_of(lab, "tcp", f"sport={5950 + side}") <= at_most
        for _ in range(3):
            talk.data("late", 1 - side, b"late")
    wire.close()
    for side in (CLIENT, SERVER):
        assert eventually(lambda port=5950 + side: timer_of(lab, "tcp", f"sport={port}") <= _CLOSING)


def _reached(lab: FastLab, count: int) -> list[int]:
    """Return the ports that the server saw of these clients, asked twice; 0 for none.

    Four ports are available.
    """
    lab.run("iptables -t nat -I POSTROUTING -o up0 -p udp --dport 7070 -j MASQUERADE --to-ports 40000-40003")
    ports = []
    with ExitStack() as stack:
        server = stack.enter_context(lab.socket("far", socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(("", 7070))
        clients = []
        for number in range(count):
            client = stack.enter_context(lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM))
            client.bind(("", 4700 + number))
            client.connect((V4["far"], 7070))
            clients.append(client)
        for _ in range(2):
            ports += [_port_of(client, server) or _port_of(client, server) for client in clients]
    return ports


def _port_of(client: socket.socket, server: socket.socket) -> int:
    """Return the port that the server sees of a client, 0 if nothing arrives."""
    server.settimeout(0.5)
    client.settimeout(PATIENCE)
    question, received = os.urandom(8), b""
    client.send(question)
    try:
        while received != question:
            received, source = server.recvfrom(100)
    except TimeoutError:
        return 0
    server.sendto(question, source)
    assert client.recv(100) == question
    return int(source[1])


def test_all_ports_for_a_destination_are_in_use(lab: FastLab) -> None:
    """The first four clients get a port each and keep it; the others get none."""
    found = _reached(lab, 6)
    lab.run("iptables -t nat -D POSTROUTING 1")
    assert sorted(found[:4]) == [40000, 40001, 40002, 40003] and found[6:10] == found[:4]
    assert found[4:6] == found[10:] == [0, 0]
