"""Reads a namespace's connection tracking table over ctnetlink (net/netfilter/nf_conntrack_netlink.c)."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from core.collect.conntrack_decode import Decoder
from core.flows.describe import WITH_PORTS
from core.model import Conntrack, ConntrackStats, Namespace, Problem
from core.netlink.client import NETFILTER, Netlink, attributes
from core.netlink.netns import entered, entry_of

# NFNL_SUBSYS_CTNETLINK << 8 with IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_GET_STATS_CPU and IPCTNL_MSG_CT_GET_STATS.
_CT_GET, _CT_GET_STATS_CPU, _CT_GET_STATS = 0x101, 0x104, 0x105
_BOTH_FAMILIES = bytes(4)  # struct nfgenmsg with AF_UNSPEC
_STATS_ENTRIES, _STATS_MAX = 1, 2
# CTA_STATS_* of linux/netfilter/nfnetlink_conntrack.h by the fields of ConntrackStats.
_CPU_COUNTERS = {
    "found": 2, "invalid": 4, "insert": 8, "insert_failed": 9, "drop": 10, "early_drop": 11, "error": 12,
    "search_restart": 13, "clash_resolve": 14, "chain_too_long": 15,
}  # fmt: skip
_CHUNK = 1 << 20
_ACCOUNTING = Path("/proc/sys/net/netfilter/nf_conntrack_acct")


def read_conntrack(namespace: Namespace) -> Conntrack:
    """All entries of one namespace, IPv4 and IPv6; the counters are not reset.

    Raises NamespaceGone; what else stands in the way becomes a problem of the result.
    """
    accounting = False
    try:
        with entered(entry_of(namespace), namespace.inode):
            netlink = Netlink(NETFILTER)
            accounting = _is_counting()
        with netlink:
            return _read(netlink, namespace.inode, accounting)
    except OSError as error:
        problem = _problem(namespace.inode, error)
        return Conntrack(namespace.inode, accounting=accounting, taken_at=time.time(), problems=(problem,))


def count_conntrack(namespace: Namespace) -> int:
    """How many entries one namespace has, without reading them; raises NamespaceGone, and OSError as the
    kernel words it (PermissionError without CAP_NET_ADMIN)."""
    with entered(entry_of(namespace), namespace.inode):
        netlink = Netlink(NETFILTER)
    with netlink:
        return _stats(netlink)[0]


def read_usage(namespace: Namespace) -> tuple[int, int, ConntrackStats | None]:
    """How many entries one namespace has, nf_conntrack_max, and how its table fares, without the entries.
    Raises NamespaceGone, and OSError as the kernel words it."""
    with entered(entry_of(namespace), namespace.inode):
        netlink = Netlink(NETFILTER)
    with netlink:
        return (*_stats(netlink), _cpu_stats(netlink))


def _is_counting() -> bool:
    """Whether new entries of the thread's namespace get counters."""
    try:
        return _ACCOUNTING.read_text().strip() == "1"
    except OSError:
        return False


def _stats(netlink: Netlink) -> tuple[int, int]:
    """The namespace's number of entries, and nf_conntrack_max."""
    answers = netlink.request(_CT_GET_STATS, _BOTH_FAMILIES)
    found = attributes(answers[0].payload, len(_BOTH_FAMILIES))
    count, limit = (int.from_bytes(found.get(kind, b""), "big") for kind in (_STATS_ENTRIES, _STATS_MAX))
    return count, limit


def _cpu_stats(netlink: Netlink) -> ConntrackStats | None:
    """What every CPU counted for the namespace, together; None where the kernel does not tell it."""
    try:
        answers = netlink.dump(_CT_GET_STATS_CPU, _BOTH_FAMILIES)
    except OSError:
        return None
    told = [attributes(answer.payload, len(_BOTH_FAMILIES)) for answer in answers]
    sums = {
        name: sum(int.from_bytes(cpu.get(kind, b""), "big") for cpu in told)
        for name, kind in _CPU_COUNTERS.items()
    }
    return ConntrackStats(**sums)


def _read(netlink: Netlink, ns: int, accounting: bool) -> Conntrack:
    """Dump and decode, where there is anything: a dump walks the hash table that all namespaces share."""
    count, limit = _stats(netlink)
    stats = _cpu_stats(netlink)
    decoder = Decoder(count)
    for chunk in _chunks(netlink) if count else ():
        decoder.feed(chunk)
    problems = (_ignored_problem(ns, decoder.ignored),) if decoder.ignored else ()
    return Conntrack(ns, decoder.entries, limit, accounting, time.time(), stats, problems=problems)


