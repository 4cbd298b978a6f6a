"""Watch the host's links, routes, nftables rules and IPsec policies; read sysctls.

Firewall rules can match more than the packet: a link's name, group and master, routes, routing rules,
forwarding and the reverse path filter. After such a change connections must pass the rules once more: see
bpf/generation_chain.py. Containers' addresses and MACs are in bpf/reconcile.py. Layouts: rtnetlink(7),
netconf.h.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from bpf.rule_analysis import ChainName, SetName
from core.collect.nft_netlink import FAMILIES
from core.netlink.client import (
    NETFILTER,
    ROUTE,
    Netlink,
    attribute_list,
    attributes,
    listener,
    pending_events,
    text,
    walk,
    walk_events,
)
from core.netlink.nfnetlink import NFTABLES
from core.text import TRACE_TABLE

# RTNLGRP_* of linux/rtnetlink.h: links, IPv4 routes and rules, IPv6 routes and rules, settings of links by
# family, next hops.
_GROUPS = (1, 7, 8, 11, 19, 24, 25, 32)
_BUFFER = 4 << 20
_NEW_LINK, _DEL_LINK, _GET_LINK = 16, 17, 18
_ROUTES, _RULES, _NEXT_HOPS = (24, 25), (32, 33), (104, 105)
_NEW_NETCONF, _DEL_NETCONF, _GET_NETCONF = 80, 81, 82
_IFINFO = struct.Struct("=BxHiII")
_UP_FLAGS = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_GROUP = 1, 3, 10, 27
_RTMSG, _RTA_DST = struct.Struct("=BBBBBBBBI"), 1
_NETCONF_IFINDEX = 1
_NETCONF_READ = (2, 3, 9)  # forwarding, rp_filter, force_forwarding
_NETCONFMSG_SIZE = 4  # one byte of family, aligned


@dataclass(frozen=True, slots=True)
class _LinkRecord:
    """Describe a link as it was when it last carried packets, up and with a carrier.

    `identity`: what rules can match it by, None if it never carried any. `up`: it still carries packets.
    """

    identity: tuple[bytes | int, ...] | None
    is_port: bool
    up: bool = True


class HostWatch:
    """Follow rtnetlink's events of the host's namespace."""

    def __init__(self) -> None:
        self._socket = listener(ROUTE, _GROUPS, _BUFFER)
        self._read_all()

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._socket.fileno()

    def read_events(self) -> bool:
        """Return whether something changed since the last call; never waits."""
        changed = False
        for data in pending_events(self._socket):
            if data is None:
                self._read_all()
                changed = True
                continue
            for kind, _, _, payload in walk(data):
                changed |= self._on_event(kind, payload)
        return changed

    def _read_all(self) -> None:
        self._links: dict[int, _LinkRecord] = {}
        self._highest = 0
        self._settings: dict[tuple[int, bytes], dict[int, bytes]] = {}
        with Netlink(ROUTE) as kernel:
            for message in kernel.dump(_GET_LINK, _IFINFO.pack(0, 0, 0, 0, 0)):
                self._on_link(message.payload)
            for family in (socket.AF_INET, socket.AF_INET6):
                try:
                    messages = kernel.dump(_GET_NETCONF, struct.pack("=Bxxx", family))
                except OSError:
                    continue  # no IPv6
                for message in messages:
                    self._on_settings(message.payload)

    def _on_event(self, kind: int, payload: bytes) -> bool:
        """Handle an event; return whether rules could match differently now."""
        if kind == _NEW_LINK:
            return self._on_link(payload)
        if kind == _DEL_LINK:
            return self._on_deleted_link(payload)
        if kind == _NEW_NETCONF:
            return self._on_settings(payload)
        if kind == _DEL_NETCONF:
            found = attributes(payload, _NETCONFMSG_SIZE)
            self._settings.pop((payload[0], found.get(_NETCONF_IFINDEX, b"")), None)
            return False
        if kind in _ROUTES:
            return _may_forward(payload)
        return kind in _RULES or kind in _NEXT_HOPS

    def _on_link(self, payload: bytes) -> bool:
        """Handle a link's event.

        A link that is down carries nothing, so it counts as it was when it last did. So a container's new
        link that is attached to its bridge and comes up changes nothing for others.
        """
        family, _, ifindex, flags, _ = _IFINFO.unpack_from(payload)
        if family != socket.AF_UNSPEC:
            return False  # of a bridge port, also part of the link's own event
        before = self._links.get(ifindex)
        is_used_again = before is None and ifindex <= self._highest
        self._highest = max(self._highest, ifindex)
        if flags & _UP_FLAGS != _UP_FLAGS:
            if before is None:
                self._links[ifindex] = _LinkRecord(None, is_port=False, up=False)
                return is_used_again
            return self._on_link_down(ifindex, before)
        now = self._links[ifindex] = _describe(payload)
        if before is None:
            return is_used_again
        if before.identity is None:
            return not now.is_port  # routes that need a carrier are active from now on
        return before.identity != now.identity or not (before.up or now.is_port)

    def _on_link_down(self, ifindex: int, before: _LinkRecord) -> bool:
        """Handle a link that goes down: its routes are deleted, which IPv4 doesn't report.

        A bridge's port has none.
        """
        self._links[ifindex] = replace(before, up=False)
        return before.up and not before.is_port

    def _on_deleted_link(self, payload: bytes) -> bool:
        family, _, ifindex, _, _ = _IFINFO.unpack_from(payload)
        if family != socket.AF_UNSPEC:
            return False
        before = self._links.pop(ifindex, None)
        return before is not None and before.up and not before.is_port

    def _on_settings(self, payload: bytes) -> bool:
        """Return whether a setting changed.

        A change of force_forwarding (IPv6, Linux 6.17) comes without its value: see
        inet6_netconf_fill_devconf of net/ipv6/addrconf.c.
        """
        found = attributes(payload, _NETCONFMSG_SIZE)
        if found.keys() == {_NETCONF_IFINDEX}:
            return True
        known = self._settings.setdefault((payload[0], found.get(_NETCONF_IFINDEX, b"")), {})
        given = {key: found[key] for key in _NETCONF_READ if key in found}
        changed = any(known.get(key, value) != value for key, value in given.items())
        known.update(given)
        return changed

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _describe(payload: bytes) -> _LinkRecord:
    """Describe a link from its event.

    No rule matches the MAC of a bridge's port; a routed link's decides which packets enter.
    """
    found = attributes(payload, _IFINFO.size)
    is_port = _IFLA_MASTER in found
    link_type = _IFINFO.unpack_from(payload)[1]
    words: tuple[bytes | int, ...] = tuple(
        found.get(key, b"") for key in (_IFLA_IFNAME, _IFLA_GROUP, _IFLA_MASTER)
    )
    own = () if is_port else (found.get(_IFLA_ADDRESS, b""),)
    return _LinkRecord((link_type, *words, *own), is_port)


def _may_forward(payload: bytes) -> bool:
    """Return whether a route may lead forwarded unicast packets.

    Every port of a bridge has routes to link-local and multicast addresses of IPv6, which come and go with
    it.
    """
    family, length = payload[:2]
    destination = attributes(payload, _RTMSG.size).get(_RTA_DST, b"")
    if family == socket.AF_INET:
        return not (length >= 4 and destination[0] >> 4 == 0xE)
    if family != socket.AF_INET6:
        return False
    if length >= 8 and destination[0] == 0xFF:
        return False
    return not (length >= 10 and destination[0] == 0xFE and destination[1] & 0xC0 == 0x80)


FORWARD_PRIORITY = "net.ipv4.ip_forward_update_priority"
_TCP_TIMEOUT = "net.netfilter.nf_conntrack_tcp_timeout_established"
_TCP_UNANSWERED = "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged"
_UDP_TIMEOUT = "net.netfilter.nf_conntrack_udp_timeout_stream"


def _path(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def read_sysctl(name: str) -> str:
    """Return a sysctl of this network namespace, "" if the kernel doesn't have it."""
    try:
        return _path(name).read_text().strip()
    except OSError:
        return ""


