"""Interpret one conntrack entry: both ends, the translation, and its rules."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from core.flows.columns import Column, FlowColumns
from core.flows.describe import (
    ICMP,
    ICMPV6,
    PROTOCOLS,
    WITH_PORTS,
    address_bytes,
    address_text,
    icmp_text,
    protocol_name,
    state_text,
)
from core.model.firewall import FirewallRule, NatEntry
from core.text import end_text

# The fields of CONNTRACK_DTYPE in their order, "packets" and "bytes" split by direction.
_ENTRY = struct.Struct("=IIIIHBBB?16s16s16s16sHHHHQQQQQ")


class ConntrackEntry(NamedTuple):
    """One row of CONNTRACK_DTYPE as Python values; addresses are 16 bytes."""

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
        """The state as the kernel names it."""
        return state_text(self.l4_proto, self.tcp_state, self.status)

    @property
    def has_ports(self) -> bool:
        """Whether it has ports: not every kernel tracks those of DCCP and UDP-Lite."""
        return self.l4_proto in WITH_PORTS and bool(self.orig_sport or self.orig_dport)

    @property
    def is_icmp(self) -> bool:
        """Whether the port fields hold ICMP's id, type and code."""
        return self.l4_proto in (ICMP, ICMPV6)


class End(NamedTuple):
    """One end of a connection: real address, port (None without ports), owner's name."""

    address: str
    port: int | None
    name: str = ""

    @property
    def text(self) -> str:
        """The address and port, without the owner."""
        return end_text(self.address, self.port)

    def __str__(self) -> str:
        return f"{self.name} {self.text}" if self.name else self.text


@dataclass(frozen=True, slots=True)
class Flow:
    """One interpreted entry.

    `origin` opened the connection, `responder` answers it; both are the real ends, before and after all
    translation. `snat` is the source that the responder sees, `dnat` the destination that the origin
    addressed, "" if not translated."""

    entry: ConntrackEntry
    origin: End
    responder: End
    snat: str
    dnat: str

    @property
    def inside(self) -> End:
        """The end on this host's side: published, masqueraded, or with a known owner."""
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
        """The translations in the order of their execution, "" if there is none."""
        parts = (f"DNAT {self.dnat}" if self.dnat else "", f"SNAT {self.snat}" if self.snat else "")
        return ", ".join(part for part in parts if part)


def entry_of(row: Any) -> ConntrackEntry:
    """Convert one element of a CONNTRACK_DTYPE array to Python values."""
    return ConntrackEntry._make(_ENTRY.unpack(row.tobytes()))


def flow_of(entry: ConntrackEntry, names: Mapping[bytes, str] = MappingProxyType({})) -> Flow:
    """Interpret an entry; `names` maps addresses (16 bytes) to their owners' names."""
    has_ports = entry.has_ports
    return Flow(
        entry,
        _end(entry.orig_src, entry.orig_sport if has_ports else None, names),
        _end(entry.reply_src, entry.reply_sport if has_ports else None, names),
        _translated_source(entry, has_ports),
        _original_destination(entry, has_ports),
    )


def _end(address: bytes, port: int | None, names: Mapping[bytes, str]) -> End:
    return End(address_text(address), port, names.get(address, ""))


def _translated_source(entry: ConntrackEntry, has_ports: bool) -> str:
    """Return the translated source, "" if the source isn't translated."""
    port_changed = has_ports and entry.reply_dport != entry.orig_sport
    id_changed = entry.is_icmp and entry.reply_sport != entry.orig_sport
    if entry.reply_dst == entry.orig_src and not port_changed and not id_changed:
        return ""
    text = end_text(address_text(entry.reply_dst), entry.reply_dport if has_ports else None)
    return f"{text} id {entry.reply_sport}" if id_changed else text


def _original_destination(entry: ConntrackEntry, has_ports: bool) -> str:
    """Return the destination before translation, "" if it isn't translated."""
    if entry.reply_src == entry.orig_dst and not (has_ports and entry.reply_sport != entry.orig_dport):
        return ""
    return end_text(address_text(entry.orig_dst), entry.orig_dport if has_ports else None)


