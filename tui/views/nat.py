"""The NAT view: translations and forward filters, each with its rules."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import (
    Demand,
    FirewallRule,
    NatEntry,
    Part,
    Ref,
    container_ref,
    namespace_ref,
    nat_ref,
    network_ref,
)
from core.rates import Rates
from core.text import safe
from core.topology import Topology
from tui.views import cells, formatting
from tui.views.cells import Line, rule_lines
from tui.views.links import missing_detail
from tui.views.lists import ListRows
from tui.views.rows import TO_READ_TABLES, Cell, Column, Detail, ListView, Row, Tone, ViewContext

COLUMNS = (
    Column("kind", "kind", 14),
    Column("name", "entry", 32, grow=3, full=36),
    Column("whose", "for", 18, grow=1, priority=2),
    Column("verdict", "verdict", 10, priority=3),
    Column("proto", "proto", 5, priority=5),
    Column("outside", "outside", 18, grow=1, priority=4),
    Column("inside", "inside", 18, grow=1, priority=4),
    Column("hits", "hits", 11, align="right", priority=1),
    Column("bytes", "bytes", 8, align="right", priority=3),
    Column("family", "family", 6, priority=5),
    Column("ns", "namespace", 10, priority=4),
)
REFUSING = ("drop", "reject")
_ORDER = {"published port": 0, "dnat": 1, "redirect": 2, "masquerade": 3, "snat": 4, "filter": 5}


def rows(context: ViewContext) -> ListRows:
    """Return every entry: published ports first, filters last."""
    topology = context.topology
    found = sorted(
        topology.nat,
        key=lambda entry: (entry.ns != topology.host, _ORDER.get(entry.kind, 9), entry.name, entry.entry_id),
    )
    return ListRows([_row(topology, entry) for entry in found], COLUMNS)


def _row(topology: Topology, entry: NatEntry) -> Row:
    return Row(
        nat_ref(entry.ns, entry.entry_id),
        (
            cells.text(entry.kind), cells.text(_name(entry), verdict_tone(entry)),
            cells.text(owner_text(topology, entry)),
            cells.text(entry.verdict, verdict_tone(entry)), cells.text(entry.l4_proto),
            cells.text(entry.outside if entry.outside != entry.inside else ""), cells.text(entry.inside),
            hits(entry), cells.size(entry.bytes) if entry.kind == "filter" else cells.NONE,
            cells.text(entry.family), cells.text(topology.label(entry.ns)),
        ),
        {
            "name": safe(entry.name),
            "kind": safe(entry.kind),
            "ct": safe(" ".join(_container_names(topology, entry))),
            "net": safe(" ".join(_network_names(topology, entry))),
            "ns": safe(" ".join((topology.label(entry.ns), *_container_names(topology, entry)))),
            "proto": safe(entry.l4_proto),
            "port": _ports(entry),
            "addr": safe(f"{entry.outside} {entry.inside}"),
            "state": safe(entry.verdict),
        },
    )  # fmt: skip


def _name(entry: NatEntry) -> str:
    """Return its name without its kind, which some names begin with."""
    return entry.name.removeprefix(f"{entry.kind} ")


def owner_text(topology: Topology, entry: NatEntry) -> str:
    """Return whom an entry is for; for a filter, the direction of the packets."""
    if entry.kind != "filter":
        return " ".join((*_container_names(topology, entry), *_network_names(topology, entry)))
    source, target = (_named(topology, entry, side) for side in (entry.inside, entry.outside))
    if source and source == target:
        return f"within {source}"
    return " ".join(filter(None, (f"from {source}" if source else "", f"to {target}" if target else "")))


def _named(topology: Topology, entry: NatEntry, side: str) -> str:
    """Return the owner of one side of a filter, "" for any.

    The side is an address, a subnet or a bridge.
    """
    owner = topology.container_at(entry.ns, side.partition("/")[0])
    if owner is not None:
        return owner.name
    for id_ in entry.networks:
        network = topology.network(id_)
        if network is not None and side in (network.bridge, *network.subnets):
            return network.name
    return ""


def hits(entry: NatEntry) -> Cell:
    """Return how often an entry matched.

    Rules that translate see only first packets.
    """
    if entry.packets is None:
        return cells.NONE
    unit = "packet" if entry.kind == "filter" else "conn"
    words = formatting.several(entry.packets, unit)
    return Cell(words, "" if entry.packets else "dim", entry.packets)


def verdict_tone(entry: NatEntry) -> Tone:
    """Return the tone of a verdict; entries that have dropped packets stand out."""
    return "bad" if entry.verdict in REFUSING and entry.packets != 0 else ""


def _ports(entry: NatEntry) -> str:
    """Return the port numbers of both sides as text."""
    sides = (side.rpartition(":")[2] for side in (entry.outside, entry.inside) if ":" in side)
    return " ".join(port for port in sides if port.isdecimal())


def _container_names(topology: Topology, entry: NatEntry) -> tuple[str, ...]:
    return tuple(topology.containers[uid].name for uid in entry.containers if uid in topology.containers)


def _network_names(topology: Topology, entry: NatEntry) -> tuple[str, ...]:
    return tuple(net.name for id_ in entry.networks if (net := topology.network(id_)))


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Return the details of an entry: its effect, its owner, its raw rules."""
    entry = next((one for one in topology.nat if (one.ns, one.entry_id) == ref.key), None)
    if entry is None:
        return missing_detail("this entry")
    return Detail(
        f"{safe(entry.kind)}: {safe(_name(entry))}",
        (
            *cells.section("Meaning", _meaning(topology, entry)),
            *cells.section("Traffic", rule_lines(entry, rates)),
            *cells.section("For", _owner_lines(topology, entry)),
            *cells.section("Rules", _rules(topology, entry)),
        ),
        cells.related(topology, ref),
    )


