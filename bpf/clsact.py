"""The way in on kernels without tcx (before 6.6): a filter of our own at clsact, by a handle and priority
that are ours.

A clsact qdisc that was there before stays; one that was made for the filter goes with it, unless somebody
else has put filters there meanwhile. The filter outlives a process that is killed (the lease then keeps it
from forwarding), so whoever puts things right looks for it, and its name says whose the qdisc is.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from contextlib import suppress

from core.collect.netlink import ROUTE, Netlink, attribute, attributes, text

NAME, NAME_OF_OWN = "vnet_fastpath", "vnet_fastpath+clsact"
_HANDLE, _PRIORITY = 0x766E, 0x766E
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
    with Netlink(ROUTE) as kernel:
        is_own = _make_qdisc(kernel, ifindex) or NAME_OF_OWN in _our_names(kernel, ifindex)
        name = NAME_OF_OWN if is_own else NAME
        options = attribute(_BPF_FD, struct.pack("=I", program)) + attribute(_BPF_NAME, name.encode() + b"\0")
        options += attribute(_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
        body = _filter(ifindex) + attribute(_KIND, b"bpf\0") + attribute(_OPTIONS, options)
        kernel.request(_NEW_FILTER, body, _CREATE | _REPLACE)


def detach(ifindex: int) -> None:
    """Take our filter away, and the qdisc if it was made for it; that they are gone already is as good."""
    with Netlink(ROUTE) as kernel, suppress(OSError):
        is_own = NAME_OF_OWN in _our_names(kernel, ifindex)
        kernel.request(_DEL_FILTER, _filter(ifindex) + attribute(_KIND, b"bpf\0"))
        if is_own and not any(_listed(kernel, ifindex, parent) for parent in (_INGRESS, _EGRESS)):
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


def _filter(ifindex: int) -> bytes:
    return _TC.pack(0, ifindex, _HANDLE, _INGRESS, _INFO)


def is_foreign(payload: bytes) -> bool:
    """Whether an RTM_NEWTFILTER is of somebody else's filter; without a handle it is the head of a priority's
    list, and no filter itself."""
    return _TC.unpack_from(payload)[2] != 0 and not is_ours(payload)


def is_ours(payload: bytes) -> bool:
    """Whether an RTM_NEWTFILTER is of a filter of ours."""
    _, _, handle, _, info = _TC.unpack_from(payload)
    return (handle, info >> 16) == (_HANDLE, _PRIORITY) and _name(payload) in (NAME, NAME_OF_OWN)


def _name(payload: bytes) -> str:
    options = attributes(attributes(payload, _TC.size).get(_OPTIONS, b""))
    return text(options.get(_BPF_NAME, b""))


def remains() -> Iterable[int]:
    """The interfaces that still carry a filter of ours."""
    with Netlink(ROUTE) as kernel:
        found = {
            _TC.unpack_from(each.payload)[1] for each in kernel.dump(_GET_QDISC, _TC.pack(0, 0, 0, 0, 0))
        }
        return [ifindex for ifindex in found if _our_names(kernel, ifindex)]


def _our_names(kernel: Netlink, ifindex: int) -> set[str]:
    return {_name(each) for each in _listed(kernel, ifindex, _INGRESS) if is_ours(each)}


def _listed(kernel: Netlink, ifindex: int, parent: int) -> list[bytes]:
    """The filters there, ours among them; none where there is no such qdisc."""
    try:
        listed = kernel.dump(_GET_FILTER, _TC.pack(0, ifindex, 0, parent, 0))
    except OSError:
        return []
    return [each.payload for each in listed if _TC.unpack_from(each.payload)[2]]
