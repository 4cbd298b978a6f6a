"""The networks view: every network, whichever engine made it."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import Container, Link, Network, Ref, container_ref, link_ref, nat_ref, network_ref
from core.rates import Rates
from core.tags import words_of
from core.text import safe
from core.topology import Topology
from tui.present import cells, fast_marks, faults, trends
from tui.present.cells import Line
from tui.present.link_detail import gone
from tui.present.list_rows import ListRows
from tui.present.rows import Column, Detail, ListView, Row
from tui.present.scene import Scene

COLUMNS = (
    Column("name", "network", 16, grow=1),
    Column("kind", "kind", 10),
    Column("addr", "subnet", 18, grow=1),
    Column("gateway", "gateway", 15, grow=1, priority=2),
    Column("bridge", "bridge", 15, priority=1),
    Column("members", "containers", 10, align="right"),
    Column("mtu", "mtu", 5, align="right", priority=4),
    Column("engine", "engine", 7, priority=3),
    Column("rate", "rate", 11, align="right", priority=2),
    Column("trend", "trend", 8, priority=5),
)


def rows(scene: Scene) -> ListRows:
    """Every network, those with a bridge first."""
    found = sorted(scene.topology.networks, key=lambda net: (not net.bridge, net.name, net.id))
    made = ListRows([_row(scene, network) for network in found], COLUMNS)
    return fast_marks.marked(scene, made, 2, lambda ref: _bridge_at(scene.topology, ref))


def _bridge_at(topology: Topology, ref: Ref) -> Link | None:
    network = topology.network(str(ref.key[0]))
    return topology.bridge_link(network) if network else None


def _row(scene: Scene, network: Network) -> Row:
    topology = scene.topology
    bridge = topology.bridge_link(network)
    subnets, gateways = " ".join(network.subnets), " ".join(topology.gateways(network))
    return Row(
        network_ref(network.id),
        (
            cells.text(network.name), cells.text(network.kind or network.driver), cells.text(subnets),
            cells.text(gateways), cells.text(network.bridge), cells.number(len(topology.members(network))),
            cells.number(mtu(topology, network)), cells.text(network.engine),
            *cells.carried(scene.carried(bridge.key) if bridge else None),
        ),
        {
            "name": safe(network.name), "net": safe(network.name), "id": safe(network.id),
            "kind": safe(network.kind or network.driver), "addr": safe(f"{subnets} {gateways}"),
            "ns": safe(topology.label(network.ns or topology.host)),
            "ct": safe(" ".join(member.name for member in topology.members(network))),
            "label": " ".join(f"{safe(key)}={safe(value)}" for key, value in network.labels.items()),
        },
    )  # fmt: skip


def mtu(topology: Topology, network: Network) -> int:
    """A network's MTU: its bridge's, or what its engine was told."""
    bridge = topology.bridge_link(network)
    return bridge.mtu if bridge else network.mtu


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Everything about one network."""
    network = topology.network(str(ref.key[0]))
    if network is None:
        return gone("this network")
    bridge = topology.bridge_link(network)
    return Detail(
        f"network {safe(network.name)}",
        (
            *cells.section("Network", _identity(topology, network)),
            *cells.section("Containers", _members(topology, network)),
            *cells.section("NAT", _nat(topology, network)),
            *cells.section("Traffic", trends.bridge_lines(topology, bridge, rates) if bridge else ()),
            *cells.section("Labels", ((safe(k), cells.text(v), None) for k, v in network.labels.items())),
        ),
        cells.related(topology, ref),
    )


def _identity(topology: Topology, network: Network) -> Iterator[Line]:
    bridge = topology.bridge_link(network)
    yield "kind", cells.text(network.kind or network.driver), None
    for subnet in network.subnets:
        yield "subnet", cells.text(subnet), None
    for gateway in topology.gateways(network):
        yield "gateway", cells.text(gateway), None
    if network.bridge:
        missing = cells.text(f"{network.bridge}, which is gone", "bad")
        yield (
            "bridge",
            cells.text(bridge.name) if bridge else missing,
            link_ref(bridge.key) if bridge else None,
        )
    if mtu(topology, network):
        yield "MTU", cells.number(mtu(topology, network)), None
    ours = bridge is not None and "net" in (words_of(bridge.alias) or ())
    yield "made by", cells.text("vnet" if ours else f"{network.engine}, driver {network.driver}"), None
    yield "id", cells.text(network.id), None


def _members(topology: Topology, network: Network) -> Iterator[Line]:
    for member in topology.members(network):
        words = " ".join(addresses_on(topology, member, network))
        yield safe(member.name), cells.text(words), container_ref(member.runtime, member.id)


def addresses_on(topology: Topology, member: Container, network: Network) -> tuple[str, ...]:
    """A member's addresses on that very network: its link's, else what its engine tells."""
    bridge = topology.bridge_link(network)
    link = faults.port_of(topology, member, bridge.key) if bridge else None
    if link is not None:
        return tuple(cells.addresses(link, with_length=False).split())
    ends = (end for end in member.endpoints if end.network in (network.name, network.id))
    return tuple(text.partition("/")[0] for end in ends for text in (end.ipv4, end.ipv6) if text)


def _nat(topology: Topology, network: Network) -> Iterator[Line]:
    for entry in topology.nat:
        if network.id in entry.networks:
            yield safe(entry.kind), cells.text(entry.sentence), nat_ref(entry.ns, entry.entry_id)


VIEW = ListView(
    "networks", "Networks", ("net", "network"), COLUMNS, rows,
    empty="No network yet. `vnet-tui network create NAME` makes one (n in the dashboard); so do "
    "`docker network create` and a bridge with an address.",
    help=(
        ("kind:internal", "networks by kind: nat, internal, routed, host, none, ..."),
        ("ct:NAME", "the networks of a container"),
    ),
)  # fmt: skip
