"""The overview: networks as rails, drawn, or as a list when filtered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from core.model import Demand, Part, Ref
from core.topology import Topology
from tui.views import containers
from tui.views.lists import ListRows
from tui.views.rails import MARKS, UNKNOWN_MARK, Figure, Rail, rails
from tui.views.rails_drawing import EMPTY, Drawing, draw
from tui.views.rows import Cell, Column, ListView, Row, Tone, ViewContext

COLUMNS = (
    Column("name", "network / container", 22, grow=1),
    Column("model", "model", 9),
    Column("addr", "details", 30, grow=2),
    Column("goal", "uplink", 22, grow=1, priority=1),
)

Place = tuple[str, Ref]  # the key of a rail, and a thing on it


class RailRows(ListRows):
    """Rails as rows, in the order of the drawing's items.

    `places` distinguish the rows of a thing that is on several rails.
    """

    __slots__ = ("context", "places")

    def __init__(self, context: ViewContext, rows: Sequence[Row], places: Sequence[Place]) -> None:
        super().__init__(rows, COLUMNS)
        self.context = context
        self.places = tuple(places)

    def draw(self, width: int, height: int) -> Drawing:
        """Return the drawing for a space of that many cells; see `rails_drawing.draw`."""
        return draw(self.context, width, height)

    def sorted_by(self, column: str, reverse: bool) -> ListRows:
        """Return the rows themselves: a drawing has its own order."""
        return self

    def folded(self, closed: object) -> ListRows:
        """Return the rows themselves: nothing in a drawing is folded."""
        return self


def rows(context: ViewContext) -> ListRows:
    """Return each rail with its containers and its end.

    Nothing is returned before links are read.
    """
    if Part.LINKS in context.snapshot.pending:
        return ListRows((), COLUMNS)
    pairs = [pair for rail in rails(context.topology) for pair in _rail_rows(context.topology, rail)]
    return RailRows(context, [row for row, _ in pairs], [place for _, place in pairs])


def _rail_rows(topology: Topology, rail: Rail) -> Iterator[tuple[Row, Place]]:
    depth = 0
    if rail.ref is not None:
        depth = 1
        what = " ".join(cell.text for cell in (*rail.faults, *rail.facts))
        tone: Tone = rail.faults[0].tone if rail.faults else ""
        cells = (Cell(rail.name, tone), Cell("network", "dim"), Cell(what, tone), rail.uplink_cell)
        yield Row(rail.ref, cells, {"name": rail.name, "net": rail.name}), (rail.key, rail.ref)
    for card in rail.cards:
        for figure in card.figures:
            yield _figure_row(topology, figure, rail, depth), (rail.key, figure.ref)
    if rail.uplink_ref is not None:
        cells = (Cell("uplink"), Cell("", "dim"), Cell(""), rail.uplink_cell)
        yield Row(rail.uplink_ref, cells, {"net": rail.name}, depth), (rail.key, rail.uplink_ref)


def _figure_row(topology: Topology, figure: Figure, rail: Rail, depth: int) -> Row:
    what = " ".join(cell.text for cell in (*figure.faults, *figure.facts))
    tone: Tone = figure.faults[0].tone if figure.faults else figure.tone
    model = next((name for name, mark in MARKS.items() if mark == figure.mark), "")
    model = "unknown" if figure.mark == UNKNOWN_MARK else model
    return Row(
        figure.ref,
        (Cell(figure.name, tone), Cell(f"{figure.mark} {model}".strip()), Cell(what, tone), Cell("")),
        {"name": figure.name, "ct": figure.name, "ns": figure.name, "net": rail.name}
        | _terms(topology, figure),
        depth,
    )


def _terms(topology: Topology, figure: Figure) -> dict[str, str]:
    """Filter terms of the containers view."""
    container = topology.containers.get(":".join(map(str, figure.ref.key)))
    if container is None:
        return {}
    addresses = " ".join(topology.addresses_of(container))
    known = containers.terms(topology, container, "", addresses)
    return {key: known[key] for key in ("addr", "port", "proto", "state")}


VIEW = ListView(
    "overview", "Overview", ("over", "ov", "home", "topology"), COLUMNS, rows,
    empty="\n".join(EMPTY),
    help=(
        ("j k", "to the next or previous network (rail), or row of it"),
        ("h l", "along a rail: network, containers, uplink"),
        ("◆ ◇ ◐ □ ■", "bridged, routed, joined, closed and open containers"),
        ("/ word", "show the overview as a filtered list"),
    ),
    demand=frozenset({Demand.RATES}),
)  # fmt: skip
