"""Collect what the overview shows: networks as rails, containers, ways out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from core.diagnose import Diagnosis, diagnosis_of
from core.model import Container, Link, LinkKey, Network, Ref, container_ref, link_ref, namespace_ref, nat_ref
from core.model import network_ref as ref_of_network
from core.overlay import overlay_of
from core.text import safe
from core.topology import Topology
from tui.views import cells, containers, formatting, networks
from tui.views.findings import of_container, of_network, port_of
from tui.views.rows import Cell, Tone

# Marks of containers' models in the drawing.
MARKS = {"bridged": "◆", "routed": "◇", "joined": "◐", "closed": "□", "open": "■"}
UNKNOWN_MARK, STOPPED_MARK = "?", "–"

End = Literal["way", "wall", "none"]
_KINDS_FIRST = ("nat", "routed", "nic-bridged", "macvlan", "overlay", "internal")
_KINDS_WITHOUT_RAIL = ("host", "none")
NO_UPLINK = Cell("")


@dataclass(frozen=True, slots=True)
class Figure:
    """A container in the drawing: name, mark of its model, further text."""

    ref: Ref
    name: str
    mark: str
    tone: Tone
    facts: tuple[Cell, ...] = ()
    faults: tuple[Cell, ...] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """Containers that share a network namespace, its owner first."""

    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Rail:
    """One line of the drawing: a network, the host, or containers without a network.

    The last kind isn't `drawn`. `facts` are shown beside the name, the foremost first. `end` is the kind of
    its end: a way out named in `uplink_cell`, a wall, or nothing. `link` is the one whose traffic is shown.
    """

    key: str
    ref: Ref | None
    name: str
    facts: tuple[Cell, ...] = ()
    faults: tuple[Cell, ...] = ()
    cards: tuple[Card, ...] = ()
    end: End = "none"
    uplink_cell: Cell = NO_UPLINK
    uplink_ref: Ref | None = None
    link: LinkKey | None = None
    tone: Tone = ""
    drawn: bool = True


def rails(topology: Topology) -> tuple[Rail, ...]:
    """Return all rails of a host: its own, its networks', then the others; cached."""
    return _rails(topology, diagnosis_of(topology))


@lru_cache(maxsize=1)
def _rails(topology: Topology, _diagnosis: Diagnosis) -> tuple[Rail, ...]:
    shown = [net for net in topology.networks if net.kind not in _KINDS_WITHOUT_RAIL]
    shown = [net for net in shown if net.bridge or topology.members(net)]
    shown.sort(key=lambda net: (net.ns not in (None, topology.host), _rank(net), net.name, net.id))
    on_rails = [_network_rail(topology, net) for net in shown]
    return (_host_rail(topology), *on_rails, *_rails_without_network(topology, shown))


def _rank(network: Network) -> int:
    return _KINDS_FIRST.index(network.kind) if network.kind in _KINDS_FIRST else len(_KINDS_FIRST)


def _host_rail(topology: Topology) -> Rail:
    host = topology.snapshot.host
    uplink = topology.uplink(topology.host)
    forwarding = host.sysctls.get("net.ipv4.ip_forward")
    facts = [cells.text(f"{uplink[0].name} {cells.addresses(uplink[0])}")] if uplink else []
    target: Ref | None
    tone: Tone
    faulty = [Cell("forwarding is off", "warn")] if forwarding == "0" and topology.networks else []
    open_ones = [one for one in topology.containers_in(topology.host) if one.state != "exited"]
    table = topology.snapshot.conntracks.get(topology.host)
    facts += [Cell(f"{len(table.entries):,} conntrack entries")] if table and table.is_read else []
    if uplink:
        link, gateway = uplink
        words = f"uplink {link.name} → {gateway}" if gateway else f"uplink {link.name}"
        uplink_cell, target, tone = cells.text(words), link_ref(link.key), cells.state(link).tone
    else:
        uplink_cell, target, tone = Cell("no uplink", "dim"), None, ""
    return Rail(
        key="host", ref=namespace_ref(topology.host), name=f"host {safe(host.hostname)}".strip(),
        facts=tuple(facts), faults=tuple(faulty), cards=_cards(topology, open_ones, None),
        end="way" if uplink else "wall", uplink_cell=uplink_cell, uplink_ref=target, tone=tone,
        link=uplink[0].key if uplink else None,
    )  # fmt: skip


