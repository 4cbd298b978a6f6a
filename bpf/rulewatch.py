"""Hears that somebody else changed the rules of nftables, which tells each transaction (nfnetlink), or the
policies of IPsec."""

from __future__ import annotations

import errno
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field

from bpf.judging import SetName
from bpf.nfnetlink import NFTABLES
from core.collect.netlink import (
    NETFILTER,
    attributes,
    headed,
    listener,
    text,
)
from core.collect.nftables import FAMILIES

_NFT_GROUP = 7  # NFNLGRP_NFTABLES
_NEW_GENERATION = NFTABLES | 15
_ELEMENTS = (NFTABLES | 12, NFTABLES | 14)  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
_BUFFER = 8 << 20
_XFRM, _POLICY_GROUP = 6, 4  # XFRMNLGRP_POLICY


@dataclass(slots=True)
class Heard:
    """What changed: `rules` of any kind, or only elements of these `sets`."""

    rules: bool = False
    sets: set[SetName] = field(default_factory=set)

    def concerns(self, sets: Collection[SetName]) -> bool:
        """Whether elements of any of these changed."""
        return not self.sets.isdisjoint(sets)


class RuleWatch:
    """A socket in the host's namespace that hears nftables' transactions."""

    def __init__(self) -> None:
        self._socket = listener(NETFILTER, (_NFT_GROUP,), _BUFFER)
        self._begun = Heard()

    def fileno(self) -> int:
        """What to wait for."""
        return self._socket.fileno()

    def heard(self, own_port: int = 0) -> Heard:
        """What somebody else than the socket of that port changed since the last call; never waits."""
        found = Heard()
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found.rules = True
                continue
            for kind, port, payload in headed(data):
                if kind == _NEW_GENERATION:
                    self._take(found, is_own=port == own_port)
                elif kind in _ELEMENTS:
                    self._begun.sets.add(_set_of(payload))
                else:
                    self._begun.rules = True

    def _take(self, found: Heard, is_own: bool) -> None:
        """The transaction that was begun is complete; one that told nothing may have changed anything."""
        begun, self._begun = self._begun, Heard()
        if not is_own:
            found.rules |= begun.rules or not begun.sets
            found.sets |= begun.sets

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


class PolicyWatch:
    """A socket in the host's namespace that hears changes of IPsec's policies (ip-xfrm(8)); raises OSError
    on kernels without."""

    def __init__(self) -> None:
        self._socket = listener(_XFRM, (_POLICY_GROUP,), _BUFFER)

    def fileno(self) -> int:
        """What to wait for."""
        return self._socket.fileno()

    def heard(self) -> bool:
        """Whether any changed since the last call; never waits."""
        found = False
        while True:
            try:
                self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
            found = True

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def _set_of(payload: bytes) -> SetName:
    """Family, table and name (NFTA_SET_ELEM_LIST_TABLE, _SET) after struct nfgenmsg."""
    given: dict[int, bytes] = {}
    with suppress(IndexError):
        given = attributes(payload, 4)
    family = FAMILIES.get(payload[0], str(payload[0]))
    return family, text(given.get(1, b"")), text(given.get(2, b""))
