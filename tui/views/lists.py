"""Rows held as a plain tuple: the `Rows` of every list but the very large ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from core.model import Ref
from tui.views import query
from tui.views.formatting import width_of
from tui.views.rows import Cell, Column, Row

GAP = 2
_NARROWEST = 3
_ENOUGH = 24  # of a growing column, at most


@dataclass(frozen=True, slots=True)
class PlacedColumn:
    """A column with its index among the cells, its position and its width."""

    place: int
    column: Column
    start: int
    width: int


def lay_out(
    columns: Sequence[Column], width: int, needs: Mapping[int, int] | None = None
) -> tuple[PlacedColumn, ...]:
    """Fit columns into `width` cells.

    Those of high priority are dropped first; the rest of the width goes to those that grow. If even the
    others don't fit, growing columns shrink, and the last are dropped. `needs` are the widths of texts by
    column: no column gets more, and those that need more come first.
    """
    wanted = [_need(column, (needs or {}).get(place)) for place, column in enumerate(columns)]
    asked = [_limited(column, need) for column, need in zip(columns, wanted, strict=True)]
    kept = _dropped(list(enumerate(asked)), width)
    widths = [_full(column) for _, column in kept]
    _shrink(widths, kept, _room(kept, width))
    _satisfy(widths, kept, [wanted[place] for place, _ in kept], _room(kept, width) if needs else 0)
    _grow(widths, kept, _room(kept, width))
    placed, start = [], 0
    for (place, _), cells in zip(kept, widths, strict=True):
        placed.append(PlacedColumn(place, columns[place], start, cells))
        start += cells + GAP
    return tuple(placed)


def _fits(kept: list[tuple[int, Column]], width: int) -> bool:
    return sum(_full(column) for _, column in kept) <= _room(kept, width)


def _room(kept: list[tuple[int, Column]], width: int) -> int:
    """Return the cells that are left for the columns' texts."""
    return width - GAP * (len(kept) - 1)


def _dropped(columns: list[tuple[int, Column]], width: int) -> list[tuple[int, Column]]:
    """Return the columns to show: those never dropped, and others that fit."""
    kept: list[tuple[int, Column]] = []
    for each in sorted(columns, key=lambda each: (each[1].priority, each[0])):
        if each[1].priority == 0 or _fits([*kept, each], width):
            kept.append(each)
    kept.sort(key=lambda each: each[0])
    while len(kept) > 1 and sum(_least(column) for _, column in kept) > _room(kept, width):
        kept.pop()
    return kept


