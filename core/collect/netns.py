"""Entering network namespaces: the one place that calls setns(2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from core.collect import nsfile
from core.model import Namespace

HOST_PATH = "/proc/self/ns/net"
# Where the thread is: a thread beside the main one is in the host while that one visits others.
THREAD_PATH = "/proc/thread-self/ns/net"


class NamespaceGone(Exception):
    """The namespace to enter is no longer there."""


def entry_of(namespace: Namespace) -> str:
    """The path by which it can be entered; raises NamespaceGone where there is none."""
    if namespace.entry:
        return namespace.entry
    if namespace.is_host:
        return HOST_PATH
    raise NamespaceGone(f"net:[{namespace.inode}]")


@contextmanager
def entered(path: str, inode: int | None = None) -> Iterator[None]:
    """Run the body with this thread inside the network namespace at `path`; other threads stay.

    Sockets opened and processes started in the body belong to that namespace. Do not keep such a socket
    open: it would hold the namespace after its owner let it go. Raises NamespaceGone when `path` no longer
    leads to a namespace, or to another one than `inode`; PermissionError without CAP_SYS_ADMIN.
    """
    home = os.open(THREAD_PATH, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            target = nsfile.open_namespace(path, inode)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise NamespaceGone(path) from error
        try:
            if os.fstat(target).st_ino == os.fstat(home).st_ino:
                yield
                return
            try:
                os.setns(target, os.CLONE_NEWNET)
            except OSError as error:
                if isinstance(error, PermissionError):
                    raise
                raise NamespaceGone(path) from error
        finally:
            os.close(target)
        try:
            yield
        finally:
            os.setns(home, os.CLONE_NEWNET)
    finally:
        os.close(home)
