"""Which columns a given width has room for, and how wide each becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tui.present.rows import Column

GAP = 2
_NARROWEST = 3
_ENOUGH = 24  # of a growing column, however wide it would like to be


@dataclass(frozen=True, slots=True)
class Placed:
    """A column that has room: its place among the row's cells, where it starts, how wide it is."""

    place: int
    column: Column
    start: int
    width: int


def lay_out(
    columns: Sequence[Column], width: int, needs: Mapping[int, int] | None = None
) -> tuple[Placed, ...]:
    """The columns for `width` cells: those of high priority drop out first, what is left over goes to those
    that grow; where even the rest does not fit, those that grow shrink
    somewhat, and the last drop out. `needs` says how wide the texts of columns are, by the column's
    place: no column asks for more than that, and room goes first to those whose texts do not fit yet."""
    wanted = [_need(column, (needs or {}).get(place)) for place, column in enumerate(columns)]
    asked = [_asked(column, need) for column, need in zip(columns, wanted, strict=True)]
    kept = _dropped(list(enumerate(asked)), width)
    widths = [_full(column) for _, column in kept]
    _shrink(widths, kept, _room(kept, width))
    _satisfy(widths, kept, [wanted[place] for place, _ in kept], _room(kept, width) if needs else 0)
    _grow(widths, kept, _room(kept, width))
    placed, start = [], 0
    for (place, _), cells in zip(kept, widths, strict=True):
        placed.append(Placed(place, columns[place], start, cells))
        start += cells + GAP
    return tuple(placed)


def _fits(kept: list[tuple[int, Column]], width: int) -> bool:
    return sum(_full(column) for _, column in kept) <= _room(kept, width)


def _room(kept: list[tuple[int, Column]], width: int) -> int:
    """The cells that are left for the columns themselves."""
    return width - GAP * (len(kept) - 1)


def _dropped(columns: list[tuple[int, Column]], width: int) -> list[tuple[int, Column]]:
    """Those that stay: all that are never dropped, and of the others each that still has room."""
    kept: list[tuple[int, Column]] = []
    for each in sorted(columns, key=lambda each: (each[1].priority, each[0])):
        if each[1].priority == 0 or _fits([*kept, each], width):
            kept.append(each)
    kept.sort(key=lambda each: each[0])
    while len(kept) > 1 and sum(_least(column) for _, column in kept) > _room(kept, width):
        kept.pop()
    return kept


def _least(column: Column) -> int:
    """The cells below which a column says too little to be there."""
    if not column.grow:
        return column.width
    return max(_NARROWEST, len(column.title), min(column.width * 3 // 5, _ENOUGH))


def _shrink(widths: list[int], kept: list[tuple[int, Column]], room: int) -> None:
    while sum(widths) > max(room, len(widths)):
        surplus = [width - _least(column) for width, (_, column) in zip(widths, kept, strict=True)]
        widths[surplus.index(max(surplus))] -= 1


def _asked(column: Column, need: int) -> Column:
    """The column as it asks for room: no more than its texts need."""
    return replace(column, width=min(column.width, need), full=min(column.full, need))


def _full(column: Column) -> int:
    return max(column.width, column.full)


def _need(column: Column, texts: int | None) -> int:
    """The cells that a column makes use of; a heading wants room for its arrow as well."""
    if texts is None:
        return _full(column)
    need = max(len(column.title) + 2, texts)
    return need if column.grow else min(need, column.width)


def _satisfy(widths: list[int], kept: list[tuple[int, Column]], wanted: Sequence[int], room: int) -> None:
    """Give to those that need more, a cell at a time: to the one that has least for its share."""
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
