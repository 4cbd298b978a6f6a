"""The overview: the host's networks as rails, a drawing that is a list wherever it is filtered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from core.model import Ref
from core.topology import Topology
from tui.present import containers
from tui.present.lists import ListRows
from tui.present.rails import MARKS, UNKNOWN_MARK, Figure, Rail, rails
from tui.present.rails_drawing import EMPTY, Picture, draw
from tui.present.rows import Cell, Column, ListView, Row, Tone
from tui.present.scene import Scene

COLUMNS = (
    Column("name", "network / container", 22, grow=1),
    Column("model", "model", 9),
    Column("addr", "what", 30, grow=2),
    Column("goal", "way out", 22, grow=1, priority=1),
)

Place = tuple[str, Ref]  # the key of a rail, and a thing on it


class RailRows(ListRows):
    """The rails as rows, in the order of the items of their picture; `places` tell apart the rows of a thing
    that is on several rails."""

    __slots__ = ("places", "scene")

    def __init__(self, scene: Scene, rows: Sequence[Row], places: Sequence[Place]) -> None:
        super().__init__(rows, COLUMNS)
        self.scene = scene
        self.places = tuple(places)

    def draw(self, width: int, height: int) -> Picture:
        """The picture for a space of that many cells; see `rails_drawing.draw`."""
        return draw(self.scene, width, height)

    def sorted_by(self, column: str, reverse: bool) -> ListRows:
        """The rows themselves: a drawing has its own order."""
        return self

    def folded(self, closed: object) -> ListRows:
        """The rows themselves: nothing in a drawing is folded."""
        return self


def rows(scene: Scene) -> ListRows:
    """Each rail, what hangs from it, and where it ends; nothing before the first links were read."""
    if "links" in scene.snapshot.pending:
        return ListRows((), COLUMNS)
    pairs = [pair for rail in rails(scene.topology) for pair in _rail_rows(scene.topology, rail)]
    return RailRows(scene, [row for row, _ in pairs], [place for _, place in pairs])


def _rail_rows(topology: Topology, rail: Rail) -> Iterator[tuple[Row, Place]]:
    depth = 0
    if rail.ref is not None:
        depth = 1
        what = " ".join(cell.text for cell in (*rail.faults, *rail.facts))
        tone: Tone = rail.faults[0].tone if rail.faults else ""
        cells = (Cell(rail.name, tone), Cell("network", "dim"), Cell(what, tone), rail.goal)
        yield Row(rail.ref, cells, {"name": rail.name, "net": rail.name}), (rail.key, rail.ref)
    for card in rail.cards:
        for figure in card.figures:
            yield _figure_row(topology, figure, rail, depth), (rail.key, figure.ref)
    if rail.goal_ref is not None:
        cells = (Cell("way out"), Cell("", "dim"), Cell(""), rail.goal)
        yield Row(rail.goal_ref, cells, {"net": rail.name}, depth), (rail.key, rail.goal_ref)


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
    """What the list of containers can be filtered by as well."""
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
        ("j k", "from rail to rail, and between the rows of a rail"),
        ("h l", "along a rail: the network, its containers, its way out"),
        ("◆ ◇ ◐ □ ■", "bridged, routed, joined, closed and open containers"),
        ("/ word", "the same as a list, filtered"),
    ),
)  # fmt: skip