def _network_rail(topology: Topology, network: Network) -> Rail:
    bridge = topology.bridge_link(network)
    end, uplink_cell, uplink_ref = _rail_end(topology, network)
    mtu = networks.mtu(topology, network)
    gateways = " ".join(topology.gateways(network))
    facts = [
        cells.text(f"in {topology.label(network.ns)}") if network.ns not in (None, topology.host) else None,
        cells.text(" ".join(network.subnets)) if network.subnets else None,
        cells.text(_kind(topology, network, bridge)),
        cells.text(f"gw {gateways}") if gateways else None,
        Cell(f"mtu {mtu}") if mtu else None,
        cells.text(network.bridge) if network.bridge and network.bridge != network.name else None,
    ]
    return Rail(
        key=network.id, ref=ref_of_network(network.id), name=safe(network.name),
        facts=tuple(fact for fact in facts if fact), faults=of_network(topology, network),
        cards=_cards(topology, topology.members(network), bridge), end=end,
        uplink_cell=uplink_cell, uplink_ref=uplink_ref,
        link=bridge.key if bridge else None, tone=cells.state(bridge).tone if bridge else "dim",
    )  # fmt: skip


def _kind(topology: Topology, network: Network, bridge: Link | None) -> str:
    """Return a network's kind, of an overlay with the number of its other hosts."""
    overlay = overlay_of(topology, bridge.key) if bridge and network.kind == "overlay" else None
    if overlay is None:
        return networks.kind_words(network)
    return f"overlay with {formatting.several(len(overlay.remotes), 'other host')}"


def _rail_end(topology: Topology, network: Network) -> tuple[End, Cell, Ref | None]:
    """Return the end of a network's rail as text, and the ref of that end."""
    # The bridge of an overlay is in a sandbox; its traffic to other hosts uses this host's way out.
    ns = topology.host if network.kind == "overlay" else network.ns or topology.host
    uplink = topology.uplink(ns)
    place = f"{uplink[0].name} {_first_address(uplink[0])}".strip() if uplink else ""
    for entry in topology.nat:
        if entry.kind in ("masquerade", "snat") and network.id in entry.networks:
            return "way", cells.text(f"NAT → {place}" if place else "NAT"), nat_ref(entry.ns, entry.entry_id)
    if network.kind == "internal" or network.internal:
        return "wall", Cell("internal"), None
    target = link_ref(uplink[0].key) if uplink else None
    if network.kind == "nic-bridged":
        nic = _nic_of(topology, network)
        return (
            "way",
            cells.text(f"bridged → {nic.name}" if nic else "bridged"),
            link_ref(nic.key) if nic else target,
        )
    if network.parent and (parent := topology.parent_link(network)):
        words = f"{network.kind} on {parent.name} {_first_address(parent)}"
        return "way", cells.text(words.strip()), link_ref(parent.key)
    if network.kind in ("nat", "routed", "macvlan", "ipvlan", "overlay"):
        kind = "NAT" if network.kind == "nat" else network.kind
        return "way", cells.text(f"{kind} → {place}" if place else kind), target
    return "none", NO_UPLINK, None


def _first_address(link: Link) -> str:
    """Return the address to show for a link: of IPv4, if it has one."""
    return cells.addresses(link, with_length=False).partition(" ")[0]


def _nic_of(topology: Topology, network: Network) -> Link | None:
    bridge = topology.bridge_link(network)
    ports = topology.ports_of(bridge.key) if bridge else ()
    return next((port for port in ports if topology.peer(port) is None and port.kind != "tun"), None)


