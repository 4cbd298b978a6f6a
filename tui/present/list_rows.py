"""Rows held as a plain tuple: the `Rows` of every list but the very large ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace

from core.model import Ref
from tui.present import query
from tui.present.fitting import width_of
from tui.present.rows import Cell, Column, Row

_DIGITS = re.compile(r"([0-9]{1,18})")
_BLANK = frozenset({"", "-", "–", "—"})

_MEASURED = 1000  # rows whose texts decide how wide the columns are

SortKey = tuple[int, float, tuple[tuple[int, int, str], ...]]


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key by which "veth2" comes before "veth10", whatever the case."""
    parts = _DIGITS.split(text.casefold())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def sort_key(cell: Cell) -> SortKey:
    """A sort key for a cell: numbers first, then text in natural order."""
    if cell.sort is not None:
        return (0, cell.sort, ())
    return (1, 0, natural(cell.text))


def is_blank(cell: Cell) -> bool:
    """Whether the cell has nothing to sort by; such rows stand last in either direction."""
    return cell.sort is None and cell.text.strip() in _BLANK


class ListRows:
    """An immutable list of rows, in order; a row with a `depth` stands under the last one of lesser depth."""

    __slots__ = ("_needs", "_places", "columns", "rows")

    def __init__(self, rows: Sequence[Row], columns: tuple[Column, ...]) -> None:
        self.rows = tuple(rows)
        self.columns = columns
        self._places: dict[Ref, int] | None = None
        self._needs: dict[int, int] | None = None

    def needs(self) -> dict[int, int]:
        """How wide the texts of each column are, by the column's place; not those of figures, which change
        all the time."""
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
        """The row at that place; raises IndexError outside."""
        return self.rows[index]

    def keys(self) -> set[str]:
        """What a filter may ask for: the columns, by name or title, and the rows' further terms."""
        return self._term_keys() | query.titles(self.columns).keys()

    def _term_keys(self) -> set[str]:
        return {column.name for column in self.columns}.union(*(row.terms for row in self.rows))

    def index(self, ref: Ref) -> int | None:
        """Where that thing stands, None where it does not."""
        if self._places is None:
            self._places = {
                ref: place
                for place, row in reversed(list(enumerate(self.rows)))
                for ref in (*row.aliases, row.ref)
            }
        return self._places.get(ref)

    def sorted_by(self, column: str, reverse: bool) -> ListRows:
        """The same rows ordered by a column, stably; what is folded under a row stays under it."""
        place = next((i for i, each in enumerate(self.columns) if each.name == column), None)
        if place is None:
            return self
        roots = _sorted_nodes(_forest(self.rows), lambda row: row.cells[place], reverse)
        return self._of([row for node in roots for row in node.walk()])

    def matching(self, text: str) -> ListRows:
        """Those rows that a filter lets through, as deep as those above them that it lets through too."""
        terms = query.parse(text)
        if not terms:
            return self
        terms = query.by_name(terms, self.columns, self._term_keys())
        return self._of(list(_kept(self.rows, lambda row: query.matches(terms, row, self.columns))))

    def folded(self, closed: Container[Ref]) -> ListRows:
        """Without what stands under the rows in `closed`."""
        kept, limit = [], None
        for row in self.rows:
            if limit is not None and row.depth > limit:
                continue
            limit = row.depth if row.ref in closed else None
            kept.append(row)
        return self._of(kept)

    def _of(self, rows: Sequence[Row]) -> ListRows:
        """Some of these rows; the columns keep the widths that all of them need."""
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
    """The rows as trees, by their depth."""
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


def _kept(rows: Sequence[Row], let_through: Callable[[Row], bool]) -> Iterator[Row]:
    path: list[tuple[int, bool]] = []
    for row in rows:
        while path and path[-1][0] >= row.depth:
            path.pop()
        kept = let_through(row)
        if kept:
            depth = sum(above for _, above in path)
            yield row if depth == row.depth else replace(row, depth=depth)
        path.append((row.depth, kept))
