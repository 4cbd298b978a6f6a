"""Read conntrack tables over ctnetlink (net/netfilter/nf_conntrack_netlink.c)."""

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
# CTA_STATS_* of linux/netfilter/nfnetlink_conntrack.h by fields of ConntrackStats.
_CPU_COUNTERS = {
    "found": 2, "invalid": 4, "insert": 8, "insert_failed": 9, "drop": 10, "early_drop": 11, "error": 12,
    "search_restart": 13, "clash_resolve": 14, "chain_too_long": 15,
}  # fmt: skip
_CHUNK = 1 << 20
_ACCOUNTING = Path("/proc/sys/net/netfilter/nf_conntrack_acct")


def read_conntrack(namespace: Namespace) -> Conntrack:
    """Read all IPv4 and IPv6 entries of one namespace; counters aren't reset.

    Raises NamespaceGone; other errors become problems of the result.
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


def read_usage(namespace: Namespace) -> tuple[int, int, ConntrackStats | None]:
    """Return the number of entries of a namespace, nf_conntrack_max, and statistics.

    Raises NamespaceGone, PermissionError without CAP_NET_ADMIN, and other OSErrors of the kernel.
    """
    with entered(entry_of(namespace), namespace.inode):
        netlink = Netlink(NETFILTER)
    with netlink:
        return (*_stats(netlink), _cpu_stats(netlink))


def _is_counting() -> bool:
    """Return whether new entries of the thread's namespace get counters."""
    try:
        return _ACCOUNTING.read_text().strip() == "1"
    except OSError:
        return False


def _stats(netlink: Netlink) -> tuple[int, int]:
    """Return the namespace's number of entries, and nf_conntrack_max."""
    answers = netlink.request(_CT_GET_STATS, _BOTH_FAMILIES)
    found = attributes(answers[0].payload, len(_BOTH_FAMILIES))
    count, limit = (int.from_bytes(found.get(kind, b""), "big") for kind in (_STATS_ENTRIES, _STATS_MAX))
    return count, limit


def _cpu_stats(netlink: Netlink) -> ConntrackStats | None:
    """Return the namespace's statistics, summed over CPUs; None if there are none."""
    try:
        answers = netlink.dump(_CT_GET_STATS_CPU, _BOTH_FAMILIES)
    except OSError:
        return None
    cpus = [attributes(answer.payload, len(_BOTH_FAMILIES)) for answer in answers]
    sums = {
        name: sum(int.from_bytes(cpu.get(kind, b""), "big") for cpu in cpus)
        for name, kind in _CPU_COUNTERS.items()
    }
    return ConntrackStats(**sums)


def _read(netlink: Netlink, ns: int, accounting: bool) -> Conntrack:
    """Dump and decode entries.

    An empty table isn't dumped, because a dump walks a hash table shared by all namespaces.
    """
    count, limit = _stats(netlink)
    stats = _cpu_stats(netlink)
    decoder = Decoder(count)
    for chunk in _chunks(netlink) if count else ():
        decoder.feed(chunk)
    problems = (_ignored_problem(ns, decoder.ignored),) if decoder.ignored else ()
    return Conntrack(ns, decoder.entries, limit, accounting, time.time(), stats, problems=problems)


def _chunks(netlink: Netlink) -> Iterator[bytes]:
    """Join datagrams of a dump, so that each chunk has thousands of messages."""
    datagrams: list[bytes] = []
    size = 0
    for datagram in netlink.dump_raw(_CT_GET, _BOTH_FAMILIES):
        datagrams.append(datagram)
        size += len(datagram)
        if size >= _CHUNK:
            yield b"".join(datagrams)
            datagrams.clear()
            size = 0
    yield b"".join(datagrams)


