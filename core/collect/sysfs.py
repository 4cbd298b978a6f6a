"""sysfs as a network namespace sees it, without a mount that anybody else could see."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

# asm-generic/unistd.h and linux/mount.h
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _CMD_CREATE = 1, 6
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def opened_sysfs() -> Iterator[int]:
    """A descriptor of the root of a sysfs of the thread's own network namespace, to open files by (`dir_fd`).

    What is mounted at /sys shows the links of the namespace that it was mounted in, whoever looks. Raises
    OSError: ENOSYS before kernel 5.2, EPERM without CAP_SYS_ADMIN.
    """
    context = _call(_FSOPEN, b"sysfs", ctypes.c_uint(_CLOEXEC))
    try:
        _call(_FSCONFIG, context, ctypes.c_uint(_CMD_CREATE), None, None, 0)
        root = _call(_FSMOUNT, context, ctypes.c_uint(_CLOEXEC), ctypes.c_uint(0))
    finally:
        os.close(context)
    try:
        yield root
    finally:
        os.close(root)


def read_text(root: int, path: str) -> str:
    """The content of one file, without the line's end. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    with open(descriptor, encoding="ascii") as file:
        return file.read().strip()


def write_text(root: int, path: str, text: str) -> None:
    """Write one file at once. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=root)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)


def _call(*arguments: object) -> int:
    result: int = _libc.syscall(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
