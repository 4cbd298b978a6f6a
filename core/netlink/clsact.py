"""Attach BPF programs to links as filters of a clsact qdisc (tc-bpf(8)).

The kernel keeps a filter, its program and its maps until the filter or the link is deleted, whatever happens
to the process that made it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from core.netlink.client import ROUTE, Netlink, attribute, attributes, text, u32

_HANDLE, _HANDLE_WITH_QDISC = 0x766E, 0x766F
_NEW_QDISC, _DEL_QDISC, _GET_QDISC = 36, 37, 38
_NEW_FILTER, _DEL_FILTER, _GET_FILTER = 44, 45, 46
_CREATE, _EXCLUSIVE, _REPLACE = 0x400, 0x200, 0x100
_TC = struct.Struct("=BxxxiIII")
_CLSACT_HANDLE, _CLSACT, _INGRESS, _EGRESS = 0xFFFF0000, 0xFFFFFFF1, 0xFFFFFFF2, 0xFFFFFFF3
_KIND, _OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_ID, _DIRECT_ACTION = 6, 7, 8, 11, 1
_ETH_P_ALL = struct.unpack("=H", struct.pack(">H", 3))[0]


@dataclass(frozen=True, slots=True)
class AttachedFilter:
    """A filter of vnet-tui: its name, and the id of its program."""

    ifindex: int
    name: str
    program: int


@dataclass(frozen=True, slots=True)
class LinkFilter:
    """A kind of filter of vnet-tui: `name` begins the name of each.

    Lower priorities run first. A clsact qdisc that existed before stays; one that was created for these
    filters is deleted with the last of them, unless another tool has added filters meanwhile: a filter's
    handle says whether vnet-tui created the qdisc.
    """

    name: str
    priority: int

    def attach(self, program: int, ifindex: int, label: str = "", egress: bool = False) -> None:
        """Attach a program at ingress or egress, or replace that of the filter there.

        `label` is added to the filter's name.
        """
        parent = _EGRESS if egress else _INGRESS
        name = f"{self.name} {label}".rstrip()
        options = attribute(_BPF_FD, struct.pack("=I", program)) + attribute(_BPF_NAME, name.encode() + b"\0")
        options += attribute(_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
        with Netlink(ROUTE) as kernel:
            is_ours = _make_qdisc(kernel, ifindex) or _HANDLE_WITH_QDISC in _own_handles(kernel, ifindex)
            before = _handle_of(filter(self.is_own, _list_filters(kernel, ifindex, parent)))
            handle = before or (_HANDLE_WITH_QDISC if is_ours else _HANDLE)
            body = self._body(ifindex, handle, parent) + attribute(_KIND, b"bpf\0")
            kernel.request(_NEW_FILTER, body + attribute(_OPTIONS, options), _CREATE | _REPLACE)

    def detach(self, ifindex: int) -> None:
        """Delete the filters of this kind, and the qdisc if it was created for them.

        None needs to exist. The qdisc takes its filters with it, so that a kill leaves both or none.
        """
        with Netlink(ROUTE) as kernel, suppress(OSError):
            listed = {parent: _list_filters(kernel, ifindex, parent) for parent in (_EGRESS, _INGRESS)}
            handles = {parent: _handle_of(filter(self.is_own, found)) for parent, found in listed.items()}
            is_used = not all(map(self.is_own, chain.from_iterable(listed.values())))
            if _HANDLE_WITH_QDISC in handles.values() and not is_used:
                kernel.request(_DEL_QDISC, _qdisc(ifindex))
                return
            for parent, handle in handles.items():
                if handle:
                    body = self._body(ifindex, handle, parent)
                    kernel.request(_DEL_FILTER, body + attribute(_KIND, b"bpf\0"))

    def attached(self, egress: bool = False) -> list[AttachedFilter]:
        """Return the filters of this kind at ingress or egress, in the thread's namespace."""
        parent = _EGRESS if egress else _INGRESS
        with Netlink(ROUTE) as kernel:
            listed = kernel.dump(_GET_QDISC, _TC.pack(0, 0, 0, 0, 0))
            links = {_TC.unpack_from(one.payload)[1] for one in listed if _is_clsact(one.payload)}
            found = ((link, _list_filters(kernel, link, parent)) for link in sorted(links))
            return [_parsed(link, one) for link, each in found for one in each if self.is_own(one)]

    def is_own(self, payload: bytes) -> bool:
        """Return whether an RTM_NEWTFILTER is of a filter of this kind."""
        _, _, handle, _, info = _TC.unpack_from(payload)
        name = _options(payload).get(_BPF_NAME, b"")
        is_named = text(name).split(" ")[0] == self.name
        return is_named and handle in (_HANDLE, _HANDLE_WITH_QDISC) and bool(info >> 16 == self.priority)

    def _body(self, ifindex: int, handle: int, parent: int) -> bytes:
        return _TC.pack(0, ifindex, handle, parent, self.priority << 16 | _ETH_P_ALL)


# Where the fast path is such a filter, too, the storm guard runs before it.
STORM_GUARD = LinkFilter("vnet_storm_guard", 0x766D)
FAST_PATH = LinkFilter("vnet_fastpath", 0x766E)
FAST_PATH_OBSERVER = LinkFilter("vnet_observer", 0x766F)
_KINDS = (STORM_GUARD, FAST_PATH, FAST_PATH_OBSERVER)


def is_foreign_filter(payload: bytes) -> bool:
    """Return whether an RTM_NEWTFILTER is of another tool's filter.

    One without a handle is the head of a priority's list, not a filter.
    """
    return _TC.unpack_from(payload)[2] != 0 and not any(kind.is_own(payload) for kind in _KINDS)


def _own_handles(kernel: Netlink, ifindex: int) -> Iterator[int]:
    both = (_list_filters(kernel, ifindex, parent) for parent in (_INGRESS, _EGRESS))
    for one in chain.from_iterable(both):
        if not is_foreign_filter(one):
            yield _TC.unpack_from(one)[2]


def _handle_of(filters: Iterable[bytes]) -> int:
    """Return the handle of the first filter, 0 if there is none."""
    return next((int(_TC.unpack_from(one)[2]) for one in filters), 0)


def _make_qdisc(kernel: Netlink, ifindex: int) -> bool:
    """Create a clsact qdisc; return whether there was none."""
    try:
        kernel.request(_NEW_QDISC, _qdisc(ifindex), _CREATE | _EXCLUSIVE)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def _qdisc(ifindex: int) -> bytes:
    return _TC.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + attribute(_KIND, b"clsact\0")


def _is_clsact(payload: bytes) -> bool:
    return bool(_TC.unpack_from(payload)[3] == _CLSACT)


def _list_filters(kernel: Netlink, ifindex: int, parent: int) -> list[bytes]:
    """Return the filters there, ours included; none if there is no such qdisc."""
    try:
        listed = kernel.dump(_GET_FILTER, _TC.pack(0, ifindex, 0, parent, 0))
    except OSError:
        return []
    return [each.payload for each in listed if _TC.unpack_from(each.payload)[2]]


def _options(payload: bytes) -> dict[int, bytes]:
    return attributes(attributes(payload, _TC.size).get(_OPTIONS, b""))


def _parsed(ifindex: int, payload: bytes) -> AttachedFilter:
    options = _options(payload)
    return AttachedFilter(ifindex, text(options.get(_BPF_NAME, b"")), u32(options.get(_BPF_ID, bytes(4))))