def _cards(topology: Topology, members: Iterable[Container], bridge: Link | None) -> tuple[Card, ...]:
    """Return one card for each namespace of the members, sorted by name."""
    groups: dict[int | str, list[Container]] = {}
    for member in members:
        shared = member.netns if member.netns is not None and member.netns != topology.host else member.uid
        groups.setdefault(shared, []).append(member)
    cards = []
    for group in groups.values():
        group.sort(key=lambda one: _joined_later(topology, one))
        first, *joined = group
        cards.append(
            Card((_figure(topology, first, bridge), *(_joined(topology, one) for one in joined)))
        )  # fmt: skip
    return tuple(sorted(cards, key=lambda card: card.figures[0].name))


def _joined_later(topology: Topology, container: Container) -> tuple[bool, str]:
    return container != topology.container_of(container.netns or 0), container.name


def _figure(topology: Topology, container: Container, bridge: Link | None) -> Figure:
    link = port_of(topology, container, bridge.key) if bridge else None
    addresses = cells.addresses(link, with_length=False) if link else _reported_addresses(topology, container)
    facts = [cells.text(addresses)] if addresses else []
    ports = containers.published(topology, container, link)
    if ports:
        facts.append(cells.text(" ".join(ports)))
    if container.state != "running":
        facts.append(containers.state(container))
    return Figure(
        container_ref(container.runtime, container.id), safe(container.name), mark_of(topology, container),
        _tone(topology, container), tuple(facts), of_container(topology, container, link),
    )  # fmt: skip


def _reported_addresses(topology: Topology, container: Container) -> str:
    """Return the addresses of a container without a link on the rail in question."""
    addresses = topology.addresses_of(container)
    more = f" +{len(addresses) - 1}" if len(addresses) > 1 else ""
    return f"{addresses[0]}{more}" if addresses else ""


def _joined(topology: Topology, container: Container) -> Figure:
    return Figure(
        container_ref(container.runtime, container.id), safe(container.name), mark_of(topology, container),
        _tone(topology, container), (), of_container(topology, container, None),
    )  # fmt: skip


def mark_of(topology: Topology, container: Container) -> str:
    """Return the mark of a container's model."""
    card = topology.cards.get(container.uid)
    if containers.has_no_process(container):
        return STOPPED_MARK
    return MARKS.get(card.model, UNKNOWN_MARK) if card else UNKNOWN_MARK


def _tone(topology: Topology, container: Container) -> Tone:
    card = topology.cards.get(container.uid)
    if card is not None and card.joined_dead:
        return "bad"
    return "" if container.state == "running" else "dim"


def _rails_without_network(topology: Topology, shown: Iterable[Network]) -> list[Rail]:
    """Return the rails for containers without a network.

    They are closed, otherwise connected, or stopped.
    """
    placed = {member.uid for network in shown for member in topology.members(network)}
    placed |= {one.uid for one in topology.containers_in(topology.host)}
    closed: list[Container] = []
    elsewhere: list[Container] = []
    stopped: list[Container] = []
    unread: list[Container] = []
    cut_off: list[Container] = []
    for container in topology.containers.values():
        if container.uid in placed:
            continue
        card = topology.cards.get(container.uid)
        dead = card is not None and card.joined_dead
        if container.netns is None and not dead:
            stopped.append(container)
        elif dead:
            cut_off.append(container)
        else:
            by_model = {"closed": closed, "unknown": unread}
            by_model.get(card.model if card else "unknown", elsewhere).append(container)
    asides = (
        ("closed", "loopback link only, so no network", closed),
        ("no bridge", "connected without a bridge of this host", elsewhere),
        ("cut off", "the container whose network they share is gone", cut_off),
        ("unknown", "their namespaces couldn't be read", unread),
        ("not running", "no network namespace now", stopped),
    )
    return [
        Rail(name, None, name, (Cell(words, "dim"),), (), _cards(topology, found, None), drawn=False)
        for name, words, found in asides
        if found
    ]
