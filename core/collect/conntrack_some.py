"""Reads chosen conntrack entries again, each asked for by its tuple, many in one system call."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from core.collect.conntrack_decode import Decoder
from core.collect.netlink import NETFILTER, Netlink
from core.collect.netns import entered, entry_of
from core.flows.words import WITH_PORTS
from core.model import Namespace

Column = np.ndarray[Any, Any]

_CT_GET = 0x101
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
