"""One conntrack entry understood: its two ends, the translation between them, and a sentence about it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from core.flows.words import (
    ICMP,
    ICMPV6,
    WITH_PORTS,
    address_text,
    end_text,
    icmp_text,
    protocol_name,
    state_text,
)

# The fields of CONNTRACK_DTYPE in their order, "packets" and "bytes" split by direction.
_ENTRY = struct.Struct("=IIIIHBBB?16s16s16s16sHHHHQQQQQ")


class Entry(NamedTuple):
    """One row of CONNTRACK_DTYPE as plain values; addresses are 16 bytes."""

    id: int
    status: int
    timeout: int
    mark: int
    zone: int
    family: int
    l4_proto: int
    tcp_state: int
    counted: bool
    orig_src: bytes
    orig_dst: bytes
    reply_src: bytes
    reply_dst: bytes
    orig_sport: int
    orig_dport: int
    reply_sport: int
    reply_dport: int
    orig_packets: int
    reply_packets: int
    orig_bytes: int
    reply_bytes: int
    start: int

    @property
    def state(self) -> str:
        """The state in the kernel's word."""
        return state_text(self.l4_proto, self.tcp_state, self.status)

    @property
    def has_ports(self) -> bool:
        """Whether the ports are ports: not every kernel tracks those of DCCP and UDP-Lite."""
        return self.l4_proto in WITH_PORTS and bool(self.orig_sport or self.orig_dport)

    @property
    def is_icmp(self) -> bool:
        """Whether the ports hold ICMP's id, type and code."""
        return self.l4_proto in (ICMP, ICMPV6)


class End(NamedTuple):
    """One end of a connection: its real address, its port (None for protocols without), whose it is."""

    address: str
    port: int | None
    name: str = ""

    def __str__(self) -> str:
        text = end_text(self.address, self.port)
        return f"{self.name} {text}" if self.name else text


@dataclass(frozen=True, slots=True)
class Flow:
    """The meaning of one entry. `origin` opened the connection, `responder` answers it; these are the real
    ends behind all translation. `snat` is the source that the responder sees, `dnat` the destination that the
    origin addressed; "" where they are the real ones."""

    entry: Entry
    origin: End
    responder: End
    snat: str
    dnat: str

    @property
    def inside(self) -> End:
        """The end on this host's side: who was published, who was masqueraded, else who is known here."""
        return self.responder if self._answers_inside else self.origin

    @property
    def peer(self) -> End:
        """The other end."""
        return self.origin if self._answers_inside else self.responder

    @property
    def _answers_inside(self) -> bool:
        if self.dnat or self.snat:
            return bool(self.dnat)
        return bool(self.responder.name) and not self.origin.name

    @property
    def translation(self) -> str:
        """The translations in the order in which the first packet meets them, "" where there is none."""
        parts = (f"DNAT {self.dnat}" if self.dnat else "", f"SNAT {self.snat}" if self.snat else "")
        return ", ".join(part for part in parts if part)


def entry_of(row: Any) -> Entry:
    """One element of a CONNTRACK_DTYPE array as plain values."""
    return Entry._make(_ENTRY.unpack(row.tobytes()))


def flow_of(entry: Entry, names: Mapping[bytes, str] = MappingProxyType({})) -> Flow:
    """Understand an entry; `names` tells, by an address's 16 bytes, whose it is in the entry's namespace."""
    has_ports = entry.has_ports
    return Flow(
        entry,
        _end(entry.orig_src, entry.orig_sport if has_ports else None, names),
        _end(entry.reply_src, entry.reply_sport if has_ports else None, names),
        _seen_source(entry, has_ports),
        _addressed_destination(entry, has_ports),
    )


def _end(address: bytes, port: int | None, names: Mapping[bytes, str]) -> End:
    return End(address_text(address), port, names.get(address, ""))


def _seen_source(entry: Entry, has_ports: bool) -> str:
    """The translated source; "" where the source is not translated."""
    port_changed = has_ports and entry.reply_dport != entry.orig_sport
    id_changed = entry.is_icmp and entry.reply_sport != entry.orig_sport
    if entry.reply_dst == entry.orig_src and not port_changed and not id_changed:
        return ""
    text = end_text(address_text(entry.reply_dst), entry.reply_dport if has_ports else None)
    return f"{text} id {entry.reply_sport}" if id_changed else text


def _addressed_destination(entry: Entry, has_ports: bool) -> str:
    """The destination before translation; "" where the destination is not translated."""
    if entry.reply_src == entry.orig_dst and not (has_ports and entry.reply_sport != entry.orig_dport):
        return ""
    return end_text(address_text(entry.orig_dst), entry.orig_dport if has_ports else None)


def sentence(flow: Flow) -> str:
    """The entry in one line, such as
    `web1 172.18.0.2:41822 -> [SNAT 192.0.2.1:41822] -> 1.1.1.1:443 tcp ESTABLISHED`.

    Names are text from outside, verbatim.
    """
    entry = flow.entry
    way = f"{flow.origin} -> {flow.responder}"
    if flow.translation:
        way = f"{flow.origin} -> [{flow.translation}] -> {flow.responder}"
    what = protocol_name(entry.l4_proto)
    if entry.is_icmp:
        what = f"{what} {icmp_text(entry.l4_proto, entry.orig_dport)} id {entry.orig_sport}"
    return f"{way} {what} {entry.state}"
