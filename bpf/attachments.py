"""Where the program sits: tcx links, which end with this process in whatever way it ends, or clsact where
there is no tcx."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Collection, Iterable
from contextlib import suppress

from bpf import syscall
from core.netlink.client import ROUTE, Netlink, attribute, attributes, text

# The way in on kernels without tcx (before 6.6): a filter of our own at clsact, by a handle and priority
# that are ours.
#
# A clsact qdisc that was there before stays; one that was made for the filter goes with it, unless somebody
# else has put filters there meanwhile. The filter outlives a process that is killed (the lease then keeps
# it from forwarding), so whoever puts things right looks for it, and its handle says whose the qdisc is.

NAME = "vnet_fastpath"
_HANDLE, _HANDLE_WITH_QDISC, _PRIORITY = 0x766E, 0x766F, 0x766E
_NEW_QDISC, _DEL_QDISC, _GET_QDISC = 36, 37, 38
_NEW_FILTER, _DEL_FILTER, _GET_FILTER = 44, 45, 46
_CREATE, _EXCLUSIVE, _REPLACE = 0x400, 0x200, 0x100
_TC = struct.Struct("=BxxxiIII")
_CLSACT_HANDLE, _CLSACT, _INGRESS, _EGRESS = 0xFFFF0000, 0xFFFFFFF1, 0xFFFFFFF2, 0xFFFFFFF3
_KIND, _OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _DIRECT_ACTION = 6, 7, 8, 1
_INFO = _PRIORITY << 16 | struct.unpack("=H", struct.pack(">H", 3))[0]  # ETH_P_ALL


def attach(program: int, ifindex: int) -> None:
    """Put the program at an interface's ingress, or in the place of the one of ours that is there."""
    options = attribute(_BPF_FD, struct.pack("=I", program)) + attribute(_BPF_NAME, NAME.encode() + b"\0")
    options += attribute(_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
    with Netlink(ROUTE) as kernel:
        is_new = _make_qdisc(kernel, ifindex)
        handle = _our_handle(kernel, ifindex) or (_HANDLE_WITH_QDISC if is_new else _HANDLE)
        body = _filter(ifindex, handle) + attribute(_KIND, b"bpf\0") + attribute(_OPTIONS, options)
        kernel.request(_NEW_FILTER, body, _CREATE | _REPLACE)


def detach(ifindex: int) -> None:
    """Take our filter away, and the qdisc if it was made for it; that they are gone already is as good."""
    with Netlink(ROUTE) as kernel, suppress(OSError):
        handle = _our_handle(kernel, ifindex)
        kernel.request(_DEL_FILTER, _filter(ifindex, handle) + attribute(_KIND, b"bpf\0"))
        is_used = any(_listed(kernel, ifindex, parent) for parent in (_INGRESS, _EGRESS))
        if handle == _HANDLE_WITH_QDISC and not is_used:
            kernel.request(_DEL_QDISC, _qdisc(ifindex))


def _make_qdisc(kernel: Netlink, ifindex: int) -> bool:
    """Have a clsact qdisc there; whether there was none."""
    try:
        kernel.request(_NEW_QDISC, _qdisc(ifindex), _CREATE | _EXCLUSIVE)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def _qdisc(ifindex: int) -> bytes:
    return _TC.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + attribute(_KIND, b"clsact\0")


def _filter(ifindex: int, handle: int) -> bytes:
    return _TC.pack(0, ifindex, handle, _INGRESS, _INFO)


def is_foreign(payload: bytes) -> bool:
    """Whether an RTM_NEWTFILTER is of somebody else's filter; without a handle it is the head of a priority's
    list, and no filter itself."""
    return _TC.unpack_from(payload)[2] != 0 and not is_ours(payload)


def is_ours(payload: bytes) -> bool:
    """Whether an RTM_NEWTFILTER is of a filter of ours."""
    _, _, handle, _, info = _TC.unpack_from(payload)
    options = attributes(attributes(payload, _TC.size).get(_OPTIONS, b""))
    is_named = text(options.get(_BPF_NAME, b"")) == NAME
    return is_named and handle in (_HANDLE, _HANDLE_WITH_QDISC) and info >> 16 == _PRIORITY


def remains() -> Iterable[int]:
    """The interfaces that still carry a filter of ours."""
    with Netlink(ROUTE) as kernel:
        found = {
            _TC.unpack_from(each.payload)[1] for each in kernel.dump(_GET_QDISC, _TC.pack(0, 0, 0, 0, 0))
        }
        return [ifindex for ifindex in found if _our_handle(kernel, ifindex)]


def _our_handle(kernel: Netlink, ifindex: int) -> int:
    """The handle of our filter there, 0 where there is none."""
    handles = (_TC.unpack_from(each)[2] for each in _listed(kernel, ifindex, _INGRESS) if is_ours(each))
    return next(handles, 0)


def _listed(kernel: Netlink, ifindex: int, parent: int) -> list[bytes]:
    """The filters there, ours among them; none where there is no such qdisc."""
    try:
        listed = kernel.dump(_GET_FILTER, _TC.pack(0, ifindex, 0, parent, 0))
    except OSError:
        return []
    return [each.payload for each in listed if _TC.unpack_from(each.payload)[2]]


_WITHOUT_TCX = (errno.EINVAL, errno.EOPNOTSUPP)

# Interfaces with programs of others: at ingress, at egress.
Foreign = tuple[frozenset[int], frozenset[int]]
NOTHING_FOREIGN: Foreign = (frozenset(), frozenset())


def foreign(ifindexes: Iterable[int], ours: Collection[int] = ()) -> Foreign:
    """Those interfaces at whose ingress, and at whose egress, tcx programs sit that are not `ours`."""
    looked_at = list(ifindexes)
    return (
        frozenset(each for each in looked_at if _has_other(each, syscall.TCX_INGRESS, ours)),
        frozenset(each for each in looked_at if _has_other(each, syscall.TCX_EGRESS, ours)),
    )


def _has_other(ifindex: int, where: int, ours: Collection[int]) -> bool:
    try:
        return not set(ours).issuperset(syscall.attached(ifindex, where))
    except OSError:
        return False  # gone, or without tcx


class Attachments:
    """Which interfaces carry the program. `tcx` is None until the kernel was asked for it."""

    def __init__(self, program: int, tcx: bool | None = None) -> None:
        self.program = program
        self.tcx = tcx
        self._links: dict[int, int | None] = {}
        self._ids = {syscall.id_of(program)}

    def keep(self, wanted: Collection[int]) -> dict[int, str]:
        """Have the program on exactly these interfaces; those that refuse it, with the reason."""
        for gone in [ifindex for ifindex in self._links if ifindex not in wanted]:
            self._detach(gone)
        refused = {}
        for ifindex in wanted:
            if ifindex in self._links:
                continue
            try:
                self._links[ifindex] = self._attach(ifindex)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    refused[ifindex] = f"the kernel refuses the program: {error.strerror}"
        return refused

    def _attach(self, ifindex: int) -> int | None:
        """A link's descriptor, None at clsact."""
        if self.tcx is not False:
            try:
                link = syscall.attach_tcx(self.program, ifindex)
            except OSError as error:
                if self.tcx or error.errno not in _WITHOUT_TCX:
                    raise
            else:
                self.tcx = True
                return link
        attach(self.program, ifindex)
        self.tcx = False
        return None

    def _detach(self, ifindex: int) -> None:
        link = self._links.pop(ifindex)
        if link is None:
            detach(ifindex)
        else:
            os.close(link)

    def foreign(self, ifindexes: Iterable[int]) -> Foreign:
        """Those interfaces where other tcx programs than ours sit."""
        return foreign(ifindexes, self._ids)

    def replace(self, program: int) -> None:
        """Another program in the place of the present one, without a packet passing in between."""
        self._ids.add(syscall.id_of(program))
        for ifindex, link in self._links.items():
            if link is None:
                attach(program, ifindex)
            else:
                syscall.replace_program(link, program)
        os.close(self.program)
        self.program = program
        self._ids = {syscall.id_of(program)}

    def close(self) -> None:
        """Take the program off every interface."""
        for ifindex in list(self._links):
            self._detach(ifindex)
