"""Find connections that lead to the wrong place, and source ports that run out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import numpy as np

from core.flows import address_bytes, address_text
from core.flows.columns import Column, address_halves, row_keys
from core.flows.describe import protocol_name
from core.flows.interpretation import ConntrackEntry, entry_of
from core.model import (
    Conntrack,
    FirewallRule,
    NatEntry,
    Ref,
    conntrack_ref,
    container_ref,
    namespace_ref,
    nat_ref,
)
from core.model.finding import Finding, Severity
from core.model.fix import Fix, FixConnection
from core.nat.entries import expanded
from core.nat.packets import Prefix, covers, prefixes
from core.text import bounds, end_text, is_address
from core.topology import Topology

# The most entries to compare with the rules, and to delete by one repair.
_UDP = 17
_MAX_COMPARED = 2000
_MAX_DELETED = 100


class _Forward(NamedTuple):
    """One DNAT rule for UDP: its ports, its address match, and where it forwards to.

    `address` is "" if the target isn't known; `is_general` says that it holds for clients anywhere outside.
    """

    low: int
    high: int
    dst: str
    address: str
    to_port: str
    is_general: bool


def stale_connections(topology: Topology) -> Iterator[Finding]:
    """Find UDP connections to a published port that don't lead to its target.

    The kernel translates a connection once. An entry that is older than the rule keeps its old target as long
    as the client goes on sending (conntrack(8); TCP clients connect again by another port).
    """
    table = topology.snapshot.conntracks.get(topology.host)
    entries = [one for one in topology.nat if _is_udp_port(topology, one)]
    if table is None or not len(table.entries) or not entries:
        return
    forwards, own = _forwards(topology), {address_bytes(one) for one in _own_addresses(topology)}
    inside = [
        prefix for network in topology.networks for one in network.subnets for prefix in prefixes(one) or ()
    ]
    groups: dict[tuple[int, bytes, int], list[ConntrackEntry]] = {}
    for one in _candidates(table, forwards):
        if one.orig_dst in own and _is_stale(one, forwards, own, inside):
            groups.setdefault((one.orig_dport, one.reply_src, one.reply_sport), []).append(one)
    for (port, address, to_port), stale in groups.items():
        published = next((each for each in entries if _has_port(each, port)), entries[0])
        yield _stale(topology, published, stale, end_text(address_text(address), to_port))


def _is_udp_port(topology: Topology, entry: NatEntry) -> bool:
    kinds = ("published port", "dnat")
    return entry.ns == topology.host and entry.kind in kinds and entry.l4_proto in ("udp", "")


def _forwards(topology: Topology) -> list[_Forward]:
    """Return the UDP ports that rules forward."""
    rules = (rule for one in topology.dnat_rules for rule in expanded(one.effective))
    return [one for rule in rules if rule.l4_proto in ("udp", "") for one in _forward(rule)]


def _forward(rule: FirewallRule) -> Iterator[_Forward]:
    """Yield the ports of a rule that it forwards."""
    is_known = rule.verdict == "dnat" and is_address(rule.to_address)
    address = rule.to_address if is_known else ""
    is_general = not rule.src and (not rule.iif or rule.iif.startswith("!")) and rule.understood
    for part in rule.dport.split(","):
        try:
            low, high = bounds(part)
        except ValueError:
            low, high, address = 0, 65535, ""  # all ports, a set or a negated match
        yield _Forward(low, high, rule.dst, address, rule.to_port, is_general)


def _candidates(table: Conntrack, forwards: list[_Forward]) -> list[ConntrackEntry]:
    """Return the UDP entries whose destination port is forwarded."""
    entries = table.entries
    is_forwarded = np.zeros(65536, bool)
    for one in forwards:
        is_forwarded[one.low : one.high + 1] = True
    rows = np.flatnonzero((entries["l4_proto"] == _UDP) & is_forwarded[entries["orig_dport"]])
    return [entry_of(entries[row]) for row in rows[:_MAX_COMPARED].tolist()]


def _own_addresses(topology: Topology) -> Iterator[str]:
    net = topology.snapshot.nets.get(topology.host)
    for link in net.links.values() if net else ():
        yield from (one.address for one in link.addresses if one.scope == "global")


def _is_stale(
    entry: ConntrackEntry, forwards: list[_Forward], own: set[bytes], inside: Sequence[Prefix]
) -> bool:
    """Return whether no rule would translate a packet of the entry as the entry does.

    The host's own packets and those of containers are exempt from some rules (Docker's "! -i BRIDGE"): a
    proxy may answer them.
    """
    fitting = [one for one in forwards if _fits(one, entry)]
    if not fitting or any(not one.address for one in fitting):
        return False
    if entry.reply_src == entry.orig_dst:
        source = ip_address(address_text(entry.orig_src))
        is_near = entry.orig_src in own or source.is_loopback or any(source in one for one in inside)
        return not is_near and any(one.is_general for one in fitting)
    ports = [
        one.to_port or str(entry.orig_dport)
        for one in fitting
        if address_bytes(one.address) == entry.reply_src
    ]
    return not any(_in_range(entry.reply_sport, port) for port in ports)


def _fits(one: _Forward, entry: ConntrackEntry) -> bool:
    if not one.low <= entry.orig_dport <= one.high:
        return False
    if one.address and (":" in one.address) != (entry.family == 6):
        return False
    address = ip_network(address_text(entry.orig_dst))
    return covers(one.dst, address) is not False


def _in_range(port: int, text: str) -> bool:
    try:
        low, high = bounds(text)
    except ValueError:
        return True
    return low <= port <= high


def _has_port(entry: NatEntry, port: int) -> bool:
    try:
        return any(_in_range(port, one) for one in entry.outside.rpartition(":")[2].split(","))
    except ValueError:
        return False


def _stale(topology: Topology, published: NatEntry, stale: list[ConntrackEntry], target: str) -> Finding:
    count, port = len(stale), stale[0].orig_dport
    first = stale[0]
    client = end_text(address_text(first.orig_src), first.orig_sport)
    if first.reply_src == first.orig_dst:
        target = "the host itself"
    others = f" and {count - 1} more" if count > 1 else ""
    sentence = (
        f"Packets of {client}{others} to udp port {port} still go to {target}, not to {published.inside}: "
        f"{'their' if others else 'its'} connection is older than the rule."
    )
    deleted = stale[:_MAX_DELETED]
    steps = tuple(_deletion(topology.host, one) for one in deleted)
    fix = Fix(f"delete {'the entries' if count > 1 else 'the entry'} of the old connection", steps)
    command = f"conntrack -D -p udp --orig-port-dst {port}"
    evidence = tuple(_evidence(one) for one in stale[:3])
    refs = tuple(conntrack_ref(topology.host, one.id) for one in deleted)
    owners = tuple(container_ref(*uid.split(":", 1)) for uid in published.containers)
    related = (*refs[1:], nat_ref(published.ns, published.entry_id), *owners)
    short, advice = f"stale connection to {target}", f"{fix.sentence}; run: {command}"
    return Finding("conntrack", refs[0], short, sentence, "warn", related, advice, evidence, fix)


def _deletion(ns: int, one: ConntrackEntry) -> FixConnection:
    ends = address_text(one.orig_src), address_text(one.orig_dst)
    return FixConnection(ns, *ends, one.l4_proto, one.orig_sport, one.orig_dport, one.id, one.zone)


def _evidence(one: ConntrackEntry) -> str:
    source, target, answer = map(address_text, (one.orig_src, one.orig_dst, one.reply_src))
    return (
        f"{protocol_name(one.l4_proto)} src={source} dst={target} sport={one.orig_sport} "
        f"dport={one.orig_dport} answered by {end_text(answer, one.reply_sport)}"
    )


# A port that no process has asked for is taken from 1024-65535 by NAT (nf_nat_core.c), and from
# ip_local_port_range by a socket (ip-sysctl.rst; the kernel's default is used).
_NAT_PORTS = 64_512
_LOCAL_PORTS = 28_232
_NEARLY = 0.8
_TIME_WAIT, _TIME_WAIT_SECONDS = 7, 60
_BUCKETS = 1 << 16


def exhausted_ports(topology: Topology) -> Iterator[Finding]:
    """Find destinations to which an address has nearly no source port left."""
    for ns, table in topology.snapshot.conntracks.items():
        if len(table.entries) > _LOCAL_PORTS * _NEARLY:
            yield from _exhausted(topology, ns, table)


def _exhausted(topology: Topology, ns: int, table: Conntrack) -> Iterator[Finding]:
    entries = table.entries
    rows = _popular(entries)
    if not len(rows):
        return
    is_masqueraded = _differ(entries["reply_dst"][rows], entries["orig_src"][rows])
    # A socket leaves TIME_WAIT after 60 s, its conntrack entry after 120 s.
    is_closed = (entries["tcp_state"][rows] == _TIME_WAIT) & (entries["timeout"][rows] < _TIME_WAIT_SECONDS)
    for chosen, field, limit in (
        (rows[is_masqueraded], "reply_dst", _NAT_PORTS),
        (rows[~is_closed], "orig_src", _LOCAL_PORTS),
    ):
        for row, count in _frequent(entries, chosen, field, limit * _NEARLY):
            one = entry_of(entries[row])
            if limit == _NAT_PORTS or _is_here(topology, ns, one):
                yield _exhausted_by(topology, ns, one, count, limit)


def _popular(entries: Column) -> Column:
    """Return the rows to destinations that may have too many, by a hash."""
    _, lower = address_halves(entries["reply_src"])
    buckets = _buckets(row_keys(lower, entries["reply_sport"], entries["l4_proto"]))
    counts = np.bincount(buckets, minlength=_BUCKETS)
    return np.flatnonzero(counts[buckets] > _LOCAL_PORTS * _NEARLY)


def _buckets(keys: Column) -> Column:
    return (keys >> np.uint64(48)).astype(np.intp)


def _is_here(topology: Topology, ns: int, one: ConntrackEntry) -> bool:
    """Return whether the client is in this namespace or a container."""
    source = address_text(one.orig_src)
    return topology.container_at(ns, source) is not None or source in _addresses_in(topology, ns)


def _addresses_in(topology: Topology, ns: int) -> set[str]:
    net = topology.snapshot.nets.get(ns)
    return {one.address for link in (net.links.values() if net else ()) for one in link.addresses}


def _differ(one: Column, other: Column) -> Column:
    halves = zip(address_halves(one), address_halves(other), strict=True)
    upper, lower = (left != right for left, right in halves)
    return np.asarray(upper | lower)


def _frequent(entries: Column, rows: Column, field: str, least: float) -> list[tuple[int, int]]:
    """Return row and count of each pair of ends with more than `least` of the rows."""
    ends = (*address_halves(entries[field][rows]), *address_halves(entries["reply_src"][rows]))
    keys = row_keys(*ends, entries["reply_sport"][rows], entries["l4_proto"][rows])
    buckets = _buckets(keys)
    found = []
    for bucket in np.flatnonzero(np.bincount(buckets, minlength=_BUCKETS) > least).tolist():
        inside = np.flatnonzero(buckets == bucket)
        _, first, counts = np.unique(keys[inside], return_index=True, return_counts=True)
        pairs = zip(first.tolist(), counts.tolist(), strict=True)
        found += [(int(rows[inside[place]]), count) for place, count in pairs if count > least]
    return found


def _exhausted_by(topology: Topology, ns: int, one: ConntrackEntry, count: int, limit: int) -> Finding:
    target = end_text(address_text(one.reply_src), one.reply_sport)
    source = address_text(one.reply_dst if limit == _NAT_PORTS else one.orig_src)
    container = topology.container_at(ns, source)
    who = topology.title(container) if container else source
    ref = _owner(topology, ns, source)
    cause = "masqueraded connections" if limit == _NAT_PORTS else "connections"
    protocol = protocol_name(one.l4_proto)
    sentence = (
        f"{who} has {count:,} {cause} to {protocol} {target}, of at most {limit:,} source ports: "
        "when none is free, new connections fail."
    )
    severity: Severity = "bad" if count >= limit else "warn"
    advice = (
        "keep connections open and use them again, or connect from more addresses"
        if limit == _NAT_PORTS
        else "keep connections open and use them again; to have more ports, run: "
        "sysctl -w net.ipv4.ip_local_port_range='1024 65535'"
    )
    short = f"source ports to {target} nearly used up"
    evidence = (f"{count:,} entries {source} -> {protocol} {target}",)
    return Finding("conntrack", ref, short, sentence, severity, (), advice, evidence)


def _owner(topology: Topology, ns: int, address: str) -> Ref:
    container = topology.container_at(ns, address)
    return container_ref(container.runtime, container.id) if container else namespace_ref(ns)
