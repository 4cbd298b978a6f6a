"""Which links have tc filters (tc(8)), and which of those at a way out might tell an accelerated packet from
one that came the kernel's way.

Both are the same on the wire, but what the kernel notes beside a packet is not: the link that it came in by
is the container's, not the bridge, and neither conntrack's entry nor the route hangs on it. A filter that is
known to look at nothing of that may stay; all others (BPF programs, `flower ct_state`, `route`, ...) keep the
link from being a way out of the fast path."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bpf import clsact
from core.netlink.client import Netlink, attribute_list, attributes, text

_GETQDISC, _GETCLASS, _GETFILTER = 38, 42, 46
_TC = struct.Struct("=BxxxiIII")
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_MAJOR = 0xFFFF0000  # the part of a class's handle that is its discipline's
_MOST_CLASSES = 256  # each is a question
_TCA_KIND, _TCA_OPTIONS, _ACTION_KIND = 1, 2, 1
# Queueing disciplines that have no filters, or whose filters choose a queue at most.
_WITHOUT_FILTERS = frozenset(
    {"noqueue", "pfifo", "bfifo", "pfifo_fast", "mq", "tbf", "fq", "fq_codel", "netem"}
)
# Filters by kind that look at the frame and the packet's mark alone, each with the number of its actions'
# attribute and the numbers of those options with which it looks at more: the link that a packet came in by
# (TCA_*_INDEV), conntrack's entry (TCA_FLOWER_KEY_CT_*).
_PLAIN: Mapping[str, tuple[int, frozenset[int]]] = {
    "u32": (7, frozenset({8})),
    "fw": (4, frozenset({3})),
    "flower": (3, frozenset({2, *range(91, 99)})),
    "matchall": (2, frozenset()),
}
_PLAIN_ACTIONS = frozenset(
    {"gact", "mirred", "police", "skbedit", "pedit", "csum", "vlan", "sample", "simple"}
)


@dataclass(frozen=True, slots=True)
class Filters:
    """Links with a filter or program of somebody else's at ingress, at egress, and those at whose egress or
    queues one is that may look at more than the frame."""

    ingress: frozenset[int] = frozenset()
    egress: frozenset[int] = frozenset()
    unclear: frozenset[int] = frozenset()


def read_filters(kernel: Netlink, ifindexes: Iterable[int]) -> Filters:
    """The tc filters of these links; our own are left out. What cannot be read is taken for one."""
    wanted = set(ifindexes)
    ingress, egress, unclear = set[int](), set[int](), set[int]()
    for ifindex, handle, kind in _disciplines(kernel):
        if ifindex not in wanted:
            continue
        if kind in ("clsact", "ingress"):
            if _filters(kernel, ifindex, _INGRESS) != []:
                ingress.add(ifindex)
            found = _filters(kernel, ifindex, _EGRESS)
            if found != []:
                egress.add(ifindex)
        else:
            found = _queueing_filters(kernel, ifindex, handle) if kind not in _WITHOUT_FILTERS else []
        if found is None or not all(map(_is_plain, found)):
            unclear.add(ifindex)
    return Filters(frozenset(ingress), frozenset(egress), frozenset(unclear))


def _disciplines(kernel: Netlink) -> Iterable[tuple[int, int, str]]:
    for message in kernel.dump(_GETQDISC, _TC.pack(0, 0, 0, 0, 0)):
        _, ifindex, handle, _, _ = _TC.unpack_from(message.payload)
        yield ifindex, handle, text(attributes(message.payload, _TC.size).get(_TCA_KIND, b""))


def _queueing_filters(kernel: Netlink, ifindex: int, handle: int) -> list[bytes] | None:
    """The filters of a queueing discipline and of its classes, which may have filters of their own; None
    where they cannot be read, or are too many."""
    try:
        classes = kernel.dump(_GETCLASS, _TC.pack(0, ifindex, 0, 0, 0))
    except OSError:
        return None
    handles = (_TC.unpack_from(each.payload)[2] for each in classes)
    parents = [handle, *(each for each in handles if each & _MAJOR == handle)]
    if len(parents) > _MOST_CLASSES:
        return None
    found: list[bytes] = []
    for parent in parents:
        filters = _filters(kernel, ifindex, parent)
        if filters is None:
            return None
        found += filters
    return found


def _filters(kernel: Netlink, ifindex: int, parent: int) -> list[bytes] | None:
    """The others' filters there; None where they cannot be read."""
    try:
        listed = kernel.dump(_GETFILTER, _TC.pack(0, ifindex, 0, parent, 0))
    except OSError:
        return None
    return [message.payload for message in listed if clsact.is_foreign(message.payload)]


def _is_plain(payload: bytes) -> bool:
    found = attributes(payload, _TC.size)
    options = attributes(found.get(_TCA_OPTIONS, b""))
    actions_at, more = _PLAIN.get(text(found.get(_TCA_KIND, b"")), (0, frozenset(options)))
    if not actions_at or options.keys() & more:
        return False
    kinds = (
        text(attributes(action).get(_ACTION_KIND, b""))
        for _, action in attribute_list(options.get(actions_at, b""))
    )
    return _PLAIN_ACTIONS.issuperset(kinds)