def conntrack_timeouts() -> dict[str, int]:
    """Return conntrack's timeouts in ms, by their names in layout.CONFIG.

    Of an idle TCP connection, one that waits for an acknowledgement, and a UDP stream.
    """
    tcp, udp = _milliseconds(_TCP_TIMEOUT, 432_000), _milliseconds(_UDP_TIMEOUT, 120)
    unanswered = min(tcp, _milliseconds(_TCP_UNANSWERED, 300))
    return {"tcp_timeout": tcp, "tcp_unanswered": unanswered, "udp_timeout": udp}


def _milliseconds(name: str, default: int) -> int:
    return min(int(read_sysctl(name) or default) * 1000, 0xFFFFFFFF)


def bridge_calls_iptables() -> tuple[bool, bool]:
    """Return whether br_netfilter passes bridged IPv4 and IPv6 to iptables.

    On every bridge; a bridge's own settings are part of its link.
    """
    found = (read_sysctl(f"net.bridge.bridge-nf-call-{name}") == "1" for name in ("iptables", "ip6tables"))
    return next(found), next(found)


_NFT_GROUP = 7  # NFNLGRP_NFTABLES
_NFT_NEW_GENERATION = NFTABLES | 15
_NFT_RULES = (NFTABLES | 6, NFTABLES | 8)  # NFT_MSG_NEWRULE, NFT_MSG_DELRULE
_NFT_NEW_ELEMENTS = NFTABLES | 12
_NFT_ELEMENTS = (_NFT_NEW_ELEMENTS, NFTABLES | 14)  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
# Keys for a conntrack state: established, invalid, and the catch-all element.
_STATE_KEYS = ((2).to_bytes(4, sys.byteorder), (1).to_bytes(4, sys.byteorder), b"")
# NF_DROP, NF_ACCEPT, NFT_CONTINUE, NFT_BREAK, NFT_RETURN; NFT_JUMP, NFT_GOTO.
_PLAIN_VERDICTS = tuple(code.to_bytes(4, "big", signed=True) for code in (0, 1, -1, -2, -5))
_JUMP_VERDICTS = tuple(code.to_bytes(4, "big", signed=True) for code in (-3, -4))
_NFT_BUFFER = 8 << 20
_XFRM, _POLICY_GROUP = 6, 4  # XFRMNLGRP_POLICY


