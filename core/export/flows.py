"""Export flows and conntrack entries as JSON text, in bulk: there may be 100,000."""

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
from core.topology.flow_index import CLIENTS, SEGMENTS, FlowView, SocketEnds
from core.topology.index import names_in
from core.topology.related import mask_by_namespace

_ROWS_AT_ONCE = 8192
_ICMPS = (ICMP, ICMPV6)
_UNKNOWN = '"bits_per_second":null,"packets_per_second":null'
_NO_SEGMENTS = ',"retransmits":[null,null],"lost":[null,null],"out_of_order":[null,null]'
_NOT_MEASURED = f',{_UNKNOWN},"age":null,"rtt":null,"processes":[null,null]{_NO_SEGMENTS}}}'


def flow_lines(flow_view: FlowView, rows: Column, label: dict[int, str]) -> Iterator[str]:
    """Format each of the rows as one line of JSON; `label` maps namespaces to labels."""
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        columns = [
            _as_list(column) for column in _columns(flow_view, rows[start : start + _ROWS_AT_ONCE], label)
        ]
        yield from map(_flow_line, *columns)


def _flow_line(
    where: str, number: int, what: str, origin: str, sport: Any, responder: str, dport: Any, snat: str, dnat:
    str, icmp: str, timeout: int, rest: str, measured: str,
) -> str:  # fmt: skip
    return (
        f'{where}{number}{what}{origin}{sport}}},"responder":{responder}{dport}}},"snat":{snat},"dnat":{dnat},'
        f'"icmp":{icmp},"timeout":{timeout}{rest}{measured}'
    )


def _as_list(column: Column | list[str]) -> list[Any]:
    return column if isinstance(column, list) else column.tolist()


def _columns(flow_view: FlowView, rows: Column, label: dict[int, str]) -> list[Column | list[str]]:
    """Return the arguments of `_flow_line`, as columns."""
    index, now = flow_view.index, flow_view.table.columns
    columns = index.columns
    tables = np.repeat(np.arange(len(columns.tables)), np.diff(columns.starts))[rows]
    where = [f'{{"ns":{one.ns},"namespace":{json.dumps(label[one.ns])},"id":' for one in columns.tables]
    ports = columns.has_ports[rows]
    return [
        _select(where, tables),
        columns.column("id")[rows],
        _protocol_and_state(columns, now, rows),
        _ends(flow_view, "orig_src", rows, tables),
        _port(columns.column("orig_sport")[rows], ports),
        _ends(flow_view, "reply_src", rows, tables),
        _port(columns.column("reply_sport")[rows], ports),
        _translated(columns, columns.source_translated, "reply_dst", "reply_dport", rows),
        _translated(columns, columns.destination_translated, "orig_dst", "orig_dport", rows),
        _icmp(columns, rows),
        now.column("timeout")[rows],
        _client_path_hops(flow_view, rows),
        _measured(flow_view, rows),
    ]


def _select(texts: Sequence[str], codes: Column) -> list[str]:
    return list(map(texts.__getitem__, codes.tolist()))


def _protocol_and_state(columns: Any, now: Any, rows: Column) -> list[str]:
    """Format zone, family, protocol and state, each combination once."""
    key = (
        columns.column("l4_proto")[rows].astype(np.int64)
        | now.state[rows].astype(np.int64) << 8
        | columns.column("family")[rows].astype(np.int64) << 16
        | columns.column("zone")[rows].astype(np.int64) << 24
    )
    codes, inverse = np.unique(key, return_inverse=True)
    texts = [
        f',"zone":{code >> 24},"family":{code >> 16 & 255},"l4_proto":"{PROTOCOLS[code & 255]}",'
        f'"state":"{STATES[code >> 8 & 255]}","origin":'
        for code in codes.tolist()
    ]
    return _select(texts, inverse)