def _meaning(topology: Topology, entry: NatEntry) -> Iterator[Line]:
    yield "", cells.text(entry.sentence, verdict_tone(entry)), None
    if entry.outside and entry.outside != entry.inside:
        yield "outside", cells.text(entry.outside), None
    if entry.inside:
        yield "inside", cells.text(entry.inside), None
    if entry.verdict:
        yield "verdict", cells.text(entry.verdict, verdict_tone(entry)), None
    if entry.kind == "filter":
        yield "packets", cells.count(entry.packets), None
        yield "bytes", cells.size(entry.bytes), None
    else:
        yield "connections", cells.count(entry.packets), None
        yield "", Cell("NAT rules see only the first packet of a connection", "dim"), None
    yield "family", cells.text(entry.family), None
    yield "namespace", cells.text(topology.label(entry.ns)), namespace_ref(entry.ns)


def _owner_lines(topology: Topology, entry: NatEntry) -> Iterator[Line]:
    for uid in entry.containers:
        container = topology.containers.get(uid)
        if container is not None:
            ref = container_ref(container.runtime, container.id)
            yield "container", cells.text(container.name), ref
    for network_id in entry.networks:
        network = topology.network(network_id)
        if network is not None:
            yield "network", cells.text(network.name), network_ref(network.id)


def _rules(topology: Topology, entry: NatEntry) -> Iterator[Line]:
    firewall = topology.snapshot.firewalls.get(entry.ns)
    by_id = {rule.rule_id: rule for rule in firewall.rules} if firewall else {}
    for rule_id in entry.rules:
        rule = by_id.get(rule_id)
        if rule is not None:
            yield f"{safe(rule.table)} {safe(rule.chain)}", cells.text(rule.text), None
            yield "", Cell(_rule_words(rule), "dim"), None


def _rule_words(rule: FirewallRule) -> str:
    words = [f"by {safe(rule.backend)}"]
    words += [] if rule.packets is None else [f"{rule.packets} packet{'s' * (rule.packets != 1)}"]
    words += [f"comment: {safe(rule.comment)}"] if rule.comment else []
    words += [] if rule.understood else ["some matches are only shown as text"]
    return ", ".join(words)


VIEW = ListView(
    "nat", "NAT", ("nat", "firewall", "rules"), COLUMNS, rows,
    empty="No rule translates or filters forwarded traffic. A container engine adds a masquerade for the "
    "outgoing traffic of its first network, and a rule for each published port.",
    help=(
        ("kind:published", "published ports only; also masquerade, dnat, filter"),
        ("ct:NAME", "entries of one container"),
        ("verdict:drop", "rules that drop packets"),
        ("port:8080", "by port, outside or inside"),
    ),
    demand=frozenset({Demand.RATES, Demand.CONNECTION_COUNT, Demand.NAT_RATES, Demand.RULE_COUNTERS}),
    parts=frozenset({Part.FIREWALL}),
    problem_parts=("nat",),
    capabilities=TO_READ_TABLES,
)  # fmt: skip