def sentence(flow: Flow) -> str:
    """Format a flow in one line.

    For example `web1 172.18.0.2:41822 -> [SNAT 192.0.2.1:41822] -> 1.1.1.1:443 tcp ESTABLISHED`. Names are
    untrusted text, verbatim.
    """
    entry = flow.entry
    ends = f"{flow.origin} -> {flow.responder}"
    if flow.translation:
        ends = f"{flow.origin} -> [{flow.translation}] -> {flow.responder}"
    protocol = protocol_name(entry.l4_proto)
    if entry.is_icmp:
        protocol = f"{protocol} {icmp_text(entry.l4_proto, entry.orig_dport)} id {entry.orig_sport}"
    return f"{ends} {protocol} {entry.state}"


def translation_text(flow: Flow) -> str:
    """Return a translation in short: a destination's port, a source's address."""
    entry = flow.entry
    words = []
    if flow.dnat:
        words.append(f"DNAT :{entry.orig_dport}" if entry.has_ports else f"DNAT {flow.dnat}")
    if flow.snat:
        words.append(f"SNAT {address_text(entry.reply_dst)}")
    return " ".join(words)


_DESTINATION = frozenset({"dnat", "redirect"})
_SOURCE = frozenset({"snat", "masquerade"})
TRANSLATING = _DESTINATION | _SOURCE


def translators(
    columns: FlowColumns, entries: Iterable[NatEntry], rules: Iterable[FirewallRule]
) -> Iterator[NatEntry]:
    """Find the NAT entries with a rule that may have translated any of the flows.

    Interfaces aren't compared, so rules that differ only in these are all returned."""
    matching = {rule.rule_id for rule in rules if translated_by(columns, rule).any()}
    for entry in entries:
        if matching.intersection(entry.rules):
            yield entry


def translated_by(columns: FlowColumns, rule: FirewallRule) -> Column:
    """Return a mask of flows that a rule matches, and whose translation is the rule's."""
    if rule.verdict in _DESTINATION:
        translated, new, destination = columns.destination_translated, "reply_src", "orig_dst"
    elif rule.verdict in _SOURCE:  # source NAT comes after destination NAT
        translated, new, destination = columns.source_translated, "reply_dst", "reply_src"
    else:
        return np.zeros(len(columns), bool)
    protocols = rule.l4_proto.split(",")
    is_protocol = np.array([not rule.l4_proto or name in protocols for name in PROTOCOLS])
    found = translated & is_protocol[columns.column("l4_proto")]
    for end, text in (("orig_src", rule.src), (destination, rule.dst), (new, rule.to_address)):
        found = found & in_prefixes(columns.column(end), text)
    for end, text in (("orig_src", rule.sport), (destination, rule.dport), (new, rule.to_port)):
        found = found & _in_ranges(columns.port_of(end), text)
    return np.asarray(found)


def in_prefixes(addresses: Column, text: str) -> Column:
    """Return a mask of addresses in the prefixes ("10.0.0.0/8,192.0.2.1").

    A leading "!" negates; an empty text matches all, an invalid one none."""
    return _in_any(addresses, text, _in_prefix)


def _in_prefix(addresses: Column, text: str) -> Column:
    first, dash, last = text.strip().partition("-")
    if not dash:
        network = ipaddress.ip_network(first, strict=False)
        first, last = str(network[0]), str(network[-1])
    return ~_below(addresses, address_bytes(first)) & ~_below(addresses, address_bytes(last), above=True)


def _below(addresses: Column, raw: bytes, above: bool = False) -> Column:
    """Return a mask of addresses less than that one, or with `above` greater."""
    upper, lower = (np.uint64(int.from_bytes(half)) for half in (raw[:8], raw[8:]))
    compare = np.greater if above else np.less
    same = addresses[:, 0] == upper
    return np.asarray(compare(addresses[:, 0], upper) | (same & compare(addresses[:, 1], lower)))


def _in_ranges(ports: Column, text: str) -> Column:
    """Return a mask of ports in the ranges ("80", "8000-8010", "80,443")."""
    return _in_any(ports, text, _in_range)


def _in_range(ports: Column, text: str) -> Column:
    first, _, last = text.partition("-")
    return np.asarray((int(first) <= ports) & (ports <= int(last or first)))


def _in_any(values: Column, text: str, matches: Callable[[Column, str], Column]) -> Column:
    found = np.zeros(len(values), bool)
    if not text:
        return ~found
    try:
        for part in text.lstrip("! ").split(","):
            found |= matches(values, part)
    except ValueError:
        return np.zeros(len(values), bool)
    return ~found if text.startswith("!") else found