def _least(column: Column) -> int:
    """Return the least width at which a column is worth showing."""
    if not column.grow:
        return column.width
    return max(_NARROWEST, len(column.title), min(column.width * 3 // 5, _ENOUGH))


def _shrink(widths: list[int], kept: list[tuple[int, Column]], room: int) -> None:
    while sum(widths) > max(room, len(widths)):
        surplus = [width - _least(column) for width, (_, column) in zip(widths, kept, strict=True)]
        widths[surplus.index(max(surplus))] -= 1


def _limited(column: Column, need: int) -> Column:
    """Return the column, at most as wide as its texts need."""
    return replace(column, width=min(column.width, need), full=min(column.full, need))


def _full(column: Column) -> int:
    return max(column.width, column.full)


def _need(column: Column, texts: int | None) -> int:
    """Return the width that a column can use, with room for the heading's arrow."""
    if texts is None:
        return _full(column)
    need = max(len(column.title) + 2, texts)
    return need if column.grow else min(need, column.width)


def _satisfy(widths: list[int], kept: list[tuple[int, Column]], wanted: Sequence[int], room: int) -> None:
    """Give cells to columns that need more, one at a time, to the smallest share."""
    surplus = room - sum(widths)
    needy = [place for place, (_, column) in enumerate(kept) if column.grow]
    while surplus > 0 and (needy := [place for place in needy if widths[place] < wanted[place]]):
        poorest = min(needy, key=lambda place: (widths[place] / wanted[place], place))
        widths[poorest] += 1
        surplus -= 1


def _grow(widths: list[int], kept: list[tuple[int, Column]], room: int) -> None:
    surplus, shares = room - sum(widths), sum(column.grow for _, column in kept)
    if surplus <= 0 or not shares:
        return
    given = 0
    for place, (_, column) in enumerate(kept):
        given += column.grow
        widths[place] += surplus * given // shares - surplus * (given - column.grow) // shares


_DIGITS = re.compile(r"([0-9]{1,18})")
_BLANK = frozenset({"", "-", "–", "—"})

_MEASURED = 1000  # rows that determine the widths of columns

SortKey = tuple[int, float, tuple[tuple[int, int, str], ...]]


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key by which "veth2" precedes "veth10", ignoring case."""
    parts = _DIGITS.split(text.casefold())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def sort_key(cell: Cell) -> SortKey:
    """Return a sort key for a cell: numbers first, then text in natural order."""
    if cell.sort is not None:
        return (0, cell.sort, ())
    return (1, 0, natural(cell.text))


def is_blank(cell: Cell) -> bool:
    """Return whether a cell has no sort key; such rows come last in any order."""
    return cell.sort is None and cell.text.strip() in _BLANK


class ListRows:
    """An immutable list of rows.

    A row with a `depth` belongs to the last one of lesser depth.
    """

    __slots__ = ("_needs", "_places", "columns", "rows")

    def __init__(self, rows: Sequence[Row], columns: tuple[Column, ...]) -> None:
        self.rows = tuple(rows)
        self.columns = columns
        self._places: dict[Ref, int] | None = None
        self._needs: dict[int, int] | None = None

    def needs(self) -> dict[int, int]:
        """Return the widths of texts by column.

        Figures are left out, because they change all the time.
        """
        if self._needs is None:
            first = self.rows[:_MEASURED]
            deep = max((row.depth for row in first), default=0)
            self._needs = {
                place: max((width_of(row.cells[place].text) for row in first), default=0)
                + (2 * (deep + 1) if deep and not place else 0)
                for place, column in enumerate(self.columns)
                if column.align == "left"
            }
        return self._needs

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def row(self, index: int) -> Row:
        """Return the row at that index.

        Raises IndexError outside.
        """
        return self.rows[index]

    def keys(self) -> set[str]:
        """Return the keys that filters can use.

        They are columns by name or title, and terms of rows.
        """
        return self._term_keys() | query.titles(self.columns).keys()

    def _term_keys(self) -> set[str]:
        return {column.name for column in self.columns}.union(*(row.terms for row in self.rows))

    def index(self, ref: Ref) -> int | None:
        """Return the index of the row with that ref, None without one."""
        if self._places is None:
            self._places = {
                ref: place
                for place, row in reversed(list(enumerate(self.rows)))
                for ref in (*row.aliases, row.ref)
            }
        return self._places.get(ref)

    def sorted_by(self, column: str, reverse: bool) -> ListRows:
        """Sort by a column, stably; rows stay below the row that they belong to."""
        place = next((i for i, each in enumerate(self.columns) if each.name == column), None)
        if place is None:
            return self
        roots = _sorted_nodes(_forest(self.rows), lambda row: row.cells[place], reverse)
        return self._of([row for node in roots for row in node.walk()])

    def matching(self, text: str) -> ListRows:
        """Return the rows that match a filter, as deep as the matching rows above them."""
        terms = query.parse(text)
        if not terms:
            return self
        terms = query.by_name(terms, self.columns, self._term_keys())
        return self._of(list(_visible_rows(self.rows, lambda row: query.matches(terms, row, self.columns))))

    def folded(self, closed: Container[Ref]) -> ListRows:
        """Leave out the rows below those in `closed`."""
        kept, limit = [], None
        for row in self.rows:
            if limit is not None and row.depth > limit:
                continue
            limit = row.depth if row.ref in closed else None
            kept.append(row)
        return self._of(kept)

    def _of(self, rows: Sequence[Row]) -> ListRows:
        """Return some of these rows, with the column widths that all of them need."""
        some = ListRows(rows, self.columns)
        some._needs = self.needs()
        return some


def _places(rows: Sequence[Row]) -> dict[Ref, int]:
    places = {alias: place for place, row in enumerate(rows) for alias in row.aliases}
    return places | {row.ref: place for place, row in enumerate(rows)}


@dataclass(slots=True)
class _Node:
    row: Row
    children: list[_Node] = field(default_factory=list)

    def walk(self) -> Iterator[Row]:
        yield self.row
        for child in self.children:
            yield from child.walk()


def _forest(rows: Sequence[Row]) -> list[_Node]:
    """Return the rows as trees, by their depth."""
    roots: list[_Node] = []
    path: list[_Node] = []
    for row in rows:
        while path and path[-1].row.depth >= row.depth:
            path.pop()
        node = _Node(row)
        (path[-1].children if path else roots).append(node)
        path.append(node)
    return roots


def _sorted_nodes(nodes: list[_Node], cell: Callable[[Row], Cell], reverse: bool) -> list[_Node]:
    for node in nodes:
        if node.children:
            node.children = _sorted_nodes(node.children, cell, reverse)
    blank = [node for node in nodes if is_blank(cell(node.row))]
    full = [node for node in nodes if not is_blank(cell(node.row))]
    return sorted(full, key=lambda node: sort_key(cell(node.row)), reverse=reverse) + blank


def _visible_rows(rows: Sequence[Row], let_through: Callable[[Row], bool]) -> Iterator[Row]:
    path: list[tuple[int, bool]] = []
    for row in rows:
        while path and path[-1][0] >= row.depth:
            path.pop()
        kept = let_through(row)
        if kept:
            depth = sum(above for _, above in path)
            yield row if depth == row.depth else replace(row, depth=depth)
        path.append((row.depth, kept))
