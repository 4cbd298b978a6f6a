"""Change routing policy rules, and entries of bridges' forwarding tables.

The names and units are those of ip-rule(8) and bridge(8).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass

from core.collect.routes import RULE_ACTIONS, protocol_number, table_number
from core.model import PolicyRule
from core.model.link import ALL_ZERO
from core.netlink.client import Netlink, attribute
from core.operations.base import Operation
from core.operations.executor import Executor, inside
from core.operations.values import HOST, NetnsTarget, recorded
from core.text import bounds, quoted

# linux/rtnetlink.h, linux/fib_rules.h; struct fib_rule_hdr.
_NEW_RULE, _DELETE_RULE = 32, 33
_RULE = struct.Struct("=BBBBBBBBI")
_INVERT = 2
_DST, _SRC, _IIF, _GOTO, _PRIORITY, _MARK, _GROUP, _PREFIXLEN = 1, 2, 3, 4, 6, 10, 13, 14
_TABLE, _MASK, _OIF, _L3MDEV, _UIDS, _PROTOCOL, _IP_PROTOCOL, _SPORTS, _DPORTS = (
    15, 16, 17, 19, 20, 21, 22, 23, 24,
)  # fmt: skip
_CREATE, _EXCLUSIVE, _REPLACE, _APPEND = 0x400, 0x200, 0x100, 0x800
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_ACTIONS = {name: number for number, name in RULE_ACTIONS.items()}


# Attributes of the rarer selectors, by their names in PolicyRule.more.
_SELECTORS: dict[str, Callable[[str], bytes]] = {
    "l3mdev": lambda _: attribute(_L3MDEV, b"\1"),
    "uidrange": lambda value: attribute(_UIDS, struct.pack("=II", *bounds(value))),
    "ipproto": lambda value: attribute(_IP_PROTOCOL, bytes([int(value)])),
    "sport": lambda value: attribute(_SPORTS, struct.pack("=HH", *bounds(value))),
    "dport": lambda value: attribute(_DPORTS, struct.pack("=HH", *bounds(value))),
    "suppress_ifgroup": lambda value: attribute(_GROUP, struct.pack("=I", int(value))),
}
POLICY_SELECTORS = frozenset({*_SELECTORS, "tos"})


@recorded()
@dataclass(frozen=True, slots=True)
class AddPolicyRule(PolicyRule, Operation):
    """Add a routing policy rule; `more` may contain the selectors in POLICY_SELECTORS."""

    place: NetnsTarget = HOST

    def command(self) -> str:
        return self.place.ip(self._words("add"))

    def inverse(self) -> tuple[DeletePolicyRule, ...]:
        return (DeletePolicyRule(self),)

    def describe(self) -> str:
        return f"add {self.described}"

    @property
    def described(self) -> str:
        """Return the rule in short."""
        family = "IPv6 " if self.family == 6 else ""
        selected = " ".join(map(quoted, [*self.selector_words(), *self.action_words()]))
        return f"the {family}routing policy rule {self.priority} ({selected}) in {self.place}"

    def _words(self, verb: str) -> str:
        words = ["-6"] if self.family == 6 else []
        words += ["rule", verb, *self.selector_words(), "priority", str(self.priority)]
        words += self.action_words()
        words += ["protocol", self.protocol] if self.protocol and verb == "add" else []
        return " ".join(map(quoted, words))

    def affects(self) -> tuple[str, ...]:
        return (f"routing policy of {self.place}",)

    def execute(self, executor: Executor) -> None:
        self._request(_NEW_RULE, _CREATE | _EXCLUSIVE)

    def _request(self, kind: int, flags: int) -> None:
        with inside(self.place):
            netlink = Netlink()
        with netlink:
            netlink.request(kind, self._header() + b"".join(self._attributes()), flags)

    def _header(self) -> bytes:
        table = self._table_number
        tos = next((int(one.split()[1], 0) for one in self.more if one.startswith("tos ")), 0)
        lengths = [ipaddress.ip_network(one).prefixlen if one else 0 for one in (self.dst, self.src)]
        flags = _INVERT if self.inverted else 0
        action = _ACTIONS[self.action]
        short = table if table < 256 else 0
        return _RULE.pack(_FAMILIES[self.family], *lengths, tos, short, 0, 0, action, flags)

    def _attributes(self) -> Iterator[bytes]:
        """Yield the attributes FRA_*."""
        for number, prefix in ((_DST, self.dst), (_SRC, self.src)):
            if prefix:
                yield attribute(number, ipaddress.ip_network(prefix).network_address.packed)
        for number, name in ((_IIF, self.iif), (_OIF, self.oif)):
            if name:
                yield attribute(number, os.fsencode(name) + b"\0")
        for number, value in self._numbers():
            if value is not None:
                yield attribute(number, struct.pack("=I", value))
        yield attribute(_PROTOCOL, bytes([protocol_number(self.protocol) if self.protocol else 0]))
        for one in self.more:
            name, _, text = one.partition(" ")
            if name in _SELECTORS:
                yield _SELECTORS[name](text)

    def _numbers(self) -> Iterator[tuple[int, int | None]]:
        yield _PRIORITY, self.priority
        yield _MARK, self.fwmark
        yield _MASK, self.fwmask
        yield _PREFIXLEN, self.suppress_prefixlen
        yield _GOTO, self.goto if self.action == "goto" else None
        yield _TABLE, self._table_number or None

    @property
    def _table_number(self) -> int:
        """Return the number of the table; ip-rule(8) gives one to every action."""
        return 0 if "l3mdev" in self.more or self.table == "unspec" else table_number(self.table)


@recorded()
@dataclass(frozen=True, slots=True)
class DeletePolicyRule(Operation):
    """Delete a routing policy rule; `rule` is its undo."""

    rule: AddPolicyRule

    def command(self) -> str:
        return self.rule.place.ip(self.rule._words("del"))

    def inverse(self) -> tuple[AddPolicyRule, ...]:
        return (self.rule,)

    def describe(self) -> str:
        return f"delete {self.rule.described}"

    def affects(self) -> tuple[str, ...]:
        return self.rule.affects()

    def execute(self, executor: Executor) -> None:
        self.rule._request(_DELETE_RULE, 0)


# linux/neighbour.h; struct ndmsg of the family PF_BRIDGE.
_NEW_ENTRY, _DELETE_ENTRY = 28, 29
_ENTRY = struct.Struct("=BxxxiHBB")
_ENTRY_ADDRESS, _ENTRY_MAC, _ENTRY_VLAN = 1, 2, 5
_SELF, _MASTER = 0x02, 0x04
_STATES = {"permanent": 0x80, "static": 0x42, "learned": 0x02}
_FLAGS = {"extern_learn": 0x10, "sticky": 0x40, "router": 0x80}
FDB_FLAGS = frozenset(_FLAGS)


@recorded()
@dataclass(frozen=True, slots=True)
class AddFdb(Operation):
    """Add an entry to the forwarding table of a bridge, or of the link itself.

    It replaces one that the bridge has learned.
    `on_master`: it is the table of the bridge that `link` is a port of. `vlan` 0 is none. `state` and `flags`
    are those of core.model.FdbEntry, `dst` is for a vxlan. A vxlan sends what it has no other entry for to
    each `dst` of the MAC ALL_ZERO: these entries are added beside each other.
    """

    link: str
    mac: str
    on_master: bool
    place: NetnsTarget = HOST
    vlan: int = 0
    state: str = "static"
    dst: str = ""
    flags: tuple[str, ...] = ()

    def command(self) -> str:
        verb = "append" if self.is_flood else "replace"
        words = [self._words(verb), "dynamic" if self.state == "learned" else self.state, *self.flags]
        return self.place.bridge(" ".join(words))

    def _words(self, verb: str) -> str:
        words = ["fdb", verb, self.mac, "dev", quoted(self.link), "master" if self.on_master else "self"]
        words += ["vlan", str(self.vlan)] if self.vlan else []
        return " ".join([*words, *(["dst", self.dst] if self.dst else [])])

    def inverse(self) -> tuple[DeleteFdb, ...]:
        return (DeleteFdb(self),)

    def describe(self) -> str:
        return f"add {self.described}"

    @property
    def is_flood(self) -> bool:
        """Return whether it is an entry of a vxlan's flood list."""
        return self.mac == ALL_ZERO

    @property
    def described(self) -> str:
        """Return the entry in short."""
        if self.is_flood:
            return f"the remote host {self.dst} of {self.link} in {self.place}"
        vlan = f" of VLAN {self.vlan}" if self.vlan else ""
        return f"the {self.state} forwarding entry of {self.mac}{vlan} at {self.link} in {self.place}"

    def affects(self) -> tuple[str, ...]:
        return (self.place.link(self.link),)

    def changed_link(self) -> tuple[str, NetnsTarget]:
        return self.link, self.place

    def execute(self, executor: Executor) -> None:
        self._request(_NEW_ENTRY, _CREATE | (_APPEND if self.is_flood else _REPLACE), executor)

    def _request(self, kind: int, flags: int, executor: Executor) -> None:
        index = executor.index(self.place, self.link)
        named = sum(_FLAGS[one] for one in self.flags)
        where = _MASTER if self.on_master else _SELF
        header = _ENTRY.pack(socket.AF_BRIDGE, index, _STATES[self.state], where | named, 0)
        with inside(self.place):
            netlink = Netlink()
        with netlink:
            netlink.request(kind, header + b"".join(self._attributes()), flags)

    def _attributes(self) -> Iterator[bytes]:
        yield attribute(_ENTRY_MAC, bytes.fromhex(self.mac.replace(":", "")))
        if self.vlan:
            yield attribute(_ENTRY_VLAN, struct.pack("=H", self.vlan))
        if self.dst:
            yield attribute(_ENTRY_ADDRESS, ipaddress.ip_address(self.dst).packed)


@recorded()
@dataclass(frozen=True, slots=True)
class DeleteFdb(Operation):
    """Delete an entry of a forwarding table; `entry` is its undo.

    A learned entry needs none: the bridge learns it again.
    """

    entry: AddFdb

    def command(self) -> str:
        return self.entry.place.bridge(self.entry._words("del"))

    def inverse(self) -> tuple[AddFdb, ...]:
        return () if self.entry.state == "learned" else (self.entry,)

    def describe(self) -> str:
        return f"delete {self.entry.described}"

    def affects(self) -> tuple[str, ...]:
        return self.entry.affects()

    def changed_link(self) -> tuple[str, NetnsTarget]:
        return self.entry.changed_link()

    def execute(self, executor: Executor) -> None:
        # A sticky entry may have gone: the MAC address of the container has changed since.
        with suppress(FileNotFoundError) if "sticky" in self.entry.flags else nullcontext():
            self.entry._request(_DELETE_ENTRY, 0, executor)
