"""Guessed ends of connections, and peers that disappear: as in conntrack alone."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import ExitStack, closing

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from bpf import connections
from tests.kernel.fastlab import HOST4, MACS, PUBLISHED, V4, FastLab
from tests.kernel.streams import talks_fast
from tests.support.fastpath import Talk
from tests.support.waiting import eventually

pytestmark = pytest.mark.root
_LONG = 100_000  # seconds: what is left of nf_conntrack_tcp_timeout_established
_GONE = "table ip gone { chain in { type filter hook input priority 0; policy drop; }; }\n"


def left(lab: FastLab, port: int) -> list[int]:
    """Return the remaining seconds of the connections to a port in conntrack."""
    return [int(line.split()[2]) for line in lab.conntrack(f"dport={port}", "ESTABLISHED")]


def last_number(lab: FastLab, talk: Talk, inside: str, sport: int) -> int:
    """Return the sequence number after everything that this end has sent."""
    with closing(lab.socket(inside, socket.AF_PACKET, socket.SOCK_RAW, 0)) as raw:
        raw.bind(("eth0", 3))
        talk.say(3)
        raw.setblocking(False)
        number = -1
        while True:
            try:
                frame = Ether(raw.recv(2000))
            except BlockingIOError:
                break
            if TCP in frame and frame[TCP].sport == sport:
                number = frame[TCP].seq + len(frame[TCP].payload)
    assert number >= 0
    return number


@pytest.mark.parametrize("flags", ["R", "RA", "FA"])
@pytest.mark.parametrize("away", [2**31, 50_000_000, -50_000_000])
@pytest.mark.parametrize("by", ["outside", "a neighbour"])
def test_a_guessed_fin_or_reset_does_not_end_a_connection(
    lab: FastLab, by: str, away: int, flags: str
) -> None:
    """The attacker knows only addresses and ports.

    It sends from outside to a published port, and from another container with the address of the
    connection's container.
    """
    if by == "outside":
        talk = Talk(lab.host, "far", "a", HOST4, 80, to=PUBLISHED)
        way, here, port = ("far", "up0"), "far", talk.client.getsockname()[1]
        ether = Ether(src=MACS["far"], dst=MACS["router"])
        packet = IP(src=V4["far"], dst=HOST4) / TCP(sport=port, dport=PUBLISHED, flags=flags)
        known = PUBLISHED
    else:
        talk = Talk(lab.host, "a", "far", V4["far"])
        way, here, port = ("b", "v-b"), "a", talk.client.getsockname()[1]
        ether = Ether(src=MACS["b"], dst=MACS["docker0"])
        packet = IP(src=V4["a"], dst=V4["far"]) / TCP(sport=port, dport=7000, flags=flags)
        known = 7000
    with talk:
        assert talks_fast(lab, talk, "v-a", "up0")
        packet[TCP].seq = (last_number(lab, talk, here, port) + away) % 2**32
        packet[TCP].ack = 1 if "A" in flags else 0
        with closing(lab.socket(way[0], socket.AF_PACKET, socket.SOCK_RAW, 0)) as raw:
            raw.bind(("eth0", 0))
            for _ in range(3):
                raw.send(bytes(ether / packet))
        # Packets sent after them by the same link have passed: so have they.
        lab.run(f"ping -c1 -W20 {HOST4 if by == 'outside' else V4['far']}", inside=way[0])
        # Unacknowledged data has a shorter timeout.
        assert eventually(lambda: [seconds > _LONG for seconds in left(lab, known)] == [True])
        talk.server.sendall(b"pushed")
        assert talk.client.recv(100) == b"pushed"
    lab.leaked()  # invalid packets are forwarded untranslated


# Flags, and how far from the number that the other side expects.
GUESSED = (("R", -50_000_000), ("R", -1000), ("R", 1), ("R", 1000), ("R", 500_000), ("RF", 0), ("RU", 0))


def test_a_guessed_reset_has_no_later_effect(lab: FastLab) -> None:
    """After an exact RST and silence the entry is expired.

    Not after a guessed one, even inside the window, nor after one with invalid flags.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(closing(lab.socket("far", socket.AF_PACKET, socket.SOCK_RAW, 0)))
        raw.bind(("eth0", 0))
        talks, guesses = {}, []
        for port, (flags, away) in enumerate(GUESSED, 7100):
            talk = stack.enter_context(Talk(lab.host, "a", "far", V4["far"], port))
            assert talks_fast(lab, talk, "v-a", "up0")
            guessed = IP(src=V4["far"], dst=HOST4) / TCP(sport=port, dport=talk.seen_from[1], flags=flags)
            guessed[TCP].seq = (last_number(lab, talk, "far", port) + away) % 2**32
            guesses.append(bytes(Ether(src=MACS["far"], dst=MACS["router"]) / guessed))
            talks[port] = talk
        time.sleep(0.5)  # a delayed acknowledgement would renew an entry's timer
        for _ in range(2):
            for guess in guesses:
                raw.send(guess)
            time.sleep(connections.EXPIRE_AFTER + 1)
        for port, guessed_as in enumerate(GUESSED, 7100):
            assert len(left(lab, port)) == 1, guessed_as
        for talk in talks.values():
            talk.say(5)
    lab.leaked()


@pytest.mark.parametrize("acknowledged", [True, False])
def test_an_exact_reset_ends_a_connection(lab: FastLab, acknowledged: bool) -> None:
    """Also directly after data that the other side had no time to acknowledge."""
    with Talk(lab.host, "a", "far", V4["far"]) as talk:
        assert talks_fast(lab, talk, "v-a", "up0")
        if not acknowledged:
            lab.run_with("nft -f -", _GONE, "far")
            talk.client.send(b"by the way")
        talk.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        talk.client.close()
        assert eventually(lambda: not left(lab, 7000))


def test_the_entry_of_a_vanished_peer_expires_soon(lab: FastLab) -> None:
    """Unacknowledged data keeps the entry for five minutes, not five days."""
    with Talk(lab.host, "a", "far", V4["far"]) as talk:
        assert talks_fast(lab, talk, "v-a", "up0")
        assert eventually(lambda: [seconds > _LONG for seconds in left(lab, 7000)] == [True])
        lab.run_with("nft -f -", _GONE, "far")
        talk.client.send(b"is anybody there?")
        assert eventually(lambda: [seconds <= 300 for seconds in left(lab, 7000)] == [True])
