"""Attach an XDP program to a link in its driver, and detach it.

The program stays until it is detached or the link is deleted (rtnetlink(7), IFLA_XDP). A link has room for
one.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from bpf import syscall
from core.netlink.client import NLA_NESTED, ROUTE, Netlink, attribute, attributes, u32

_GET_LINK, _SET_LINK = 18, 19
_LINK = struct.Struct("=BxHiII")
_IFLA_XDP, _FD, _FLAGS, _PROGRAM, _EXPECTED_FD = 43, 1, 3, 4, 8
_ONLY_NEW, _IN_DRIVER, _REPLACE = 1, 4, 16  # XDP_FLAGS_* of linux/if_link.h
_NO_PROGRAM = -1


class NotNative(Exception):
    """The link's driver runs no XDP programs, or has another one."""


def attach(program: int, ifindex: int, name: str) -> None:
    """Attach a program, or replace the one of this name. Raises NotNative and OSError."""
    with _attached(ifindex, name) as before:
        try:
            _set(ifindex, program, before)
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.EEXIST):
                raise NotNative("another XDP program is attached to it") from error
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                raise NotNative("its driver doesn't run XDP programs") from error
            raise


def detach(ifindex: int, name: str) -> None:
    """Detach the program of this name, if it is attached. Raises OSError."""
    with _attached(ifindex, name) as before:
        if before is not None:
            _set(ifindex, _NO_PROGRAM, before)


@contextmanager
def _attached(ifindex: int, name: str) -> Iterator[int | None]:
    """Yield a descriptor of the link's program if it has this name, else None."""
    with Netlink(ROUTE) as kernel:
        (answer,) = kernel.request(_GET_LINK, _LINK.pack(0, 0, ifindex, 0, 0))
    given = attributes(attributes(answer.payload, _LINK.size).get(_IFLA_XDP, b""))
    found = _open(u32(given[_PROGRAM])) if _PROGRAM in given else None
    try:
        yield found if found is not None and syscall.program_name(found) == name[:15] else None
    finally:
        if found is not None:
            os.close(found)


def _open(program_id: int) -> int | None:
    try:
        return syscall.program_by_id(program_id)
    except FileNotFoundError:
        return None


def _set(ifindex: int, program: int, before: int | None) -> None:
    flags = _IN_DRIVER | (_ONLY_NEW if before is None else _REPLACE)
    options = attribute(_FD, struct.pack("=i", program)) + attribute(_FLAGS, struct.pack("=I", flags))
    if before is not None:
        options += attribute(_EXPECTED_FD, struct.pack("=i", before))
    with Netlink(ROUTE) as kernel:
        kernel.request(
            _SET_LINK, _LINK.pack(0, 0, ifindex, 0, 0) + attribute(_IFLA_XDP | NLA_NESTED, options)
        )
