"""The links view: every link of every namespace."""

from __future__ import annotations

from core.model import Link, Ref, link_ref
from core.rates import Rates
from core.text import safe
from core.topology import Topology
from tui.present import cells
from tui.present.link_detail import common_sections, gone, link_of
from tui.present.list_rows import ListRows
from tui.present.rows import Column, Detail, ListView, Row
from tui.present.scene import Scene

COLUMNS = (
    Column("name", "name", 16, grow=1),
    Column("ns", "namespace", 14, grow=1),
    Column("kind", "kind", 9),
    Column("state", "state", 10),
    Column("master", "master", 12, priority=3),
    Column("addr", "addresses", 18, grow=1, priority=1),
    Column("mtu", "mtu", 5, align="right", priority=4),
    Column("mac", "mac", 17, priority=6),
    Column("rx", "receives", 11, align="right", priority=2),
    Column("tx", "sends", 11, align="right", priority=2),
    Column("trend", "trend", 8, priority=5),
)


def rows(scene: Scene) -> ListRows:
    """Every link, the host's first."""
    topology = scene.topology
    spaces = sorted(scene.snapshot.nets, key=lambda ns: (ns != topology.host, topology.label(ns)))
    return ListRows([_row(scene, link) for ns in spaces for link in _ordered(scene, ns)], COLUMNS)


def _ordered(scene: Scene, ns: int) -> list[Link]:
    return sorted(scene.snapshot.nets[ns].links.values(), key=lambda link: link.ifindex)


def _row(scene: Scene, link: Link) -> Row:
    master = scene.topology.master_of(link)
    rate = scene.rate(link.key)
    return Row(
        link_ref(link.key),
        (
            cells.text(link.name), cells.text(scene.topology.label(link.ns)), cells.text(link.kind),
            cells.state(link), cells.text(master.name if master else ""), cells.text(cells.addresses(link)),
            cells.number(link.mtu), cells.text(link.mac), cells.bits(rate.rx_bps if rate else None),
            cells.bits(rate.tx_bps if rate else None), cells.carried(scene.carried(link.key))[1],
        ),
        terms(scene.topology, link),
    )  # fmt: skip


def terms(topology: Topology, link: Link) -> dict[str, str]:
    """What filters may ask of a link beyond its cells."""
    container = topology.container_of(link.ns)
    network = topology.network_of(link)
    return {
        "name": safe(" ".join((link.name, *link.altnames))),
        "ns": safe(topology.label(link.ns)),
        "ct": safe(container.name) if container else "",
        "net": safe(network.name) if network else "",
        "kind": safe(link.kind),
        "state": "up" if link.state == "up" else safe(link.state),
        "addr": safe(cells.addresses(link)),
        "mac": link.mac,
        "mtu": str(link.mtu),
        "alias": safe(link.alias),
    }


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Everything about one link."""
    link = link_of(topology, ref)
    if link is None:
        return gone("this link")
    return Detail(
        f"{safe(link.name)} in {safe(topology.label(link.ns))}",
        common_sections(topology, link, rates),
        cells.related(topology, ref),
    )


VIEW = ListView(
    "links", "Links", ("link", "if"), COLUMNS, rows,
    empty="No link is in sight. Every namespace has at least its loopback: reading has not ended, or rights "
    "are missing.",
    help=(
        ("kind:veth", "links of one kind"),
        ("state:down", "links that are down"),
        ("mac:02:42", "by hardware address"),
    ),
)  # fmt: skip
