"""The hands: netlink sockets in the places where operations act, and the engine's client, for one run."""

from __future__ import annotations

import errno
import fcntl
import os
import socket as sockets
import struct
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, Self

from core.apply import route
from core.apply.engine import open_docker
from core.apply.nft import Nft
from core.netlink.client import Message, Netlink, attributes, text
from core.netlink.netns import HOST_PATH, NamespaceGone, entered, inode_of, open_namespace
from core.operations import HOST, NetnsTarget

_SIOCGIFINDEX = 0x8933  # linux/sockios.h
_IFNAMSIZ = 16
_IFREQ = struct.Struct("16si20x")  # struct ifreq of linux/if.h, its name and index


def way_to(place: NetnsTarget) -> str:
    """The path that leads to a place: of its processes the first that is still in there."""
    pids = (place.pid, *place.others) if place.inode is not None and not place.name else ()
    for path in (f"/proc/{pid}/ns/net" for pid in pids):
        with suppress(OSError):
            if inode_of(path) == place.inode:
                return path
    return place.path or HOST_PATH


def inside(place: NetnsTarget) -> AbstractContextManager[None]:
    """Enter a place as netns.entered does."""
    return entered(way_to(place), place.inode)


class Kernel:
    """One netlink socket for each place, opened when first needed and closed at the end of the run.

    Use it as a context manager: an open socket holds its namespace.
    """

    def __init__(self) -> None:
        self._sockets: dict[NetnsTarget, Netlink] = {}
        self._descriptors: dict[NetnsTarget, int] = {}
        self._askers: dict[NetnsTarget, sockets.socket] = {}
        self._rules: dict[NetnsTarget, Nft] = {}
        self._docker: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in self._held():
            self.forget(place)
        if self._docker is not None:
            self._docker.close()

    def _held(self) -> set[NetnsTarget]:
        return {*self._sockets, *self._askers, *self._descriptors, *self._rules}

    def require_places(self) -> None:
        """Raise NamespaceGone where a place that was acted in is there only because it is held here: its
        container ended meanwhile."""
        for place in self._held() - {HOST}:
            with suppress(OSError):
                if inode_of(way_to(place)) == place.inode or place.inode is None:
                    continue
            raise NamespaceGone(f"{place} is gone: it ended meanwhile")

    def docker(self) -> Any:
        """The Docker SDK's low-level client. Raises EngineError where Docker cannot be asked."""
        if self._docker is None:
            self._docker = open_docker()
        return self._docker

    def request(self, place: NetnsTarget, request: route.Request) -> list[Message]:
        """Have the kernel do one thing in that place; what it answered. Raises OSError with the kernel's
        errno, and NamespaceGone where the place is not there."""
        if place not in self._sockets:
            with inside(place):
                self._sockets[place] = Netlink()
        return self._sockets[place].request(request.msg_type, request.body, request.flags)

    def load_rules(self, place: NetnsTarget, text: str) -> None:
        """Do in that place what `nft -f` does with `text`. Raises OSError and NamespaceGone."""
        with inside(place):
            if place not in self._rules:
                self._rules[place] = Nft()
            self._rules[place].load(text)

    def descriptor(self, place: NetnsTarget) -> int:
        """A file descriptor of the place's network namespace, for netlink's *_NET_NS_FD attributes. Raises
        NamespaceGone where the place is not there."""
        if place not in self._descriptors:
            try:
                self._descriptors[place] = open_namespace(way_to(place), place.inode)
            except (FileNotFoundError, ProcessLookupError) as error:
                raise NamespaceGone(place.path) from error
        return self._descriptors[place]

    def forget(self, place: NetnsTarget) -> None:
        """Let go of a place, before it is deleted."""
        if place in self._askers:
            self._askers.pop(place).close()
        if place in self._sockets:
            self._sockets.pop(place).close()
        if place in self._descriptors:
            os.close(self._descriptors.pop(place))
        if place in self._rules:
            self._rules.pop(place).close(aside=place == HOST)

    def index(self, place: NetnsTarget, link: str) -> int:
        """The ifindex of a link there (netdevice(7), SIOCGIFINDEX). Raises LookupError where it is not."""
        if place not in self._askers:
            with inside(place):
                self._askers[place] = sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM)
        name = os.fsencode(link)
        try:
            if len(name) > _IFNAMSIZ - 1:
                raise OSError
            answer = fcntl.ioctl(self._askers[place], _SIOCGIFINDEX, _IFREQ.pack(name, 0))
        except OSError:
            raise LookupError(f"there is no link {link} in {place}") from None
        return int(_IFREQ.unpack(answer)[1])

    def alias(self, place: NetnsTarget, link: str) -> str:
        """The ifalias of a link there, "" where it has none. Raises LookupError where the link is not."""
        index = self.index(place, link)
        try:
            (answer,) = self.request(place, route.get_link(index))
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise LookupError(f"there is no link {link} in {place}") from None
            raise
        return text(attributes(answer.payload, route.LINK_HEADER).get(route.IFLA_IFALIAS, b""))