def _ends(flow_view: FlowView, name: str, rows: Column, tables: Column) -> list[str]:
    """Format an end up to its port, each address of a namespace once."""
    index = flow_view.index
    addresses = index.columns.column(name)[rows]
    _, first, inverse = np.unique(
        row_keys(addresses[:, 0], addresses[:, 1], tables), return_index=True, return_inverse=True
    )
    owners = (index.origin if name == "orig_src" else index.responder)[rows[first]]
    names = _names(flow_view, addresses[first], tables[first], owners >= 0)
    texts = [
        f'{{"address":"{address}","name":{name},"port":'
        for address, name in zip(address_texts(addresses[first]), names, strict=True)
    ]
    return _select(texts, inverse)


def _names(flow_view: FlowView, addresses: Column, tables: Column, has_owner: Column) -> list[str]:
    """Format addresses' names as JSON: the owner's, or that of a foreign address."""
    names, foreign = ["null"] * len(addresses), flow_view.table.names
    columns = flow_view.index.columns
    for row in range(len(addresses)) if foreign else np.flatnonzero(has_owner).tolist():
        raw = addresses[row].astype(">u8").tobytes()
        name = columns.names(columns.tables[tables[row]].ns).get(raw) or foreign.get(raw)
        names[row] = json.dumps(name) if name else "null"
    return names


def _port(values: Column, has_port: Column) -> Column | list[Any]:
    if has_port.all():
        return values
    return [value if has else "null" for value, has in zip(values.tolist(), has_port.tolist(), strict=True)]


def _translated(columns: Any, mask: Column, address: str, port: str, rows: Column) -> list[str]:
    """Format an end's translation, null without one."""
    texts = ["null"] * len(rows)
    positions = np.flatnonzero(mask[rows])
    if not positions.size:
        return texts
    raws = columns.column(address)[rows[positions]]
    _, first, code = np.unique(row_keys(raws[:, 0], raws[:, 1]), return_index=True, return_inverse=True)
    heads = [f'{{"address":"{address_text(raw.astype(">u8").tobytes())}","port":' for raw in raws[first]]
    numbers = _port(columns.column(port)[rows[positions]], columns.has_ports[rows[positions]])
    for position, head, number in zip(positions.tolist(), code.tolist(), _as_list(numbers), strict=True):
        texts[position] = f"{heads[head]}{number}}}"
    return texts


def _icmp(columns: Any, rows: Column) -> list[str]:
    texts = ["null"] * len(rows)
    for position in np.flatnonzero(np.isin(columns.column("l4_proto")[rows], _ICMPS)).tolist():
        ident, type_and_code = (
            int(columns.column(name)[rows[position]]) for name in ("orig_sport", "orig_dport")
        )
        texts[position] = f'{{"id":{ident},"type":{type_and_code >> 8},"code":{type_and_code & 0xFF}}}'
    return texts


def _client_path_hops(flow_view: FlowView, rows: Column) -> list[str]:
    """Format kind of client, path and number of hops, each combination once."""
    index = flow_view.index
    hops = np.bincount(index.connection, minlength=len(index))[index.connection][rows]
    key = index.client[rows].astype(np.int64) | flow_view.table.path[rows].astype(np.int64) << 8
    key |= hops << 16 | index.edge[rows].astype(np.int64) << 40
    codes, inverse = np.unique(key, return_inverse=True)
    texts = [
        f',"client":{json.dumps(CLIENTS[code & 255] or None)},"path":"{PATHS[code >> 8 & 255]}",'
        f'"hops":{code >> 16 & 0xFFFFFF},"edge":{json.dumps(bool(code >> 40))}'
        for code in codes.tolist()
    ]
    return _select(texts, inverse)


def _measured(flow_view: FlowView, rows: Column) -> list[str]:
    """Format counters, speeds, age, round trip time and processes."""
    table, ends = flow_view.table, flow_view.ends
    counts = _counts(table.counted[rows], table.packets[rows], table.octets[rows])
    age, rtt, pids = table.age[rows], ends.rtt[rows], ends.pids[rows]
    if not table.measured and np.isnan(age).all() and np.isnan(rtt).all() and not pids.any():
        return [f"{each}{_NOT_MEASURED}" for each in counts]
    return [
        f'{each},{_speeds(speeds)},"age":{_number(seconds, 3)},"rtt":{_number(trip, 6)},'
        f'"processes":{_processes(pair, ends.commands) if pair[0] or pair[1] else "[null,null]"}{counted}}}'
        for each, speeds, seconds, trip, pair, counted in zip(
            counts,
            table.speeds[rows].tolist(),
            age.tolist(),
            rtt.tolist(),
            pids.tolist(),
            _segments(ends, rows),
            strict=True,
        )
    ]


