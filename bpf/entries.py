"""Conntrack entries that carry our marks: cleared before a generation is used again, and handed back to the
kernel at the end.

Layout: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from bpf.nfnetlink import header, nest
from core.collect.netlink import NETFILTER, Netlink, attribute, attributes, walk

_NEW, _GET = 0x100, 0x101
_TUPLE, _PROTOINFO, _MARK, _ZONE, _MARK_MASK = 1, 4, 8, 18, 21
_TCP = 6
_BE_LIBERAL = 0x08  # IP_CT_TCP_FLAG_BE_LIBERAL


def clear_generation(generation: int, shift: int) -> int:
    """Take one generation's marks off every entry that still has them; how many requests that took."""
    done = 0
    with Netlink(NETFILTER) as kernel:
        for at in (shift, shift + 4):
            found = list(_marked(kernel, 15 << at, generation << at))
            done += _send(kernel, (_cleared(entry, 15 << at) for entry in found))
    return done


def hand_back(mask: int) -> int:
    """Take all our marks away, and let conntrack be liberal about each TCP connection that had one: it did
    not see what was sent meanwhile. How many entries that were."""
    with Netlink(NETFILTER) as kernel:
        found = list(_marked(kernel, mask))
        return _send(kernel, (_cleared(entry, mask, liberal=_is_tcp(entry)) for entry in found))


def count_marked(mask: int) -> int:
    """How many entries carry a mark of ours."""
    with Netlink(NETFILTER) as kernel:
        return sum(1 for _ in _marked(kernel, mask))


Entry = tuple[int, dict[int, bytes]]


def _marked(kernel: Netlink, mask: int, value: int | None = None) -> Iterator[Entry]:
    """Entries by family and attributes: those whose mark under `mask` is `value` (None: any but 0)."""
    body = header(0)
    if value is not None:
        body += attribute(_MARK, struct.pack(">I", value)) + attribute(_MARK_MASK, struct.pack(">I", mask))
    for datagram in kernel.dump_raw(_GET, body):
        for _, _, _, payload in walk(datagram):
            found = attributes(payload, 4)
            mark = int.from_bytes(found.get(_MARK, b"\0"), "big") & mask
            if mark == value if value is not None else mark:
                yield payload[0], found


def _is_tcp(entry: Entry) -> bool:
    proto = attributes(attributes(entry[1][_TUPLE]).get(2, b""))
    return proto.get(1, b"\0")[0] == _TCP


def _cleared(entry: Entry, mask: int, liberal: bool = False) -> bytes:
    """The request that changes the entry, whose timer goes on meanwhile."""
    family, found = entry
    body = header(family) + attribute(_TUPLE | 0x8000, found[_TUPLE])
    if _ZONE in found:
        body += attribute(_ZONE, found[_ZONE])
    body += attribute(_MARK, bytes(4)) + attribute(_MARK_MASK, struct.pack(">I", mask))
    if liberal:
        flags = bytes([_BE_LIBERAL, _BE_LIBERAL])
        body += nest(_PROTOINFO, nest(1, attribute(4, flags), attribute(5, flags)))
    return body


def _send(kernel: Netlink, requests: Iterable[bytes]) -> int:
    """Entries that are gone meanwhile are refused, which is as good."""
    return len(kernel.batch([(_NEW, body) for body in requests]))
