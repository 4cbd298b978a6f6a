"""Conntrack entries as JSON objects, written as text at once: a table may hold a hundred thousand of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from core.flows.words import ICMP, ICMPV6, PROTOCOLS, WITH_PORTS, address_text, state_text
from core.model import CONNTRACK_DTYPE, Conntrack
from core.model.conntrack import IPS_ASSURED, IPS_SEEN_REPLY
from core.topology import Topology
from core.topology.connections import of_namespaces
from core.topology.ownership import names_in

_CHUNK = 1024
_ICMPS = (ICMP, ICMPV6)


def _flat(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The same bytes with an address as one value and each counter as a field of its own."""
    fields: list[tuple[str, str]] = []
    for name in dtype.names or ():
        base, shape = dtype[name].subdtype or (dtype[name], ())
        if base == np.uint8 and shape:
            fields.append((name, f"V{shape[0]}"))
        else:
            fields += [(f"{name}{place}", base.str) for place in range(shape[0] if shape else 1)]
    return np.dtype(fields)


_FLAT = _flat(CONNTRACK_DTYPE)


def flows(topology: Topology, scope: Collection[int] | None) -> Iterator[str]:
    """Every conntrack entry as one line of JSON."""
    for table in topology.snapshot.conntracks.values() if scope is None else _within(topology, scope):
        yield from _table(topology, table.ns, table)


def _within(topology: Topology, scope: Collection[int]) -> Iterator[Conntrack]:
    """The tables with those entries alone that concern the scope."""
    columns, wanted = topology.flows, of_namespaces(topology, scope)
    for table, start, end in zip(columns.tables, columns.starts, columns.starts[1:], strict=False):
        yield replace(table, entries=table.entries[wanted[start:end]])


def _table(topology: Topology, ns: int, table: Conntrack) -> Iterator[str]:
    where = f'{{"ns":{ns},"namespace":{json.dumps(topology.label(ns))},"id":'
    names = names_in(topology, ns)
    texts, states = _Cached(address_text), _Cached(_state)
    ends: _Cached[bytes] = _Cached(lambda raw: _end(texts[raw], names.get(raw)))
    known = {raw for raw, name in names.items() if name}
    for start in range(0, len(table.entries), _CHUNK):
        for entry in table.entries[start : start + _CHUNK].view(_FLAT).tolist():
            yield where + _line(entry, texts, ends, states, known)


class _Cached[Key](dict[Key, str]):
    """Texts by what they are made of, worked out once each: tables hold the same few again and again."""

    def __init__(self, make: Callable[[Key], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: Key) -> str:
        self[key] = made = self._make(key)
        return made


def _end(address: str, name: str | None) -> str:
    """An end of a connection up to its port."""
    return f'{{"address":"{address}","name":{json.dumps(name or None)},"port":'


def _state(key: tuple[int, int, int]) -> str:
    """What protocol number, TCP state and status bits say."""
    l4_proto, tcp_state, status = key
    return (
        f'"l4_proto":"{PROTOCOLS[l4_proto]}","l4_number":{l4_proto},'
        f'"state":"{state_text(l4_proto, tcp_state, status)}","status":{status},'
        f'"seen_reply":{json.dumps(status & IPS_SEEN_REPLY != 0)},'
        f'"assured":{json.dumps(status & IPS_ASSURED != 0)}'
    )


def _line(
    entry: tuple[Any, ...],
    texts: Mapping[bytes, str],
    ends: Mapping[bytes, str],
    states: Mapping[tuple[int, int, int], str],
    known: Collection[bytes],
) -> str:
    """The object from its id on; core.flows.meaning.Flow says the same of one entry, more slowly."""
    (number, status, timeout, mark, zone, family, l4_proto, tcp_state, counted,
     orig_src, orig_dst, reply_src, reply_dst, orig_sport, orig_dport, reply_sport, reply_dport,
     orig_packets, reply_packets, orig_bytes, reply_bytes, start) = entry  # fmt: skip
    icmp, ident, reply_ident = "null", 0, 0
    if l4_proto not in WITH_PORTS or not (orig_sport or orig_dport):
        if l4_proto in _ICMPS:
            ident, reply_ident = orig_sport, reply_sport
            icmp = f'{{"id":{ident},"type":{orig_dport >> 8},"code":{orig_dport & 0xFF}}}'
        orig_sport = orig_dport = reply_sport = reply_dport = "null"
    if not counted:
        orig_packets = reply_packets = orig_bytes = reply_bytes = "null"
    inside, outside, peer = f"{ends[orig_src]}{orig_sport}}}", "null", f"{ends[reply_src]}{reply_sport}}}"
    if reply_src != orig_dst or reply_sport != orig_dport:
        inside, peer = peer, inside
        outside = f'{{"address":"{texts[orig_dst]}","port":{orig_dport}}}'
    elif reply_dst != orig_src or reply_dport != orig_sport or reply_ident != ident:
        outside = f'{{"address":"{texts[reply_dst]}","port":{reply_dport}}}'
    elif reply_src in known and orig_src not in known:
        inside, peer = peer, inside
    return (
        f'{number},"zone":{zone},"family":{family},{states[l4_proto, tcp_state, status]},'
        f'"timeout":{timeout},"mark":{mark},"start":{start / 1e9 if start else "null"},"icmp":{icmp},'
        f'"inside":{inside},"outside":{outside},"peer":{peer},'
        f'"original":{{"src":"{texts[orig_src]}","sport":{orig_sport},'
        f'"dst":"{texts[orig_dst]}","dport":{orig_dport},"packets":{orig_packets},"bytes":{orig_bytes}}},'
        f'"reply":{{"src":"{texts[reply_src]}","sport":{reply_sport},'
        f'"dst":"{texts[reply_dst]}","dport":{reply_dport},"packets":{reply_packets},"bytes":{reply_bytes}}}}}'
    )
