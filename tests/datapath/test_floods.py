"""A container that floods the program takes no memory from others."""

from __future__ import annotations

import numpy as np
import pytest
from scapy.packet import Packet

from bpf import layout, syscall
from tests.datapath.rig import CLIENT, GATEWAY, SERVER, Rig, plain

pytestmark = pytest.mark.root

BOTH = pytest.mark.parametrize("family", [4, 6])
CONTAINER = layout.LINK_BRIDGED | layout.LINK_CONTAINER
UNTRACKED = CONTAINER | layout.LINK_L2
MANY = 3000
MOST = 1024  # BEGIN_MOST of bpf/program/fastpath.c
OWN = {4: ("10.1.0.2", "10.1.0.3"), 6: ("fd00:1::2", "fd00:1::3")}
KEYS = {4: ("flows4", layout.KEY4), 6: ("flows6", layout.KEY6)}


@pytest.fixture
def floods(rig: Rig) -> Rig:
    """Two containers on b0: the client on p1, the server on p2."""
    for slot, (port, mac) in enumerate((("p1", CLIENT), ("p2", SERVER)), 1):
        rig.port(port, CONTAINER, "b0", slot=slot)
        rig.behind("b0", mac, port)
        for addresses in OWN.values():
            rig.owner(port, addresses[slot - 1], mac)
    return rig


def flows(rig: Rig, family: int) -> int:
    """Return the number of flows in the cache."""
    name, key = KEYS[family]
    return len(syscall.keys(rig.loaded.maps[name], key.itemsize))


def young(rig: Rig) -> np.ndarray:
    """Return the table of connections that sent one packet."""
    size = layout.YOUNG.itemsize
    rows = (
        syscall.lookup(rig.loaded.maps["young"], index.to_bytes(4, "little"), size) or bytes(size)
        for index in range(layout.YOUNG_ENTRIES)
    )
    return np.frombuffer(b"".join(rows), layout.YOUNG)


def send(rig: Rig, packet: Packet, port: str, count: int = MANY) -> dict[str, int]:
    """Send a packet from each of so many source ports; return the verdicts."""
    found: dict[str, int] = {}
    for number in range(count):
        packet.payload.payload.sport = 1024 + number
        if packet.payload.version == 4:
            del packet.payload.chksum
        verdict = rig.run(packet, port).verdict
        found[verdict] = found.get(verdict, 0) + 1
    return found


@BOTH
@pytest.mark.parametrize("flags", [CONTAINER, UNTRACKED])
def test_spoofed_sources_are_not_stored(floods: Rig, family: int, flags: int) -> None:
    floods.port("p1", flags, "b0", slot=1)
    before = young(floods)
    spoofed = plain("tcp", family, src=OWN[family][1], dst="192.0.2.9" if family == 4 else "2001:db8::9")
    assert send(floods, spoofed, "p1", 200) == {"SOURCE": 200}
    floods.capture(OWN[family][1])
    assert send(floods, spoofed, "p1", 200) == {"SOURCE": 200}
    assert flows(floods, family) == 0
    assert (young(floods) == before).all()


@BOTH
def test_captured_packets_need_no_memory(floods: Rig, family: int) -> None:
    floods.capture(OWN[family][0])
    packet = plain("udp", family, src=OWN[family][0])
    assert send(floods, packet, "p1", 200) == {"CAPTURED": 200}
    assert flows(floods, family) == 0


@BOTH
def test_uncounted_new_flows_are_limited_per_link(floods: Rig, family: int) -> None:
    for slot, port in enumerate(("p1", "p2"), 1):
        floods.port(port, UNTRACKED, "b0", slot=slot)
    there = plain("udp", family, src=OWN[family][0], dst="198.18.0.1" if family == 4 else "2001:2::1",
                  eth_dst=SERVER)  # fmt: skip
    assert send(floods, there, "p1") == {"FAST": MOST, "CACHE_FULL": MANY - MOST}
    answer = plain("udp", family, src=OWN[family][1], dst=OWN[family][0], eth_src=SERVER, eth_dst=CLIENT)
    assert floods.run(answer, "p2").verdict == "FAST", "another container has a count of its own"
    floods.configure(recheck=1)
    assert floods.run_after_a_jiffy(there, "p1").verdict == "FAST", "a while later"


@BOTH
def test_other_connections_become_known_during_a_flood(floods: Rig, family: int) -> None:
    """Only the first packet with data of a TCP connection is noted.

    Conntrack is asked about the second, however many others a container begins between the two.
    """
    mine = plain("tcp", family, src=OWN[family][1], eth_src=SERVER, eth_dst=GATEWAY)
    assert floods.run(mine, "p2").verdict == "YOUNG"
    packet = plain("tcp", family, src=OWN[family][0])
    assert send(floods, packet, "p1") == {"YOUNG": MANY}
    assert floods.run_after_a_jiffy(mine, "p2").verdict == "NO_CONNTRACK"
