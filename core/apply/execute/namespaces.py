"""Named network namespaces: made, deleted, joined and left."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from core.apply import route
from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel
from core.collect.namespaces import read_namespaces
from core.netlink.client import Netlink, attributes, text
from core.netlink.netns import HOST_PATH, NamespaceGone, entered, open_namespace
from core.operations import CreateNamespace, DeleteNamespace, JoinNamespace, LeaveNamespace, NetnsTarget

DIRECTORY = Path("/run/netns")
_LOOPBACK = 1  # its ifindex in every namespace
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 1 << 20, 2
_libc = ctypes.CDLL(None, use_errno=True)


@execute.register
def _(operation: CreateNamespace, kernel: Kernel) -> None:
    _share_directory()
    with ExitStack() as stack:
        left = _left(operation, stack) if operation.left else ""
        path = _new_file(operation.name)
        stack.enter_context(_unlinked_on_error(path))
        if left:
            _mount(left, path, _MS_BIND)
        else:
            with ThreadPoolExecutor(1, "namespace") as thrown_away:
                thrown_away.submit(_mount_new, path).result()


def _left(operation: CreateNamespace, stack: ExitStack) -> str:
    """The path of the namespace that lives on without the name, as long as `stack` holds it; "" where it has
    ended."""
    spaces, _ = read_namespaces()
    usual = (space for space in spaces.values() if operation.pid in space.pids)
    for space in (*usual, *spaces.values()):
        if space.entry and not space.is_host:
            with suppress(OSError), ExitStack() as kept:
                descriptor = open_namespace(space.entry, space.inode)
                kept.callback(os.close, descriptor)
                if _loopback_alias(path := f"/proc/self/fd/{descriptor}") == operation.left:
                    stack.push(kept.pop_all())
                    return path
    return ""


def _loopback_alias(entry: str) -> str:
    try:
        with entered(entry), Netlink() as kernel:
            (answer,) = kernel.request(*_loopback_question())
    except (OSError, NamespaceGone):
        return ""
    return text(attributes(answer.payload, route.LINK_HEADER).get(route.IFLA_IFALIAS, b""))


def _loopback_question() -> tuple[int, bytes, int]:
    asked = route.get_link(_LOOPBACK)
    return asked.msg_type, asked.body, asked.flags


@execute.register
def _(operation: DeleteNamespace, kernel: Kernel) -> None:
    kernel.forget(NetnsTarget(operation.name))
    _unmount(operation.name)


@execute.register
def _(operation: LeaveNamespace, kernel: Kernel) -> None:
    kernel.forget(NetnsTarget(operation.name))
    _unmount(operation.name)


@execute.register
def _(operation: JoinNamespace, kernel: Kernel) -> None:
    path = _new_file(operation.name)
    with _unlinked_on_error(path):
        _mount(DIRECTORY / operation.of if operation.of else HOST_PATH, path, _MS_BIND)


def _share_directory() -> None:
    """Make the directory a mount that shares what is mounted in it with other mount namespaces, as
    ip-netns(8) does: a namespace deleted in one of them is not held by the copies in the others."""
    DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    descriptor = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            _mount("", DIRECTORY, _MS_SHARED | _MS_REC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: it is no mount yet
                raise
            _mount(DIRECTORY, DIRECTORY, _MS_BIND | _MS_REC)
            _mount("", DIRECTORY, _MS_SHARED | _MS_REC)
    finally:
        os.close(descriptor)


def _new_file(name: str) -> Path:
    path = DIRECTORY / name
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    return path


@contextmanager
def _unlinked_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        path.unlink()
        raise


def _mount_new(path: Path) -> None:
    """Move this thread, which ends soon, to a new network namespace, and mount that."""
    os.unshare(os.CLONE_NEWNET)
    _mount("/proc/thread-self/ns/net", path, _MS_BIND)


def _mount(source: str | Path, target: Path, flags: int) -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(target), b"none", ctypes.c_ulong(flags), None):
        number = ctypes.get_errno()
        raise OSError(number, f"{target}: {os.strerror(number)}")


def _unmount(name: str) -> None:
    path = DIRECTORY / name
    if _libc.umount2(os.fsencode(path), _MNT_DETACH):
        number = ctypes.get_errno()
        if number != errno.EINVAL:  # EINVAL: the name is there, its mount is gone already
            raise OSError(number, f"{path}: {os.strerror(number)}")
    path.unlink()
