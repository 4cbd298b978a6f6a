"""Named network namespaces: made, deleted, joined and left."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel
from core.apply.tools import run_holding_lock
from core.collect.netns import HOST_PATH
from core.ops import CreateNamespace, DeleteNamespace, JoinNamespace, LeaveNamespace, Place

DIRECTORY = Path("/run/netns")
_MS_BIND, _MNT_DETACH = 4096, 2
_libc = ctypes.CDLL(None, use_errno=True)


@execute.register
def _(operation: CreateNamespace, kernel: Kernel) -> None:
    done = run_holding_lock(["ip", "netns", "add", operation.name])
    if done.returncode:
        number = errno.EEXIST if (DIRECTORY / operation.name).exists() else errno.EPERM
        raise OSError(number, done.stderr.strip() or "ip netns add failed")


@execute.register
def _(operation: DeleteNamespace, kernel: Kernel) -> None:
    kernel.forget(Place(operation.name))
    _unmount(operation.name)


@execute.register
def _(operation: LeaveNamespace, kernel: Kernel) -> None:
    kernel.forget(Place(operation.name))
    _unmount(operation.name)


@execute.register
def _(operation: JoinNamespace, kernel: Kernel) -> None:
    path = DIRECTORY / operation.name
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    source = DIRECTORY / operation.of if operation.of else HOST_PATH
    if _libc.mount(os.fsencode(source), os.fsencode(path), b"none", _MS_BIND, None):
        number = ctypes.get_errno()
        path.unlink()
        raise OSError(
            number, f"mounting the namespace of {operation.of or 'the host'}: {os.strerror(number)}"
        )


def _unmount(name: str) -> None:
    path = DIRECTORY / name
    if _libc.umount2(os.fsencode(path), _MNT_DETACH):
        number = ctypes.get_errno()
        if number != errno.EINVAL:  # EINVAL: the name is there, its mount is gone already
            raise OSError(number, f"{path}: {os.strerror(number)}")
    path.unlink()