@dataclass(slots=True)
class RuleChanges:
    """Hold what changed in nftables.

    `rules`: anything. Otherwise `chains`: rules in these chains; `sets`: elements of these sets, of which
    any hold `verdicts`. `verdict_changes`: sets whose rules need another analysis, with the chain that
    packets may now jump to ("": any effect).
    """

    rules: bool = False
    chains: set[ChainName] = field(default_factory=set)
    sets: set[SetName] = field(default_factory=set)
    verdicts: bool = False
    verdict_changes: set[tuple[SetName, str]] = field(default_factory=set)

    def merge(self, other: RuleChanges) -> None:
        """Add other changes."""
        self.rules |= other.rules
        self.chains |= other.chains
        self.sets |= other.sets
        self.verdicts |= other.verdicts
        self.verdict_changes |= other.verdict_changes

    def affects(self, sets: Collection[SetName]) -> bool:
        """Return whether elements of any of these sets changed."""
        return not self.sets.isdisjoint(sets)


class RuleWatch:
    """Follow nftables' transactions in the host's namespace."""

    def __init__(self) -> None:
        self._socket = listener(NETFILTER, (_NFT_GROUP,), _NFT_BUFFER)
        self._transaction = RuleChanges()
        self._of_probe = False  # whether the transaction has events of a probe's table

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._socket.fileno()

    def read_events(self, own_port: int = 0) -> RuleChanges:
        """Return the changes since the last call, without our own; never waits.

        `own_port`: the netlink port of our own transactions.
        """
        found = RuleChanges()
        for data in pending_events(self._socket):
            if data is None:
                found.rules = True
                continue
            for kind, port, payload in walk_events(data):
                if kind == _NFT_NEW_GENERATION:
                    self._end_transaction(found, is_own=port == own_port)
                else:
                    self._add_event(kind, payload)
        return found

    def _add_event(self, kind: int, payload: bytes) -> None:
        """Add an event to the transaction that it belongs to."""
        name, given = _object_name(payload)
        if name[1].startswith(TRACE_TABLE):
            self._of_probe = True
        elif kind in _NFT_ELEMENTS:
            self._transaction.sets.add(name)
            verdicts = _verdicts(given.get(3, b""))
            self._transaction.verdicts |= bool(verdicts)
            self._transaction.verdict_changes |= {(name, chain) for chain in _verdict_changes(kind, verdicts)}
        elif kind in _NFT_RULES:
            self._transaction.chains.add(name)
        else:
            self._transaction.rules = True

    def _end_transaction(self, found: RuleChanges, is_own: bool) -> None:
        """End a transaction; one without events may have changed anything."""
        transaction, self._transaction = self._transaction, RuleChanges()
        of_probe, self._of_probe = self._of_probe, False
        if not is_own:
            transaction.rules |= not transaction.sets and not transaction.chains and not of_probe
            found.merge(transaction)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class PolicyWatch:
    """Follow changes of IPsec policies in the host's namespace (ip-xfrm(8)).

    Raises OSError on kernels without IPsec.
    """

    def __init__(self) -> None:
        self._socket = listener(_XFRM, (_POLICY_GROUP,), _NFT_BUFFER)

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._socket.fileno()

    def read_events(self) -> bool:
        """Return whether any policy changed since the last call; never waits."""
        return len(list(pending_events(self._socket))) > 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _object_name(payload: bytes) -> tuple[SetName, dict[int, bytes]]:
    """Return family, table and name of a set or chain, and all attributes.

    That is NFTA_SET_ELEM_LIST_TABLE and _SET, or NFTA_RULE_TABLE and _CHAIN, after struct nfgenmsg.
    """
    given: dict[int, bytes] = {}
    with suppress(IndexError):
        given = attributes(payload, 4)
    family = FAMILIES.get(payload[0], str(payload[0]))
    return (family, text(given.get(1, b"")), text(given.get(2, b""))), given


def _verdicts(elements: bytes) -> list[tuple[bytes, bytes, str]]:
    """Return keys of elements with a verdict, with its code and chain."""
    found = []
    for _, element in attribute_list(elements):
        given = attributes(element)
        verdict = attributes(attributes(given.get(2, b"")).get(2, b""))
        if verdict:
            key = attributes(given.get(1, b"")).get(1, b"")
            found.append((key, verdict.get(1, b""), text(verdict.get(2, b""))))
    return found


def _verdict_changes(kind: int, verdicts: list[tuple[bytes, bytes, str]]) -> set[str]:
    """Return the chains of RuleChanges.verdict_changes for elements added or deleted.

    New elements that accept, drop or continue change nothing, nor do deleted jumps: the analysis included
    them. But the verdict for the state of forwarded packets, and of invalid ones, decides how packets
    continue (see bpf/expressions.py).
    """
    found = set()
    for key, code, chain in verdicts:
        if key in _STATE_KEYS or code not in (*_PLAIN_VERDICTS, *_JUMP_VERDICTS):
            found.add("")
        elif kind == _NFT_NEW_ELEMENTS and code in _JUMP_VERDICTS:
            found.add(chain)
    return found
