"""The hands: netlink sockets in the places where operations act, and the engine's client, for one run."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute

from core.apply.engine import open_docker
from core.collect.netns import HOST_PATH, NamespaceGone, entered
from core.ops import Place


class Kernel:
    """One netlink socket for each place, opened when first needed and closed at the end of the run.

    Use it as a context manager: an open socket holds its namespace.
    """

    def __init__(self) -> None:
        self._sockets: dict[Place, Any] = {}
        self._descriptors: dict[Place, int] = {}
        self._docker: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in list(self._sockets):
            self.forget(place)
        for place in list(self._descriptors):
            os.close(self._descriptors.pop(place))
        if self._docker is not None:
            self._docker.close()

    def docker(self) -> Any:
        """The Docker SDK's low-level client. Raises EngineError where Docker cannot be asked."""
        if self._docker is None:
            self._docker = open_docker()
        return self._docker

    def socket(self, place: Place) -> Any:
        """The route netlink socket in that place. Raises NamespaceGone where the place is not there."""
        if place not in self._sockets:
            with entered(place.path or HOST_PATH, place.inode):
                self._sockets[place] = IPRoute()
        return self._sockets[place]

    def descriptor(self, place: Place) -> int:
        """A file descriptor of the place's network namespace, for netlink's *_NET_NS_FD attributes. Raises
        NamespaceGone where the place is not there."""
        if place not in self._descriptors:
            try:
                found = os.open(place.path or HOST_PATH, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, ProcessLookupError) as error:
                raise NamespaceGone(place.path) from error
            self._descriptors[place] = found
            if place.inode not in (None, os.fstat(found).st_ino):
                raise NamespaceGone(place.path)
        return self._descriptors[place]

    def forget(self, place: Place) -> None:
        """Let go of a place, before it is deleted."""
        if place in self._sockets:
            self._sockets.pop(place).close()
        if place in self._descriptors:
            os.close(self._descriptors.pop(place))

    def index(self, place: Place, link: str) -> int:
        """The ifindex of a link there. Raises LookupError where it is not."""
        found = self.socket(place).link_lookup(ifname=link)
        if not found:
            raise LookupError(f"there is no link {link} in {place}")
        return int(found[0])

    def alias(self, place: Place, link: str) -> str:
        """The ifalias of a link there, "" where it has none. Raises LookupError where the link is not."""
        found = self.socket(place).get_links(self.index(place, link))
        return str(found[0].get("ifalias") or "") if found else ""
