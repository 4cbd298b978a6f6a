"""Execute operations: one netlink socket per namespace, and the Docker client."""

from __future__ import annotations

import errno
import fcntl
import os
import socket as sockets
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from core.netlink.client import Netlink, attributes, text
from core.netlink.netns import HOST_PATH, NamespaceGone, entered, inode_of, open_namespace
from core.operations.engine import open_docker
from core.operations.nft import Nft
from core.operations.target import HOST, NetnsTarget

_SIOCGIFINDEX = 0x8933  # linux/sockios.h
_IFNAMSIZ = 16
_IFREQ = struct.Struct("16si20x")  # struct ifreq of linux/if.h, its name and index
_RTM_GETLINK, _IFLA_IFALIAS = 18, 20  # linux/rtnetlink.h, if_link.h
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg


def path_of(place: NetnsTarget) -> str:
    """Return a path of the namespace: that of its first process that is still in it."""
    pids = (place.pid, *place.others) if place.inode is not None and not place.name else ()
    for path in (f"/proc/{pid}/ns/net" for pid in pids):
        with suppress(OSError):
            if inode_of(path) == place.inode:
                return path
    return place.path or HOST_PATH


def inside(place: NetnsTarget) -> AbstractContextManager[None]:
    """Enter the namespace, as netns.entered does."""
    return entered(path_of(place), place.inode)


class Executor:
    """The sockets and clients that the operations of one change share.

    They are opened when first needed. Use it as a context manager: an open socket keeps its namespace alive.
    """

    def __init__(self) -> None:
        self._iproutes: dict[NetnsTarget, Any] = {}
        self._loop: Any = None
        self._descriptors: dict[NetnsTarget, int] = {}
        self._ioctl_sockets: dict[NetnsTarget, sockets.socket] = {}
        self._rules: dict[NetnsTarget, Nft] = {}
        self._docker: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in self._open():
            self.forget(place)
        if self._loop is not None:
            from core.operations.rtnetlink import close_loop

            close_loop(self._loop)
        if self._docker is not None:
            self._docker.close()

    def _open(self) -> set[NetnsTarget]:
        return {*self._iproutes, *self._ioctl_sockets, *self._descriptors, *self._rules}

    def require_namespaces(self) -> None:
        """Raise NamespaceGone if a target namespace exists only because it is open here.

        Its container has ended meanwhile.
        """
        for place in self._open() - {HOST}:
            with suppress(OSError):
                if inode_of(path_of(place)) == place.inode or place.inode is None:
                    continue
            raise NamespaceGone(f"{place} disappeared meanwhile")

    def docker(self) -> Any:
        """Return the low-level client of the Docker SDK. Raises EngineError."""
        if self._docker is None:
            self._docker = open_docker()
        return self._docker

    @contextmanager
    def rtnetlink(self, place: NetnsTarget) -> Iterator[Any]:
        """Give pyroute2's IPRoute in that namespace.

        Raises OSError with the kernel's errno if a request in the body is refused, and NamespaceGone.
        """
        from asyncio import new_event_loop  # imported late, like pyroute2: only changes need them

        from core.operations.rtnetlink import open_iproute, os_errors

        if self._loop is None:
            self._loop = new_event_loop()
        if place not in self._iproutes:
            with inside(place):
                self._iproutes[place] = open_iproute(self._loop)
        with os_errors(self._loop):
            yield self._iproutes[place]

    def load_rules(self, place: NetnsTarget, text: str) -> None:
        """Load rules as `nft -f` does. Raises OSError and NamespaceGone."""
        with inside(place):
            if place not in self._rules:
                self._rules[place] = Nft()
            self._rules[place].load(text)

    def descriptor(self, place: NetnsTarget) -> int:
        """Return a file descriptor of the namespace, for IFLA_NET_NS_FD. Raises NamespaceGone."""
        if place not in self._descriptors:
            try:
                self._descriptors[place] = open_namespace(path_of(place), place.inode)
            except (FileNotFoundError, ProcessLookupError) as error:
                raise NamespaceGone(place.path) from error
        return self._descriptors[place]

    def forget(self, place: NetnsTarget) -> None:
        """Close everything that keeps a namespace alive, before its name is deleted."""
        if place in self._ioctl_sockets:
            self._ioctl_sockets.pop(place).close()
        if place in self._iproutes:
            from core.operations.rtnetlink import close_iproute

            close_iproute(self._iproutes.pop(place), self._loop)
        if place in self._descriptors:
            os.close(self._descriptors.pop(place))
        if place in self._rules:
            self._rules.pop(place).close(aside=place == HOST)

    def index(self, place: NetnsTarget, link: str) -> int:
        """Return the ifindex of a link (netdevice(7), SIOCGIFINDEX). Raises LookupError if it is missing."""
        if place not in self._ioctl_sockets:
            with inside(place):
                self._ioctl_sockets[place] = sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM)
        name = os.fsencode(link)
        try:
            if len(name) > _IFNAMSIZ - 1:
                raise OSError
            answer = fcntl.ioctl(self._ioctl_sockets[place], _SIOCGIFINDEX, _IFREQ.pack(name, 0))
        except OSError:
            raise LookupError(f"there is no link {link} in {place}") from None
        return int(_IFREQ.unpack(answer)[1])

    def alias(self, place: NetnsTarget, link: str) -> str:
        """Return the alias of a link, "" if it has none. Raises LookupError if the link is missing."""
        index = self.index(place, link)
        try:
            with inside(place), Netlink() as sock:
                return alias_of(sock, index)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise LookupError(f"there is no link {link} in {place}") from None
            raise


def alias_of(sock: Netlink, index: int) -> str:
    """Return the alias of a link, "" if it has none. Raises OSError."""
    (answer,) = sock.request(_RTM_GETLINK, _LINK.pack(0, 0, index, 0, 0))
    return text(attributes(answer.payload, _LINK.size).get(_IFLA_IFALIAS, b""))
