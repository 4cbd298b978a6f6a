"""Flows as JSON objects, written as text from columns: there may be a hundred thousand of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from core.flows.columns import Column, row_keys
from core.flows.describe import (
    ICMP,
    ICMPV6,
    PROTOCOLS,
    STATES,
    WITH_PORTS,
    address_text,
    address_texts,
    state_text,
)
from core.flows.merge import PATHS
from core.model import CONNTRACK_DTYPE, Conntrack
from core.model.conntrack import IPS_ASSURED, IPS_SEEN_REPLY
from core.topology import Topology
from core.topology.flow_index import CLIENTS, FlowView
from core.topology.index import names_in
from core.topology.related import of_namespaces

_ROWS_AT_ONCE = 8192
_ICMPS = (ICMP, ICMPV6)
_UNKNOWN = '"bits_per_second":null,"packets_per_second":null'
_NOTHING = f',{_UNKNOWN},"age":null,"rtt":null,"processes":[null,null]}}'


def flow_lines(picture: FlowView, rows: Column, label: dict[int, str]) -> Iterator[str]:
    """Each of those rows as one line of JSON; `label` gives the namespaces' labels."""
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        columns = [
            _listed(column) for column in _columns(picture, rows[start : start + _ROWS_AT_ONCE], label)
        ]
        yield from map(_LINE, *columns)


def _LINE(
    where: str, number: int, what: str, origin: str, sport: Any, responder: str, dport: Any, snat: str, dnat:
    str, icmp: str, timeout: int, rest: str, measured: str,
) -> str:  # fmt: skip
    return (
        f'{where}{number}{what}{origin}{sport}}},"responder":{responder}{dport}}},"snat":{snat},"dnat":{dnat},'
        f'"icmp":{icmp},"timeout":{timeout}{rest}{measured}'
    )


def _listed(column: Column | list[str]) -> list[Any]:
    return column if isinstance(column, list) else column.tolist()


def _columns(picture: FlowView, rows: Column, label: dict[int, str]) -> list[Column | list[str]]:
    """What a line is put together from, in its order."""
    index, now = picture.index, picture.table.columns
    columns = index.columns
    spaces = np.repeat(np.arange(len(columns.tables)), np.diff(columns.starts))[rows]
    where = [f'{{"ns":{one.ns},"namespace":{json.dumps(label[one.ns])},"id":' for one in columns.tables]
    ports = columns.has_ports[rows]
    return [
        _chosen(where, spaces),
        columns.column("id")[rows],
        _what(columns, now, rows),
        _ends(picture, "orig_src", rows, spaces),
        _port(columns.column("orig_sport")[rows], ports),
        _ends(picture, "reply_src", rows, spaces),
        _port(columns.column("reply_sport")[rows], ports),
        _translated(columns, columns.source_translated, "reply_dst", "reply_dport", rows),
        _translated(columns, columns.destination_translated, "orig_dst", "orig_dport", rows),
        _icmp(columns, rows),
        now.column("timeout")[rows],
        _rest(picture, rows),
        _measured(picture, rows),
    ]


def _chosen(texts: Sequence[str], codes: Column) -> list[str]:
    return list(map(texts.__getitem__, codes.tolist()))


def _what(columns: Any, now: Any, rows: Column) -> list[str]:
    """Zone, protocol and state; few differ."""
    key = (
        columns.column("l4_proto")[rows].astype(np.int64)
        | now.state[rows].astype(np.int64) << 8
        | columns.column("family")[rows].astype(np.int64) << 16
        | columns.column("zone")[rows].astype(np.int64) << 24
    )
    codes, place = np.unique(key, return_inverse=True)
    texts = [
        f',"zone":{code >> 24},"family":{code >> 16 & 255},"l4_proto":"{PROTOCOLS[code & 255]}",'
        f'"state":"{STATES[code >> 8 & 255]}","origin":'
        for code in codes.tolist()
    ]
    return _chosen(texts, place)


def _ends(picture: FlowView, name: str, rows: Column, spaces: Column) -> list[str]:
    """An end up to its port; the same address in the same namespace is written once."""
    index = picture.index
    addresses = index.columns.column(name)[rows]
    _, first, place = np.unique(
        row_keys(addresses[:, 0], addresses[:, 1], spaces), return_index=True, return_inverse=True
    )
    owners = (index.origin if name == "orig_src" else index.responder)[rows[first]]
    names = _names(picture, addresses[first], spaces[first], owners >= 0)
    texts = [
        f'{{"address":"{address}","name":{name},"port":'
        for address, name in zip(address_texts(addresses[first]), names, strict=True)
    ]
    return _chosen(texts, place)


def _names(picture: FlowView, addresses: Column, spaces: Column, known: Column) -> list[str]:
    """What addresses are called, in JSON; `known` are those of somebody here."""
    names, tables, foreign = ["null"] * len(addresses), picture.index.columns.tables, picture.table.names
    for place in range(len(addresses)) if foreign else np.flatnonzero(known).tolist():
        raw = addresses[place].astype(">u8").tobytes()
        found = picture.index.columns.names(tables[spaces[place]].ns).get(raw) or foreign.get(raw)
        names[place] = json.dumps(found) if found else "null"
    return names


