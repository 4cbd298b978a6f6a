"""The memory of a flow is reused while a packet is forwarded by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from scapy.packet import Packet

from bpf import layout, syscall
from tests.datapath.rig import (
    ROUTER,
    SERVER,
    TO_KERNEL,
    Rig,
    changed,
    flow_key,
    plain,
    tag_of,
    write_all,
)
from tests.support.waiting import repeating

pytestmark = pytest.mark.root

ROUNDS = 20_000
PACKETS = 200  # a round


@pytest.mark.parametrize("name", ["bridged", "routed", "translated"])
@pytest.mark.parametrize("l4", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_flow_with_another_key_forwards_nothing(rig: Rig, family: int, l4: str, name: str) -> None:
    packet = plain(l4, family)
    routed = {} if name == "bridged" else {"eth_src": SERVER, "eth_dst": ROUTER, "hops": 63}
    new = changed(packet, **routed, **({"sport": 61000} if name == "translated" else {}))
    rig.flow(packet, "p1", new, tag=int(tag_of(flow_key(plain(l4, family, sport=40001)))[0]))
    outcome = rig.run(packet, "p1")
    assert (outcome.verdict, outcome.result, outcome.packet) == ("CACHE_FULL", TO_KERNEL, bytes(packet))


@pytest.mark.parametrize("family", [4, 6])
def test_a_cache_that_overflows_gives_no_packet_to_another_flow(rig: Rig, family: int) -> None:
    """A packet keeps its MAC address, so that a round may repeat it.

    The flows that overwrite its flow have another one.
    """
    packet = plain("udp", family, hops=255)
    others = changed(packet, eth_src=SERVER, eth_dst=ROUTER)
    given, context = bytes(packet), rig.context("p1")
    with overflowing(rig, packet, others):
        for _ in range(ROUNDS):
            assert syscall.test_run(rig.loaded.program, given, PACKETS, context).packet[:12] == given[:12]


@contextmanager
def overflowing(rig: Rig, packet: Packet, others: Packet) -> Iterator[None]:
    """Write a packet's flow and many flows of `others` to the cache repeatedly."""
    there = rig.loaded.maps["flows6" if packet.type == 0x86DD else "flows4"]
    rows = []
    for new in (others, packet):
        rig.flow(packet, "p1", new, rewrite=layout.REWRITE_L3)
        rows.append(rig.flow_of(packet))
    many = np.repeat(flow_key(packet), 5000)
    many["sport"] = np.arange(len(many))
    many[::5] = flow_key(packet)[0]
    flows = np.array([rows[number % 5 == 0] for number in range(len(many))], layout.FLOW)
    flows["tag"] = tag_of(many)
    with repeating(lambda: write_all(there, many, flows)):
        yield
