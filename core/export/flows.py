"""Conntrack entries as JSON objects, written as text at once: a table may hold a hundred thousand of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from core.flows.words import ICMP, ICMPV6, PROTOCOLS, WITH_PORTS, address_text, state_text
from core.model import CONNTRACK_DTYPE, Conntrack
from core.model.conntrack import IPS_ASSURED, IPS_SEEN_REPLY
from core.ownership import names_in
from core.topology import Topology

_CHUNK = 4096
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
    for ns, table in topology.snapshot.conntracks.items():
        if scope is None or ns in scope:
            yield from _table(topology, ns, table)


def _table(topology: Topology, ns: int, table: Conntrack) -> Iterator[str]:
    where = f'{{"ns":{ns},"namespace":{json.dumps(topology.label(ns))},"id":'
    names = {address: json.dumps(name) for address, name in names_in(topology, ns).items()}
    texts = _Texts()
    for start in range(0, len(table.entries), _CHUNK):
        for entry in table.entries[start : start + _CHUNK].view(_FLAT).tolist():
            yield where + _line(entry, texts, names)


class _Texts(dict[bytes, str]):
    """Addresses in text by their 16 bytes, worked out once each: tables name the same few again and again."""

    def __missing__(self, raw: bytes) -> str:
        self[raw] = text = address_text(raw)
        return text


def _line(entry: tuple[Any, ...], texts: _Texts, names: Mapping[bytes, str]) -> str:
    """The object from its id on; core.flows.meaning.Flow says the same of one entry, more slowly."""
    (number, status, timeout, mark, zone, family, l4_proto, tcp_state, counted,
     orig_src, orig_dst, reply_src, reply_dst, orig_sport, orig_dport, reply_sport, reply_dport,
     orig_packets, reply_packets, orig_bytes, reply_bytes, start) = entry  # fmt: skip
    source, destination, answer, back = texts[orig_src], texts[orig_dst], texts[reply_src], texts[reply_dst]
    icmp = "null"
    ports: tuple[Any, Any, Any, Any] = (orig_sport, orig_dport, reply_sport, reply_dport)
    if l4_proto not in WITH_PORTS or not (orig_sport or orig_dport):
        ports = ("null", "null", "null", "null")
        if l4_proto in _ICMPS:
            icmp = f'{{"id":{orig_sport},"type":{orig_dport >> 8},"code":{orig_dport & 0xFF}}}'
    sport, dport, answer_port, back_port = ports
    count: tuple[Any, Any, Any, Any] = (orig_packets, orig_bytes, reply_packets, reply_bytes)
    if not counted:
        count = ("null", "null", "null", "null")
    opener, answerer = names.get(orig_src, "null"), names.get(reply_src, "null")
    origin = f'{{"address":"{source}","port":{sport},"name":{opener}}}'
    responder = f'{{"address":"{answer}","port":{answer_port},"name":{answerer}}}'
    inside, outside, peer = origin, "null", responder
    if answer != destination or answer_port != dport:
        inside, outside, peer = responder, f'{{"address":"{destination}","port":{dport}}}', origin
    elif back != source or back_port != sport or (icmp != "null" and reply_sport != orig_sport):
        outside = f'{{"address":"{back}","port":{back_port}}}'
    elif answerer not in ("null", '""') and opener in ("null", '""'):
        inside, peer = responder, origin
    return (
        f'{number},"zone":{zone},"family":{family},"l4_proto":"{PROTOCOLS[l4_proto]}","l4_number":{l4_proto},'
        f'"state":"{state_text(l4_proto, tcp_state, status)}","status":{status},'
        f'"seen_reply":{"true" if status & IPS_SEEN_REPLY else "false"},'
        f'"assured":{"true" if status & IPS_ASSURED else "false"},'
        f'"timeout":{timeout},"mark":{mark},"start":{start / 1e9 if start else "null"},"icmp":{icmp},'
        f'"inside":{inside},"outside":{outside},"peer":{peer},'
        f'"original":{{"src":"{source}","sport":{sport},"dst":"{destination}","dport":{dport},'
        f'"packets":{count[0]},"bytes":{count[1]}}},'
        f'"reply":{{"src":"{answer}","sport":{answer_port},"dst":"{back}","dport":{back_port},'
        f'"packets":{count[2]},"bytes":{count[3]}}}}}'
    )