def _problem(ns: int, error: OSError) -> Problem:
    what = "can't read the conntrack entries of this namespace"
    if isinstance(error, PermissionError):
        return Problem("conntrack", what, "needs CAP_NET_ADMIN and CAP_SYS_ADMIN", "run it as root", ns)
    if error.errno in (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
        why = "this kernel has no ctnetlink"
        return Problem("conntrack", what, why, "modprobe nf_conntrack_netlink", ns)
    why = os.strerror(error.errno) if error.errno else str(error)
    return Problem("conntrack", what, why, "read again", ns)


def _ignored_problem(ns: int, ignored: int) -> Problem:
    return Problem(
        "conntrack",
        f"can't decode {ignored} conntrack messages of this namespace",
        "the kernel's messages have an unexpected format",
        "report the kernel's version",
        ns,
    )


Column = np.ndarray[Any, Any]

_REQUEST = 0x1
_NESTED = 0x8000
_BATCH = 100  # the answers to a batch must fit the receive buffer, and each takes several KiB there
_HAS_PORTS = np.isin(np.arange(256), sorted(WITH_PORTS))


def lookup_mask(entries: Column) -> Column:
    """Return a mask of the entries that `lookup` can read.

    These are entries with ports in the default zone.
    """
    return np.asarray(_HAS_PORTS[entries["l4_proto"]] & (entries["zone"] == 0))


def lookup(namespace: Namespace, entries: Column) -> Column:
    """Read the current state of some entries, in any order; those gone are left out.

    `entries` and the result have dtype CONNTRACK_DTYPE. Raises NamespaceGone, and OSErrors of the kernel.
    """
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


def _request_dtype(family: int) -> np.dtype[Any]:
    """Return the layout of a request: nlmsghdr, nfgenmsg, CTA_TUPLE_ORIG."""
    octets = 4 if family == 4 else 16
    fields = [
        ("header", "V20"), ("tuple_header", "V4"), ("ip_header", "V4"),
        ("src_header", "V4"), ("src", "u1", (octets,)), ("dst_header", "V4"), ("dst", "u1", (octets,)),
        ("proto_header", "V4"), ("number_header", "V4"), ("number", "u1"), ("number_pad", "V3"),
        ("sport_header", "V4"), ("sport", ">u2"), ("sport_pad", "V2"),
        ("dport_header", "V4"), ("dport", ">u2"), ("dport_pad", "V2"),
    ]  # fmt: skip
    return np.dtype(fields)


_REQUEST_DTYPES = {family: _request_dtype(family) for family in (4, 6)}


def _requests(entries: Column, family: int) -> bytes:
    """Return a request for each entry (linux/netfilter/nfnetlink_conntrack.h), joined."""
    dtype = _REQUEST_DTYPES[family]
    octets, first = (4, 1) if family == 4 else (16, 3)
    ip_size, proto_size = 4 + 2 * (4 + octets), 28
    address_family = 2 if family == 4 else 10  # AF_INET, AF_INET6
    header = struct.pack("=IHHIIBBH", dtype.itemsize, _CT_GET, _REQUEST, 0, 0, address_family, 0, 0)
    requests = np.zeros(len(entries), dtype)
    constants = {
        "header": header,
        "tuple_header": _attribute_header(4 + ip_size + proto_size, 1 | _NESTED),
        "ip_header": _attribute_header(ip_size, 1 | _NESTED),
        "src_header": _attribute_header(4 + octets, first),
        "dst_header": _attribute_header(4 + octets, first + 1),
        "proto_header": _attribute_header(proto_size, 2 | _NESTED),
        "number_header": _attribute_header(5, 1),
        "sport_header": _attribute_header(6, 2),
        "dport_header": _attribute_header(6, 3),
    }
    for name, value in constants.items():
        requests[name] = np.void(value)
    for name in ("src", "dst"):
        requests[name] = entries[f"orig_{name}"][:, 16 - octets :]
    requests["number"], requests["sport"], requests["dport"] = (
        entries[name] for name in ("l4_proto", "orig_sport", "orig_dport")
    )
    return requests.tobytes()


def _attribute_header(length: int, kind: int) -> bytes:
    return struct.pack("=HH", length, kind)
