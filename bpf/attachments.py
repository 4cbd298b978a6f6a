"""Attach the program to links: by tcx, or by clsact filters before Linux 6.6.

A tcx link ends with this process, however that ends.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Collection, Iterable
from contextlib import suppress

from bpf import syscall
from core.netlink.client import ROUTE, Netlink, attribute, attributes, text

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


def attach_clsact(program: int, ifindex: int) -> None:
    """Attach the program to an interface's ingress, or replace our filter there.

    The filter has our own handle and priority. A clsact qdisc that existed before stays; one that was created
    for the filter is deleted with it, unless another tool has added filters meanwhile. The filter outlives a
    process that is killed (it then doesn't forward, as the lease expires), so the cleanup looks for it; its
    handle says whether the qdisc is ours.
    """
    options = attribute(_BPF_FD, struct.pack("=I", program)) + attribute(_BPF_NAME, NAME.encode() + b"\0")
    options += attribute(_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
    with Netlink(ROUTE) as kernel:
        is_new = _make_qdisc(kernel, ifindex)
        handle = _own_handle(kernel, ifindex) or (_HANDLE_WITH_QDISC if is_new else _HANDLE)
        body = _filter(ifindex, handle) + attribute(_KIND, b"bpf\0") + attribute(_OPTIONS, options)
        kernel.request(_NEW_FILTER, body, _CREATE | _REPLACE)


def detach_clsact(ifindex: int) -> None:
    """Delete our filter, and the qdisc if it was created for it.

    Neither needs to exist.
    """
    with Netlink(ROUTE) as kernel, suppress(OSError):
        handle = _own_handle(kernel, ifindex)
        kernel.request(_DEL_FILTER, _filter(ifindex, handle) + attribute(_KIND, b"bpf\0"))
        is_used = any(_list_filters(kernel, ifindex, parent) for parent in (_INGRESS, _EGRESS))
        if handle == _HANDLE_WITH_QDISC and not is_used:
            kernel.request(_DEL_QDISC, _qdisc(ifindex))


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


def _filter(ifindex: int, handle: int) -> bytes:
    return _TC.pack(0, ifindex, handle, _INGRESS, _INFO)


def is_foreign_filter(payload: bytes) -> bool:
    """Return whether an RTM_NEWTFILTER is of another tool's filter.

    One without a handle is the head of a priority's list, not a filter.
    """
    return _TC.unpack_from(payload)[2] != 0 and not is_own_filter(payload)


def is_own_filter(payload: bytes) -> bool:
    """Return whether an RTM_NEWTFILTER is of one of our filters."""
    _, _, handle, _, info = _TC.unpack_from(payload)
    options = attributes(attributes(payload, _TC.size).get(_OPTIONS, b""))
    is_named = text(options.get(_BPF_NAME, b"")) == NAME
    return is_named and handle in (_HANDLE, _HANDLE_WITH_QDISC) and info >> 16 == _PRIORITY


def leftover_filters() -> Iterable[int]:
    """Return the interfaces that still have one of our filters."""
    with Netlink(ROUTE) as kernel:
        found = {
            _TC.unpack_from(each.payload)[1] for each in kernel.dump(_GET_QDISC, _TC.pack(0, 0, 0, 0, 0))
        }
        return [ifindex for ifindex in found if _own_handle(kernel, ifindex)]


def _own_handle(kernel: Netlink, ifindex: int) -> int:
    """Return the handle of our filter there, or 0."""
    handles = (
        _TC.unpack_from(each)[2] for each in _list_filters(kernel, ifindex, _INGRESS) if is_own_filter(each)
    )
    return next(handles, 0)


def _list_filters(kernel: Netlink, ifindex: int, parent: int) -> list[bytes]:
    """Return the filters there, ours included; none if there is no such qdisc."""
    try:
        listed = kernel.dump(_GET_FILTER, _TC.pack(0, ifindex, 0, parent, 0))
    except OSError:
        return []
    return [each.payload for each in listed if _TC.unpack_from(each.payload)[2]]


_WITHOUT_TCX = (errno.EINVAL, errno.EOPNOTSUPP)

# Interfaces with programs of other tools: at ingress, at egress.
Foreign = tuple[frozenset[int], frozenset[int]]
NO_FOREIGN: Foreign = (frozenset(), frozenset())


def foreign_programs(ifindexes: Iterable[int], ours: Collection[int] = ()) -> Foreign:
    """Return the interfaces with tcx programs other than `ours`."""
    interfaces = list(ifindexes)
    return (
        frozenset(each for each in interfaces if _has_other(each, syscall.TCX_INGRESS, ours)),
        frozenset(each for each in interfaces if _has_other(each, syscall.TCX_EGRESS, ours)),
    )


def _has_other(ifindex: int, where: int, ours: Collection[int]) -> bool:
    try:
        return not set(ours).issuperset(syscall.attached(ifindex, where))
    except OSError:
        return False  # deleted, or no tcx


class Attachments:
    """Attach the program to interfaces; `tcx` is None until the first attachment."""

    def __init__(self, program: int, tcx: bool | None = None) -> None:
        self.program = program
        self.tcx = tcx
        self._links: dict[int, int | None] = {}
        self._ids = {syscall.object_id(program)}

    def sync(self, wanted: Collection[int]) -> dict[int, str]:
        """Attach the program to exactly these interfaces.

        Returns those that refuse it, with the reason.
        """
        for detached in [ifindex for ifindex in self._links if ifindex not in wanted]:
            self._detach(detached)
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
        """Attach the program; return the link's descriptor, None at clsact."""
        if self.tcx is not False:
            try:
                link = syscall.attach_tcx(self.program, ifindex)
            except OSError as error:
                if self.tcx or error.errno not in _WITHOUT_TCX:
                    raise
            else:
                self.tcx = True
                return link
        attach_clsact(self.program, ifindex)
        self.tcx = False
        return None

    def _detach(self, ifindex: int) -> None:
        link = self._links.pop(ifindex)
        if link is None:
            detach_clsact(ifindex)
        else:
            os.close(link)

    def foreign(self, ifindexes: Iterable[int]) -> Foreign:
        """Return the interfaces that have other tcx programs."""
        return foreign_programs(ifindexes, self._ids)

    def replace(self, program: int) -> None:
        """Replace the program everywhere; no packet passes without one."""
        self._ids.add(syscall.object_id(program))
        for ifindex, link in self._links.items():
            if link is None:
                attach_clsact(program, ifindex)
            else:
                syscall.replace_program(link, program)
        os.close(self.program)
        self.program = program
        self._ids = {syscall.object_id(program)}

    def close(self) -> None:
        """Detach the program from every interface."""
        for ifindex in list(self._links):
            self._detach(ifindex)
