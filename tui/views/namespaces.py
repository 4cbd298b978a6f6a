"""The namespaces view: each network namespace, its containers and its holders."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import Namespace, NetState, Ref, container_ref, link_ref, namespace_ref
from core.rates import Rates
from core.text import safe
from core.topology import Topology
from tui.views import cells
from tui.views.cells import Line
from tui.views.links import missing_detail
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Detail, ListView, Row, ViewContext

_NOT_ENTERED = Cell("no path can be reached from here", "warn")

COLUMNS = (
    Column("name", "namespace", 18, grow=1),
    Column("kind", "held by", 15),
    Column("ct", "containers", 16, grow=1, priority=3),
    Column("links", "links", 5, align="right"),
    Column("addr", "addresses", 20, grow=2, priority=1),
    Column("pids", "processes", 9, align="right", priority=2),
    Column("unit", "command / unit", 16, grow=1, priority=4),
    Column("nsid", "nsid", 4, align="right", priority=5),
    Column("inode", "inode", 10, align="right", priority=1),
)
_SHOWN = 50


def rows(context: ViewContext) -> ListRows:
    """Return every namespace, the host's first."""
    topology = context.topology
    found = sorted(
        context.snapshot.namespaces.values(),
        key=lambda space: (space.inode != topology.host, topology.label(space.inode)),
    )
    return ListRows([_row(topology, space) for space in found], COLUMNS)


def _row(topology: Topology, space: Namespace) -> Row:
    net = topology.snapshot.nets.get(space.inode)
    containers = " ".join(each.name for each in topology.containers_in(space.inode))
    return Row(
        namespace_ref(space.inode),
        (
            cells.text(topology.label(space.inode)), held_by(topology, space), cells.text(containers),
            cells.number(len(net.links)) if net and net.links else Cell("?", "warn"),
            cells.text(_addresses(net)),
            cells.number(len(space.pids)), cells.text(space.unit or space.command),
            Cell(str(space.nsid), sort=space.nsid) if space.nsid is not None else cells.NONE,
            Cell(str(space.inode), "dim", space.inode),
        ),
        {
            "name": safe(" ".join((topology.label(space.inode), *space.names))),
            "ns": safe(topology.label(space.inode)),
            "ct": safe(containers),
            "pid": " ".join(map(str, space.pids)),
            "kind": held_by(topology, space).text,
            "addr": safe(_addresses(net)),
        },
    )  # fmt: skip


def held_by(topology: Topology, space: Namespace) -> Cell:
    """Return the cell of what keeps a namespace alive."""
    container = topology.container_of(space.inode)
    if space.inode == topology.host:
        return Cell("the host")
    if container is not None and container.runtime in ("docker", "podman"):
        return Cell(f"{safe(container.runtime)} container")
    if space.names:
        return Cell("ip netns name")
    if space.pids:
        return Cell("process")
    if space.mounts:
        return Cell("a mount only")
    return Cell("a descriptor", "warn") if space.held_fds else Cell("unknown", "dim")


def _addresses(net: NetState | None) -> str:
    if net is None:
        return ""
    texts = (cells.addresses(link) for link in net.links.values() if link.kind != "loopback")
    return " ".join(filter(None, texts))


def detail(topology: Topology, ref: Ref, rates: Rates | None = None) -> Detail:
    """Return the details of a namespace."""
    space = topology.snapshot.namespaces.get(int(ref.key[0]))
    if space is None:
        return missing_detail("this namespace")
    return Detail(
        f"namespace {safe(topology.label(space.inode))}",
        (
            *cells.section("Containers", _containers(topology, space)),
            *cells.section("Default routes", _default_routes(topology, space)),
            *cells.section("Links", _links(topology, space)),
            *cells.section("Namespace", _identity(topology, space)),
            *cells.section("Held by", _holders(space)),
            *cells.section(
                "Not read",
                (
                    (safe(one.what), cells.text(f"{one.why}; {one.try_}".strip("; "), "warn"), None)
                    for one in topology.snapshot.problems
                    if one.ns == space.inode
                ),
            ),
        ),
        cells.related(topology, ref),
    )


def _identity(topology: Topology, space: Namespace) -> Iterator[Line]:
    yield "inode", Cell(f"net:[{space.inode}]"), None
    for name in space.names:
        yield "name", cells.text(name), None
    yield "held by", held_by(topology, space), None
    if space.nsid is not None:
        yield "nsid", Cell(str(space.nsid)), None
    if space.command:
        yield "first process", cells.text(f"{space.command} ({space.pids[0] if space.pids else '?'})"), None
    if space.unit:
        yield "unit", cells.text(space.unit), None
    entry = cells.text(space.entry) if space.entry else _NOT_ENTERED
    yield "entered through", entry, None


def _containers(topology: Topology, space: Namespace) -> Iterator[Line]:
    for each in topology.containers_in(space.inode):
        card = topology.cards.get(each.uid)
        words = ", ".join(filter(None, (each.runtime, card.model if card else "", each.state)))
        yield safe(each.name), cells.text(words), container_ref(each.runtime, each.id)


def _links(topology: Topology, space: Namespace) -> Iterator[Line]:
    net = topology.snapshot.nets.get(space.inode)
    for link in net.links.values() if net else ():
        state = cells.state(link)
        words = ", ".join(filter(None, (link.kind, state.text, cells.addresses(link))))
        yield (
            safe(link.name),
            cells.text(words, state.tone if state.tone == "bad" else ""),
            link_ref(link.key),
        )


def _default_routes(topology: Topology, space: Namespace) -> Iterator[Line]:
    net = topology.snapshot.nets.get(space.inode)
    for route in net.routes if net else ():
        if route.dst == "default":
            for hop in route.nexthops:
                link = topology.snapshot.link((space.inode, hop.ifindex or 0))
                words = f"{hop.gateway or 'directly'}{f' dev {link.name}' if link else ''}"
                yield f"default IPv{route.family}", cells.text(words), link_ref(link.key) if link else None


def _holders(space: Namespace) -> Iterator[Line]:
    if space.pids:
        more = f" and {len(space.pids) - _SHOWN} more" if len(space.pids) > _SHOWN else ""
        yield "processes", Cell(" ".join(map(str, space.pids[:_SHOWN])) + more), None
    for mount in space.mounts:
        yield "mount", cells.text(mount), None
    for pid, fd in space.held_fds[:_SHOWN]:
        yield "descriptor", Cell(f"{fd} of process {pid}"), None


VIEW = ListView(
    "namespaces", "Namespaces", ("ns", "namespace", "netns"), COLUMNS, rows,
    empty="No namespace has been read yet; there is always at least the host's.",
    help=(
        ("pid:1234", "the namespace of a process"),
        ("ct:NAME", "the namespace of a container"),
        ('kind:"a mount only"', "namespaces without a process"),
    ),
)  # fmt: skip
