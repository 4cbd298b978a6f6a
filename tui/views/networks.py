"""The networks view: every network, whichever engine made it."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import (
    Container,
    Demand,
    Link,
    Network,
    Part,
    Ref,
    container_ref,
    link_ref,
    nat_ref,
    network_ref,
)
from core.rates import Rates
from core.text import TABLE, parse_tag, safe
from core.topology import Topology
from tui.views import cells, findings
from tui.views.cells import Line, bridge_lines
from tui.views.fastpath import marked
from tui.views.links import missing_detail
from tui.views.lists import ListRows
from tui.views.rows import Column, Detail, ListView, Row, ViewContext

COLUMNS = (
    Column("name", "network", 16, grow=1),
    Column("kind", "kind", 10, grow=2),
    Column("addr", "subnet", 18, grow=1),
    Column("gateway", "gateway", 15, grow=1),
    Column("bridge", "bridge", 15, priority=1),
    Column("members", "containers", 10, align="right"),
    Column("mtu", "mtu", 5, align="right", priority=4),
    Column("engine", "engine", 7, priority=3),
    Column("rate", "rate", 11, align="right", priority=2),
    Column("trend", "trend", 8, priority=5),
)

_FAMILIES = {"ipv4": "IPv4", "ipv6": "IPv6"}
# Effects of Docker's gateway modes.
_MODES = {
    "nat": "nat: sources are translated; from outside only published ports, at the host's address",
    "nat-unprotected": "nat-unprotected: sources are translated; every port is open from outside",
    "routed": "routed: sources are kept; from outside only published ports, at the containers' addresses",
    "isolated": "isolated: the bridge has no address, so the host isn't on the network",
}


def rows(context: ViewContext) -> ListRows:
    """Return every network, those with a bridge first."""
    found = sorted(context.topology.networks, key=lambda net: (not net.bridge, net.name, net.id))
    made = ListRows([_row(context, network) for network in found], COLUMNS)
    return marked(context, made, 2, lambda ref: _bridge_at(context.topology, ref))


def _bridge_at(topology: Topology, ref: Ref) -> Link | None:
    network = topology.network(str(ref.key[0]))
    return topology.bridge_link(network) if network else None


def _row(context: ViewContext, network: Network) -> Row:
    topology = context.topology
    bridge = topology.bridge_link(network)
    subnets, gateways = " ".join(network.subnets), " ".join(topology.gateways(network))
    return Row(
        network_ref(network.id),
        (
            cells.text(network.name), cells.text(kind_words(network)), cells.text(subnets),
            cells.text(gateways), cells.text(network.bridge), cells.number(len(topology.members(network))),
            cells.number(mtu(topology, network)), cells.text(network.engine),
            *cells.traffic_cells(context.traffic_of(bridge.key) if bridge else None),
        ),
        {
            "name": safe(network.name), "net": safe(network.name), "id": safe(network.id),
            "kind": safe(" ".join(dict.fromkeys((network.kind or network.driver, kind_words(network))))),
            "addr": safe(f"{subnets} {gateways}"),
            "ns": safe(topology.label(network.ns or topology.host)),
            "ct": safe(" ".join(member.name for member in topology.members(network))),
            "label": " ".join(f"{safe(key)}={safe(value)}" for key, value in network.labels.items()),
        },
    )  # fmt: skip


def kind_words(network: Network) -> str:
    """Return a network's kind, with Docker's gateway mode.

    Such as "nat-unprotected", or "nat/routed" (IPv4/6).
    """
    modes = list(network.gateway_mode.values())
    if "isolated" in modes:
        return "isolated"
    if not network.masquerade and network.kind == "routed" and set(modes) == {"nat"}:
        return "no-masquerade"
    if network.kind == "nat" and set(modes) - {"nat"}:
        return "/".join(dict.fromkeys(modes))
    return network.kind or network.driver


def mtu(topology: Topology, network: Network) -> int:
    """Return a network's MTU: its bridge's, or as configured in its engine."""
    bridge = topology.bridge_link(network)
    return bridge.mtu if bridge else network.mtu


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Return the details of a network."""
    network = topology.network(str(ref.key[0]))
    if network is None:
        return missing_detail("this network")
    bridge = topology.bridge_link(network)
    return Detail(
        f"network {safe(network.name)}",
        (
            *cells.section("Network", _identity(topology, network)),
            *cells.section("Containers", _members(topology, network)),
            *cells.section("NAT", _nat(topology, network)),
            *cells.section("Traffic", bridge_lines(topology, bridge, rates) if bridge else ()),
            *cells.section("Labels", ((safe(k), cells.text(v), None) for k, v in network.labels.items())),
        ),
        cells.related(topology, ref),
    )


