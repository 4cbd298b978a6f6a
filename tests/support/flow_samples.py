"""Build conntrack tables for tests, without a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.flows import address_bytes
from core.model import CONNTRACK_DTYPE, Conntrack

TCP, UDP, ICMP = 6, 17, 1
ESTABLISHED = 3
ASSURED, REPLIED, UNREPLIED = 0xE, 0xA, 0x8


def end(text: str) -> tuple[bytes, int]:
    """Parse "10.0.0.1:80" or "fd00::1|80" to address bytes and port."""
    address, _, port = text.partition("|") if "|" in text else text.partition(":")
    return address_bytes(address), int(port or 0)


def flow(
    origin: str, addressed: str, responder: str = "", seen_as: str = "", l4_proto: int = TCP, **fields: Any
) -> np.void:
    """Return an entry: original source and destination, reply source and destination."""
    row = np.zeros(1, CONNTRACK_DTYPE)[0]
    ends = (end(origin), end(addressed), end(responder or addressed), end(seen_as or origin))
    names = ("orig_src", "orig_dst", "reply_src", "reply_dst")
    ports = ("orig_sport", "orig_dport", "reply_sport", "reply_dport")
    for (address, number), name, port in zip(ends, names, ports, strict=True):
        row[name] = np.frombuffer(address, "u1")
        row[port] = number
    row["l4_proto"] = l4_proto
    row["family"] = 4 if ends[0][0].startswith(bytes(10) + b"\xff\xff") else 6
    row["status"] = ASSURED
    row["tcp_state"] = ESTABLISHED if l4_proto == TCP else 0
    for name, value in fields.items():
        row[name] = value
    return row


def table(ns: int, *rows: np.void, **fields: Any) -> Conntrack:
    """Return a table of entries, numbered from 1 if they have no id."""
    entries = np.array([*rows], CONNTRACK_DTYPE)
    missing = entries["id"] == 0
    entries["id"][missing] = np.arange(1, len(rows) + 1)[missing]
    return Conntrack(ns, entries, **fields)
