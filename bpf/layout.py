"""Define the maps' structures as numpy dtypes, as bpf/include/types.h does in C.

The compiler checks every offset and size against these (`checks`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COUNTERS = 64
# Capacity of the maps: links, addresses of containers, MACs behind bridges.
LINKS, OWNERS, MACS = 4096, 65536, 16384
OWNERS_EACH = 1024  # addresses of one link
WANTED_BYTES = 1 << 16  # the ring buffer

CONFIG = np.dtype(
    [
        ("deadline", "u8"),
        ("recheck", "u8"),
        ("epoch", "u4"),
        ("generation", "u4"),
        ("mark_shift", "u4"),
        ("tcp_timeout", "u4"),
        ("udp_timeout", "u4"),
        ("flags", "u4"),
        ("route_mtu", "u4"),
        ("tcp_unanswered", "u4"),
    ]
)
HAS_CAPTURES, HAS_MULTIPATH, READS_CT_MARKS, KEEP_PRIORITY, ROUTES_BY_PACKET = 1, 2, 4, 8, 16
HAS_TUNNELS = 32

LINK = np.dtype(
    [
        ("l3_ifindex", "u4"),
        ("slot", "u4"),
        ("flags", "u4"),
        ("mac", "u1", (6,)),
        ("mtu", "u2"),
        ("begun", "u4"),
        ("begun_since", "u4"),
    ]
)
LINK_BRIDGED, LINK_CONTAINER, LINK_ISOLATED, LINK_L2, LINK_IPTABLES, LINK_PEER = 1, 2, 4, 8, 16, 32
LINK_OUT, LINK_IN_ONLY, LINK_IP6TABLES, LINK_TUNNEL = 64, 128, 256, 512


def role_of(flags: int) -> str:
    """Return what a link leads to, by its LINK_* flags."""
    return "container" if flags & LINK_CONTAINER else "tunnel" if flags & LINK_TUNNEL else "uplink"


# IPv4 addresses use the first four bytes.
OWNER_KEY = np.dtype([("ifindex", "u4"), ("family", "u4"), ("address", "u1", (16,))])
OWNER = np.dtype([("mac", "u1", (6,)), ("pad", "u1", (2,))])

MAC_KEY = np.dtype([("bridge", "u4"), ("mac", "u1", (6,)), ("pad", "u1", (2,))])
MAC_VALUE = np.dtype([("ifindex", "u4"), ("flags", "u2"), ("mtu", "u2")])
MAC_PEER, MAC_ISOLATED, MAC_TUNNEL = 1, 2, 4


def _key(octets: int) -> list[Any]:
    """Return the fields of a connection, with addresses of that many octets.

    Addresses and ports are in network order.
    """
    return [
        ("src", "u1", (octets,)),
        ("dst", "u1", (octets,)),
        ("sport", ">u2"),
        ("dport", ">u2"),
        ("l4_proto", "u1"),
        ("pad", "u1", (3,)),
    ]


KEY4, KEY6 = np.dtype(_key(4)), np.dtype(_key(16))

# Times are the low 32 bits of jiffies (bpf/clock.py).
FLOW = np.dtype(
    [
        ("tag", "u4"),
        ("last_seen", "u4"),
        ("packets", "u8"),
        ("bytes", "u8"),
        ("checked", "u4"),
        ("acked", "u4"),
        ("epoch", "u2"),
        ("end", "u2"),
        ("in_ifindex", "u4"),
        ("out_ifindex", "u4"),
        ("mtu", "u2"),
        ("action", "u1"),
        ("rewrite", "u1"),  # with ACTION_KERNEL the verdict
        ("eth_in", "u1", (12,)),
        ("slot", "u2"),
        ("generation", "u1"),
        ("mark_is", "u1"),
        ("eth_out", "u1", (12,)),
        ("addr_diff", "u2"),
        ("port_diff", "u2"),
        ("new_sport", ">u2"),
        ("new_dport", ">u2"),
        ("new_src", "u1", (16,)),
        ("new_dst", "u1", (16,)),
        ("ct_mark", "u4"),
        ("agreed", "u4"),
        ("first_seen", "u4"),
    ]
)
LEARNED = np.dtype([("flow", FLOW), ("back", FLOW), ("known", "u4"), ("pad", "u4")])
ACTION_NONE, ACTION_RESET, ACTION_KERNEL, ACTION_PEER, ACTION_REDIRECT, ACTION_TUNNEL = 0, 1, 2, 3, 4, 5
MARK_UNKNOWN, MARK_NOTED, MARK_CLEARED, MARK_SEEN = 0, 1, 2, 3
REWRITE_L3, REWRITE_ADDRESS, REWRITE_PORT, REWRITE_MACS = 1, 2, 4, 8

YOUNG = np.dtype([("tag", "u4"), ("asked", "u4")])
YOUNG_ENTRIES = 8192

# The VNI with the reserved byte behind it, and the UDP port, both in network order.
TUNNEL_KEY = np.dtype([("vni", ">u4"), ("port", ">u2"), ("pad", "u2")])
OUTER = np.dtype(
    [
        ("tag", "u4"),
        ("checked", "u4"),
        ("tunnel", "u4"),
        ("uplink", "u4"),
        ("epoch", "u2"),
        ("size", "u2"),
        ("fragment", "u2"),
        ("generation", "u1"),
        ("tos", "u1"),
        ("ttl", "u1"),
        ("pad", "u1", (7,)),
        ("headers", "u1", (56,)),
    ]
)
INLET = np.dtype(
    [
        ("tag", "u4"),
        ("checked", "u4"),
        ("tunnel", "u4"),
        ("uplink", "u4"),
        ("addresses", "u8"),
        ("ports", "u4"),
        ("vni", "u4"),
        ("epoch", "u2"),
        ("mark", "u2"),
        ("generation", "u1"),
        ("is_accepted", "u1"),
        ("pad", "u1", (2,)),
    ]
)
TUNNELS, OUTERS = 1024, 16384

# A record of the ring buffer `wanted`.
WANT = np.dtype([("what", "u4"), ("family", "u4"), *_key(16)])
WANT_LIBERAL, WANT_RULES, WANT_CLOSE, WANT_RENEW = 1, 2, 3, 4

SLOT_COUNTERS = np.dtype([("packets", "u8", (COUNTERS,))])

_STRUCTURES = {
    "config": CONFIG,
    "link": LINK,
    "owner_key": OWNER_KEY,
    "mac_key": MAC_KEY,
    "mac_value": MAC_VALUE,
    "key4": KEY4,
    "key6": KEY6,
    "flow": FLOW,
    "learned": LEARNED,
    "tunnel_key": TUNNEL_KEY,
    "outer": OUTER,
    "inlet": INLET,
    "want": WANT,
    "young": YOUNG,
    "slot_counters": SLOT_COUNTERS,
}


def checks() -> str:
    """Return C declarations that compile only if types.h and this module agree."""
    return "\n".join(_checks())


def _checks() -> Iterator[str]:
    for name, dtype in _STRUCTURES.items():
        yield f'_Static_assert(sizeof(struct {name}) == {dtype.itemsize}, "{name}");'
        for field, (_, offset, *_) in (dtype.fields or {}).items():
            yield f'_Static_assert(__builtin_offsetof(struct {name}, {field}) == {offset}, "{name}.{field}");'


_LINE = re.compile(r'^VERDICT\((\w+), "(.*)"\)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Describe a verdict: number in the counters, name, and text for users."""

    number: int
    name: str
    words: str


def _read() -> tuple[Verdict, ...]:
    text = (Path(__file__).parent / "verdicts.h").read_text()
    return tuple(Verdict(number, *found) for number, found in enumerate(_LINE.findall(text)))


VERDICTS = _read()
FAST = VERDICTS[0]
