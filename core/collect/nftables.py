"""Which nftables tables a namespace has, asked of the kernel itself: the cheap look before any tool runs."""

from __future__ import annotations

import os
import struct
from functools import cache
from pathlib import Path
from typing import NamedTuple

from core.collect import netlink

# linux/netfilter/nf_tables.h and nfnetlink.h.
_SUBSYS = 10 << 8
_GET_TABLE, GET_CHAIN, GET_RULE, GET_ELEMENTS = _SUBSYS | 1, _SUBSYS | 4, _SUBSYS | 7, _SUBSYS | 13
_TABLE_NAME = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK = 1, 3, 4
_RULE_TABLE, _RULE_EXPRESSIONS = 1, 4
_EXPR_NAME = 1
NFGENMSG = struct.Struct("=BBH")

FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_IPTABLES_FAMILIES = (2, 10)
IPTABLES_TABLES = {"filter", "nat", "mangle", "raw", "security"}
IPTABLES_CHAINS = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
# What iptables-nft builds its rules of; of sets, maps and the like iptables-save prints rules that lie.
_IPTABLES_EXPRESSIONS = {
    "bitwise", "cmp", "counter", "immediate", "limit", "log", "masq", "match", "meta", "nat", "payload",
    "range", "redir", "target",
}  # fmt: skip


class Table(NamedTuple):
    """One table: `by_iptables` where iptables-nft made all of it, so that iptables-save prints it truly."""

    family: str
    name: str
    by_iptables: bool


def read_tables() -> tuple[Table, ...]:
    """The tables of the thread's network namespace. Raises PermissionError without CAP_NET_ADMIN there."""
    if would_load_module():
        return ()
    try:
        with netlink.Netlink(netlink.NETFILTER) as kernel:
            messages = kernel.dump(_GET_TABLE, NFGENMSG.pack(0, 0, 0))
            return tuple(_table(kernel, message) for message in messages)
    except PermissionError:
        raise
    except OSError:
        # A kernel without nftables refuses the question.
        return ()


def _table(kernel: netlink.Netlink, message: netlink.Message) -> Table:
    family = message.payload[0]
    name = netlink.text(netlink.attributes(message.payload, 4)[_TABLE_NAME])
    candidate = family in _IPTABLES_FAMILIES and name in IPTABLES_TABLES
    by_iptables = candidate and _has_iptables_chains(kernel, family, name) and _is_plain(kernel, family, name)
    return Table(FAMILIES.get(family, str(family)), name, by_iptables)


def _has_iptables_chains(kernel: netlink.Netlink, family: int, table: str) -> bool:
    """Whether the base chains are those of iptables, and there is one at least."""
    found = [
        netlink.attributes(message.payload, 4)
        for message in kernel.dump(GET_CHAIN, NFGENMSG.pack(family, 0, 0))
    ]
    hooked = {
        netlink.text(chain[_CHAIN_NAME])
        for chain in found
        if _CHAIN_HOOK in chain and netlink.text(chain[_CHAIN_TABLE]) == table
    }
    return bool(hooked) and hooked <= IPTABLES_CHAINS


def _is_plain(kernel: netlink.Netlink, family: int, table: str) -> bool:
    """Whether every rule is made of what iptables-nft uses."""
    body = NFGENMSG.pack(family, 0, 0) + netlink.attribute(_RULE_TABLE, table.encode() + b"\0")
    return all(
        _expressions(message.payload) <= _IPTABLES_EXPRESSIONS for message in kernel.dump(GET_RULE, body)
    )


def _expressions(payload: bytes) -> set[str]:
    listed = netlink.attributes(payload, 4).get(_RULE_EXPRESSIONS, b"")
    return {
        netlink.text(netlink.attributes(expression)[_EXPR_NAME])
        for _, expression in netlink.attribute_list(listed)
    }


def would_load_module() -> bool:
    """Whether nftables is a module that is not loaded: asking would load it, and there can be no table."""
    return _is_module() and not any(
        line.startswith("nf_tables ") for line in Path("/proc/modules").read_text().splitlines()
    )


@cache
def _is_module() -> bool:
    try:
        return "/nf_tables.ko" in Path(f"/lib/modules/{os.uname().release}/modules.dep").read_text()
    except OSError:
        return False
