"""Hears that somebody else changed the rules of nftables, which tells each transaction (nfnetlink), or the
policies of IPsec."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from bpf.nfnetlink import NFTABLES
from bpf.rule_analysis import ChainName, SetName
from core.collect.nft_netlink import FAMILIES
from core.netlink.client import NETFILTER, attribute_list, attributes, headed, listener, text

# The tables of iptables-legacy: changes of theirs send no event, so what they hold is compared now and
# then.

# Reading these makes no tables (linux/netfilter/x_tables.h).
_NAMES = {"ip": "ip_tables_names", "ip6": "ip6_tables_names"}
# getsockopt(2) of linux/netfilter_ipv4/ip_tables.h, and of IPv6 the same.
_GET_INFO, _GET_ENTRIES = 64, 65
_NAME, _INFO, _INFO_SIZE, _HEADER = 32, 84, 80, 40
# struct ipt_entry and ip6t_entry: where `next_offset` and the two counters stand.
_OFFSETS = {"ip": (90, 96), "ip6": (142, 152)}
_COUNTERS = 16
_KINDS = {
    "ip": (socket.AF_INET, socket.IPPROTO_IP),
    "ip6": (socket.AF_INET6, socket.IPPROTO_IPV6),
}
_libc = ctypes.CDLL(None, use_errno=True)


def tables(family: str) -> tuple[str, ...]:
    """The tables that "ip" or "ip6" has in this process's namespace."""
    try:
        return tuple(sorted(Path("/proc/thread-self/net", _NAMES[family]).read_text().split()))
    except OSError:
        return ()


def families() -> tuple[str, ...]:
    """The families that have any."""
    return tuple(family for family in _NAMES if tables(family))


def fingerprint() -> bytes:
    """What all tables hold, as a digest that counters do not change; b"" where there is none."""
    found = [(family, name) for family in _NAMES for name in tables(family)]
    digest = blake2b(repr(found).encode(), digest_size=16)
    for family, name in found:
        try:
            for part in _rules(family, name):
                digest.update(part)
        except OSError as error:  # it is being replaced: the next comparison sees it whole
            digest.update(repr(error.errno).encode())
    return digest.digest() if found else b""


def _rules(family: str, table: str) -> Iterator[bytes]:
    """The rules of one table as the kernel holds them, each without its counters."""
    next_at, counters = _OFFSETS[family]
    kind, level = _KINDS[family]
    name = table.encode()[: _NAME - 1].ljust(_NAME, b"\0")
    with socket.socket(kind, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as kernel:
        info = _getsockopt(kernel, level, _GET_INFO, name + bytes(_INFO - _NAME))
        (size,) = struct.unpack_from("=I", info, _INFO_SIZE)
        asked = name + struct.pack("=I4x", size) + bytes(size)
        data = _getsockopt(kernel, level, _GET_ENTRIES, asked)[_HEADER:]
    yield info
    at = 0
    while at + counters + _COUNTERS <= len(data):
        (length,) = struct.unpack_from("=H", data, at + next_at)
        if not length:
            return
        yield data[at : at + counters] + data[at + counters + _COUNTERS : at + length]
        at += length


def _getsockopt(kernel: socket.socket, level: int, option: int, asked: bytes) -> bytes:
    """getsockopt(2) with what is asked in the buffer that takes the answer."""
    buffer = ctypes.create_string_buffer(asked, len(asked))
    length = ctypes.c_uint32(len(asked))
    if _libc.getsockopt(kernel.fileno(), level, option, buffer, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw[: length.value]


_NFT_GROUP = 7  # NFNLGRP_NFTABLES
_NEW_GENERATION = NFTABLES | 15
_RULES = (NFTABLES | 6, NFTABLES | 8)  # NFT_MSG_NEWRULE, NFT_MSG_DELRULE
_NEW_ELEMENTS = NFTABLES | 12
_ELEMENTS = (_NEW_ELEMENTS, NFTABLES | 14)  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
# Keys that stand for a conntrack state: established, invalid, and all that no other key is for.
_STATES = ((2).to_bytes(4, sys.byteorder), (1).to_bytes(4, sys.byteorder), b"")
_PLAIN = tuple(code.to_bytes(4, "big", signed=True) for code in (0, 1, -1, -2, -5))  # NF_DROP, NFT_RETURN ...
_TO_CHAINS = tuple(code.to_bytes(4, "big", signed=True) for code in (-3, -4))  # NFT_JUMP, NFT_GOTO
_BUFFER = 8 << 20
_XFRM, _POLICY_GROUP = 6, 4  # XFRMNLGRP_POLICY


@dataclass(slots=True)
class Heard:
    """What changed: `rules` of any kind, or only those in these `chains` and elements of these `sets`, any of
    which hold `verdicts`; `turns` are those whose rules may judge otherwise after it, with the chain that
    packets come to now ("": whatever may come of it)."""

    rules: bool = False
    chains: set[ChainName] = field(default_factory=set)
    sets: set[SetName] = field(default_factory=set)
    verdicts: bool = False
    turns: set[tuple[SetName, str]] = field(default_factory=set)

    def add(self, other: Heard) -> None:
        """And all that."""
        self.rules |= other.rules
        self.chains |= other.chains
        self.sets |= other.sets
        self.verdicts |= other.verdicts
        self.turns |= other.turns

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
                    name, given = _named(payload)
                    self._begun.sets.add(name)
                    verdicts = _verdicts(given.get(3, b""))
                    self._begun.verdicts |= bool(verdicts)
                    self._begun.turns |= {(name, chain) for chain in _turns(kind, verdicts)}
                elif kind in _RULES:
                    self._begun.chains.add(_named(payload)[0])
                else:
                    self._begun.rules = True

    def _take(self, found: Heard, is_own: bool) -> None:
        """The transaction that was begun is complete; one that told nothing may have changed anything."""
        begun, self._begun = self._begun, Heard()
        if not is_own:
            begun.rules |= not begun.sets and not begun.chains
            found.add(begun)

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


def _named(payload: bytes) -> tuple[SetName, dict[int, bytes]]:
    """Family, table and name of a set (NFTA_SET_ELEM_LIST_TABLE, _SET) or chain (NFTA_RULE_TABLE, _CHAIN)
    after struct nfgenmsg, and all attributes."""
    given: dict[int, bytes] = {}
    with suppress(IndexError):
        given = attributes(payload, 4)
    family = FAMILIES.get(payload[0], str(payload[0]))
    return (family, text(given.get(1, b"")), text(given.get(2, b""))), given


def _verdicts(elements: bytes) -> list[tuple[bytes, bytes, str]]:
    """Keys of elements with the code and the chain of their verdicts, of those that hold one."""
    found = []
    for _, element in attribute_list(elements):
        given = attributes(element)
        verdict = attributes(attributes(given.get(2, b"")).get(2, b""))
        if verdict:
            key = attributes(given.get(1, b"")).get(1, b"")
            found.append((key, verdict.get(1, b""), text(verdict.get(2, b""))))
    return found


def _turns(kind: int, verdicts: list[tuple[bytes, bytes, str]]) -> set[str]:
    """Of elements that came or went, as Heard.turns has it. Nothing comes of new ones that accept, drop or
    pass on, or of jumps that go: the rules were judged with them. But the verdict for the state of what is
    forwarded, and of what conntrack calls invalid, says how packets go on (see bpf/expressions.py)."""
    found = set()
    for key, code, chain in verdicts:
        if key in _STATES or code not in (*_PLAIN, *_TO_CHAINS):
            found.add("")
        elif kind == _NEW_ELEMENTS and code in _TO_CHAINS:
            found.add(chain)
    return found
