"""The way in on kernels without tcx (before 6.6): a filter of our own at clsact, by a handle and priority
that are ours.

Only that filter is ever removed, never the clsact qdisc, where others may have theirs. It outlives a
process that is killed (the lease then keeps it from forwarding), so whoever puts things right looks for
it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from contextlib import suppress

from core.collect.netlink import ROUTE, Netlink, attribute, attributes, text

NAME = "vnet_fastpath"
_HANDLE, _PRIORITY = 0x766E, 0x766E
_NEW_QDISC, _GET_QDISC, _NEW_FILTER, _DEL_FILTER, _GET_FILTER = 36, 38, 44, 45, 46
_CREATE, _EXCLUSIVE, _REPLACE = 0x400, 0x200, 0x100
_TC = struct.Struct("=BxxxiIII")
_CLSACT_HANDLE, _CLSACT, _INGRESS = 0xFFFF0000, 0xFFFFFFF1, 0xFFFFFFF2
_KIND, _OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _DIRECT_ACTION = 6, 7, 8, 1
_INFO = _PRIORITY << 16 | struct.unpack("=H", struct.pack(">H", 3))[0]  # ETH_P_ALL


def attach(program: int, ifindex: int) -> None:
    """Put the program at an interface's ingress, or in the place of the one of ours that is there."""
    options = attribute(_BPF_FD, struct.pack("=I", program)) + attribute(_BPF_NAME, NAME.encode() + b"\0")
    options += attribute(_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
    body = _filter(ifindex) + attribute(_KIND, b"bpf\0") + attribute(_OPTIONS, options)
    with Netlink(ROUTE) as kernel:
        try:
            qdisc = _TC.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + attribute(_KIND, b"clsact\0")
            kernel.request(_NEW_QDISC, qdisc, _CREATE | _EXCLUSIVE)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
        kernel.request(_NEW_FILTER, body, _CREATE | _REPLACE)


def detach(ifindex: int) -> None:
    """Take our filter away; that it is gone already is as good."""
    with Netlink(ROUTE) as kernel, suppress(OSError):
        kernel.request(_DEL_FILTER, _filter(ifindex) + attribute(_KIND, b"bpf\0"))


def _filter(ifindex: int) -> bytes:
    return _TC.pack(0, ifindex, _HANDLE, _INGRESS, _INFO)


def is_foreign(payload: bytes) -> bool:
    """Whether an RTM_NEWTFILTER is of somebody else's filter; without a handle it is the head of a priority's
    list, and no filter itself."""
    return _TC.unpack_from(payload)[2] != 0 and not is_ours(payload)


def is_ours(payload: bytes) -> bool:
    """Whether an RTM_NEWTFILTER is of a filter of ours."""
    _, _, handle, _, info = _TC.unpack_from(payload)
    options = attributes(attributes(payload, _TC.size).get(_OPTIONS, b""))
    return (handle, info >> 16, text(options.get(_BPF_NAME, b""))) == (_HANDLE, _PRIORITY, NAME)


def remains() -> Iterable[int]:
    """The interfaces that still carry a filter of ours."""
    with Netlink(ROUTE) as kernel:
        found = {
            _TC.unpack_from(each.payload)[1] for each in kernel.dump(_GET_QDISC, _TC.pack(0, 0, 0, 0, 0))
        }
        return [ifindex for ifindex in found if _has_ours(kernel, ifindex)]


def _has_ours(kernel: Netlink, ifindex: int) -> bool:
    try:
        listed = kernel.dump(_GET_FILTER, _TC.pack(0, ifindex, 0, _INGRESS, 0))
    except OSError:
        return False
    return any(is_ours(each.payload) for each in listed)
