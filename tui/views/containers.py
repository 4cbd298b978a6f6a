"""The containers view: each container with its network model and model card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from core.diagnose import joined
from core.model import (
    Container,
    Demand,
    Link,
    ModelCard,
    NamespaceUse,
    NatEntry,
    Part,
    PublishedPort,
    Ref,
    container_ref,
    link_ref,
    namespace_ref,
    nat_ref,
    network_ref,
)
from core.rates import Rates
from core.text import end_text, range_text, safe
from core.topology import Topology
from core.topology.related import entries_of_container
from tui.views import cells, formatting, networks
from tui.views.cells import Line, link_lines
from tui.views.links import missing_detail
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Detail, ListView, Row, Tone, ViewContext

COLUMNS = (
    Column("name", "container", 14, grow=1),
    Column("model", "model", 12),
    Column("state", "state", 8, priority=2),
    Column("net", "networks", 10, grow=1),
    Column("addr", "addresses", 14, grow=2),
    Column("port", "published", 14, grow=1),
    Column("in", "receives", 11, align="right", priority=3),
    Column("out", "sends", 11, align="right", priority=3),
    Column("runtime", "runtime", 7, priority=4),
    Column("image", "image", 16, grow=1, priority=5),
    Column("trend", "trend", 8, priority=6),
)

KIND_WORDS = {
    "user": "user ids", "mnt": "mounts", "pid": "processes", "uts": "host name", "net": "network",
    "ipc": "ipc",
}  # fmt: skip


_EVERY_ADDRESS = {"": "every address", "0.0.0.0": "every IPv4 address", "::": "every IPv6 address"}


def rows(context: ViewContext) -> ListRows:
    """Return every container, the engines' first."""
    found = sorted(
        context.topology.containers.values(),
        key=lambda one: (one.runtime not in ("docker", "podman"), one.name, one.uid),
    )
    return ListRows([_row(context, container) for container in found], COLUMNS)


def _row(context: ViewContext, container: Container) -> Row:
    topology = context.topology
    networks = " ".join(network.name for network in topology.networks_of(container))
    addresses = " ".join(topology.addresses_of(container))
    received, sent, history = _traffic(context, container)
    return Row(
        container_ref(container.runtime, container.id),
        (
            cells.text(topology.title(container)), model(topology, container), state(container),
            cells.text(networks), short_addresses(topology, container),
            cells.text(" ".join(published(topology, container))),
            cells.bits(received), cells.bits(sent),
            cells.text(container.runtime), cells.text(container.image),
            cells.trend(history, (received or 0) + (sent or 0)),
        ),
        terms(topology, container, networks, addresses),
    )  # fmt: skip


def short_addresses(topology: Topology, container: Container) -> Cell:
    """Return the cell of a container's first address and how many more it has."""
    if container.netns is not None and container.netns == topology.host:
        return Cell("the host's", "dim")
    first, *more = topology.addresses_of(container) or ("",)
    return cells.text(f"{first} +{len(more)}" if more else first)


def terms(topology: Topology, container: Container, networks: str, addresses: str) -> dict[str, str]:
    """Filter terms of a container."""
    words = " ".join(published(topology, container))
    ports = {*re.findall(r"(\d+)(?=→|/|\s|$)", words)}
    ports |= {str(number) for port in container.ports for number in (port.host_port, port.container_port)}
    return {
        "name": safe(container.name),
        "ct": safe(container.name),
        "id": safe(container.id),
        "ns": safe(topology.label(container.netns)) if container.netns else "",
        "net": safe(networks),
        "addr": safe(addresses),
        "port": " ".join(sorted(ports)),
        "proto": " ".join({safe(port.l4_proto) for port in container.ports}),
        "state": safe(container.state),
        "label": " ".join(f"{safe(key)}={safe(value)}" for key, value in container.labels.items()),
        "pid": str(container.pid or ""),
    }


def _traffic(
    context: ViewContext, container: Container
) -> tuple[float | None, float | None, tuple[float, ...]]:
    """Return the traffic of all links of a container.

    It is bits per second, in and out, and their history.
    """
    rates = [rate for link in context.topology.links_of(container) if (rate := context.rate(link.key))]
    if not rates:
        return None, None, ()
    history = tuple(map(sum, zip(*(rate.history for rate in rates), strict=False)))
    return sum(rate.rx_bps for rate in rates), sum(rate.tx_bps for rate in rates), history


def model(topology: Topology, container: Container) -> Cell:
    """Return the cell of a container's model; a dead joined namespace is bad."""
    card = topology.cards.get(container.uid)
    if card is None or has_no_process(container):
        return cells.NONE
    if card.model == "unknown":
        return Cell("unknown", "dim")
    if card.joined_dead:
        return Cell(f"{card.model}, dead", "bad")
    return Cell(card.model)


def has_no_process(container: Container) -> bool:
    """Return whether it isn't running, and so has no namespaces and no model."""
    return container.netns is None and container.state not in ("running", "paused", "restarting")