def _chunks(netlink: Netlink) -> Iterator[bytes]:
    """The dump's datagrams put together, so that each decoding step has thousands of messages."""
    waiting: list[bytes] = []
    size = 0
    for datagram in netlink.dump_raw(_CT_GET, _BOTH_FAMILIES):
        waiting.append(datagram)
        size += len(datagram)
        if size >= _CHUNK:
            yield b"".join(waiting)
            waiting.clear()
            size = 0
    yield b"".join(waiting)


def _problem(ns: int, error: OSError) -> Problem:
    what = "the conntrack entries of this namespace could not be read"
    if isinstance(error, PermissionError):
        return Problem("conntrack", what, "CAP_NET_ADMIN and CAP_SYS_ADMIN are needed", "run as root", ns)
    if error.errno in (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
        why = "this kernel does not offer ctnetlink"
        return Problem("conntrack", what, why, "modprobe nf_conntrack_netlink", ns)
    why = os.strerror(error.errno) if error.errno else str(error)
    return Problem("conntrack", what, why, "it is tried again at the next look", ns)


def _ignored_problem(ns: int, ignored: int) -> Problem:
    return Problem(
        "conntrack",
        f"{ignored} conntrack messages of this namespace were not understood",
        "the kernel's answer has another form than this program knows",
        "please report the kernel's version",
        ns,
    )


Column = np.ndarray[Any, Any]

_REQUEST = 0x1
_NESTED = 0x8000
_BATCH = 100  # the answers to a batch must fit the receive buffer, where each takes several KiB
_HAS_PORTS = np.isin(np.arange(256), sorted(WITH_PORTS))


def askable(entries: Column) -> Column:
    """Which entries can be asked for: those with ports, in the default zone."""
    return np.asarray(_HAS_PORTS[entries["l4_proto"]] & (entries["zone"] == 0))


def read_some(namespace: Namespace, entries: Column) -> Column:
    """The same entries as they are now, in any order, without those that are gone.

    `entries` has dtype CONNTRACK_DTYPE, as the answer. Raises NamespaceGone, and OSError as the kernel words
    it."""
    with entered(entry_of(namespace), namespace.inode):
        netlink = Netlink(NETFILTER)
    decoder = Decoder(len(entries))
    with netlink:
        for family in (4, 6):
            for batch in _batches(entries[entries["family"] == family]):
                answers = netlink.exchange(_requests(batch, family), len(batch))
                decoder.feed(b"".join(answers))
    return decoder.entries


def _batches(entries: Column) -> Iterator[Column]:
    for start in range(0, len(entries), _BATCH):
        yield entries[start : start + _BATCH]


def _form(family: int) -> np.dtype[Any]:
    """A request (linux/netfilter/nfnetlink_conntrack.h): struct nlmsghdr, struct nfgenmsg, CTA_TUPLE_ORIG."""
    octets = 4 if family == 4 else 16
    fields = [
        ("header", "V20"), ("tuple", "V4"), ("ip", "V4"), ("src_is", "V4"), ("src", "u1", (octets,)),
        ("dst_is", "V4"), ("dst", "u1", (octets,)), ("proto", "V4"), ("number_is", "V4"), ("number", "u1"),
        ("number_pad", "V3"), ("sport_is", "V4"), ("sport", ">u2"), ("sport_pad", "V2"), ("dport_is", "V4"),
        ("dport", ">u2"), ("dport_pad", "V2"),
    ]  # fmt: skip
    return np.dtype(fields)


_FORMS = {family: _form(family) for family in (4, 6)}


def _requests(entries: Column, family: int) -> bytes:
    """One request for each entry, one after the other."""
    form = _FORMS[family]
    octets, first = (4, 1) if family == 4 else (16, 3)
    ip_size, proto_size = 4 + 2 * (4 + octets), 28
    number = 2 if family == 4 else 10  # AF_INET, AF_INET6
    header = struct.pack("=IHHIIBBH", form.itemsize, _CT_GET, _REQUEST, 0, 0, number, 0, 0)
    made = np.zeros(len(entries), form)
    constants = {
        "header": header,
        "tuple": _attribute(4 + ip_size + proto_size, 1 | _NESTED),
        "ip": _attribute(ip_size, 1 | _NESTED),
        "src_is": _attribute(4 + octets, first),
        "dst_is": _attribute(4 + octets, first + 1),
        "proto": _attribute(proto_size, 2 | _NESTED),
        "number_is": _attribute(5, 1),
        "sport_is": _attribute(6, 2),
        "dport_is": _attribute(6, 3),
    }
    for name, value in constants.items():
        made[name] = np.void(value)
    for name in ("src", "dst"):
        made[name] = entries[f"orig_{name}"][:, 16 - octets :]
    made["number"], made["sport"], made["dport"] = (
        entries[name] for name in ("l4_proto", "orig_sport", "orig_dport")
    )
    return made.tobytes()


def _attribute(length: int, kind: int) -> bytes:
    return struct.pack("=HH", length, kind)