def _port(values: Column, ports: Column) -> Column | list[Any]:
    if ports.all():
        return values
    return [value if there else "null" for value, there in zip(values.tolist(), ports.tolist(), strict=True)]


def _translated(columns: Any, where: Column, address: str, port: str, rows: Column) -> list[str]:
    """What stands in an end's place, null where it is not translated."""
    texts = ["null"] * len(rows)
    places = np.flatnonzero(where[rows])
    if not places.size:
        return texts
    raws = columns.column(address)[rows[places]]
    _, first, code = np.unique(row_keys(raws[:, 0], raws[:, 1]), return_index=True, return_inverse=True)
    heads = [f'{{"address":"{address_text(raw.astype(">u8").tobytes())}","port":' for raw in raws[first]]
    numbers = _port(columns.column(port)[rows[places]], columns.has_ports[rows[places]])
    for place, head, number in zip(places.tolist(), code.tolist(), _listed(numbers), strict=True):
        texts[place] = f"{heads[head]}{number}}}"
    return texts


def _icmp(columns: Any, rows: Column) -> list[str]:
    texts = ["null"] * len(rows)
    for place in np.flatnonzero(np.isin(columns.column("l4_proto")[rows], _ICMPS)).tolist():
        ident, what = (int(columns.column(name)[rows[place]]) for name in ("orig_sport", "orig_dport"))
        texts[place] = f'{{"id":{ident},"type":{what >> 8},"code":{what & 0xFF}}}'
    return texts


def _rest(picture: FlowView, rows: Column) -> list[str]:
    """Kind of client, path, number of hops; few differ."""
    index = picture.index
    hops = np.bincount(index.connection, minlength=len(index))[index.connection][rows]
    key = index.client[rows].astype(np.int64) | picture.table.path[rows].astype(np.int64) << 8
    key |= hops << 16 | index.edge[rows].astype(np.int64) << 40
    codes, place = np.unique(key, return_inverse=True)
    texts = [
        f',"client":{json.dumps(CLIENTS[code & 255] or None)},"path":"{PATHS[code >> 8 & 255]}",'
        f'"hops":{code >> 16 & 0xFFFFFF},"edge":{json.dumps(bool(code >> 40))}'
        for code in codes.tolist()
    ]
    return _chosen(texts, place)


def _measured(picture: FlowView, rows: Column) -> list[str]:
    """Counters, speeds, age, round trip time and processes."""
    table, ends = picture.table, picture.ends
    counts = _counts(table.counted[rows], table.packets[rows], table.octets[rows])
    age, rtt, pids = table.age[rows], ends.rtt[rows], ends.pids[rows]
    if not table.measured and np.isnan(age).all() and np.isnan(rtt).all() and not pids.any():
        return [f"{each}{_NOTHING}" for each in counts]
    return [
        f'{each},{_speeds(speeds)},"age":{_number(old, 3)},"rtt":{_number(trip, 6)},'
        f'"processes":{_processes(two, ends.commands) if two[0] or two[1] else "[null,null]"}}}'
        for each, speeds, old, trip, two in zip(
            counts, table.speeds[rows].tolist(), age.tolist(), rtt.tolist(), pids.tolist(), strict=True
        )
    ]


def _counts(counted: Column, packets: Column, octets: Column) -> list[str]:
    columns = (each.tolist() for each in (packets[:, 0], packets[:, 1], octets[:, 0], octets[:, 1]))
    texts = [
        f',"packets":[{there},{back}],"bytes":[{sent},{answered}]'
        for there, back, sent, answered in zip(*columns, strict=True)
    ]
    for place in np.flatnonzero(~counted).tolist():
        texts[place] = ',"packets":null,"bytes":null'
    return texts


def _speeds(speeds: Sequence[float]) -> str:
    if speeds[0] != speeds[0]:
        return _UNKNOWN
    one, other, there, back = (round(value, 1) for value in speeds)
    return f'"bits_per_second":[{one},{other}],"packets_per_second":[{there},{back}]'


def _number(value: float, digits: int) -> str:
    return "null" if value != value else str(round(value, digits))


def _processes(pids: Sequence[int], commands: Any) -> str:
    return json.dumps([{"pid": pid, "command": commands.get(pid, "")} if pid else None for pid in pids])


def client_counts(picture: FlowView, rows: Column) -> dict[str, int]:
    """How many of those flows each kind of client has opened; "" for those to nobody of ours."""
    kinds = np.bincount(picture.index.client[rows], minlength=len(CLIENTS)).tolist()
    return dict(zip(CLIENTS, kinds, strict=True))


_CHUNK = 1024


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
    """The object from its id on; core.flows.interpretation.Flow says the same of one entry, more slowly."""
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