def state(container: Container) -> Cell:
    """Return the cell of a container's state in its engine's terms."""
    tones: dict[str, Tone] = {"running": "ok", "paused": "warn", "restarting": "warn", "dead": "bad"}
    return cells.text(container.state, tones.get(container.state, "dim"))


def port_words(ports: Iterable[PublishedPort]) -> Iterator[str]:
    """Yield published ports as text.

    "8080→80", with the address unless it is every IPv4 address, and "/udp"; consecutive ports are one range:
    "5000-5010→5000-5010/udp".
    """
    for port, outer, inner in _runs(ports):
        published = outer if port.host_ip in ("", "0.0.0.0") else end_text(port.host_ip, outer)
        proto = "" if port.l4_proto == "tcp" else f"/{port.l4_proto}"
        yield f"{published}→{inner}{proto}"


def _runs(ports: Iterable[PublishedPort]) -> Iterator[tuple[PublishedPort, str, str]]:
    """Merge consecutive ports.

    Each range has the first one, the numbers outside, and those inside.
    """
    runs: list[list[PublishedPort]] = []
    for port in sorted(ports, key=lambda one: (one.host_ip, one.l4_proto, one.host_port)):
        if not (runs and _is_next(runs[-1][-1], port)):
            runs.append([])
        runs[-1].append(port)
    for first, *_, last in ((*run, run[-1]) for run in sorted(runs, key=lambda run: run[0].host_port)):
        outer = range_text(first.host_port, last.host_port)
        yield first, outer, range_text(first.container_port, last.container_port)


def _is_next(one: PublishedPort, other: PublishedPort) -> bool:
    ahead = replace(one, host_port=one.host_port + 1, container_port=one.container_port + 1)
    return ahead == other


def published(topology: Topology, container: Container, link: Link | None = None) -> tuple[str, ...]:
    """Return a container's published ports via `link` or (None) any, as text.

    They come from its engine, or else from the rules.
    """
    network = topology.network_of(link) if link else None
    if container.ports:
        shut = network is not None and network.kind == "internal"
        return () if shut else tuple(dict.fromkeys(port_words(container.ports)))
    entries = (entry for entry in topology.nat_of(container) if entry.kind == "published port")
    return tuple(dict.fromkeys(_rule_words(entry) for entry in entries if _leads_to(entry, link)))


def _leads_to(entry: NatEntry, link: Link | None) -> bool:
    inner = entry.inside.rpartition(":")[0].strip("[]")
    return link is None or any(one.address == inner for one in link.addresses)


def _rule_words(entry: NatEntry) -> str:
    where, _, outer = entry.outside.rpartition(":")
    where = where.partition("/")[0]
    inner = entry.inside.rpartition(":")[2]
    proto = "" if entry.l4_proto in ("tcp", "") else f"/{entry.l4_proto}"
    return f"{where}:{outer}→{inner}{proto}" if where not in ("*", "") else f"{outer}→{inner}{proto}"


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Return the details of a container, its model card first."""
    container = topology.containers.get(":".join(map(str, ref.key)))
    if container is None:
        return missing_detail("this container")
    card = topology.cards.get(container.uid)
    return Detail(
        f"container {safe(topology.title(container))}",
        (
            *cells.section("Model", _model_lines(topology, container, card)),
            *cells.section(
                "Namespaces",
                _matrix(topology, container, card),
            ),
            *cells.section("Networks", _networks(topology, container)),
            *cells.section("Links", _links(topology, container, rates)),
            *cells.section("Traffic", link_lines([link.key for link in topology.links_of(container)], rates)),
            *cells.section("Published ports", _ports(container)),
            *cells.section("NAT", _nat(topology, container)),
            *cells.section("Container", _identity(topology, container)),
            *cells.section("Labels", ((safe(k), cells.text(v), None) for k, v in container.labels.items())),
        ),
        cells.related(topology, ref),
    )


def _model_lines(topology: Topology, container: Container, card: ModelCard | None) -> Iterator[Line]:
    yield "model", model(topology, container), None
    if card is None:
        return
    yield "reason", cells.text(card.why, "bad" if card.joined_dead else ""), None
    for uid in card.joined_with:
        other = topology.containers.get(uid)
        if other is not None:
            yield "joined with", cells.text(other.name), container_ref(other.runtime, other.id)


def _matrix(topology: Topology, container: Container, card: ModelCard | None) -> Iterator[Line]:
    """Yield a line for each of the six namespaces of a container."""
    if card is not None and not has_no_process(container):
        yield from (_use_line(topology, container, card, use) for use in card.namespaces)


def _use_line(topology: Topology, container: Container, card: ModelCard, use: NamespaceUse) -> Line:
    """Return a line of the matrix.

    A namespace that has outlived its container is dead.
    """
    if not (card.joined_dead and use.kind == "net"):
        return matrix_line(topology, use)
    target = joined(topology, container)
    name = target.name if target else container.network_mode.partition(":")[2][:12]
    title = f"{use.kind:<5}{KIND_WORDS.get(use.kind, '')}"
    return title, cells.text(f"gone: was {name}'s", "bad"), _ref_of(target) if target else None


def _ref_of(container: Container) -> Ref:
    return container_ref(container.runtime, container.id)


def matrix_line(topology: Topology, use: NamespaceUse) -> Line:
    """Return the text of a namespace: the host's, its own, or whom it is shared with."""
    title = f"{use.kind:<5}{KIND_WORDS.get(use.kind, '')}"
    others = [topology.containers[uid] for uid in use.with_containers if uid in topology.containers]
    if not use.inode:
        return title, Cell("unknown", "dim"), None
    if use.with_host:
        return title, Cell("■ the host's"), None
    if others:
        names = ", ".join(other.name for other in others)
        return title, cells.text(f"◐ shared with {names}"), container_ref(others[0].runtime, others[0].id)
    return title, Cell("□ its own"), namespace_ref(use.inode) if use.kind == "net" else None


