"""Create, name and delete network namespaces (ip-netns(8))."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from core.collect.namespaces import read_namespaces
from core.netlink.client import Netlink
from core.netlink.netns import HOST_PATH, NamespaceGone, entered, open_namespace
from core.operations.base import Operation
from core.operations.executor import Executor, alias_of
from core.operations.values import NetnsTarget, recorded
from core.text import quoted

_DIRECTORY = Path("/run/netns")
_LOOPBACK = 1  # its ifindex in every namespace
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 1 << 20, 2
_libc = ctypes.CDLL(None, use_errno=True)


@recorded()
@dataclass(frozen=True, slots=True)
class CreateNamespace(Operation):
    """Create a network namespace and mount it under /run/netns.

    With `left`, see DeleteNamespace, mount the namespace that processes kept alive, if it still exists.
    """

    name: str
    left: str = ""
    pid: int = field(default=0, compare=False)

    def command(self) -> str:
        name = quoted(self.name)
        return f"ip netns attach {name} {self.pid}" if self.left else f"ip netns add {name}"

    def inverse(self) -> tuple[DeleteNamespace, ...]:
        return (DeleteNamespace(self.name, self.left, self.pid),)

    def describe(self) -> str:
        again = f"restore the name {self.name} of its namespace, or create a new one if that has ended"
        return again if self.left else f"create the namespace {self.name}"

    def affects(self) -> tuple[str, ...]:
        return (str(NetnsTarget(self.name)),)

    def execute(self, executor: Executor) -> None:
        from concurrent.futures import ThreadPoolExecutor

        _share_directory()
        with ExitStack() as stack:
            left = self._left(stack) if self.left else ""
            path = _new_file(self.name)
            stack.enter_context(_unlinked_on_error(path))
            if left:
                _mount(left, path, _MS_BIND)
            else:
                with ThreadPoolExecutor(1, "namespace") as thrown_away:
                    thrown_away.submit(_mount_new, path).result()

    def _left(self, stack: ExitStack) -> str:
        """Return the path of the namespace that `left` names, "" if it has ended.

        The path is valid until `stack` is closed.
        """
        spaces, _ = read_namespaces()
        usual = (space for space in spaces.values() if self.pid in space.pids)
        for space in (*usual, *spaces.values()):
            if space.entry and not space.is_host:
                with suppress(OSError), ExitStack() as kept:
                    descriptor = open_namespace(space.entry, space.inode)
                    kept.callback(os.close, descriptor)
                    if _loopback_alias(path := f"/proc/self/fd/{descriptor}") == self.left:
                        stack.push(kept.pop_all())
                        return path
        return ""

    def target_exists(self, executor: Executor) -> bool:
        return Path(_DIRECTORY, self.name).exists()

    def remaining(self, executor: Executor, was_interrupted: bool) -> Operation:
        _drop_empty_name(Path(_DIRECTORY, self.name))
        return self


@recorded()
@dataclass(frozen=True, slots=True)
class DeleteNamespace(Operation):
    """Delete the name of a namespace; the kernel removes it when no process is in it.

    Operations before it remove what is inside, so that its undo creates an empty namespace. If processes stay
    in it, `left` is the alias of its loopback link, by which an undo finds it, and `pid` is one of them.
    """

    name: str
    left: str = ""
    pid: int = field(default=0, compare=False)

    def command(self) -> str:
        return f"ip netns del {quoted(self.name)}"

    def inverse(self) -> tuple[CreateNamespace, ...]:
        return (CreateNamespace(self.name, self.left, self.pid),)

    def describe(self) -> str:
        return f"delete the namespace {self.name}"

    def affects(self) -> tuple[str, ...]:
        return (str(NetnsTarget(self.name)),)

    def execute(self, executor: Executor) -> None:
        executor.forget(NetnsTarget(self.name))
        _unmount(self.name)


@recorded()
@dataclass(frozen=True, slots=True)
class JoinNamespace(Operation):
    """Name the namespace `of` ("": the host) `name`, so that containers can share it."""

    name: str
    of: str

    def command(self) -> str:
        name = quoted(f"/run/netns/{self.name}")
        of = quoted(f"/run/netns/{self.of}") if self.of else "/proc/self/ns/net"
        return f"touch {name} && mount --bind {of} {name}"

    def inverse(self) -> tuple[LeaveNamespace, ...]:
        return (LeaveNamespace(self.name, self.of),)

    def describe(self) -> str:
        return f"make {self.name} share the namespace of {self.of or 'the host'}"

    def affects(self) -> tuple[str, ...]:
        return str(NetnsTarget(self.name)), str(NetnsTarget(self.of))

    def execute(self, executor: Executor) -> None:
        path = _new_file(self.name)
        with _unlinked_on_error(path):
            _mount(_DIRECTORY / self.of if self.of else HOST_PATH, path, _MS_BIND)

    def target_exists(self, executor: Executor) -> bool:
        return Path(_DIRECTORY, self.name).exists()

    def remaining(self, executor: Executor, was_interrupted: bool) -> Operation:
        _drop_empty_name(Path(_DIRECTORY, self.name))
        return self


@recorded()
@dataclass(frozen=True, slots=True)
class LeaveNamespace(Operation):
    """Remove the name `name` from the namespace `of` ("": the host)."""

    name: str
    of: str

    def command(self) -> str:
        return f"ip netns del {quoted(self.name)}"

    def inverse(self) -> tuple[JoinNamespace, ...]:
        return (JoinNamespace(self.name, self.of),)

    def describe(self) -> str:
        return f"stop {self.name} sharing the namespace of {self.of or 'the host'}"

    def affects(self) -> tuple[str, ...]:
        return str(NetnsTarget(self.name)), str(NetnsTarget(self.of))

    def execute(self, executor: Executor) -> None:
        executor.forget(NetnsTarget(self.name))
        _unmount(self.name)


def _loopback_alias(entry: str) -> str:
    try:
        with entered(entry), Netlink() as sock:
            return alias_of(sock, _LOOPBACK)
    except (OSError, NamespaceGone):
        return ""


def _share_directory() -> None:
    """Make /run/netns a shared mount, as ip-netns(8) does.

    Otherwise copies of a mount in other mount namespaces keep a deleted namespace alive.
    """
    _DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    descriptor = os.open(_DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            _mount("", _DIRECTORY, _MS_SHARED | _MS_REC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: it is no mount yet
                raise
            _mount(_DIRECTORY, _DIRECTORY, _MS_BIND | _MS_REC)
            _mount("", _DIRECTORY, _MS_SHARED | _MS_REC)
    finally:
        os.close(descriptor)


def _new_file(name: str) -> Path:
    path = _DIRECTORY / name
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
    """Move this short-lived thread to a new network namespace, and mount that."""
    os.unshare(os.CLONE_NEWNET)
    _mount("/proc/thread-self/ns/net", path, _MS_BIND)


def _mount(source: str | Path, target: Path, flags: int) -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(target), b"none", ctypes.c_ulong(flags), None):
        number = ctypes.get_errno()
        raise OSError(number, f"{target}: {os.strerror(number)}")


def _unmount(name: str) -> None:
    path = _DIRECTORY / name
    if _libc.umount2(os.fsencode(path), _MNT_DETACH):
        number = ctypes.get_errno()
        if number != errno.EINVAL:  # EINVAL: the name is there, its mount is gone already
            raise OSError(number, f"{path}: {os.strerror(number)}")
    path.unlink()


def _drop_empty_name(path: Path) -> None:
    """Remove a name on which no namespace is mounted."""
    with suppress(FileNotFoundError):
        if path.stat().st_dev == path.parent.stat().st_dev:
            path.unlink()