def _identity(topology: Topology, network: Network) -> Iterator[Line]:
    bridge = topology.bridge_link(network)
    yield "kind", cells.text(kind_words(network)), None
    for family, mode in network.gateway_mode.items():
        if words := _mode_words(network, mode):
            yield _FAMILIES[family], cells.text(words), None
    if network.trusted_links:
        words = f"packets from {', '.join(network.trusted_links)} reach containers directly"
        yield "trusted", cells.text(words), None
    for subnet in network.subnets:
        yield "subnet", cells.text(subnet), None
    for gateway in topology.gateways(network):
        yield "gateway", cells.text(gateway), None
    if network.bridge:
        missing = cells.text(f"{network.bridge}, which doesn't exist", "bad")
        yield (
            "bridge",
            cells.text(bridge.name) if bridge else missing,
            link_ref(bridge.key) if bridge else None,
        )
    if network.parent:
        parent = topology.parent_link(network)
        yield "parent", cells.text(network.parent), link_ref(parent.key) if parent else None
    if mtu(topology, network):
        yield "MTU", cells.number(mtu(topology, network)), None
    switch = topology.ovs_bridge(bridge) if bridge else None
    tag = switch.external_ids.get(TABLE, "") if switch else bridge.alias if bridge else ""
    by_vnet = "net" in (parse_tag(tag) or ())
    yield "created by", cells.text("vnet" if by_vnet else f"{network.engine}, driver {network.driver}"), None
    yield "id", cells.text(network.id), None


def _mode_words(network: Network, mode: str) -> str:
    """Return the effect of a gateway mode, "" if its rules don't exist."""
    if network.internal and mode != "isolated":
        return ""
    if not mode.startswith("nat") or network.kind == "nat":
        return _MODES.get(mode, mode)
    return _MODES.get(mode, mode).replace("translated", "kept") if not network.masquerade else ""


def _members(topology: Topology, network: Network) -> Iterator[Line]:
    for member in topology.members(network):
        words = " ".join(addresses_on(topology, member, network))
        yield safe(member.name), cells.text(words), container_ref(member.runtime, member.id)


def addresses_on(topology: Topology, member: Container, network: Network) -> tuple[str, ...]:
    """Return a member's addresses on a network: its link's, else its engine's."""
    bridge = topology.bridge_link(network)
    link = findings.port_of(topology, member, bridge.key) if bridge else None
    if link is not None:
        return tuple(cells.addresses(link, with_length=False).split())
    ends = member.endpoints_of(network)
    return tuple(text.partition("/")[0] for end in ends for text in (end.ipv4, end.ipv6) if text)


def _nat(topology: Topology, network: Network) -> Iterator[Line]:
    for entry in topology.nat:
        if network.id in entry.networks:
            yield safe(entry.kind), cells.text(entry.sentence), nat_ref(entry.ns, entry.entry_id)


VIEW = ListView(
    "networks", "Networks", ("net", "network"), COLUMNS, rows,
    empty="No network yet. `vnet-tui network create NAME` creates one (n in the dashboard), and so does "
    "`docker network create`. Bridges are listed here too.",
    help=(
        ("kind:internal", "networks by kind: nat, internal, routed, host, none, ..."),
        ("ct:NAME", "the networks of a container"),
    ),
    demand=frozenset({Demand.RATES, Demand.CONNECTION_COUNT}),
    parts=frozenset({Part.LINKS, Part.CONTAINERS}),
    maker_parts=("docker", "podman"),
)  # fmt: skip