def _networks(topology: Topology, container: Container) -> Iterator[Line]:
    by_name = {name: net for net in topology.networks_of(container) for name in (net.id, net.name)}
    for end in container.endpoints:
        network = by_name.pop(end.network, None)
        words = [end.ipv4, end.ipv6, f"gateway {end.gateway}" if end.gateway else ""]
        target = network_ref(network.id) if network else None
        yield (
            safe(network.name if network else end.network),
            cells.text(" ".join(filter(None, words))),
            target,
        )
    connected = {end.network for end in container.endpoints}
    for network in topology.networks_of(container):
        if not connected & {network.id, network.name}:
            yield safe(network.name), cells.text(networks.kind_words(network)), network_ref(network.id)


def _links(topology: Topology, container: Container, rates: Rates | None) -> Iterator[Line]:
    own = topology.links_of(container)
    for link in own:
        peer, rate = topology.peer(link), rates.of(link.key) if rates else None
        words = [cells.addresses(link), f"↔ {peer.name} in {topology.label(peer.ns)}" if peer else ""]
        state_cell = cells.state(link)
        words += [state_cell.text] if state_cell.tone == "bad" else []
        tone: Tone = "bad" if state_cell.tone == "bad" else ""
        yield safe(link.name), cells.text(", ".join(filter(None, words)), tone), link_ref(link.key)
        if rate is not None and len(own) > 1:  # for a single one, the section about traffic is the same
            yield (
                "traffic",
                Cell(f"receives {formatting.bits(rate.rx_bps)}, sends {formatting.bits(rate.tx_bps)}"),
                None,
            )


def _ports(container: Container) -> Iterator[Line]:
    for port, outer, inner in _runs(container.ports):
        where = _EVERY_ADDRESS.get(port.host_ip, port.host_ip)
        yield f"{safe(port.l4_proto)} {outer}", cells.text(f"on {where} → {inner}"), None


def _nat(topology: Topology, container: Container) -> Iterator[Line]:
    for entry in entries_of_container(topology, container):
        tone: Tone = "bad" if entry.verdict in ("drop", "reject") else ""
        yield safe(entry.kind), cells.text(entry.sentence, tone), nat_ref(entry.ns, entry.entry_id)


def _identity(topology: Topology, container: Container) -> Iterator[Line]:
    yield "runtime", cells.text(container.runtime), None
    yield "state", state(container), None
    yield "id", cells.text(container.id), None
    if container.image:
        yield "image", cells.text(container.image), None
    if container.pid:
        yield "first process", Cell(str(container.pid)), None
    if container.command:
        yield "command", cells.text(container.command), None
    if container.created:
        yield "created", cells.text(container.created), None
    if container.network_mode:
        yield "network mode", cells.text(_mode_text(topology, container.network_mode)), None
    if container.netns is not None:
        label = topology.label(container.netns)
        yield "namespace", cells.text(label), namespace_ref(container.netns)


def _mode_text(topology: Topology, mode: str) -> str:
    """Return a network mode with a container's name instead of its id."""
    kind, _, wanted = mode.partition(":")
    if kind != "container":
        return mode
    found = next((one.name for one in topology.containers.values() if wanted in (one.id, one.name)), "")
    return f"container {found}" if found else f"container {wanted[:12]}, which no longer exists"


VIEW = ListView(
    "containers", "Containers", ("con", "co", "docker", "podman", "ps"), COLUMNS, rows,
    empty="No container yet. `vnet-tui container create NAME` creates a plain one (c in the dashboard). "
    "Containers of Docker and podman and named namespaces (`ip netns`) appear here too.",
    help=(
        ("model:open", "containers by network model: closed, bridged, joined, open"),
        ("net:NAME", "the containers of a network"),
        ("port:8080", "by port of the host or container"),
        ("label:tier=front", "by label"),
    ),
    demand=frozenset({Demand.RATES, Demand.CONNECTION_COUNT}),
    parts=frozenset({Part.CONTAINERS}),
    maker_parts=("docker", "podman"),
)  # fmt: skip