def _segments(ends: SocketEnds, rows: Column) -> list[str]:
    """Format retransmits, lost and out-of-order segments of both ends."""
    texts = [_NO_SEGMENTS] * len(rows)
    if not len(ends.entries):
        return texts
    columns = [ends.segments(name, rows) for name in SEGMENTS]
    known = np.flatnonzero(~np.isnan(columns[0]).all(axis=1))
    for row, *pairs in zip(known.tolist(), *(column[known].tolist() for column in columns), strict=True):
        lists = (f"[{','.join(map(_whole, pair))}]" for pair in pairs)
        texts[row] = ',"retransmits":{},"lost":{},"out_of_order":{}'.format(*lists)
    return texts


def _counts(counted: Column, packets: Column, octets: Column) -> list[str]:
    columns = (each.tolist() for each in (packets[:, 0], packets[:, 1], octets[:, 0], octets[:, 1]))
    texts = [
        f',"packets":[{sent_packets},{received_packets}],"bytes":[{sent},{received}]'
        for sent_packets, received_packets, sent, received in zip(*columns, strict=True)
    ]
    for row in np.flatnonzero(~counted).tolist():
        texts[row] = ',"packets":null,"bytes":null'
    return texts


def _speeds(speeds: Sequence[float]) -> str:
    if speeds[0] != speeds[0]:
        return _UNKNOWN
    sent, received, sent_packets, received_packets = (round(value, 1) for value in speeds)
    return f'"bits_per_second":[{sent},{received}],"packets_per_second":[{sent_packets},{received_packets}]'


def _number(value: float, digits: int) -> str:
    return "null" if value != value else str(round(value, digits))


def _whole(value: float) -> str:
    return "null" if value != value else str(int(value))


def _processes(pids: Sequence[int], commands: Any) -> str:
    return json.dumps([{"pid": pid, "command": commands.get(pid, "")} if pid else None for pid in pids])


def client_counts(flow_view: FlowView, rows: Column) -> dict[str, int]:
    """Count flows by kind of client, "" for those that don't go to a container."""
    kinds = np.bincount(flow_view.index.client[rows], minlength=len(CLIENTS)).tolist()
    return dict(zip(CLIENTS, kinds, strict=True))


_CHUNK = 1024


def _flat(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype of the same layout with whole addresses and separate counters."""
    fields: list[tuple[str, str]] = []
    for name in dtype.names or ():
        base, shape = dtype[name].subdtype or (dtype[name], ())
        if base == np.uint8 and shape:
            fields.append((name, f"V{shape[0]}"))
        else:
            fields += [(f"{name}{number}", base.str) for number in range(shape[0] if shape else 1)]
    return np.dtype(fields)


_FLAT = _flat(CONNTRACK_DTYPE)


def flows(topology: Topology, scope: Collection[int] | None) -> Iterator[str]:
    """Format every conntrack entry as one line of JSON."""
    for table in topology.snapshot.conntracks.values() if scope is None else _within(topology, scope):
        yield from _table(topology, table.ns, table)


def _within(topology: Topology, scope: Collection[int]) -> Iterator[Conntrack]:
    """Filter the tables by the entries that concern the scope."""
    columns, wanted = topology.flows, mask_by_namespace(topology, scope)
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
    """A cache of formatted texts: tables repeat the same few values."""

    def __init__(self, make: Callable[[Key], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: Key) -> str:
        self[key] = text = self._make(key)
        return text


def _end(address: str, name: str | None) -> str:
    """Format an end of a connection up to its port."""
    return f'{{"address":"{address}","name":{json.dumps(name or None)},"port":'


def _state(key: tuple[int, int, int]) -> str:
    """Format protocol number, TCP state and status bits."""
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
    """Format an entry from its id on, like core.flows.interpretation.Flow, but fast."""
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
