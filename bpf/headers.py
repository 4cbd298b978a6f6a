"""Which bytes of a packet's headers are the same in all packets of a connection that the fast path forwards.

Pure. Such packets are IPv4 without options or IPv6, carry TCP or UDP and no VLAN tag.
"""

from __future__ import annotations

LINK, NETWORK, TRANSPORT = 0, 1, 2
BEHIND_MACS = 12
ETHER_TYPE = (LINK, 12, 2)
TCP_FLAGS = (TRANSPORT, 13, 1)
V4_PROTOCOL = (NETWORK, 9, 1)
# IPv6's field for it is 0 in frames of more than 64 KB, which begin with a jumbo header.
V6_NEXT_HEADER = (NETWORK, 6, 1)
_ETHERNET, _PORTS = 14, 4
# The version, and behind it what is always 5 in IPv4, and the traffic class in IPv6.
VERSION = (NETWORK, 0, 1)
VERSION_BITS = 0xF0
# Version and length of the header, protocol and addresses: from, to.
_FIXED = {4: ((0, 1), (9, 10), (12, 20)), 6: ((8, 40),)}
_V4_NAMES = {
    0: "the type of service",
    1: "the type of service",
    2: "the length",
    4: "the identification",
    6: "fragments",
    8: "the time to live",
}
_V6_NAMES = {
    0: "the traffic class",
    1: "the flow label",
    4: "the length",
    6: "the next header",
    7: "the hop limit",
}


def is_fixed(base: int, offset: int, length: int, family: int) -> bool:
    """Whether these bytes never differ; `family` is 4 or 6, or 0 where a packet may be either: then they must
    not differ in both."""
    end = offset + length
    if base == LINK:
        return end <= _ETHERNET
    if base == TRANSPORT:
        return end <= _PORTS
    if base != NETWORK:
        return False
    return all(
        any(start <= offset and end <= stop for start, stop in _FIXED[each])
        for each in ((family,) if family else (4, 6))
    )


def name_of(base: int, offset: int, family: int) -> str:
    """What begins there."""
    names = (_V6_NAMES if family == 6 else _V4_NAMES) if base == NETWORK else {}
    return names.get(offset, f"byte {offset} of a header")
