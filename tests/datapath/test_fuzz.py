"""Mutated packets of a fixed seed.

Only packets that a plain parser calls well-formed, and that have a flow, are forwarded or changed. `make
fuzz` runs a million of them; every other run the first tenth.
"""

from __future__ import annotations

import ctypes
import os
import random
import struct

import pytest

from bpf import layout, syscall
from bpf.layout import VERDICTS
from tests.datapath.rig import CLIENT, REDIRECT, ROUTER, SERVER, TO_KERNEL, Rig, changed, flow_key, plain

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

PACKETS = int(os.environ.get("VNET_FUZZ") or 100_000)
SEED = 20_240_611
_ROOM = 2048
# ACK (and URG); what ends a connection that conntrack does not know: FIN and ACK (and URG), RST (and ACK).
_FLAGS = {0x10, 0x30, 0x11, 0x31, 0x04, 0x14}


class Runner:
    """Call BPF_PROG_TEST_RUN with buffers that are allocated once."""

    def __init__(self, program: int, ifindex: int) -> None:
        self._given = (ctypes.c_char * _ROOM)()
        self._out = (ctypes.c_char * _ROOM)()
        self._context = (ctypes.c_char * 192)()
        struct.pack_into("=I", self._context, 40, ifindex)
        self._attributes = bytearray(
            struct.pack(
                "<IIIIQQIIIIQQIII4x", program, 0, 0, _ROOM, ctypes.addressof(self._given),
                ctypes.addressof(self._out), 1, 0, 192, 0, ctypes.addressof(self._context), 0, 0, 0, 0,
            )
        )  # fmt: skip

    def run(self, packet: bytes) -> tuple[int, bytes]:
        """Return the result and the packet afterwards.

        Raises OSError if the test run itself refuses the packet.
        """
        self._given[: len(packet)] = packet
        struct.pack_into("<III", self._attributes, 4, 0, len(packet), _ROOM)
        syscall.bpf(10, self._attributes)
        result, _, size = struct.unpack_from("<III", self._attributes, 4)
        return result, self._out[:size]


def well_formed(packet: bytes) -> tuple[bytes, ...] | None:
    """Return the tuple of a plain TCP or UDP packet, None for all others.

    Written from the RFCs, not from the program.
    """
    kind, net = packet[12:14], packet[14:]
    if packet[0] & 1:
        return None
    if kind == b"\x08\x00":
        if len(net) < 20 or net[0] != 0x45 or net[6] & 0x3F or net[7]:
            return None
        if sum(struct.unpack(">10H", net[:20])) % 0xFFFF:
            return None
        length, proto, addresses, l4 = int.from_bytes(net[2:4]), net[9], net[12:20], net[20:]
        if not 20 <= length <= len(net):
            return None
        left = length - 20
    elif kind == b"\x86\xdd":
        if len(net) < 40 or net[0] >> 4 != 6:
            return None
        left, proto, addresses, l4 = int.from_bytes(net[4:6]), net[6], net[8:40], net[40:]
        if left > len(net) - 40:
            return None
    else:
        return None
    if proto == 6:
        flags = l4[13] if len(l4) >= 20 else 0
        if len(l4) < 20 or not 20 <= (l4[12] >> 4) * 4 <= left or flags & 0x37 not in _FLAGS:
            return None
    elif proto == 17:
        if len(l4) < 8 or not 8 <= int.from_bytes(l4[4:6]) <= left:
            return None
    else:
        return None
    return addresses, l4[:4], bytes([proto])


def mutated(dice: random.Random, templates: list[bytes]) -> bytes:
    """Return a template with a few bytes changed, cut or added; or noise."""
    packet = bytearray(dice.choice(templates))
    kind = dice.random()
    if kind < 0.05:
        return bytes(packet[:12]) + dice.randbytes(dice.randrange(42, 200))
    if kind < 0.2:
        return bytes(packet[: dice.randrange(34, len(packet))])
    for _ in range(dice.choice((0, 1, 1, 2, 3, 8))):
        packet[dice.randrange(len(packet))] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
    if kind < 0.3:
        packet += dice.randbytes(dice.randrange(1, 40))
    return bytes(packet)


def rest(packet: bytes) -> bytes:
    """Return what no translation may change.

    That is everything without MAC and IP addresses, hop count, checksums and ports.
    """
    if packet[12:14] == b"\x08\x00":
        head, l4, proto = packet[12:22] + packet[23:24], packet[34:], packet[23]
    else:
        head, l4, proto = packet[12:21], packet[54:], packet[20]
    return head + (l4[4:16] + l4[18:] if proto == 6 else l4[4:6] + l4[8:])


def test_mutated_packets(rig: Rig) -> None:
    templates = []
    known = {}
    flows = []
    for family in (4, 6):
        for l4 in ("tcp", "udp"):
            packet = plain(l4, family)
            src = "198.51.100.7" if family == 4 else "2001:db8:7::7"
            target = changed(packet, src=src, sport=61000, eth_src=SERVER, eth_dst=ROUTER, hops=63)
            rig.flow(packet, "p1", target)
            templates.append(bytes(packet))
            there, key = rig.loaded.maps[f"flows{family}"], flow_key(packet).tobytes()
            flows.append((there, key, syscall.lookup(there, key, layout.FLOW.itemsize) or b""))
            known[well_formed(bytes(packet))] = bytes(packet)[:12]
    # Packets without a flow go on to conntrack, which has no entry either.
    rig.port("p1", layout.LINK_BRIDGED | layout.LINK_CONTAINER | layout.LINK_IPTABLES, "b0")
    for address in ("10.1.0.2", "fd00:1::2"):
        rig.owner("p1", address, CLIENT)
    dice = random.Random(SEED)
    runner = Runner(rig.loaded.program, rig.links["p1"])
    forwarded = refused = 0
    for number in range(PACKETS):
        packet = mutated(dice, templates)
        if number % 10 == 0:  # an apparent end, or another link, makes the flow ask conntrack again
            for flow in flows:
                syscall.update(*flow)
        try:
            result, after = runner.run(packet)
        except OSError:
            refused += 1
            continue
        if result == TO_KERNEL:
            assert after == packet, (number, packet.hex())
            continue
        forwarded += 1
        assert result == REDIRECT, number
        ends = well_formed(packet)
        assert ends in known, (number, packet.hex())
        assert packet[:12] == known[ends], (number, packet.hex())
        assert rest(after) == rest(packet)[: len(rest(after))], (number, packet.hex())
    assert forwarded > number / 50, "the templates reach the flows"
    assert refused < number / 10
    counted = dict(zip((verdict.name for verdict in VERDICTS), rig.counted(), strict=False))
    assert counted["NO_CONNTRACK"] and counted["SOURCE"] and counted["NO_DATA"]
